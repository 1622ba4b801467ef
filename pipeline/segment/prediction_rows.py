"""Rows of the masks and class statistics tables, from predictions."""

from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.output.schema import PREDICTED, table

MAX_BOXES = 16  # boxes of an image, the largest regions


def predicted_table(rows: list[dict[str, Any]]) -> pa.Table:
    return table([{name: row[name] for name in PREDICTED.names if name in row} for row in rows], PREDICTED)


def outcome(prediction: Any, n: int) -> dict[str, Any]:
    """What a PREDICTED row says of a mask."""
    _, height, width = prediction.class_ids_NHW.shape
    return {
        "mean_confidence": float(prediction.mean_confidence_N[n]),
        "mean_entropy": float(prediction.mean_entropy_N[n]),
        "low_confidence_fraction": float(prediction.low_confidence_fraction_N[n]),
        "low_confidence_boxes": low_confidence_boxes(prediction.low_count_NRG[n], prediction.cell_side, height, width),
        "classes": _class_rows(prediction, n),
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


def low_confidence_boxes(low_RG: NDArray[np.int32], side: int, height: int, width: int) -> list[dict[str, int]]:
    """Boxes around touching cells with low confidence in at least half of their pixels, most such pixels first.

    Args:
        low_RG: pixels of low confidence in each cell, as a models.Prediction has them.
        side: of the cells, pixels; those of the last row and column end with the image.

    Returns: x_min, y_min, x_max, y_max, half open, in pixels, and pixel_count: those of low confidence in the cells.
    """
    ys, xs = (np.minimum(np.arange(0, size + side, side), size) for size in (height, width))
    pixels_RG = np.outer(np.diff(ys), np.diff(xs))
    is_low_RG = (2 * low_RG >= pixels_RG).astype(np.uint8)
    _, region_RG, boxes, _ = cv2.connectedComponentsWithStats(is_low_RG, connectivity=8)
    counts = np.bincount(region_RG.ravel(), low_RG.ravel(), len(boxes)).astype(int)
    regions = sorted(range(1, len(boxes)), key=lambda region: (-counts[region], region))
    return [_box(boxes[region], int(counts[region]), xs, ys) for region in regions[:MAX_BOXES]]


def _box(cells: NDArray[Any], count: int, xs: NDArray[Any], ys: NDArray[Any]) -> dict[str, int]:
    left, top, columns, rows = cells[:4].tolist()
    box = {"x_min": xs[left], "y_min": ys[top], "x_max": xs[left + columns], "y_max": ys[top + rows]}
    return {**{name: int(edge) for name, edge in box.items()}, "pixel_count": count}
