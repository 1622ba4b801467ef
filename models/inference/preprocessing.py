"""Input of a network for inference: checks of images and masks, padding, and conversion of rows to float32."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.pspnet import MIN_SIZE

ValidMaps = Sequence[NDArray[np.bool_] | None]
"""Valid pixels of each mask, (H, W); None: all are valid."""


def checked_images(images_NHWC: Tensor | NDArray[np.uint8]) -> Tensor:
    """Return RGB images (N, height, width, 3), uint8, as a tensor. Raises ValueError for anything else."""
    shape, dtype = tuple(images_NHWC.shape), str(images_NHWC.dtype).removeprefix("torch.")
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or dtype != "uint8":
        raise ValueError(
            f"Predictor expects uint8 RGB images of shape (N, height, width, 3), not {dtype} {shape}; "
            "add the batch axis, drop alpha, and leave pixels in 0 to 255."
        )
    # Copy, since torch warns about the read-only arrays that Arrow and Ray return.
    return images_NHWC if isinstance(images_NHWC, Tensor) else torch.from_numpy(np.array(images_NHWC))


def checked_output_size(output_size: tuple[int, int] | None, images_NHWC: Tensor) -> tuple[int, int]:
    """Return the size (rows, columns) of the masks, by default that of the images. Raises ValueError if empty."""
    if output_size is None:
        return images_NHWC.shape[1], images_NHWC.shape[2]
    if min(output_size) < 1:
        raise ValueError(f"Predictor: output_size {output_size} must be at least one row and one column.")
    return output_size


def checked_valid(valid: ValidMaps | None, output_sizes: Sequence[tuple[int, int]]) -> ValidMaps:
    """Return the valid pixels of each mask. Raises ValueError unless each has a map of its size, or None."""
    if valid is None:
        return [None] * len(output_sizes)
    shapes = [None if valid_HW is None else (valid_HW.shape, valid_HW.dtype) for valid_HW in valid]
    if len(shapes) != len(output_sizes) or any(
        shape not in (None, (size, np.bool_)) for shape, size in zip(shapes, output_sizes, strict=True)
    ):
        raise ValueError(
            f"Predictor: valid pixels are {shapes}; for each of the masks {list(output_sizes)}, give bool (rows, "
            "columns) of its size, or None."
        )
    return valid


def padded_size(size: tuple[int, int], align_corners: bool) -> tuple[int, int]:
    """Return the smallest (rows, columns), at least 64, that cover `size` with logits exactly 8 pixels apart.

    With align_corners, they are 8n + 1, so that the corners of n + 1 cells fall on pixels; without it, 8n.
    """
    extra = 1 if align_corners else 0
    height, width = (max(MIN_SIZE + extra, -(-(length - extra) // 8) * 8 + extra) for length in size)
    return height, width


class NetworkInputs:
    """Network input of a batch of images, computed row by row: RGB minus `mean_3`, float32, padded to `padded`.

    `images_NHWC` are RGB from 0 to 255, uint8 or float32. Padding, at the bottom and right, has the mean color.
    """

    def __init__(self, images_NHWC: Tensor, padded: tuple[int, int], mean_3: Tensor) -> None:
        self._images_NHWC, self._mean_3 = images_NHWC, mean_3
        self.size = padded

    def __len__(self) -> int:
        return len(self._images_NHWC)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop`, (N, 3, stop - start, W)."""
        part_NSWC = self._images_NHWC[:, start:stop].to(self._mean_3.device)
        num_images, height, width, _ = part_NSWC.shape
        rows_NSWC = torch.zeros(num_images, stop - start, self.size[1], 3, device=self._mean_3.device)
        torch.sub(part_NSWC, self._mean_3, out=rows_NSWC[:, :height, :width])
        return rows_NSWC.permute(0, 3, 1, 2)

    def __getitem__(self, n: int) -> "NetworkInputs":
        """Return the input of one image."""
        return NetworkInputs(self._images_NHWC[n : n + 1], self.size, self._mean_3)
