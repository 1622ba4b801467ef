"""Counters and lines that remote workers send and the driver prints."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class News(NamedTuple):
    """What a driver reads off the board."""

    counts: dict[str, int]  # in all
    lines: list[str]  # since the last reading
    records: list[dict[str, Any]]  # since the last reading


class Board:
    """Actor that collects counts, lines and records from workers, for the driver to read; see `start_board`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lines: list[str] = []
        self._records: list[dict[str, Any]] = []
        self._problem: str | None = None

    def add(self, **counts: int) -> dict[str, int]:
        """Count, and return the counts."""
        self._counts.update(counts)
        return dict(self._counts)

    def say(self, line: str) -> None:
        self._lines.append(line)

    def record(self, **entry: Any) -> None:
        self._records.append(entry)

    def complain(self, problem: str) -> None:
        """Note what the user has to mend; the first complaint counts."""
        self._problem = self._problem or problem

    def problem(self) -> str | None:
        return self._problem

    def read(self) -> News:
        lines, self._lines = self._lines, []
        records, self._records = self._records, []
        return News(dict(self._counts), lines, records)


def start_board(kind: type[Board] = Board) -> Any:
    """Handle of a new Board of this kind; workers call `board.add.remote(...)` and `board.say.remote(...)`.

    It lives on the driver's node: the loss of another one, which the run survives, does not take it along.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote()


@contextmanager
def watched(board: Any, show: Callable[[News], None], every: float = 1.0) -> Iterator[None]:
    """Call `show` with the board's content every so many seconds while the block runs, and once at its end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            show(ray.get(board.read.remote()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        show(ray.get(board.read.remote()))
