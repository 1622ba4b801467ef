"""Segmentation metrics from one confusion matrix, in exact integer counts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int, ignore_index: int
) -> NDArray[np.int64]:
    """Count pixels by (true class, predicted class).

    Args:
        truth: class ids of any shape; pixels equal to `ignore_index` do not count.
        predicted: class ids below `num_classes`, of the same shape.

    Returns: K x K int64, rows are the truth.
    """
    counted = truth != ignore_index
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Metrics:
    """What a confusion matrix says. Ratios from 0 to 1; nan where nothing was counted."""

    iou_K: NDArray[np.float64]
    miou: float  # over the classes that occur in the truth or the prediction
    pixel_accuracy: float

    @classmethod
    def of(cls, confusion_KK: NDArray[np.int64]) -> "Metrics":
        correct_K = np.diag(confusion_KK)
        union_K = confusion_KK.sum(0) + confusion_KK.sum(1) - correct_K
        total = confusion_KK.sum()
        iou_K = np.divide(correct_K, union_K, out=np.full(len(union_K), np.nan), where=union_K > 0)
        miou = float(np.nanmean(iou_K)) if (union_K > 0).any() else float("nan")
        return cls(iou_K, miou, float(correct_K.sum() / total) if total else float("nan"))

    def as_dict(self, class_names: list[str]) -> dict[str, Any]:
        """For a checkpoint's config.json; a class that never occurred has no IoU."""
        ious = {name: round(float(iou), 4) for name, iou in zip(class_names, self.iou_K, strict=True) if iou == iou}
        return {"miou": _rounded(self.miou), "pixel_accuracy": _rounded(self.pixel_accuracy), "iou": ious}


def _rounded(ratio: float) -> float | None:
    return None if ratio != ratio else round(ratio, 4)
