"""Counters and lines that remote workers send and the driver prints."""

import threading
import time
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
    """Actor that collects counts, lines and records from workers, for the driver to read. Made by `start_board`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lines: list[str] = []
        self._records: list[dict[str, Any]] = []
        self._problem: str | None = None

    def add(self, **counts: int) -> None:
        self._counts.update(counts)

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


def start_board() -> Any:
    """Handle of a new Board; workers call `board.add.remote(...)` and `board.say.remote(...)`.

    It lives on the driver's node: the loss of another one, which the run survives, does not take it along.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()


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


class SegmentationLine:
    """The progress line of a segmentation run, printed at most every `every` seconds."""

    def __init__(self, total: int, every: float = 10.0) -> None:
        self._total = total
        self._every = every
        self._start = time.monotonic()
        self.seconds_to_first: float | None = None
        self._last_printed = -every
        self._last_done = -1

    def show(self, news: News) -> None:
        counts = news.counts
        now = time.monotonic() - self._start
        failed = {kind: count for kind, count in counts.items() if kind != "ok"}
        done = min(counts.get("ok", 0) + sum(failed.values()), self._total)
        if done and self.seconds_to_first is None:
            self.seconds_to_first = round(now, 1)
        if done == self._last_done or (now - self._last_printed < self._every and done < self._total):
            return
        self._last_printed, self._last_done = now, done
        rate = done / now
        left = duration((self._total - done) / rate) if done else "unknown"
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items()))
        failures = f"{sum(failed.values())} failed" + (f" ({kinds})" if kinds else "")
        say(f"{done:,} of {self._total:,} images · {rate:.1f} images/s · {left} left · {failures}")


def duration(seconds: float) -> str:
    """`3725` -> `1:02:05`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def say(line: str) -> None:
    """Print a line at once, also into a job's log file."""
    print(line, flush=True)
