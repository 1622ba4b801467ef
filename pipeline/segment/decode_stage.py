"""Decode stage: the task that downloads and decodes a block of listed images. Does not import torch."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any, NamedTuple

import cv2
import pyarrow as pa

from pipeline import storage
from pipeline.images.codec import ImageError, decode_image, shrink
from pipeline.images.tiff_windows import is_tiff
from pipeline.output.errors import failure
from pipeline.output.schema import DECODED, table
from pipeline.segment import large_images, prometheus
from pipeline.segment.crash_isolation import BlockAttempt

# Decoded pixels are yielded in tables of about this size, so that large images do not accumulate in a task.
DECODED_BYTES = 32_000_000
# Maximum images, and bytes of their files, that are downloaded together while the previous group is decoded.
FETCHED_TOGETHER, FETCHED_BYTES = 16, 64_000_000


class Limits(NamedTuple):
    """Limits of an image. An image that exceeds one becomes an error row."""

    max_pixels: int
    max_bytes: int  # of the file
    seconds: float  # CPU time of decoding


def decode(
    listed: pa.Table, limits: Limits, long_side: int | None, progress_actor: Any = None, by_window: bool = False
) -> Iterator[pa.Table]:
    """Download and decode a block of LISTED images into tables of DECODED rows. Failed images become error rows.

    Args:
        long_side: length in pixels to which the longer side of larger images is reduced; None: no reduction.
        progress_actor: receives the timing of the block; None: nothing is reported.
        by_window: leave TIFFs beyond the limits to the predictor, which reads them window by window.
    """
    since = time.process_time()
    cv2.setNumThreads(1)
    waiting = SizeBuckets()
    listed_rows = listed.to_pylist()
    attempt = BlockAttempt("decode", listed_rows, progress_actor)
    for row in _fetched_and_decoded(listed_rows, limits, long_side, by_window, attempt):
        waiting.add(row)
        if waiting.bytes > DECODED_BYTES:
            yield table(waiting.largest(), DECODED)
    if rest := waiting.all():
        yield table(rest, DECODED)
    attempt.end()
    prometheus.count_processor("decode", since)
    if progress_actor is not None:
        progress_actor.add_timing.remote(prometheus.report())


def _fetched_and_decoded(
    rows: list[dict[str, Any]], limits: Limits, long_side: int | None, by_window: bool, attempt: BlockAttempt
) -> Iterator[dict[str, Any]]:
    if attempt.one_by_one:
        for row in rows:
            with attempt.at(row["image_id"]):
                done = [_decoded(*each, limits, long_side, by_window) for each in _downloaded([row], limits)]
            yield from done
        return
    for row, file in _downloaded(rows, limits):
        yield _decoded(row, file, limits, long_side, by_window)


def _decoded(
    row: dict[str, Any],
    file: storage.Fetched | Exception | None,
    limits: Limits,
    long_side: int | None,
    by_window: bool,
) -> dict[str, Any]:
    """Return the row with its pixels or its error. A row that failed earlier has no file and keeps its error."""
    start = time.perf_counter()
    if _is_too_large(row, limits):
        row |= _too_large(row, limits, by_window)
    elif isinstance(file, Exception):
        row |= failure("download", storage.failure_kind(file), storage.reason(file))
    elif file is not None:
        # The file may have changed since it was listed.
        row |= {"etag": file.etag, "size_bytes": len(file.content)}
        try:
            with prometheus.timed("decode") as work:
                work.bytes = len(file.content)
                row |= _pixels(file.content, limits, long_side)
        except ImageError as error:
            row |= _undecoded(error, file.content, limits, by_window)
    row["seconds"] = time.perf_counter() - start
    return row


class SizeBuckets:
    """Buffer of decoded rows, grouped by image size so that each group fills batches of one size."""

    def __init__(self) -> None:
        self.bytes = 0
        self._groups: dict[tuple[int | None, int | None], list[dict[str, Any]]] = defaultdict(list)

    def add(self, row: dict[str, Any]) -> None:
        self._groups[row.get("input_height"), row.get("input_width")].append(row)
        self.bytes += len(row.get("pixels", b""))

    def largest(self) -> list[dict[str, Any]]:
        """Remove and return the group of rows that takes the most memory."""

        def size_of(group: list[dict[str, Any]]) -> int:
            return sum(len(row.get("pixels", b"")) for row in group)

        group = self._groups.pop(max(self._groups, key=lambda size: size_of(self._groups[size])))
        self.bytes -= size_of(group)
        return group

    def all(self) -> list[dict[str, Any]]:
        groups, self._groups = self._groups, defaultdict(list)
        return [row for group in groups.values() for row in group]


class ByteBudget:
    """Filter for the files of a group download. Called with each file's size, accepts those that fit into memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, size: int) -> bool:
        with self._lock:
            fits = size <= self._max_bytes and (not self._bytes or self._bytes + size <= FETCHED_BYTES)
            self._bytes += size * fits
            return fits


def _downloaded(
    rows: list[dict[str, Any]], limits: Limits
) -> Iterator[tuple[dict[str, Any], storage.Fetched | Exception | None]]:
    """Yield every row with its file, or None if the file is not needed; download ahead while the caller decodes.

    Keeps the order of the rows regardless of which download finishes first, because work that Ray repeats must give
    the same result.
    """
    groups = list(_groups(rows))

    def fetch(group: list[dict[str, Any]]) -> list[storage.Fetched | Exception]:
        uris = [row["image_uri"] for row in group if _is_wanted(row, limits)]
        # Sizes that the listing contains have been checked against the limits already.
        room = ByteBudget(limits.max_bytes) if any(row["size_bytes"] is None for row in group) else None
        with prometheus.timed("download") as work:
            files = storage.fetch_objects(uris, room)
            work.images = sum(not isinstance(file, storage.Refused) for file in files)
            work.bytes = sum(len(file.content) for file in files if isinstance(file, storage.Fetched))
            return files

    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(fetch, group) for group in groups[:1]]
        for group, following in zip_longest(groups, groups[1:]):
            files = waiting.pop().result()
            if following:
                waiting.append(ahead.submit(fetch, following))
            wanted = [row for row in group if _is_wanted(row, limits)]
            found = {row["image_id"]: file for row, file in zip(wanted, files, strict=True)}
            late = []  # rows whose files did not fit into memory with the others
            for row in wanted:
                file = found[row["image_id"]]
                if isinstance(file, storage.Refused):
                    row["size_bytes"] = file.size
                    if _is_wanted(row, limits):
                        late.append(row)
            of_late = (file for part in _groups(late) for file in fetch(part))
            late_ids = {row["image_id"] for row in late}
            for row in group:
                yield row, next(of_late) if row["image_id"] in late_ids else found.pop(row["image_id"], None)


def _is_wanted(row: dict[str, Any], limits: Limits) -> bool:
    return row["error_type"] is None and not _is_too_large(row, limits)


def _is_too_large(row: dict[str, Any], limits: Limits) -> bool:
    return row["error_type"] is None and (row["size_bytes"] or 0) > limits.max_bytes


def _groups(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        if len(group) == FETCHED_TOGETHER or sum(each["size_bytes"] or 0 for each in [*group, row]) > FETCHED_BYTES:
            if group:
                yield group
            group = []
        group.append(row)
    if group:
        yield group


def _pixels(content: bytes, limits: Limits, long_side: int | None) -> dict[str, Any]:
    image_HW3 = decode_image(content, *limits)
    small_HW3 = shrink(image_HW3, long_side)
    return {
        "width": image_HW3.shape[1],
        "height": image_HW3.shape[0],
        "input_width": small_HW3.shape[1],
        "input_height": small_HW3.shape[0],
        "pixels": small_HW3.tobytes(),
    }


def _too_large(row: dict[str, Any], limits: Limits, by_window: bool) -> dict[str, Any]:
    """Return the columns of a file that is too large to download: for reading by window, or an error."""
    try:
        seen = large_images.seen(row["image_uri"], limits.max_pixels) if by_window else None
    except (ImageError, large_images.ReadFault) as error:
        return large_images.failed(error)
    return seen or failure("download", "TooLarge", f"{row['size_bytes']} bytes; the limit is {limits.max_bytes}")


def _undecoded(error: ImageError, content: bytes, limits: Limits, by_window: bool) -> dict[str, Any]:
    """Return the columns of a file that cannot be decoded whole: for reading by window, or an error."""
    if error.kind == "TooLarge" and is_tiff(content):
        if not by_window:
            return failure("decode", error.kind, f"{error.message}; {large_images.HOW}")
        try:
            return large_images.seen_in(content, limits.max_pixels)
        except ImageError as of_window:
            error = of_window
    return failure("decode", error.kind, error.message)
