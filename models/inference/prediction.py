"""Result of labeling a batch of images: masks and their statistics.

Shape suffixes: N batch, H W rows and columns of the output, K classes, R G rows and columns of cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.inference.low_confidence import cell_side


@dataclass(frozen=True)
class Prediction:
    """Masks of N images with their statistics; pixels are those of the output.

    Confidence is a pixel's largest softmax probability, entropy is that of its softmax in nats, and confidence below
    0.5 is low. Pixels that are not valid are in no statistic, and their class ids and confidences mean nothing; without
    any valid pixel, means are NaN. `valid_count_NRG` and `low_count_NRG` have the number of valid pixels and of those
    with low confidence in each cell of `cell_side`. Per class,
    `box_NK4` is x_min, y_min, x_max, y_max, half open, zeros if the class is absent; `centroid_NK2` is the mean (x, y)
    of its pixel indices, NaN if it is absent. `class_ids_NHW` is uint8 for up to 256 classes, uint16 beyond;
    `confidence_NHW` is float16, or None unless requested.
    """

    class_ids_NHW: NDArray[np.uint8] | NDArray[np.uint16]
    confidence_NHW: NDArray[np.float16] | None
    mean_confidence_N: NDArray[np.float64]
    mean_entropy_N: NDArray[np.float64]
    valid_count_NRG: NDArray[np.int32]
    low_count_NRG: NDArray[np.int32]
    pixel_count_NK: NDArray[np.int64]
    confidence_sum_NK: NDArray[np.float64]
    box_NK4: NDArray[np.int32]
    centroid_NK2: NDArray[np.float64]

    @property
    def low_confidence_fraction_N(self) -> NDArray[np.float64]:
        """Share of valid pixels with low confidence."""
        return self.low_count_NRG.sum((1, 2)) / self.valid_count_NRG.sum((1, 2))

    @property
    def cell_side(self) -> int:
        """Side of the cells in pixels; cells of the last row and column are smaller."""
        _, height, width = self.class_ids_NHW.shape
        return cell_side(height, width)

    def image(self, n: int) -> "Prediction":
        """Return a batch with only image n, as a view."""
        fields: dict[str, Any] = {
            name: None if values is None else values[n : n + 1] for name, values in vars(self).items()
        }
        return Prediction(**fields)


def concatenate(predictions: Sequence[Prediction]) -> Prediction:
    """Combine predictions with masks of one size to that of one batch; return a single one as it is."""
    if len(predictions) == 1:
        return predictions[0]  # not a copy, since a mask may take gigabytes
    fields: dict[str, Any] = {
        name: None if first is None else np.concatenate([getattr(prediction, name) for prediction in predictions])
        for name, first in vars(predictions[0]).items()
    }
    return Prediction(**fields)
