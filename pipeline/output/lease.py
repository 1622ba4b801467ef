"""Lease of an output: one run writes to an output at a time, as decided by conditional writes and not by clocks.

OUTPUT/_leases/ has one file per run, numbered from 1. The run that creates the next number holds the lease: if two
runs try, storage refuses one of them. Only the holder writes to its file, to show that it is alive and how it ended.
Files are never removed, so the numbers are the order of the runs: they are sequence numbers, as in Apache Iceberg.

A live run is not disturbed. If the file of a run has not changed for a while, or its process is gone, the next run
takes over by creating the next number. The former run may not know that yet, so each of its tasks checks the lease
after it has written the statistics of a part and before it commits the masks. Whatever it can still commit afterwards
therefore has its statistics in the output when the next run looks, and that run waits for it (`Reconciled.in_doubt`).
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
# Seconds until a lease that another run writes at the same moment is visible. OpenStack Swift checks for an existing
# object before it writes, so two runs may both succeed. Stores that ignore the condition need more time, because the
# other run may be far behind.
SETTLES_IN, SETTLES_WITHOUT_CONDITIONS = 0.5, 5.0
LOOK_EVERY = 1.0  # seconds

_held: set[str] = set()  # nonces of the leases that this process holds


class LeaseLost(UserError):
    """Error of a run whose output another run has taken over."""


class Record(BaseModel):
    """Content of a lease file."""

    run_id: str
    nonce: str
    host: str
    machine: str | None  # boot id and PID namespace; None if unknown
    pid: int
    started: str | None  # start time of the process, in clock ticks since that machine booted
    began_at: datetime  # only for display: no decision depends on a clock
    renewals: int = 0
    state: Literal["held", "ended", "failed"] = "held"

    def __str__(self) -> str:
        return f"run {self.run_id} on {self.host} (process {self.pid}, since {self.began_at:%Y-%m-%d %H:%M:%S} UTC)"


@dataclass(frozen=True)
class Claim:
    """Identity of a run's lease, with which the tasks of the run check that it is still held."""

    output: str
    sequence: int
    nonce: str

    def require(self) -> None:
        """Check with storage that this run still holds the lease.

        Raises: LeaseLost if it does not; UserError if storage cannot be read.
        """
        own, following = _read(self.output, self.sequence, self.sequence + 1)
        if following is not None:
            raise LeaseLost(f"output {self.output} was taken over by {following}; this run has stopped writing to it")
        if own is None or own.nonce != self.nonce:
            other = f"was overwritten by {own}" if own else "is missing"
            raise LeaseLost(
                f"{_uri(self.output, self.sequence)}: this run's lease {other}; this run has stopped writing to the "
                "output. Run the same command again when no other run is writing to it"
            )


class Lease:
    """Lease that this process holds and renews from a thread; created by `hold`."""

    def __init__(self, claim: Claim, record: Record) -> None:
        self.claim, self._record = claim, record
        self.run_id = record.run_id
        self.since = time.monotonic()
        self._lost: LeaseLost | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Raise LeaseLost if the renewing thread has noticed the loss; does not access storage."""
        if self._lost is not None:
            raise self._lost

    def require(self) -> None:
        """Check with storage, as Claim does; for the driver, before it deletes anything or reports how it ended."""
        self.look()
        self.claim.require()

    def end(self, state: Literal["ended", "failed"]) -> None:
        """Stop renewing and release the lease (best effort), so that the next run need not wait for it to expire."""
        self._ending.set()
        self._thread.join()
        try:
            self.require()
            self._write(state)
        except LeaseLost:
            pass  # the run that took over does not wait for this one
        except UserError as error:
            log(f"could not release the lease of run {self.run_id}; the next run waits until it expires: {error}")

    def _keep_renewing(self) -> None:
        while not self._ending.wait(RENEW_EVERY):
            try:
                self.claim.require()
                self._write("held")
            except LeaseLost as error:
                self._lost = error
                return
            except UserError:
                continue  # storage may respond the next time, and every commit checks the lease itself

    def _write(self, state: Literal["held", "ended", "failed"]) -> None:
        self._record = self._record.model_copy(update={"renewals": self._record.renewals + 1, "state": state})
        storage.write_bytes(_uri(self.claim.output, self.claim.sequence), _content(self._record))


@contextmanager
def hold(output: str) -> Iterator[Lease]:
    """Hold an output's lease while the block runs.

    Waits up to 30 seconds for an earlier run that may have crashed.

    Raises: UserError, which names the other run, if another run is writing.
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
    """Return the sequence number of a run; 0 for a run of an earlier version, which had none."""
    found = re.fullmatch(r"\d{8}T\d{6}-r(\d+)", run_id)
    return int(found[1]) if found else 0


def _record(sequence: int, nonce: str) -> Record:
    now, pid = datetime.now(UTC), os.getpid()
    run_id = f"{now:%Y%m%dT%H%M%S}-r{sequence}"
    host, machine = socket.gethostname(), _machine()
    return Record(run_id=run_id, nonce=nonce, host=host, machine=machine, pid=pid, started=_started(pid), began_at=now)


def _create(claim: Claim, record: Record) -> bool:
    """Create the lease's file; return False if another run was faster."""
    uri, content = _uri(claim.output, claim.sequence), _content(record)
    if storage.create_bytes(uri, content) and not storage.is_local(uri):
        ignores_conditions = storage.create_bytes(uri, content)
        time.sleep(SETTLES_WITHOUT_CONDITIONS if ignores_conditions else SETTLES_IN)
    # The return value of create_bytes does not decide: if storage accepted the files of several runs, it has the last
    # one, and if the response to a first try was lost, it refused the second try of the same run.
    (there,) = _read(claim.output, claim.sequence)
    return there is not None and there.nonce == record.nonce


def _latest(output: str) -> int:
    """Return the highest lease number, or 0 if there is none, even if the listing lags behind."""
    names = (uri.rpartition("/")[2] for uri in storage.find(storage.join(output, FOLDER)))
    latest = max((int(found[1]) for name in names if (found := NAME.fullmatch(name))), default=0)
    while _read(output, latest + 1)[0] is not None:
        latest += 1
    return latest


def _wait_for_its_end(output: str, sequence: int) -> None:
    """Return once the run has ended or crashed. Raises: UserError if it is alive."""
    (first,) = _read(output, sequence)
    if first is None or first.state != "held":
        return
    is_alive = _is_alive(first)
    end = time.monotonic() + EXPIRES_AFTER
    if is_alive is None:
        log(f"{first} was writing to this output; waiting up to {EXPIRES_AFTER:g} s to see whether it is still alive")
    while is_alive is None and time.monotonic() < end:
        time.sleep(LOOK_EVERY)
        (now,) = _read(output, sequence)
        if now is None or now.state != "held":
            return
        is_alive = True if now != first else None
    if is_alive:
        raise UserError(
            f"output {output} is being written by {first}, and only one run can write to an output at a time. Wait "
            "until it ends, stop it, or choose another --output"
        )
    log(f"{first} ended without releasing its lease; this run takes over")


def _is_alive(record: Record) -> bool | None:
    """Return True if the process that holds a lease is running, and None if this machine cannot find out."""
    if record.machine is None or record.machine != _machine():
        return None
    if record.pid == os.getpid() and record.started == _started(record.pid):
        return record.nonce in _held
    return _started(record.pid) == record.started


def _machine() -> str | None:
    """Return the boot id of this machine and its PID namespace, of which each container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None  # not Linux


def _started(pid: int) -> str | None:
    """Return the start time of a process on this machine, in clock ticks; None if it does not exist or is dead."""
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
    """Read leases by number; a missing one is None. Raises: UserError."""
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
            raise UserError(f"{uri}: not a lease file; delete it if no run is writing to this output") from None
    return records
