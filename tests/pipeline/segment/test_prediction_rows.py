"""Boxes around the regions of which a model is unsure, and masks and statistics of images that lack data."""

import numpy as np
import pytest
import torch

from models.inference.interpolation import Taps
from models.inference.low_confidence import CELLS, cell_side
from models.inference.masks import label_batch
from pipeline.segment import prediction_rows
from pipeline.segment.prediction_rows import MAX_BOXES, low_confidence_boxes, outcome, with_ignored


def counts(low_HW: np.ndarray) -> np.ndarray:
    """Pixels by cell."""
    side = cell_side(*low_HW.shape)
    rows, columns = (range(0, size, side) for size in low_HW.shape)
    return np.array([[low_HW[y : y + side, x : x + side].sum() for x in columns] for y in rows], np.int32)


def boxes(low_HW: np.ndarray, valid_HW: np.ndarray | None = None) -> list[list[int]]:
    valid_HW = np.ones_like(low_HW) if valid_HW is None else valid_HW
    found = low_confidence_boxes(counts(low_HW), counts(valid_HW), cell_side(*low_HW.shape), low_HW.shape)
    return [[box[name] for name in ("x_min", "y_min", "x_max", "y_max", "pixel_count")] for box in found]


def test_each_region_has_its_box_and_its_pixels_and_the_largest_is_first() -> None:
    low_HW = np.zeros((240, 320), bool)  # cells of 10 pixels
    low_HW[20:60, 100:140] = True
    low_HW[200:240, 0:100] = True
    assert boxes(low_HW) == [[0, 200, 100, 240, 4000], [100, 20, 140, 60, 1600]]


def test_a_box_ends_with_the_cells_that_are_half_doubtful() -> None:
    low_HW = np.zeros((320, 320), bool)
    low_HW[100:115, 100:114] = True  # half of a cell below, less than half of one on the right
    assert boxes(low_HW) == [[100, 100, 110, 120, 150]]


def test_half_of_the_pixels_with_data_make_a_cell_doubtful_and_a_cell_without_any_is_not() -> None:
    low_HW, valid_HW = np.zeros((320, 320), bool), np.ones((320, 320), bool)
    valid_HW[100:108, 100:110] = False  # two rows of a cell are left
    low_HW[108, 100:110] = True
    valid_HW[200:220, 200:220] = False
    assert boxes(low_HW, valid_HW) == [[100, 100, 110, 110, 10]]
    assert boxes(low_HW) == []


@pytest.mark.parametrize(("num_classes", "ignored", "dtype"), [(2, 255, "u1"), (256, 65535, "u2"), (300, 65535, "u2")])
def test_a_mask_has_the_ignore_index_where_there_is_no_data(
    num_classes: int, ignored: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_rows, "STRIP_PIXELS", 25)
    ids_HW = np.arange(99).reshape(9, 11) % num_classes
    valid_HW = np.random.default_rng(0).random((9, 11)) < 0.5
    valid_HW[4:] = True

    def valid_rows(rows: slice) -> np.ndarray | None:
        return None if valid_HW[rows].all() else valid_HW[None, rows]

    logits = torch.nn.functional.one_hot(torch.from_numpy(ids_HW), num_classes)[None].float()
    prediction = label_batch(
        10 * logits, Taps.at(np.arange(9.0), 9), Taps.at(np.arange(11.0), 11), False, valid=[valid_HW]
    )
    marked = with_ignored(prediction, valid_rows)
    assert marked.class_ids_NHW.dtype == dtype
    np.testing.assert_array_equal(marked.class_ids_NHW[0], np.where(valid_HW, ids_HW, ignored))
    row = outcome(marked, 0)
    assert row["has_nodata"]
    assert sum(entry["pixel_fraction"] for entry in row["classes"]) == pytest.approx(1)
    assert sum(entry["pixel_count"] for entry in row["classes"]) == valid_HW.sum()


def test_cells_that_touch_at_a_corner_are_one_region() -> None:
    low_HW = np.zeros((320, 320), bool)
    low_HW[0:10, 0:10] = low_HW[10:20, 10:20] = True
    assert boxes(low_HW) == [[0, 0, 20, 20, 200]]


def test_seams_between_classes_are_no_regions() -> None:
    low_HW = np.zeros((480, 480), bool)
    low_HW[:, 238:242] = True
    low_HW[100:104] = True
    assert boxes(low_HW) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (33, 65), (431, 97), (64, 64)])
def test_boxes_end_with_the_image_whatever_its_size(size: tuple[int, int]) -> None:
    height, width = size
    assert boxes(np.ones(size, bool)) == [[0, 0, width, height, height * width]]
    assert boxes(np.zeros(size, bool)) == []


def test_of_many_regions_the_largest_are_kept() -> None:
    low_HW = np.zeros((640, 640), bool)  # cells of 20 pixels
    for n in range(2 * MAX_BOXES):
        y, x = 40 * (n // 8), 80 * (n % 8)
        low_HW[y : y + 20, x : x + 20] = True
        low_HW[y, x : x + n] = n % 2 == 0
    found = boxes(low_HW)
    assert len(found) == MAX_BOXES
    pixels = [box[4] for box in found]
    assert pixels == sorted(pixels, reverse=True)
    assert min(pixels) >= 400 - 2 * MAX_BOXES


def test_an_image_has_at_most_so_many_cells_along_its_longer_side() -> None:
    for size in ((1, 1), (32, 32), (33, 10), (10_000, 3), (473, 473), (60_000, 60_000)):
        side = cell_side(*size)
        assert 1 <= -(-max(size) // side) <= CELLS
