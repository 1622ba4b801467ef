"""One run writes an output at a time: a lease, which conditional writes decide, and no clock.

OUTPUT/_leases/ has a file for every run, numbered from 1. Whoever creates the next number holds the output: of two
that try, storage refuses one. The holder alone writes to its file, to show that it lives and how it ended, and files
are never removed. So the numbers are the order of the runs: they are their sequence numbers, as in Iceberg.

A run that lives is not disturbed. One whose file has not changed for a while, or whose process is gone, is taken over
by creating the next number. It may not know of that yet: each of its tasks asks, after it has written the statistics
of a part and before it commits the masks. So whatever it can still commit afterwards has its statistics there when
the next run looks, which waits for it (`parts.reconcile`).
"""

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from pipeline import storage
from pipeline.console import log
from pipeline.errors import UserError

FOLDER = "_leases"
NAME = re.compile(r"(\d{8})\.json")
RENEW_EVERY = 5.0  # seconds
EXPIRES_AFTER = 30.0  # seconds without a change
# Seconds until a file that another run has written at the same moment is there. OpenStack Swift looks whether there is
# one before it writes, so that two may succeed; other stores ignore the condition, and then a run may be far behind.
SETTLES_IN, SETTLES_WITHOUT_CONDITIONS = 0.5, 5.0
LOOK_EVERY = 1.0  # seconds

_held: set[str] = set()  # nonces of the leases of this process


class LeaseLost(UserError):
    """Another run has taken the output over."""


class Record(BaseModel):
    """The content of a lease file."""

    run_id: str
    nonce: str
    host: str
    machine: str | None  # since its last start, and its process ids' namespace; None: it does not tell
    pid: int
    started: str | None  # when the process was, in ticks of that machine
    began_at: datetime  # for people; nothing is decided by it
    renewals: int = 0
    state: Literal["held", "ended", "failed"] = "held"

    def __str__(self) -> str:
        return f"run {self.run_id} on {self.host} (process {self.pid}, since {self.began_at:%Y-%m-%d %H:%M:%S} UTC)"


@dataclass(frozen=True)
class Claim:
    """Identifies a run's lease, so that the run's tasks can check that it is still held."""

    output: str
    sequence: int
    nonce: str

    def require(self) -> None:
        """Ask storage whether the lease is still this run's.

        Raises: LeaseLost; UserError where storage does not answer.
        """
        own, following = _read(self.output, self.sequence, self.sequence + 1)
        if following is not None:
            raise LeaseLost(f"output {self.output} was taken over by {following}; this run has stopped writing to it")
        if own is None or own.nonce != self.nonce:
            other = f"was written by {own}" if own else "is gone"
            raise LeaseLost(
                f"{_uri(self.output, self.sequence)}, this run's lease, {other}; this run has stopped writing to the "
                "output; run the same command again when no other run writes to it"
            )


class Lease:
    """A lease that this process holds, and renews from a thread. Made by `hold`."""

    def __init__(self, claim: Claim, record: Record) -> None:
        self.claim, self._record = claim, record
        self.run_id = record.run_id
        self.since = time.monotonic()
        self._lost: LeaseLost | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Raise LeaseLost if the renewing thread has found that out; asks nobody."""
        if self._lost is not None:
            raise self._lost

    def require(self) -> None:
        """Ask storage, as Claim does; for the driver, before it deletes anything and before it says how it ended."""
        self.look()
        self.claim.require()

    def end(self, state: Literal["ended", "failed"]) -> None:
        """Renew no more, and say so to the next run, which need not wait then. Not being able to is no failure."""
        self._ending.set()
        self._thread.join()
        try:
            self.require()
            self._write(state)
        except LeaseLost:
            pass  # whoever has taken over knows
        except UserError as error:
            log(f"the lease of run {self.run_id} was not given back; the next run waits for it to expire: {error}")

    def _keep_renewing(self) -> None:
        while not self._ending.wait(RENEW_EVERY):
            try:
                self.claim.require()
                self._write("held")
            except LeaseLost as error:
                self._lost = error
                return
            except UserError:
                continue  # storage may answer the next time; whoever commits asks for itself

    def _write(self, state: Literal["held", "ended", "failed"]) -> None:
        self._record = self._record.model_copy(update={"renewals": self._record.renewals + 1, "state": state})
        storage.write_bytes(_uri(self.claim.output, self.claim.sequence), _content(self._record))


@contextmanager
def hold(output: str) -> Iterator[Lease]:
    """Hold an output's lease while the block runs.

    Waits for a run that may have died, 30 seconds at most.

    Raises: UserError where another run is writing, which it names.
    """
    nonce = secrets.token_hex(8)
    _held.add(nonce)
    try:
        while True:
            latest = _latest(output)
            if latest:
                _wait_for_its_end(output, latest)
            claim, record = Claim(output, latest + 1, nonce), _record(latest + 1, nonce)
            if _create(claim, record):
                break
        lease = Lease(claim, record)
        try:
            yield lease
        except BaseException:
            lease.end("failed")
            raise
        lease.end("ended")
    finally:
        _held.discard(nonce)


def sequence_of(run_id: str) -> int:
    """The sequence number of a run; 0 for runs from before there were any."""
    found = re.fullmatch(r"\d{8}T\d{6}-r(\d+)", run_id)
    return int(found[1]) if found else 0


def _record(sequence: int, nonce: str) -> Record:
    now, pid = datetime.now(UTC), os.getpid()
    run_id = f"{now:%Y%m%dT%H%M%S}-r{sequence}"
    host, machine = socket.gethostname(), _machine()
    return Record(run_id=run_id, nonce=nonce, host=host, machine=machine, pid=pid, started=_started(pid), began_at=now)


def _create(claim: Claim, record: Record) -> bool:
    """Create the lease's file; False where another run was faster."""
    uri, content = _uri(claim.output, claim.sequence), _content(record)
    if storage.create_bytes(uri, content) and not storage.is_local(uri):
        ignores_conditions = storage.create_bytes(uri, content)
        time.sleep(SETTLES_WITHOUT_CONDITIONS if ignores_conditions else SETTLES_IN)
    # Of several runs whose files were taken the last one's is there. And where the answer to a first try was lost,
    # storage has refused the second one.
    (there,) = _read(claim.output, claim.sequence)
    return there is not None and there.nonce == record.nonce


def _latest(output: str) -> int:
    """The highest number, 0 if there is none. A listing that lags behind is made up for."""
    names = (uri.rpartition("/")[2] for uri in storage.find(storage.join(output, FOLDER)))
    latest = max((int(found[1]) for name in names if (found := NAME.fullmatch(name))), default=0)
    while _read(output, latest + 1)[0] is not None:
        latest += 1
    return latest


def _wait_for_its_end(output: str, sequence: int) -> None:
    """Return when the run has ended or died. Raises UserError when it lives."""
    (first,) = _read(output, sequence)
    if first is None or first.state != "held":
        return
    is_alive = _is_alive(first)
    end = time.monotonic() + EXPIRES_AFTER
    if is_alive is None:
        log(f"{first} was writing to this output; waiting {EXPIRES_AFTER:g} s at most to see whether it lives")
    while is_alive is None and time.monotonic() < end:
        time.sleep(LOOK_EVERY)
        (now,) = _read(output, sequence)
        if now is None or now.state != "held":
            return
        is_alive = True if now != first else None
    if is_alive:
        raise UserError(
            f"output {output} is being written by {first}; one run writes to an output at a time: wait until it ends, "
            "or stop it, or choose another --output"
        )
    log(f"{first} ended without a word; going on in its place")


def _is_alive(record: Record) -> bool | None:
    """Return whether the process that holds a lease is running; None if this machine cannot tell."""
    if record.machine is None or record.machine != _machine():
        return None
    if record.pid == os.getpid() and record.started == _started(record.pid):
        return record.nonce in _held
    return _started(record.pid) == record.started


def _machine() -> str | None:
    """This machine since its last start, and the namespace of process ids, which containers have one each of."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None  # no Linux


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in ticks; None where there is none, or a dead one."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]


def _uri(output: str, sequence: int) -> str:
    return storage.join(output, FOLDER, f"{sequence:08d}.json")


def _content(record: Record) -> bytes:
    return record.model_dump_json(indent=1).encode()


def _read(output: str, *sequences: int) -> list[Record | None]:
    """Leases by number, None for those that are not there. Raises UserError."""
    uris = [_uri(output, sequence) for sequence in sequences]
    records: list[Record | None] = []
    for uri, found in zip(uris, storage.fetch(uris), strict=True):
        if isinstance(found, FileNotFoundError):
            records.append(None)
            continue
        with storage.explained(uri):
            if isinstance(found, Exception):
                raise found
        try:
            records.append(Record.model_validate_json(found))
        except ValidationError:
            raise UserError(f"{uri}: is not a lease; remove it if no run writes to this output") from None
    return records
