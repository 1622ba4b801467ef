"""Mask of one image computed by torch strip by strip, for images of any height.

Shape suffixes: H W rows and columns of the output, S rows of a strip, K classes.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.inference.low_confidence import cell_side, count_by_cell, count_by_column
from models.inference.masks import extent, histogram


class StripOutput:
    """Fields of Prediction for one image, from strips of torch tensors.

    The mask is in host memory. The device holds only the current strip, and counts by row and by column.
    """

    def __init__(
        self, size: tuple[int, int], num_classes: int, with_confidence_map: bool, device: torch.device
    ) -> None:
        height, width = size
        self._num_classes = num_classes
        self._ids_HW = np.empty(size, np.uint8 if num_classes <= 256 else np.uint16)
        self._confidence_HW = np.empty(size, np.float16) if with_confidence_map else None
        self._rows_HK = torch.zeros(height, num_classes, dtype=torch.int32, device=device)
        self._columns_WK = torch.zeros(width, num_classes, dtype=torch.int32, device=device)
        self._confidence_K = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self._entropy = torch.zeros((), dtype=torch.float64, device=device)
        self._cell_side = cell_side(height, width)
        self._low_HG = np.empty((height, -(-width // self._cell_side)), np.int32)

    def put(self, strip: slice, ids_SW: Tensor, confidence_SW: Tensor, entropy_SW: Tensor) -> None:
        """Add a strip of class ids, their probabilities and the entropies."""
        ids_1SW, one = ids_SW[None], torch.ones((), dtype=torch.int32, device=ids_SW.device)
        columns_1WS = ids_1SW.transpose(1, 2)
        self._rows_HK[strip] = histogram(ids_1SW, one.expand(ids_1SW.shape), self._num_classes)[0]
        self._columns_WK += histogram(columns_1WS, one.expand(columns_1WS.shape), self._num_classes)[0]
        self._confidence_K += histogram(ids_1SW, confidence_SW.double(), self._num_classes).sum((0, 1))
        self._entropy += entropy_SW.sum(dtype=torch.float64)
        self._low_HG[strip] = count_by_column(confidence_SW[None], self._cell_side)[0].cpu().numpy()
        self._ids_HW[strip] = ids_SW.to(torch.uint8 if self._num_classes <= 256 else torch.uint16).cpu().numpy()
        if self._confidence_HW is not None:
            self._confidence_HW[strip] = confidence_SW.half().cpu().numpy()

    def fields(self) -> dict[str, NDArray[Any] | None]:
        """Return the fields of Prediction, without their leading axis N, after all strips are put."""
        count_1K = self._rows_HK[None].sum(1)
        x_min_1K, x_max_1K, x_mean_1K = extent(self._columns_WK[None], count_1K)
        y_min_1K, y_max_1K, y_mean_1K = extent(self._rows_HK[None], count_1K)
        num_pixels = self._ids_HW.size
        tensors = {
            "mean_confidence_N": self._confidence_K.sum() / num_pixels,
            "mean_entropy_N": self._entropy / num_pixels,
            "pixel_count_NK": count_1K[0],
            "confidence_sum_NK": self._confidence_K,
            "box_NK4": torch.stack([x_min_1K, y_min_1K, x_max_1K, y_max_1K], -1)[0].int(),
            "centroid_NK2": torch.stack([x_mean_1K, y_mean_1K], -1)[0],
        }
        return {
            "class_ids_NHW": self._ids_HW,
            "confidence_NHW": self._confidence_HW,
            "low_count_NRG": count_by_cell(self._low_HG, self._cell_side),
            **{name: tensor.cpu().numpy() for name, tensor in tensors.items()},
        }
