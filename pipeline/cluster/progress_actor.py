"""Counters and lines that remote workers send and the driver prints."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class ProgressUpdate(NamedTuple):
    """What a driver reads off the board."""

    counts: dict[str, int]  # in all
    lines: list[str]  # since the last reading
    records: list[dict[str, Any]]  # since the last reading


class ProgressActor:
    """Collects counts, log lines and records from workers, for the driver to read; see `start_progress_actor`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lines: list[str] = []
        self._records: list[dict[str, Any]] = []
        self._problem: str | None = None

    def add(self, **counts: int) -> dict[str, int]:
        """Count, and return the counts."""
        self._counts.update(counts)
        return dict(self._counts)

    def log(self, line: str) -> None:
        self._lines.append(line)

    def record(self, **entry: Any) -> None:
        self._records.append(entry)

    def report_error(self, problem: str) -> None:
        """Note what the user has to mend; the first complaint counts."""
        self._problem = self._problem or problem

    def problem(self) -> str | None:
        return self._problem

    def read(self) -> ProgressUpdate:
        lines, self._lines = self._lines, []
        records, self._records = self._records, []
        return ProgressUpdate(dict(self._counts), lines, records)


def start_progress_actor(kind: type[ProgressActor] = ProgressActor) -> Any:
    """Start an actor of this kind; workers call `actor.add.remote(...)` and `actor.log.remote(...)`.

    It lives on the driver's node: the loss of another one, which the run survives, does not take it along.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote()


@contextmanager
def watched(progress_actor: Any, show: Callable[[ProgressUpdate], None], every: float = 1.0) -> Iterator[None]:
    """Call `show` with the board's content every so many seconds while the block runs, and once at its end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            show(ray.get(progress_actor.read.remote()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        show(ray.get(progress_actor.read.remote()))
