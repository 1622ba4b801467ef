"""Progress of a segmentation run: the actor that collects the workers' reports, and the progress bar."""

import math
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple, TextIO

import ray

from pipeline.cluster.progress_actor import ProgressActor, ProgressUpdate
from pipeline.console import duration, printable
from pipeline.segment.crash_isolation import AttemptPlan, CrashLedger
from pipeline.segment.stage_timing import Report, StageSeconds
from pipeline.segment.worklist import ListingProgress

LINE_EVERY = 30.0  # seconds between lines in a log
RECENT = 30.0  # seconds over which the current rate is averaged
BAR = 20  # width in characters
CLEAR_LINE = "\r\x1b[K"  # to the terminal: return to the start of the line and clear it


class Mark(NamedTuple):
    """Images completed so far at a moment of the run."""

    seconds: float  # since its start
    images: int


class SegmentationProgressActor(ProgressActor):
    """Progress actor that also sums up the time of each stage and tracks the blocks that workers process."""

    def __init__(self) -> None:
        super().__init__()
        self._stage_seconds = StageSeconds()
        self._sampled: Counter[str] = Counter()
        self._ledger = CrashLedger(_is_alive)

    def add_sampled(self, **outcomes: int) -> dict[str, int]:
        """Add outcomes of images in the sample that judges the error rate, and return their totals."""
        self._sampled.update(outcomes)
        return dict(self._sampled)

    def add_timing(self, report: Report) -> None:
        """Add a process's time by stage."""
        self._stage_seconds.add(report)

    def stage_seconds(self) -> StageSeconds:
        return self._stage_seconds

    def begin(self, block: str, image_ids: Sequence[bytes], node: str) -> AttemptPlan:
        """Record that a block of images starts on a node, perhaps again.

        Only BlockAttempt calls this and the following three methods.
        """
        return self._ledger.begin(block, image_ids, node)

    def enter(self, block: str, image_id: bytes) -> None:
        self._ledger.enter(block, image_id)

    def leave(self, block: str) -> None:
        self._ledger.leave(block)

    def end(self, block: str) -> None:
        self._ledger.end(block)


def _is_alive(node: str) -> bool:
    return any(found["NodeID"] == node and found["Alive"] for found in ray.nodes())


class ProgressBar:
    """Progress of a segmentation run: a bar in a terminal, a line every 30 seconds in a log.

    Args:
        listed: progress of the listing, which counts the images to label.
        price_per_hour: price of the cluster; None: no costs are shown.
        seconds_before: seconds that the same command has run before this run, included in the costs.
    """

    def __init__(
        self,
        listed: ListingProgress,
        price_per_hour: float | None = None,
        seconds_before: float = 0.0,
        out: TextIO | None = None,
    ) -> None:
        self.seconds_to_first: float | None = None
        self._listed = listed
        self._price_per_hour, self._seconds_before = price_per_hour, seconds_before
        self._out = out or sys.stdout
        self._in_place = self._out.isatty()
        self._line_start = CLEAR_LINE if self._in_place else ""
        self._start = time.monotonic()
        self.last_update = self._start  # when an image was completed or a worker logged a line
        self._recent: deque[Mark] = deque([Mark(0.0, 0)])  # of the last RECENT seconds
        self._printed = Mark(0.0, 0)  # when a line was last printed

    def show(self, update: ProgressUpdate) -> None:
        """Print the workers' lines, and the progress if a line is due."""
        for line in update.lines:
            print(f"{self._line_start}{printable(line)}", file=self._out, flush=True)
        counts, total = update.counts, self._listed.todo
        now, done = time.monotonic() - self._start, min(sum(counts.values()), total)
        if update.lines or done > self._recent[-1].images:
            self.last_update = self._start + now
        if done and self.seconds_to_first is None:
            self.seconds_to_first = round(now, 1)
        self._recent.append(Mark(now, done))
        while self._recent[1].seconds <= now - RECENT:
            self._recent.popleft()
        is_last = done == total and self._listed.ended
        if is_last:
            is_due = done != self._printed.images
        else:
            is_first = done > 0 and self._printed.images == 0
            # A log gets its line even without progress, to show that the run is alive.
            is_due = self._in_place or is_first or now - self._printed.seconds >= LINE_EVERY
        if is_due:
            self._printed = Mark(now, done)
            self._print(self.line(counts, now, done), is_last)

    def line(self, counts: dict[str, int], now: float, done: int) -> str:
        """Return the progress line after `now` seconds with `done` images."""
        total, is_listed = self._listed.todo, self._listed.ended
        oldest = self._recent[0]
        rate = done / now
        recent = (done - oldest.images) / (now - oldest.seconds) if now > oldest.seconds else rate
        failed = {kind: count for kind, count in sorted(counts.items()) if kind != "ok"}
        kinds = f" ({', '.join(f'{count:,} {kind}' for kind, count in failed.items())})" if failed else ""
        parts = [
            f"{done:,} of {total:,} images" + ("" if is_listed else " listed so far"),
            f"{recent:.1f} images/s now, {rate:.1f} on average",
            f"{duration((total - done) / rate)} left" if is_listed and done else "time left unknown",
            f"{sum(failed.values()):,} failed{kinds}",
        ]
        if not done:
            parts[1:] = [f"{duration(now)} so far"]
        if self._price_per_hour is not None:
            parts.append(f"{self._price_per_hour * (self._seconds_before + now) / 3600:,.2f} spent")
        return " · ".join(parts)

    def seconds_left(self, now: float) -> float:
        """Return the remaining seconds at the average rate; infinite if unknown. `now` is a time.monotonic()."""
        done = self._recent[-1].images
        if not done or not self._listed.ended:
            return math.inf
        return (self._listed.todo - done) * (now - self._start) / done

    def _print(self, line: str, is_last: bool) -> None:
        if not self._in_place:
            print(line, file=self._out, flush=True)
            return
        width = shutil.get_terminal_size().columns
        filled = round(BAR * self._printed.images / max(1, self._listed.todo))
        text = f"{'█' * filled}{'░' * (BAR - filled)} {line}"[: width - 1]
        print(f"{self._line_start}{text}", end="\n" if is_last else "", file=self._out, flush=True)
