"""Segmentation metrics from a confusion matrix of exact integer counts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int, ignore_index: int
) -> NDArray[np.int64]:
    """Count pixels by (true class, predicted class).

    Args:
        truth: class ids of any shape; pixels equal to `ignore_index` are not counted.
        predicted: class ids below `num_classes`, of the same shape.

    Returns: K x K int64, rows are the truth.
    """
    counted = truth != ignore_index
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Metrics:
    """Metrics of a confusion matrix, from 0 to 1; nan if nothing was counted."""

    iou_K: NDArray[np.float64]
    accuracy_K: NDArray[np.float64]  # share of a class's true pixels that are predicted correctly; nan without any
    precision_K: NDArray[np.float64]  # share of a class's predicted pixels that are correct; nan without any
    miou: float  # over the classes that occur in the truth or the prediction
    mean_accuracy: float  # over the classes that occur in the truth
    pixel_accuracy: float
    frequency_weighted_iou: float  # weighted by the frequency of each class in the truth

    @classmethod
    def of(cls, confusion_KK: NDArray[np.int64]) -> "Metrics":
        correct_K, true_K, predicted_K = np.diag(confusion_KK), confusion_KK.sum(1), confusion_KK.sum(0)
        iou_K = ratio(correct_K, true_K + predicted_K - correct_K)
        accuracy_K = ratio(correct_K, true_K)
        occurs_K = true_K > 0
        total = confusion_KK.sum()
        weighted = float((true_K[occurs_K] * iou_K[occurs_K]).sum() / total) if total else float("nan")
        return cls(
            iou_K,
            accuracy_K,
            ratio(correct_K, predicted_K),
            mean_of_known(iou_K),
            mean_of_known(accuracy_K),
            float(correct_K.sum() / total) if total else float("nan"),
            weighted,
        )

    def as_dict(self, class_names: list[str]) -> dict[str, Any]:
        """Return the metrics for a checkpoint's config.json; a class that never occurs has no IoU."""
        ious = {name: round(float(iou), 4) for name, iou in zip(class_names, self.iou_K, strict=True) if iou == iou}
        return {
            "miou": rounded(self.miou),
            "mean_accuracy": rounded(self.mean_accuracy),
            "pixel_accuracy": rounded(self.pixel_accuracy),
            "frequency_weighted_iou": rounded(self.frequency_weighted_iou),
            "iou": ious,
        }


def ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return part / whole, or nan if the whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not nan, or nan if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def rounded(value: float) -> float | None:
    """Return the ratio for JSON: rounded to four digits, None for nan."""
    return None if value != value else round(float(value), 4)
