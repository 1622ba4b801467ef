"""Boundary IoU against its definition: erode each class's mask, class by class."""

import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.metrics.boundary_iou import BoundaryCounts, boundary_counts

IGNORE = 255


def boundary_region(mask_HW: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Return the pixels that `distance` erosions by 3 x 3 remove from a mask. Outside of the image, nothing is set."""
    padded = cv2.copyMakeBorder(mask_HW.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0,))
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return mask_HW & (eroded[1:-1, 1:-1] == 0)


def by_definition(
    truth_HW: NDArray[np.integer], predicted_HW: NDArray[np.integer], num_classes: int, distance: int
) -> tuple[list[int], list[int]]:
    counted_HW = truth_HW != IGNORE
    intersections, unions = [], []
    for k in range(num_classes):
        true_HW, found_HW = (
            boundary_region((ids_HW == k) & counted_HW, distance) for ids_HW in (truth_HW, predicted_HW)
        )
        intersections.append(int((true_HW & found_HW).sum()))
        unions.append(int((true_HW | found_HW).sum()))
    return intersections, unions


def scene(seed: int, num_classes: int, height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Regions with ragged outlines, a strip to ignore, and a prediction whose outlines are off by a few pixels."""
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.random((height, width)), (0, 0), 7) for _ in range(num_classes)]
    truth = np.argmax(noise, axis=0)
    predicted = np.argmax([plane + 0.004 * rng.standard_normal() for plane in noise], axis=0)
    predicted = np.roll(predicted, int(rng.integers(-3, 4)), axis=1)
    truth[:, 40:46] = IGNORE
    return truth, predicted


@pytest.mark.parametrize("width", [0.005, 0.02, 0.1, 2.0])
@pytest.mark.parametrize("num_classes", [1, 2, 6])
def test_it_is_what_erosion_class_by_class_says(num_classes: int, width: float) -> None:
    truth, predicted = scene(num_classes, num_classes)
    counts = boundary_counts(truth, predicted, num_classes, IGNORE, width)
    distance = max(1, round(width * math.hypot(90, 120)))
    intersections, unions = by_definition(truth, predicted, num_classes, distance)
    assert counts.intersection_K.tolist() == intersections
    assert counts.union_K.tolist() == unions
    assert counts.intersection_K.dtype == counts.union_K.dtype == np.int64


def test_counts_of_images_add_up() -> None:
    one, other = (boundary_counts(*scene(seed, 4), 4, IGNORE) for seed in (1, 2))
    total = BoundaryCounts.none(4) + one + other
    np.testing.assert_array_equal(total.union_K, one.union_K + other.union_K)
    np.testing.assert_array_equal(total.intersection_K, one.intersection_K + other.intersection_K)


def test_a_perfect_prediction_scores_one_and_a_shifted_one_much_less_than_its_iou() -> None:
    truth = np.zeros((200, 200), np.int64)
    truth[50:150, 50:150] = 1
    assert boundary_counts(truth, truth, 2, IGNORE).mean == 1.0
    shifted = np.roll(truth, 4, axis=(0, 1))
    counts = boundary_counts(truth, shifted, 2, IGNORE)
    iou = ((truth == 1) & (shifted == 1)).sum() / ((truth == 1) | (shifted == 1)).sum()
    assert counts.iou_K[1] < 0.4 < 0.8 < iou


def test_the_middle_of_a_region_does_not_count() -> None:
    truth = np.zeros((300, 300), np.int64)
    predicted = truth.copy()
    predicted[140:160, 140:160] = 1
    counts = boundary_counts(truth, predicted, 2, IGNORE)
    distance = round(0.02 * math.hypot(300, 300))
    frame = 300**2 - (300 - 2 * distance) ** 2
    around_the_hole = (20 + 2 * distance) ** 2 - 20**2
    assert (counts.intersection_K[0], counts.union_K[0]) == (frame, frame + around_the_hole)


def test_classes_that_never_occur_are_left_out_of_the_mean() -> None:
    truth = np.zeros((20, 20), np.int64)
    counts = boundary_counts(truth, truth, 3, IGNORE)
    np.testing.assert_array_equal(counts.iou_K, [1.0, np.nan, np.nan])
    assert counts.mean == 1.0


def test_nothing_labelled_counts_nothing() -> None:
    counts = boundary_counts(np.full((20, 20), IGNORE), np.zeros((20, 20), np.uint8), 3, IGNORE)
    assert not counts.union_K.any()
    assert math.isnan(counts.mean)


@pytest.mark.parametrize("ignore_index", [0xFFFF, 300])
def test_ids_of_16_bits(ignore_index: int) -> None:
    truth, predicted = scene(3, 5)
    expected = boundary_counts(truth, predicted, 5, IGNORE)
    moved = np.where(truth == IGNORE, ignore_index, truth + 280).astype(np.int32)
    counts = boundary_counts(moved, (predicted + 280).astype(np.uint16), 290, ignore_index)
    np.testing.assert_array_equal(counts.union_K[280:285], expected.union_K)
    assert counts.union_K.sum() == expected.union_K.sum()


def test_an_image_of_one_pixel() -> None:
    counts = boundary_counts(np.array([[1]]), np.array([[1]], np.uint8), 2, IGNORE)
    assert counts.iou_K[1] == 1
