"""Separable bilinear interpolation by sparse matrices.

Each output row (column) mixes two rows (columns) of logits. So each axis has one matrix with two entries per row, which
composes three maps of pixel centers. Output pixel u of `out` is mapped to the input image with half-pixel centers,

    x = clamp((u + 1/2) * size / out - 1/2, 0, size - 1)

x is also a pixel of the padded image (padding is at the bottom and right). It is mapped to the logit grid with the
network's own convention: x * (cells - 1) / (padded - 1) with align_corners, (x + 1/2) * cells / padded - 1/2,
clamped, without. At the input's own size, the result equals F.interpolate to the padded size, cropped.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TapTensors = tuple[Tensor, Tensor, Tensor]


class TapsStruct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("low", "high", "weight")]


@dataclass(frozen=True)
class Taps:
    """1-D interpolation matrix, given by the two entries of each row: 1 - weight at `low`, weight at `high`."""

    low: NDArray[np.int32]
    high: NDArray[np.int32]
    weight: NDArray[np.float32]

    @classmethod
    def at(cls, cell: NDArray[np.float64], cells: int) -> "Taps":
        """Return the matrix that samples `cells` values at the positions `cell`, clamped to their range."""
        cell = cell.clip(0, cells - 1)
        low = cell.astype(np.int32)
        return cls(low, np.minimum(low + 1, cells - 1, dtype=np.int32), (cell - low).astype(np.float32))

    def __len__(self) -> int:
        return len(self.weight)

    def part(self, rows: slice | NDArray[np.integer]) -> "Taps":
        return Taps(self.low[rows], self.high[rows], self.weight[rows])

    def mirrored(self) -> "Taps":
        return Taps(self.low[::-1].copy(), self.high[::-1].copy(), self.weight[::-1].copy())

    def tensors(self, device: torch.device) -> TapTensors:
        low, high, weight = (torch.from_numpy(array).to(device) for array in (self.low, self.high, self.weight))
        return low, high, weight

    def struct(self) -> TapsStruct:
        """Return the struct for masks.c, valid as long as this object."""
        return TapsStruct(self.low.ctypes.data, self.high.ctypes.data, self.weight.ctypes.data)


def half_pixel_positions(size: int, output_size: int) -> NDArray[np.float64]:
    """Return the positions of the centers of `output_size` pixels on `size` pixels of the same extent."""
    return ((np.arange(output_size) + 0.5) * size / output_size - 0.5).clip(0, size - 1)


def cell_positions(pixel: NDArray[np.float64], padded: int, cells: int, align_corners: bool) -> NDArray[np.float64]:
    """Return the positions of pixels of the network's input on its logits, along one axis."""
    return pixel * (cells - 1) / (padded - 1) if align_corners else (pixel + 0.5) * cells / padded - 0.5


def taps(size: int, padded: int, cells: int, output_size: int, align_corners: bool) -> Taps:
    """Return the matrix (output_size, cells) of the module docstring, for one axis."""
    return Taps.at(cell_positions(half_pixel_positions(size, output_size), padded, cells, align_corners), cells)


def both_taps(
    cells: Sequence[int],
    size: tuple[int, int],
    padded: tuple[int, int],
    output_size: tuple[int, int],
    align_corners: bool,
) -> tuple[Taps, Taps]:
    """Return the matrices for rows and for columns."""
    rows, columns = (taps(size[i], padded[i], cells[i], output_size[i], align_corners) for i in (0, 1))
    return rows, columns


def mix(x: Tensor, taps: TapTensors, dim: int) -> Tensor:
    """Interpolate `x` along `dim`, in float32."""
    low, high, weight = taps
    weight = weight.view([-1 if axis == dim else 1 for axis in range(x.dim())])
    return x.index_select(dim, low).float().lerp_(x.index_select(dim, high).float(), weight)
