"""Comparison of a prediction's counts by cell with a plane of confidences."""

import numpy as np

from models.inference.low_confidence import cell_side


def assert_low_counts(low_RG: np.ndarray, confidence_HW: np.ndarray, tolerance: float) -> None:
    """Check the pixels of low confidence of each cell, but for pixels within the tolerance of 0.5."""
    side = cell_side(*confidence_HW.shape)
    rows, columns = (-(-size // side) for size in confidence_HW.shape)
    assert low_RG.shape == (rows, columns)
    assert low_RG.dtype == np.int32
    for r in range(rows):
        for g in range(columns):
            cell = confidence_HW[r * side : (r + 1) * side, g * side : (g + 1) * side]
            doubtful = (np.abs(cell - 0.5) < tolerance).sum()
            assert abs(low_RG[r, g] - (cell < 0.5).sum()) <= doubtful, (r, g)


def assert_valid_counts(valid_RG: np.ndarray, valid_HW: np.ndarray) -> None:
    """Check the valid pixels of each cell."""
    side = cell_side(*valid_HW.shape)
    rows, columns = (range(0, size, side) for size in valid_HW.shape)
    expected = [[valid_HW[y : y + side, x : x + side].sum() for x in columns] for y in rows]
    assert valid_RG.dtype == np.int32
    np.testing.assert_array_equal(valid_RG, expected)
