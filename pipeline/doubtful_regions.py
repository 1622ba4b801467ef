"""The regions of an image of which the model is unsure, as boxes: what someone who annotates looks at first."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MOST = 16  # boxes of an image, the largest regions


def low_confidence_boxes(low_RG: NDArray[np.int32], side: int, height: int, width: int) -> list[dict[str, int]]:
    """Boxes around touching cells with low confidence in at least half of their pixels, most such pixels first.

    Args:
        low_RG: pixels of low confidence in each cell, as a models.Prediction has them.
        side: of the cells, pixels; those of the last row and column end with the image.

    Returns: x_min, y_min, x_max, y_max, half open, in pixels, and pixel_count: those of low confidence in the cells.
    """
    ys, xs = (np.minimum(np.arange(0, size + side, side), size) for size in (height, width))
    pixels_RG = np.outer(np.diff(ys), np.diff(xs))
    doubtful_RG = (2 * low_RG >= pixels_RG).astype(np.uint8)
    _, region_RG, boxes, _ = cv2.connectedComponentsWithStats(doubtful_RG, connectivity=8)
    counts = np.bincount(region_RG.ravel(), low_RG.ravel(), len(boxes)).astype(int)
    regions = sorted(range(1, len(boxes)), key=lambda region: (-counts[region], region))
    return [_box(boxes[region], int(counts[region]), xs, ys) for region in regions[:MOST]]


def _box(cells: NDArray[Any], count: int, xs: NDArray[Any], ys: NDArray[Any]) -> dict[str, int]:
    left, top, columns, rows = cells[:4].tolist()
    box = {"x_min": xs[left], "y_min": ys[top], "x_max": xs[left + columns], "y_max": ys[top + rows]}
    return {**{name: int(edge) for name, edge in box.items()}, "pixel_count": count}
