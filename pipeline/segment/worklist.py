"""What a run has to label: the listing as it goes, without what is done, cut into waves.

A wave is what one Ray Data pipeline works through. Nobody ever holds the names of all images: while a wave is
labelled the next one is listed, and no further.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

# Listing may go on this long before the first images are labelled, seconds; a small input is listed whole by then.
FIRST_WAIT = 2.0
STOP_WAIT = 2.0  # for the listing to end, seconds; one that takes longer is left to itself
MAX_WAVE = 1_000_000  # images; for each of them Ray holds its name and a few numbers
MAX_TABLE = 10_000  # images that the listing hands over at once


@dataclass
class ListingProgress:
    """How far the listing has come."""

    images: int = 0
    done_before: int = 0
    ended: bool = False

    @property
    def todo(self) -> int:
        return self.images - self.done_before


class Worklist:
    """Lists in a thread of its own, a wave ahead. A context manager, whose end ends the thread, or lets it end.

    Args:
        tables: LISTED tables, as the listing yields them.
        is_done: of a LISTED table, which rows are not to be labelled again.
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
        # It looks when it has found images, which in a bucket of other things may take it long: it ends then.
        self._thread.join(STOP_WAIT)

    def waves(self) -> Iterator[pa.Table]:
        """Yields LISTED tables of about MAX_WAVE images at the most. Raises what the listing raises."""
        deadline = time.monotonic() + FIRST_WAIT
        while (wave := self._next_wave(deadline)) is not None:
            yield wave
            deadline = time.monotonic()

    def _next_wave(self, deadline: float) -> pa.Table | None:
        """What is listed by the deadline or, if that is nothing, next; None after the last image."""
        tables: list[pa.Table] = []
        while sum(map(len, tables)) < MAX_WAVE:
            try:
                item = self._ahead.get(timeout=max(0.001, deadline - time.monotonic()) if tables else None)
            except queue.Empty:
                break
            if isinstance(item, Exception):
                raise item
            if item is None:
                self._hand_over(None)  # for the next wave, which is none
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
        except Exception as error:  # raised again where the waves are taken
            self._hand_over(error)

    def _hand_over(self, item: pa.Table | Exception | None) -> None:
        while not self._stopped.is_set() and (item is None or isinstance(item, Exception) or len(item)):
            try:
                return self._ahead.put(item, timeout=0.1)
            except queue.Full:
                continue


def blocks_of(wave: pa.Table, decode_tasks: int, least: int = 16, most: int = 1024) -> list[pa.Table]:
    """A wave as blocks, one for each decoding task to come, of a multiple of `least` images, which fills batches.

    Small ones in a small wave, so that no task is long; large ones in a large wave, since Ray's own work is by block.
    """
    size = min(most, math.ceil(len(wave) / (64 * decode_tasks) / least) * least)
    return [wave.slice(start, size).combine_chunks() for start in range(0, len(wave), size)]
