"""Worklist of a run: the listing without the completed images, cut into waves.

A wave is the input of one Ray Data pipeline. The names of all images are never in memory together: while one wave is
labeled, at most the next one is listed.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

# Seconds of listing before the first images are labeled. A small input is listed completely by then.
FIRST_WAIT = 2.0
STOP_WAIT = 2.0  # seconds to wait for the listing thread to end; a slower one is left running
MAX_WAVE = 1_000_000  # images; Ray holds the name and a few numbers of each
MAX_TABLE = 10_000  # images that the listing thread puts into the queue at once


@dataclass
class ListingProgress:
    """Progress of the listing: images found and images already completed."""

    images: int = 0
    done_before: int = 0
    ended: bool = False

    @property
    def todo(self) -> int:
        return self.images - self.done_before


class Worklist:
    """Context manager that lists images in a background thread, up to one wave ahead. Its exit stops the thread.

    Args:
        tables: LISTED tables, as the listing yields them.
        is_done: returns for a LISTED table a Boolean array that is true for the rows not to label again.
    """

    def __init__(self, tables: Iterable[pa.Table], is_done: Callable[[pa.Table], pa.Array]) -> None:
        self.listed = ListingProgress()
        self._tables, self._is_done = tables, is_done
        self._ahead: queue.Queue[pa.Table | Exception | None] = queue.Queue(MAX_WAVE // MAX_TABLE)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._list, daemon=True, name="listing")

    def __enter__(self) -> "Worklist":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # The thread checks the flag only when it has found images, which may take long in a bucket of other files.
        self._thread.join(STOP_WAIT)

    def waves(self) -> Iterator[pa.Table]:
        """Yield LISTED tables of at most about MAX_WAVE images. Raises: any exception of the listing."""
        deadline = time.monotonic() + FIRST_WAIT
        while (wave := self._next_wave(deadline)) is not None:
            yield wave
            deadline = time.monotonic()

    def _next_wave(self, deadline: float) -> pa.Table | None:
        """Return what is listed by the deadline, or else the next images listed; None after the last image."""
        tables: list[pa.Table] = []
        while sum(map(len, tables)) < MAX_WAVE:
            try:
                item = self._ahead.get(timeout=max(0.001, deadline - time.monotonic()) if tables else None)
            except queue.Empty:
                break
            if isinstance(item, Exception):
                raise item
            if item is None:
                self._hand_over(None)  # ends the next call, too
                break
            tables.append(item)
        return pa.concat_tables(tables) if tables else None

    def _list(self) -> None:
        try:
            gathered: list[pa.Table] = []
            for table in self._tables:
                todo = table.filter(pc.invert(self._is_done(table)))
                self.listed.images += len(table)
                self.listed.done_before += len(table) - len(todo)
                gathered.append(todo)
                if self._ahead.empty() or sum(map(len, gathered)) >= MAX_TABLE:
                    self._hand_over(pa.concat_tables(gathered))
                    gathered = []
                if self._stopped.is_set():
                    return
            self.listed.ended = True
            if gathered:
                self._hand_over(pa.concat_tables(gathered))
            self._hand_over(None)
        except Exception as error:  # raised again by `waves`
            self._hand_over(error)

    def _hand_over(self, item: pa.Table | Exception | None) -> None:
        """Put an item into the queue as soon as there is room. A table without images is left out."""
        if isinstance(item, pa.Table) and not len(item):
            return
        while not self._stopped.is_set():
            try:
                self._ahead.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


def blocks_of(wave: pa.Table, decode_tasks: int, least: int = 16, most: int = 1024) -> list[pa.Table]:
    """Split a wave into blocks, one per decoding task, of a multiple of `least` images, so that they fill batches.

    The blocks of a small wave are small, so that no task takes long. Those of a large wave are large, because Ray has a
    cost per block.
    """
    size = min(most, math.ceil(len(wave) / (64 * decode_tasks) / least) * least)
    return [wave.slice(start, size).combine_chunks() for start in range(0, len(wave), size)]
