"""All checks of a cluster, one after another. A failed check does not stop the next one, and no check waits forever."""

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from pipeline import storage
from pipeline.cluster import connection, ray_internals
from pipeline.config.jobs import DoctorConfig
from pipeline.console import log
from pipeline.doctor import access, all_reduce, clock, gpus, machine, object_store, transfers, versions
from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult, Level, lines
from pipeline.doctor.nodes import (
    HELLO_LIMIT,
    Answer,
    Node,
    Roll,
    Silence,
    answered,
    here,
    judge_nodes,
    living_nodes,
    sentence_of,
)
from pipeline.errors import UserError
from pipeline.storage import S3_SCHEMES

CONNECT_LIMIT = 90.0  # seconds
TOTAL_LIMIT = 1200.0  # seconds for all checks together
HEAD_SILENCE = 20.0  # seconds without an answer from the head; after 60, Ray's core would end this process
CLEANUP_LIMIT = 60.0  # seconds
# Ray's log messages about a lost node, with the last lines of its log. The checks report the loss themselves.
NOTICES_OF_LOSS = ("Raylet is terminated", "has been marked dead")
NO_NODES = "not checked, because no node answers"


@dataclass(frozen=True)
class Introduction:
    """First information about a node, collected without importing torch."""

    versions: dict[str, str | None]
    machine: machine.Machine
    token_mode: bool


def introduce() -> Introduction:
    return Introduction(versions.versions(), machine.measure_machine(), ray_internals.uses_token_authentication())


def examine(config: DoctorConfig) -> int:
    """Run all checks and print a line for each. Return the exit code: 0 if none failed, otherwise 1.

    Raises: UserError if there is no cluster to check.
    """
    start = time.monotonic()
    _connect(config.verbose)
    with _bounded(TOTAL_LIMIT, f"the checks took more than {TOTAL_LIMIT:.0f} s; the one missing above hangs"):
        examination = Examination(config)
        found = dict.fromkeys(Level, 0)
        for check, findings in examination.run():
            for line in lines(check, findings, examination.asked):
                log(line)
            for level in {finding.level for finding in findings}:
                found[level] += 1
        log(
            f"\n{found[FAIL]} failed, {found[WARN]} with warnings, {found[OK]} ok; {time.monotonic() - start:.0f} s"
            if found[FAIL] or found[WARN]
            else f"\nall {found[OK]} ok; {time.monotonic() - start:.0f} s"
        )
    return 1 if found[FAIL] else 0


def _connect(verbose: bool) -> None:
    """Connect to the cluster. Raises UserError with the reason if that fails."""
    address = os.environ.get("RAY_ADDRESS")
    what = f"RAY_ADDRESS {address}" if address else "a local Ray on this machine"
    hangs = f"{what}: the port is open, but no Ray cluster answers; correct the address, or check the head (ray status)"
    if address and address.startswith("ray://"):
        raise UserError(f"{what}: the checks do not work over Ray Client; use ray job submit instead")
    if address and address.rpartition(":")[2].isdigit():
        # Checked in a separate process first, because Ray itself would retry for long and print many lines.
        connection.require_listener(address)
        let_in = access.is_let_in(address)
        if let_in is None:
            raise UserError(hangs)
        if not let_in:
            raise UserError(
                f"{what}: the cluster rejects this process's token; set RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN "
                "(or ~/.ray/auth_token) to the cluster's token"
            )
    with _bounded(CONNECT_LIMIT, hangs, code=2):
        try:
            connection.connect(verbose)
        except (ConnectionError, RuntimeError, ValueError) as error:  # raised by ray.init
            raise UserError(f"{what}: {sentence_of(error)}; check the head (ray status)") from None
    if not verbose:
        for notice in NOTICES_OF_LOSS:
            ray_internals.suppress_raylet_messages(notice)


@contextmanager
def _bounded(limit: float, sentence: str, code: int = 1) -> Iterator[None]:
    """Print a message and end the process if the block takes longer, because hanging Ray calls are uninterruptible."""

    def give_up() -> None:
        log(f"{FAIL:<4}  {sentence}")
        os._exit(code)

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _watch_head(address: str) -> None:
    """Print a message and end the process when the head stops answering."""
    host, _, port = address.rpartition(":")
    answered = time.monotonic()
    while time.monotonic() - answered < HEAD_SILENCE:
        time.sleep(2)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            continue
        if not ray.is_initialized():
            return
        answered = time.monotonic()
    log(f"{FAIL:<4}  the head at {address} no longer answers; restart the cluster, its state is lost")
    os._exit(1)


class Examination:
    """Checks of one cluster."""

    def __init__(self, config: DoctorConfig) -> None:
        self._config = config
        self._private = "RAY_ADDRESS" not in os.environ
        self._gcs = ray.get_runtime_context().gcs_address
        threading.Thread(target=_watch_head, args=[self._gcs], daemon=True).start()
        self._roll = Roll(living_nodes())
        self._introductions: dict[Node, Introduction] = {}
        self._folder = storage.join(config.storage, f"doctor-{os.urandom(6).hex()}") if config.storage else None
        self._with_storage: list[Node] = []
        self._wrote = False  # True if there may be files in the folder

    @property
    def asked(self) -> int:
        return len(self._roll.nodes)

    def run(self) -> Iterator[tuple[str, list[CheckResult]]]:
        """Yield the name and findings of each check as it finishes."""
        yield "nodes", self._guarded(self._nodes)
        checks: dict[str, Callable[[], list[CheckResult]]] = {
            "authentication": self._authentication,
            "dashboard": lambda: access.judge_dashboard(access.look_at_dashboard(self._roll)),
            "versions": self._versions,
            "clock": self._clock,
            "disk": lambda: machine.judge_disks(self._machines),
            "shared memory": self._shared_memory,
            "open files": lambda: machine.judge_open_files(self._machines),
            "object store": lambda: object_store.check_objects(self._roll),
            "bfloat16": lambda: gpus.check_cpus(self._roll),
            "GPUs": self._gpus,
            "all-reduce": lambda: all_reduce.check_gloo(self._roll),
            "NCCL": lambda: all_reduce.check_nccl(self._roll),
            "storage": self._storage,
            "bandwidth": self._bandwidth,
        }
        for name, check in checks.items():
            if lost := self._guarded(self._roll.call):
                yield "nodes", lost
            yield name, self._guarded(check) if self._roll.nodes else [CheckResult(FAIL, NO_NODES)]
        if lost := self._guarded(self._roll.call):
            yield "nodes", lost
        if left := self._guarded(self._clean_up):
            yield "storage", left

    def _guarded(self, check: Callable[[], list[CheckResult]]) -> list[CheckResult]:
        try:
            return check()
        except UserError as error:
            return [CheckResult(FAIL, str(error))]
        except Exception as error:
            if self._config.verbose:
                traceback.print_exc()
            return [CheckResult(FAIL, f"the check itself failed: {sentence_of(error)}; use --verbose for a traceback")]

    @property
    def _machines(self) -> dict[str, machine.Machine]:
        return {node.name: its.machine for node, its in self._introductions.items()}

    def _nodes(self) -> list[CheckResult]:
        self._introductions, silent = answered(self._roll.ask(introduce, limit=HELLO_LIMIT))
        self._roll = Roll(self._introductions)
        return judge_nodes(self._roll.nodes, silent, self._private)

    def _authentication(self) -> list[CheckResult]:
        modes = {node.name: its.token_mode for node, its in self._introductions.items()}
        let_in = None if self._private else access.is_let_in(self._gcs, stranger=True)
        return access.judge_authentication(let_in, ray_internals.uses_token_authentication(), modes, self._private)

    def _versions(self) -> list[CheckResult]:
        nodes = {node.name: its.versions for node, its in self._introductions.items()}
        return versions.judge_versions({versions.DRIVER: versions.versions(), **nodes})

    def _clock(self) -> list[CheckResult]:
        skews, findings = answered(clock.measure_skews(self._roll))
        of_storage = None
        if self._config.storage and self._config.storage.startswith(S3_SCHEMES):
            reply = here(clock.storage_skew, self._config.storage, limit=clock.LIMIT)
            if isinstance(reply, Answer):  # otherwise the storage check reports the reason
                of_storage = reply.value
        return findings + clock.judge_skews({node.name: skew for node, skew in skews.items()}, of_storage)

    def _shared_memory(self) -> list[CheckResult]:
        stores = {node.name: node.object_store_bytes for node in self._introductions}
        return machine.judge_shared_memory(self._machines, stores)

    def _gpus(self) -> list[CheckResult]:
        installed, silent = answered(self._roll.ask(gpus.installed_gpus, limit=gpus.LIMIT))
        return silent + gpus.check_gpus(self._roll, installed)

    def _storage(self) -> list[CheckResult]:
        if self._folder is None:
            return [CheckResult(WARN, "not checked; set --storage to a folder or URI that the jobs will write to")]
        its = transfers.check_access(self._roll, self._folder)
        self._with_storage, self._wrote = its.nodes, its.wrote
        return its.findings

    def _bandwidth(self) -> list[CheckResult]:
        nodes = [node for node in self._with_storage if node in self._roll.nodes]
        if self._folder is None:
            return []
        if not nodes:
            return [CheckResult(WARN, "not measured, because no node has access")]
        return transfers.check_bandwidth(self._roll, self._folder, nodes, self._config.storage_megabytes)

    def _clean_up(self) -> list[CheckResult]:
        if self._folder is None or not self._wrote:
            return []
        reply = here(storage.remove_folder, self._folder, limit=CLEANUP_LIMIT)
        if isinstance(reply, Silence):
            return [CheckResult(WARN, f"{self._folder}: could not be deleted ({reply.sentence}); delete it manually")]
        return []
