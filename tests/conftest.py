"""Share servers, a Ray head and finished runs between tests, and report at the end what a run skipped and cost."""

import os

# Threads of several test processes share the cores. Those that wait must not spin, as OpenMP's do by default.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import itertools
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import s3fs

from pipeline import storage
from tests.in_process import REPOSITORY, run_script
from tests.ray_head import ACCESS, RayHead, ray_head
from tests.requirements import PREFIX, SHM, USER_NAME
from tests.small_output import write_small_output
from tests.swift import SwiftServer, swift_server

if TYPE_CHECKING:
    from tests.finished_training import FinishedTraining

os.environ.update(ACCESS)
# A shell lets what it starts in the background ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_numbers = itertools.count()

# Files that share a fixture of the session which takes long to make: one process of pytest-xdist runs them all.
TOGETHER = {"tests/test_train_job.py": "training", "tests/test_train_resilience.py": "training"}
# The files that take longest. They start first, so that no process is left with one of them at the end.
LONGEST = (
    "training",
    "tests/test_documented_commands.py",
    "tests/test_segment_chaos.py",
    "tests/pipeline/storage/test_faults.py",
    "tests/test_several_nodes.py",
    "tests/test_ablate_job.py",
    "tests/test_doctor_job.py",
    "tests/test_storage_access.py",
)

RunJob = Callable[..., subprocess.CompletedProcess[str]]


def group_of(nodeid: str) -> str:
    """Return the group of tests that one process runs: those of a file, or of several files."""
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file, file)


@pytest.hookimpl(trylast=True)  # pytest-randomly has shuffled before
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {group: place for place, group in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule groups of tests in place of single ones, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return GroupScheduling(config, log)


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """Run a Swift server with S3 API; its address and credentials are in this process's environment."""
    USER_NAME.check()
    with swift_server(tmp_path_factory.mktemp("swift")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(swift: SwiftServer) -> str:
    """Return the URI of a new, empty bucket."""
    return make_bucket()


def make_bucket() -> str:
    filesystem, path = storage.open_filesystem(f"s3://bucket-{next(_numbers)}")
    filesystem.mkdir(path)
    return f"s3://{path}"


@pytest.fixture(scope="session")
def head(swift: SwiftServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """Run a Ray head whose workers reach the Swift server."""
    SHM.check()
    # Its node is never announced to be taken away: an actor less that imports torch, for each training.
    environment = {**swift.environment, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    with ray_head(tmp_path_factory.mktemp("ray"), environment) as running:
        yield running
        _disconnect()


@pytest.fixture(scope="module")
def connected(head: RayHead) -> Iterator[None]:
    """Connect this process to the head, or keep the connection that an earlier module has made.

    As long as it lasts, the head's workers do too: they have imported what the next test needs.
    """
    from pipeline.cluster import connection

    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        connection.connect()
        yield


@pytest.fixture
def unconnected() -> None:
    """End the connection to a cluster that an earlier test has left."""
    _disconnect()


def _disconnect() -> None:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture(scope="session")
def run_job(head: RayHead) -> RunJob:
    """Return what runs a job in this process, connected to the head, as `python jobs/NAME.py` would run it there.

    A job with variables of its own (`environment`) runs in a process of its own: libraries read them when they start.
    """

    from pipeline.cluster import connection

    def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        if environment:
            return run_process(script, *arguments, **head.environment | environment)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in head.environment.items():
                patch.setenv(name, value)
            connection.connect()
            return run_script(script, *arguments)

    return run


def run_process(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own; `environment` adds to this process's."""
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="session")
def uninterrupted(run_job: RunJob) -> "FinishedTraining":
    """Return a finished training, to look at and to compare others with; nobody may change its output."""
    from tests.finished_training import finish_training

    return finish_training(run_job)


@pytest.fixture(scope="session")
def small_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a local output of three images: two labeled, one that failed."""
    folder = tmp_path_factory.mktemp("output")
    write_small_output(folder)
    return folder


# The run's own report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what the machine lacks, with what installs it, and where the time went."""
    _report_missing(terminalreporter)
    _report_seconds(terminalreporter)


def _report_missing(terminal: pytest.TerminalReporter) -> None:
    counts: dict[str, int] = defaultdict(int)
    for report in terminal.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith(PREFIX):
            counts[reason] += 1
    if counts:
        terminal.section("Skipped, because this machine lacks something", sep="-")
        for reason, count in sorted(counts.items()):
            terminal.line(f"{count:4} tests need {reason.removeprefix(PREFIX)}")


def _report_seconds(terminal: pytest.TerminalReporter) -> None:
    """Print seconds by folder and by file, of all workers together; CONTRIBUTING states the budget."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminal.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                seconds[file] += report.duration
    folders: dict[str, float] = defaultdict(float)
    for file, spent in seconds.items():
        folders[file.rpartition("/")[0]] += spent
    if sum(seconds.values()) < 60:
        return
    terminal.section("Seconds by folder, and the twenty files that take longest", sep="-")
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:20]
    for name, spent in [*sorted(folders.items(), key=lambda item: -item[1]), *longest]:
        terminal.line(f"{spent:8.1f} s  {name}")
