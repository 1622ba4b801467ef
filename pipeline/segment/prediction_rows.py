"""Conversion of predictions into rows of the masks and class statistics tables."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.output.schema import ignore_index_of

MAX_BOXES = 16  # per image; the regions with the most pixels are kept
STRIP_PIXELS = 1 << 22  # whose class ids are replaced at a time, which bounds the memory

ValidRows = Callable[[slice], NDArray[np.bool_] | None]
"""Function that returns which pixels of a strip of rows have data, 1 x S x W; None: all."""


def with_ignored(prediction: Any, valid_rows: ValidRows) -> Any:
    """Return a models.Prediction of one image whose mask has the ignore index where there is no data.

    The class ids of the given one are overwritten.
    """
    class_ids_1HW = prediction.class_ids_NHW
    _, height, width = class_ids_1HW.shape
    ignore_index = ignore_index_of(prediction.pixel_count_NK.shape[1])
    if ignore_index > np.iinfo(class_ids_1HW.dtype).max:
        class_ids_1HW = class_ids_1HW.astype(np.uint16)
    rows = max(1, STRIP_PIXELS // width)
    for start in range(0, height, rows):
        strip = slice(start, start + rows)
        valid_1SW = valid_rows(strip)
        if valid_1SW is not None:
            class_ids_1HW[:, strip][~valid_1SW] = ignore_index
    return replace(prediction, class_ids_NHW=class_ids_1HW)


def outcome(prediction: Any, n: int) -> dict[str, Any]:
    """Return the columns of a PREDICTED row for image `n` of a models.Prediction, without the mask."""
    _, height, width = prediction.class_ids_NHW.shape
    valid_RG, low_RG = prediction.valid_count_NRG[n], prediction.low_count_NRG[n]
    return {
        "mean_confidence": float(prediction.mean_confidence_N[n]),
        "mean_entropy": float(prediction.mean_entropy_N[n]),
        "low_confidence_fraction": float(prediction.low_confidence_fraction_N[n]),
        "low_confidence_boxes": low_confidence_boxes(low_RG, valid_RG, prediction.cell_side, (height, width)),
        "classes": _class_rows(prediction, n),
        "has_nodata": int(valid_RG.sum()) < height * width,
    }


def _class_rows(prediction: Any, n: int) -> list[dict[str, Any]]:
    counts = prediction.pixel_count_NK[n]
    total = int(counts.sum())
    rows = []
    for k in np.flatnonzero(counts):
        x_min, y_min, x_max, y_max = (int(edge) for edge in prediction.box_NK4[n, k])
        centroid_x, centroid_y = (float(mean) for mean in prediction.centroid_NK2[n, k])
        rows.append(
            {
                "class_id": int(k),
                "pixel_count": int(counts[k]),
                "pixel_fraction": int(counts[k]) / total,
                "mean_confidence": float(prediction.confidence_sum_NK[n, k] / counts[k]),
                "x_min": x_min,
                "y_min": y_min,
                "x_max": x_max,
                "y_max": y_max,
                "centroid_x": centroid_x,
                "centroid_y": centroid_y,
            }
        )
    return rows


def low_confidence_boxes(
    low_RG: NDArray[np.int32], valid_RG: NDArray[np.int32], side: int, size: tuple[int, int]
) -> list[dict[str, int]]:
    """Return the boxes of regions of low confidence, sorted by their number of low-confidence pixels, descending.

    A region is a group of touching cells (8-connected) in which at least half of the pixels with data have low
    confidence.

    Args:
        low_RG, valid_RG: number of low-confidence pixels, and of those with data, in each cell, as in
            models.Prediction.
        side: side of a cell in pixels; cells of the last row and column are cut off at the image's edge.
        size: height and width of the image.

    Returns: x_min, y_min, x_max, y_max in pixels, half open, and pixel_count: the region's low-confidence pixels.
    """
    ys, xs = (np.minimum(np.arange(0, length + side, side), length) for length in size)
    is_low_RG = ((2 * low_RG >= valid_RG) & (valid_RG > 0)).astype(np.uint8)
    _, region_RG, boxes, _ = cv2.connectedComponentsWithStats(is_low_RG, connectivity=8)
    counts = np.bincount(region_RG.ravel(), low_RG.ravel(), len(boxes)).astype(int)
    regions = sorted(range(1, len(boxes)), key=lambda region: (-counts[region], region))
    return [_box(boxes[region], int(counts[region]), xs, ys) for region in regions[:MAX_BOXES]]


def _box(cells: NDArray[Any], count: int, xs: NDArray[Any], ys: NDArray[Any]) -> dict[str, int]:
    left, top, columns, rows = cells[:4].tolist()
    return {
        "x_min": int(xs[left]),
        "y_min": int(ys[top]),
        "x_max": int(xs[left + columns]),
        "y_max": int(ys[top + rows]),
        "pixel_count": count,
    }
