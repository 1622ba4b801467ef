"""Expected calibration error of a model's confidences, from counts that can be added over images.

Pixels are binned by confidence; in each bin the share of correct pixels should equal their mean confidence. The error
is the mean gap between the two over all pixels. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks",
section 2.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.confusion import ratio

BINS = 15


@dataclass(frozen=True)
class ConfidenceCounts:
    """Labeled pixels by confidence: bin b of B covers [b / B, (b + 1) / B); the last bin includes 1.

    The sum of float16 confidences is exact in any order for up to half a billion pixels in a bin: each confidence is a
    multiple of 2**-24, of which a float64 holds 2**53. Beyond that, the last bits depend on the order.
    """

    pixels_B: NDArray[np.int64]
    correct_B: NDArray[np.int64]
    confidence_B: NDArray[np.float64]  # sum over the pixels

    @classmethod
    def none(cls) -> "ConfidenceCounts":
        return cls(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS))

    def __add__(self, other: "ConfidenceCounts") -> "ConfidenceCounts":
        return ConfidenceCounts(
            self.pixels_B + other.pixels_B, self.correct_B + other.correct_B, self.confidence_B + other.confidence_B
        )

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1; nan without pixels."""
        total = self.pixels_B.sum()
        return float(np.abs(self.correct_B - self.confidence_B).sum() / total) if total else float("nan")

    @property
    def accuracy_B(self) -> NDArray[np.float64]:
        """Share of correct pixels in each bin; nan for an empty bin."""
        return ratio(self.correct_B, self.pixels_B)

    @property
    def mean_confidence(self) -> float:
        """Mean confidence over all pixels; nan without pixels."""
        total = self.pixels_B.sum()
        return float(self.confidence_B.sum() / total) if total else float("nan")


def confidence_counts(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    confidence: NDArray[np.float16],
    ignore_index: int,
) -> ConfidenceCounts:
    """Count the pixels of arrays of the same shape, ignoring pixels whose truth is `ignore_index`."""
    counted = truth != ignore_index
    confidence_P = confidence[counted].astype(np.float32)
    bin_P = np.minimum((confidence_P * BINS).astype(np.int64), BINS - 1)
    right_P = truth[counted] == predicted[counted]
    return ConfidenceCounts(
        np.bincount(bin_P, minlength=BINS),
        np.bincount(bin_P[right_P], minlength=BINS),
        np.bincount(bin_P, confidence_P, BINS).astype(np.float64),
    )
