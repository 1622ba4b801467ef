"""Actor that collects counts and log lines from remote workers, for the driver to print."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class ProgressUpdate(NamedTuple):
    """Content of the progress actor, as a driver reads it."""

    counts: dict[str, int]  # totals
    lines: list[str]  # since the last read
    records: list[dict[str, Any]]  # since the last read


class ProgressActor:
    """Collector of counts, log lines and records of workers, for the driver to read; see `start_progress_actor`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lines: list[str] = []
        self._records: list[dict[str, Any]] = []
        self._problem: str | None = None

    def add(self, **counts: int) -> dict[str, int]:
        """Add to the counts, and return their totals."""
        self._counts.update(counts)
        return dict(self._counts)

    def log(self, line: str) -> None:
        self._lines.append(line)

    def record(self, **entry: Any) -> None:
        self._records.append(entry)

    def report_error(self, problem: str) -> None:
        """Record a problem that the user has to fix; only the first one is kept."""
        self._problem = self._problem or problem

    def problem(self) -> str | None:
        return self._problem

    def read(self) -> ProgressUpdate:
        lines, self._lines = self._lines, []
        records, self._records = self._records, []
        return ProgressUpdate(dict(self._counts), lines, records)


def start_progress_actor(kind: type[ProgressActor] = ProgressActor) -> Any:
    """Start an actor of this class; workers call `actor.add.remote(...)` and `actor.log.remote(...)`.

    It runs on the driver's node, so that it survives the loss of any other node, as the run does.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote()


@contextmanager
def watched(progress_actor: Any, show: Callable[[ProgressUpdate], None], every: float = 1.0) -> Iterator[None]:
    """Call `show` with the actor's content every `every` seconds during the `with` block, and once at its end."""
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
