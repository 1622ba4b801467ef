"""Decode stage: the task that downloads and decodes a block of listed images. Does not import torch."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.images.codec import ImageError, decode_raster, shrink
from pipeline.images.pixels import has_few_levels
from pipeline.images.raster import WHITE
from pipeline.images.tiff_windows import is_tiff
from pipeline.output.schema import DECODED
from pipeline.segment import large_images, prometheus
from pipeline.segment.crash_isolation import BlockAttempt
from pipeline.segment.image_rows import DecodedImage, ListedImage, listed_images, to_table

# Decoded pixels are yielded in tables of about this size, so that large images do not accumulate in a task.
DECODED_BYTES = 32_000_000
# Maximum images, and bytes of their files, that are downloaded together while the previous group is decoded.
FETCHED_TOGETHER, FETCHED_BYTES = 16, 64_000_000

Download = storage.Fetched | Exception | None
"""File of an image, or why it could not be read; None: the file is not needed."""


class Limits(NamedTuple):
    """Limits of an image. An image that exceeds one becomes an error row."""

    max_pixels: int
    max_bytes: int  # of the file
    seconds: float  # CPU time of decoding


@dataclass(frozen=True)
class Preparation:
    """Preparation of an image as the network's input.

    Attributes:
        long_side: length in pixels to which the longer side of larger images is reduced; None: no reduction.
        rendering: bands and value range of TIFFs.
        by_window: leave TIFFs beyond the limits to the predictor, which reads them window by window.
        fill: color of pixels without data, R, G, B from 0 to 255: the mean color of the checkpoint.
    """

    long_side: int | None = None
    rendering: Rendering = AS_DECLARED
    by_window: bool = False
    fill: Sequence[float] = WHITE


def decode(
    listed: pa.Table, limits: Limits, preparation: Preparation, progress_actor: Any = None
) -> Iterator[pa.Table]:
    """Download and decode a block of LISTED images into tables of DECODED rows. Failed images become error rows.

    Args:
        progress_actor: receives the timing of the block; None: nothing is reported.
    """
    since = time.process_time()
    cv2.setNumThreads(1)
    waiting = SizeBuckets()
    images = listed_images(listed)
    attempt = BlockAttempt("decode", images, progress_actor)
    for image in _downloaded_and_decoded(attempt.without_given_up(images), limits, preparation, attempt):
        waiting.add(image)
        if waiting.bytes > DECODED_BYTES:
            yield to_table(waiting.largest(), DECODED)
    if rest := waiting.all():
        yield to_table(rest, DECODED)
    attempt.end()
    prometheus.count_processor("decode", since)
    if progress_actor is not None:
        progress_actor.add_timing.remote(prometheus.report())


def _downloaded_and_decoded(
    images: list[ListedImage], limits: Limits, preparation: Preparation, attempt: BlockAttempt
) -> Iterator[DecodedImage]:
    if attempt.one_by_one:
        for image in images:
            with attempt.at(image.image_id):
                ((image_to_decode, file),) = _downloaded([image], limits)
                decoded = _decoded(image_to_decode, file, limits, preparation)
            yield decoded
        return
    for image, file in _downloaded(images, limits):
        yield _decoded(image, file, limits, preparation)


def _decoded(listed: ListedImage, file: Download, limits: Limits, preparation: Preparation) -> DecodedImage:
    """Return the image with its pixels or its error. An image that failed earlier has no file and keeps its error."""
    start = time.perf_counter()
    image = DecodedImage(**vars(listed))
    if _is_too_large(image, limits):
        image = _by_window_or_too_large(image, limits, preparation)
    elif isinstance(file, Exception):
        image = image.failed("download", storage.failure_kind(file), storage.reason(file))
    elif file is not None:
        # The file may have changed since it was listed.
        image = replace(image, etag=file.etag, size_bytes=len(file.content))
        try:
            with prometheus.timed("decode") as work:
                work.bytes = len(file.content)
                image = _with_pixels(image, file.content, limits, preparation)
        except ImageError as error:
            image = _by_window_or_undecoded(image, error, file.content, limits, preparation)
    return replace(image, seconds=time.perf_counter() - start)


class SizeBuckets:
    """Buffer of decoded images, grouped by size so that each group fills batches of one size."""

    def __init__(self) -> None:
        self.bytes = 0  # of the pixels and of the bits that say which have data
        self._groups: dict[tuple[int | None, int | None], list[DecodedImage]] = defaultdict(list)

    def add(self, image: DecodedImage) -> None:
        self._groups[image.input_height, image.input_width].append(image)
        self.bytes += _num_bytes(image)

    def largest(self) -> list[DecodedImage]:
        """Remove and return the group of images that takes the most memory."""

        def bytes_of(size: tuple[int | None, int | None]) -> int:
            return sum(map(_num_bytes, self._groups[size]))

        size = max(self._groups, key=bytes_of)
        self.bytes -= bytes_of(size)
        return self._groups.pop(size)

    def all(self) -> list[DecodedImage]:
        groups, self._groups = self._groups, defaultdict(list)
        return [image for group in groups.values() for image in group]


def _num_bytes(image: DecodedImage) -> int:
    return len(image.pixels or b"") + len(image.valid or b"")


class ByteBudget:
    """Filter for the files of a group download. Called with each file's size, accepts those that fit into memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, size: int) -> bool:
        with self._lock:
            fits = size <= self._max_bytes and (not self._bytes or self._bytes + size <= FETCHED_BYTES)
            if fits:
                self._bytes += size
            return fits


def _downloaded(images: list[ListedImage], limits: Limits) -> Iterator[tuple[ListedImage, Download]]:
    """Yield every image with its file, in the given order; download the next group while the caller decodes.

    The order does not depend on which download finishes first, because work that Ray repeats must give the same result.
    """
    groups = list(_groups(images))
    with ThreadPoolExecutor(1) as thread:
        # A finished download leaves the queue, so that its files can be freed one by one.
        downloading = deque(thread.submit(_download, group, limits) for group in groups[:1])
        for number, group in enumerate(groups, 1):
            files = downloading.popleft().result()
            if number < len(groups):
                downloading.append(thread.submit(_download, groups[number], limits))
            yield from _with_postponed(group, files, limits)


def _download(group: list[ListedImage], limits: Limits) -> deque[Download]:
    """Return the file of each image of a group."""
    uris = [image.image_uri for image in group if _is_wanted(image, limits)]
    # Sizes that the listing contains have been checked against the limits already.
    has_unknown = any(image.size_bytes is None for image in group)
    with prometheus.timed("download") as work:
        files = storage.fetch_objects(uris, ByteBudget(limits.max_bytes) if has_unknown else None)
        work.images = sum(not isinstance(file, storage.Refused) for file in files)
        work.bytes = sum(len(file.content) for file in files if isinstance(file, storage.Fetched))
    found = dict(zip(uris, files, strict=True))
    return deque(found.get(image.image_uri) for image in group)


def _with_postponed(
    group: list[ListedImage], files: deque[Download], limits: Limits
) -> Iterator[tuple[ListedImage, Download]]:
    """Yield the images of a group with their files; download the files that did not fit into memory with the others.

    Their sizes are known by now, so they are downloaded in groups that do fit, when the first file of each is due.
    """
    images = [
        replace(image, size_bytes=file.size) if isinstance(file, storage.Refused) else image
        for image, file in zip(group, files, strict=True)
    ]
    is_postponed = [
        isinstance(file, storage.Refused) and _is_wanted(image, limits)
        for image, file in zip(images, files, strict=True)
    ]
    postponed_groups = _groups([image for image, postponed in zip(images, is_postponed, strict=True) if postponed])
    postponed_files: deque[Download] = deque()
    for image, postponed in zip(images, is_postponed, strict=True):
        file = files.popleft()
        if postponed:
            if not postponed_files:
                postponed_files = _download(next(postponed_groups), limits)
            file = postponed_files.popleft()
        yield image, file


def _is_wanted(image: ListedImage, limits: Limits) -> bool:
    return image.error_type is None and not _is_too_large(image, limits)


def _is_too_large(image: ListedImage, limits: Limits) -> bool:
    return image.error_type is None and (image.size_bytes or 0) > limits.max_bytes


def _groups(images: list[ListedImage]) -> Iterator[list[ListedImage]]:
    """Split images into groups whose files are downloaded together."""
    group: list[ListedImage] = []
    group_bytes = 0
    for image in images:
        size = image.size_bytes or 0
        if group and (len(group) == FETCHED_TOGETHER or group_bytes + size > FETCHED_BYTES):
            yield group
            group, group_bytes = [], 0
        group.append(image)
        group_bytes += size
    if group:
        yield group


def _with_pixels(image: DecodedImage, content: bytes, limits: Limits, preparation: Preparation) -> DecodedImage:
    raster = decode_raster(content, *limits, preparation.rendering)
    height, width, _ = raster.pixels_HW3.shape
    small_HW3 = shrink(raster.filled(preparation.fill), preparation.long_side)
    return replace(
        image,
        width=width,
        height=height,
        input_width=small_HW3.shape[1],
        input_height=small_HW3.shape[0],
        pixels=small_HW3.tobytes(),
        valid=None if raster.valid_HW is None else np.packbits(raster.valid_HW, axis=1).tobytes(),
        few_levels=has_few_levels(raster.with_data_HW3),
    )


def _by_window_or_too_large(image: DecodedImage, limits: Limits, preparation: Preparation) -> DecodedImage:
    """Return an image whose file is too large to download: to be read by window, or with an error."""
    if preparation.by_window:
        try:
            described = large_images.describe_file(image, limits.max_pixels, preparation.rendering)
        except (ImageError, large_images.ReadFault) as error:
            return large_images.with_error(image, error)
        if described is not None:
            return described
    return image.failed("download", "TooLarge", f"{image.size_bytes} bytes; the limit is {limits.max_bytes}")


def _by_window_or_undecoded(
    image: DecodedImage, error: ImageError, content: bytes, limits: Limits, preparation: Preparation
) -> DecodedImage:
    """Return an image that cannot be decoded whole: to be read by window, or with an error."""
    if error.kind == "TooLarge" and is_tiff(content):
        if not preparation.by_window:
            return image.failed("decode", error.kind, f"{error.message}; {large_images.HOW}")
        try:
            return large_images.describe_content(image, content, limits.max_pixels, preparation.rendering)
        except ImageError as of_window:
            error = of_window
    return image.failed("decode", error.kind, error.message)
