"""Image sources of the sliding predictor: whole images in memory, or images read window by window."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

READ_BYTES = 32 * 2**20  # of pixels per read


class ImageWindows(Protocol):
    """RGB image from which any rectangle can be read; `height` and `width` are in pixels."""

    height: int
    width: int

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Return the pixels of rows `top` to `bottom` and columns `left` to `right`, half open: (rows, columns, 3)."""
        ...


class WholeImage:
    """Image in memory, (H, W, 3)."""

    def __init__(self, image_HW3: Tensor) -> None:
        self._image_HW3 = image_HW3

    def hold(self, first: int, last: int) -> None:
        """Do nothing; the counterpart of HeldRows.hold."""

    def window(self, rows: slice, columns: slice) -> Tensor:
        return self._image_HW3[rows, columns]


class HeldRows:
    """Rows of an image from which crops are taken. Each row is read once if `hold` is called from the top down."""

    def __init__(self, image: ImageWindows, device: torch.device) -> None:
        self._image, self._device = image, device
        self._first = 0
        self._rows_RW3 = np.empty((0, image.width, 3), np.uint8)

    def hold(self, first: int, last: int) -> None:
        """Keep rows `first` to `last`, half open, in memory and drop the rows before."""
        kept_RW3 = self._rows_RW3[first - self._first :]
        if first + len(kept_RW3) < last:
            rows_RW3 = np.empty((last - first, self._image.width, 3), np.uint8)
            rows_RW3[: len(kept_RW3)] = kept_RW3
            self._read(rows_RW3[len(kept_RW3) :], first + len(kept_RW3))
            kept_RW3 = rows_RW3
        self._first, self._rows_RW3 = first, kept_RW3

    def window(self, rows: slice, columns: slice) -> Tensor:
        """Return pixels of the held rows, on the device."""
        assert self._first <= rows.start <= rows.stop <= self._first + len(self._rows_RW3)
        window_PQ3 = self._rows_RW3[rows.start - self._first : rows.stop - self._first, columns]
        return torch.from_numpy(window_PQ3).to(self._device)

    def _read(self, rows_RW3: NDArray[np.uint8], top: int) -> None:
        width = self._image.width
        step = max(1, READ_BYTES // (3 * width))
        for start in range(0, len(rows_RW3), step):
            part_RW3 = rows_RW3[start : start + step]
            read_RW3 = self._image.read(top + start, top + start + len(part_RW3), 0, width)
            if read_RW3.shape != part_RW3.shape or read_RW3.dtype != np.uint8:
                raise ValueError(
                    f"SlidingPredictor: reading a window of {part_RW3.shape} pixels returned {read_RW3.dtype} "
                    f"{read_RW3.shape}; `read` must return uint8 (rows, columns, 3)."
                )
            part_RW3[:] = read_RW3
