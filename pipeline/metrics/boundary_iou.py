"""Boundary IoU, which measures the quality of class outlines, from counts that can be added over images.

The boundary region of a class is the set of its pixels within distance d of its outline. Boundary IoU is the IoU of
the boundary regions of the truth and the prediction. The edge of the image is an outline too. Where the truth is
ignored, so is the prediction: neither has a class there. Source: Cheng et al. 2021, "Boundary IoU: Improving
Object-Centric Image Segmentation Evaluation".
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.confusion import mean_of_known, ratio

WIDTH = 0.02  # d in the paper, as a share of the image diagonal
NO_CLASS = 2**16 - 1


@dataclass(frozen=True)
class BoundaryCounts:
    """Pixel counts of boundary regions by class, over any number of images."""

    intersection_K: NDArray[np.int64]
    union_K: NDArray[np.int64]

    @classmethod
    def none(cls, num_classes: int) -> "BoundaryCounts":
        return cls(np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64))

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        return BoundaryCounts(self.intersection_K + other.intersection_K, self.union_K + other.union_K)

    @property
    def iou_K(self) -> NDArray[np.float64]:
        """Boundary IoU of each class; nan if it never occurs."""
        return ratio(self.intersection_K, self.union_K)

    @property
    def mean(self) -> float:
        """Mean over the classes that occur in the truth or the prediction."""
        return mean_of_known(self.iou_K)


def boundary_counts(
    truth_HW: NDArray[np.integer],
    predicted_HW: NDArray[np.integer],
    num_classes: int,
    ignore_index: int,
    width: float = WIDTH,
) -> BoundaryCounts:
    """Count the pixels of one image. The truth's ids are below `num_classes` or `ignore_index`."""
    ignored_HW = truth_HW == ignore_index
    truth_HW, predicted_HW = (np.where(ignored_HW, NO_CLASS, ids).astype(np.uint16) for ids in (truth_HW, predicted_HW))
    distance = max(1, round(width * float(np.hypot(*truth_HW.shape))))
    in_truth_HW, in_prediction_HW = (near_outline(ids, distance) & ~ignored_HW for ids in (truth_HW, predicted_HW))
    in_both_HW = in_truth_HW & in_prediction_HW & (truth_HW == predicted_HW)
    true_K, predicted_K, intersection_K = (
        np.bincount(ids_P, minlength=num_classes)
        for ids_P in (truth_HW[in_truth_HW], predicted_HW[in_prediction_HW], truth_HW[in_both_HW])
    )
    return BoundaryCounts(intersection_K, true_K + predicted_K - intersection_K)


def near_outline(ids_HW: NDArray[np.uint16], distance: int) -> NDArray[np.bool_]:
    """Return a mask of the pixels that have another id or the image edge within `distance` steps, including diagonals.

    This is each class's mask minus its erosion, computed for all classes at once: all ids in the window around a pixel
    are equal to its id if their minimum and maximum are.
    """
    padded = cv2.copyMakeBorder(ids_HW, distance, distance, distance, distance, cv2.BORDER_CONSTANT, value=(NO_CLASS,))
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    inside = slice(distance, -distance), slice(distance, -distance)
    differs_HW = (cv2.dilate(padded, window)[inside] != ids_HW) | (cv2.erode(padded, window)[inside] != ids_HW)
    return np.asarray(differs_HW)
