"""Counts of valid pixels, and of those with low confidence, in the cells of a coarse grid.

Cells are squares of `cell_side` pixels, smaller in the last row and column. Shape suffixes: N batch, H W rows and
columns of pixels, S rows of a strip, R G rows and columns of cells.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LOW_CONFIDENCE = 0.5
# Cells along the longer side of an image: coarse enough that a boundary between classes, a few pixels wide, does not
# fill a cell.
CELLS = 32


def cell_side(height: int, width: int) -> int:
    """Return the side of an image's cells, in pixels."""
    return -(-max(height, width) // CELLS)


def count_by_column(confidence_NSW: Tensor, side: int) -> Tensor:
    """Return the number of low-confidence pixels of each row, by column of cells: (N, S, G) int32."""
    width = confidence_NSW.shape[-1]
    columns = -(-width // side)
    low_NSW = F.pad((confidence_NSW < LOW_CONFIDENCE).int(), (0, columns * side - width))
    return low_NSW.unflatten(-1, (columns, side)).sum(-1, dtype=torch.int32)


def count_valid_by_column(valid_NSW: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """Return the number of valid pixels of each row, by column of cells: (N, S, G)."""
    return np.add.reduceat(valid_NSW, np.arange(0, valid_NSW.shape[2], side), axis=2, dtype=np.int32)


def count_by_cell(counts_NHG: NDArray[np.int32], side: int) -> NDArray[np.int32]:
    """Sum the counts of rows to counts of cells, (N, R, G)."""
    return np.add.reduceat(counts_NHG, np.arange(0, counts_NHG.shape[1], side), axis=1, dtype=np.int32)
