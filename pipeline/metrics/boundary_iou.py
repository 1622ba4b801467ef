"""Boundary IoU: how well the outlines of the classes are met, from counts that add up over images.

Of each class only the pixels count that are within d of its outline, inside it, in the truth and in the prediction;
Boundary IoU is the IoU of the two. The edge of the image is an outline too. Where the truth is to be ignored, so is the
prediction: neither has any class there. Source: Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image
Segmentation Evaluation".
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.confusion import mean_of_known, ratio

WIDTH = 0.02  # of the image's diagonal: the d of the paper
NO_CLASS = 2**16 - 1


@dataclass(frozen=True)
class BoundaryCounts:
    """Pixels of boundary regions by class, of any number of images."""

    intersection_K: NDArray[np.int64]
    union_K: NDArray[np.int64]

    @classmethod
    def none(cls, num_classes: int) -> "BoundaryCounts":
        return cls(np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64))

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        return BoundaryCounts(self.intersection_K + other.intersection_K, self.union_K + other.union_K)

    @property
    def iou_K(self) -> NDArray[np.float64]:
        """Boundary IoU of each class, nan where it never occurs."""
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
    """Return whether a pixel of another id, or the outside of the image, is within `distance` steps, diagonal ones too.

    For each class that is what its eroded mask leaves of it, found for all classes at once: the ids in the window
    around a pixel are all its own if their least and their largest are.
    """
    padded = cv2.copyMakeBorder(ids_HW, distance, distance, distance, distance, cv2.BORDER_CONSTANT, value=(NO_CLASS,))
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    inside = slice(distance, -distance), slice(distance, -distance)
    differs_HW = (cv2.dilate(padded, window)[inside] != ids_HW) | (cv2.erode(padded, window)[inside] != ids_HW)
    return np.asarray(differs_HW)
