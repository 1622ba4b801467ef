"""Checks of decoded masks against their rows in masks and class_stats."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.images.codec import ImageError, decode_mask

STRIP_PIXELS = 1 << 20  # pixels counted at a time, which bounds the memory
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_ROUNDING = 0.01  # tolerance for float32 centroids, pixels


class Region(NamedTuple):
    """Statistics of all pixels of a class in a mask."""

    pixel_count: int
    box: tuple[int, int, int, int]  # x_min, y_min, x_max, y_max; half open
    centroid: tuple[float, float]  # mean x, y


def check_mask(
    content: bytes | None, width: int, height: int, classes: list[dict[str, Any]], num_classes: int | None
) -> Iterator[tuple[str, str]]:
    """Yield the problems of a mask, as pairs of finding kind and message.

    Args:
        width, height: of the image, pixels.
        classes: the rows of class_stats of the image. Pixels that they do not count have no data.
        num_classes: number of classes in classes.parquet; None if unknown.
    """
    if content is None:
        yield "no mask", "status is 'ok', but mask.bytes is null"
        return
    if not content.startswith(PNG_SIGNATURE) or len(content) < 24:
        yield "undecodable mask", f"not a PNG: it starts with {content[:8]!r}"
        return
    size = struct.unpack(">II", content[16:24])  # before decoding, because a wrong mask may have any size
    if size != (width, height):
        yield "wrong mask size", f"the mask has {size[0]} x {size[1]} pixels, but the image {width} x {height}"
        return
    try:
        ids_HW = decode_mask(content)
    except ImageError as error:
        yield "undecodable mask", f"{error.kind}: {error.message}"
        return
    found = regions(ids_HW)
    if sum(row["pixel_count"] for row in classes) < width * height:
        # The ignore index of masks of this type, which has the right number of pixels if each class has its own.
        found.pop(np.iinfo(ids_HW.dtype).max, None)
    unknown = [k for k in found if num_classes is not None and k >= num_classes]
    if unknown:
        yield "unknown class in a mask", f"the mask has class {unknown[0]}, but there are {num_classes} classes"
        return
    for row in classes:
        if difference := _difference(row, found.pop(row["class_id"], None)):
            yield "mask and statistics differ", f"class {row['class_id']}: {difference}"
            return
    for k, region in found.items():
        yield "mask and statistics differ", f"class {k}: {region.pixel_count} pixels in the mask, 0 in class_stats"
        return


def _difference(row: dict[str, Any], region: Region | None) -> str | None:
    if region is None or row["pixel_count"] != region.pixel_count:
        pixels = region.pixel_count if region else 0
        return f"{pixels} pixels in the mask, {row['pixel_count']} in class_stats"
    box = tuple(row[name] for name in ("x_min", "y_min", "x_max", "y_max"))
    if box != region.box:
        return f"x_min, y_min, x_max, y_max are {region.box} in the mask, {box} in class_stats"
    centroid = row["centroid_x"], row["centroid_y"]
    if None in centroid or np.abs(np.subtract(centroid, region.centroid)).max() > PIXEL_ROUNDING:
        return f"the centroid is {region.centroid} in the mask, {centroid} in class_stats"
    return None


def regions(ids_HW: NDArray[np.integer]) -> dict[int, Region]:
    """Return the region of each id in a mask, computed from histograms of its rows and columns."""
    height, width = ids_HW.shape
    strip_rows = max(1, STRIP_PIXELS // width)
    strips = [slice(start, min(start + strip_rows, height)) for start in range(0, height, strip_rows)]
    most = int(ids_HW.max()) + 1
    present = np.flatnonzero(sum(np.bincount(ids_HW[strip].ravel(), minlength=most) for strip in strips))
    compact = np.zeros(most, np.int64)
    compact[present] = np.arange(len(present))
    rows_HC = np.empty((height, len(present)), np.int64)
    columns_WC = np.zeros((width, len(present)), np.int64)
    for strip in strips:
        ids = compact[ids_HW[strip]]
        rows_HC[strip] = _histogram(ids, len(present))
        columns_WC += _histogram(ids.T, len(present))
    found = {}
    for c, k in enumerate(present.tolist()):
        x, y = np.flatnonzero(columns_WC[:, c]), np.flatnonzero(rows_HC[:, c])
        count = int(rows_HC[:, c].sum())
        box = (int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1)
        mean = float(columns_WC[x, c] @ x) / count, float(rows_HC[y, c] @ y) / count
        found[k] = Region(count, box, mean)
    return found


def _histogram(ids: NDArray[np.int64], num_ids: int) -> NDArray[np.int64]:
    """Return how often each id occurs in each line: an array of lines x ids."""
    lines = len(ids)
    numbers = ids + num_ids * np.arange(lines)[:, None]
    return np.bincount(numbers.ravel(), minlength=lines * num_ids).reshape(lines, num_ids)
