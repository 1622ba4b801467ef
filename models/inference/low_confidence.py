"""Where in an image confidence is low: the pixels of low confidence, counted in the cells of a coarse grid.

Cells are squares of `cell_side` pixels, smaller in the last row and column. Shape suffixes: N batch, H W rows and
columns of pixels, S rows of a strip, R G rows and columns of cells.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LOW_CONFIDENCE = 0.5
# Along an image's longer side: coarse enough that the seams between classes, a few pixels wide, do not fill a cell.
CELLS = 32


def cell_side(height: int, width: int) -> int:
    """Return the side of the cells of an image, in pixels."""
    return -(-max(height, width) // CELLS)


def count_by_column(confidence_NSW: Tensor, side: int) -> Tensor:
    """Return how many pixels of each row have low confidence, by the column of their cell: (N, S, G) int32."""
    width = confidence_NSW.shape[-1]
    columns = -(-width // side)
    low_NSW = F.pad((confidence_NSW < LOW_CONFIDENCE).int(), (0, columns * side - width))
    return low_NSW.unflatten(-1, (columns, side)).sum(-1, dtype=torch.int32)


def count_by_cell(low_HG: NDArray[np.int32], side: int) -> NDArray[np.int32]:
    """Return the counts of cells, (R, G), from those of rows."""
    return np.add.reduceat(low_HG, np.arange(0, len(low_HG), side), axis=0, dtype=np.int32)
