"""Expected calibration error against torchmetrics and against counting pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.metrics.calibration_error import BINS, ConfidenceCounts, confidence_counts

IGNORE = 255


def pixels(seed: int, shape: tuple[int, ...] = (60, 80)) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray]:
    """Truth, prediction and confidence, of which more are right the higher it is."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, shape).astype(np.uint8)
    confidence = (0.2 + 0.79 * rng.random(shape)).astype(np.float16)
    right = rng.random(shape) < confidence.astype(float) ** 1.5
    predicted = np.where(right, truth, (truth + 1) % 5).astype(np.uint8)
    return np.where(rng.random(shape) < 0.2, IGNORE, truth).astype(np.uint8), predicted, confidence


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_says_the_same(seed: int) -> None:
    from torchmetrics.functional.classification import binary_calibration_error  # takes seconds

    truth, predicted, confidence = pixels(seed)
    counted = truth != IGNORE
    # The calibration of a binary task whose probability is our confidence and whose truth is that we are right.
    theirs = binary_calibration_error(
        torch.from_numpy(confidence[counted].astype(np.float32)),
        torch.from_numpy(truth[counted] == predicted[counted]).long(),
        n_bins=BINS,
        norm="l1",
    )
    counts = confidence_counts(truth, predicted, confidence, IGNORE)
    assert counts.error == pytest.approx(float(theirs), abs=1e-5)
    assert counts.error > 0.03


def test_counts_are_those_counted_pixel_by_pixel() -> None:
    truth, predicted, confidence = pixels(3, (9, 11))
    pixels_B, correct_B, sum_B = [0] * BINS, [0] * BINS, [0.0] * BINS
    for t, p, c in zip(truth.flat, predicted.flat, confidence.flat, strict=True):
        if t != IGNORE:
            index = min(BINS - 1, math.floor(float(c) * BINS))
            pixels_B[index] += 1
            correct_B[index] += int(t == p)
            sum_B[index] += float(c)
    counts = confidence_counts(truth, predicted, confidence, IGNORE)
    assert counts.pixels_B.tolist() == pixels_B
    assert counts.correct_B.tolist() == correct_B
    assert counts.confidence_B.tolist() == sum_B
    np.testing.assert_allclose(counts.mean_confidence, confidence[truth != IGNORE].astype(float).mean())


def test_the_edges_of_bins() -> None:
    confidence = np.array([0.0, 1 / 15, 0.2, 0.5, 1.0], np.float16)
    ids = np.zeros(5, np.uint8)
    found = np.flatnonzero(confidence_counts(ids, ids, confidence, IGNORE).pixels_B)
    below = 0 if float(np.float16(1 / 15)) < 1 / 15 else 1
    fifth = 2 if float(np.float16(0.2)) < 0.2 else 3
    assert found.tolist() == sorted({0, below, fifth, 7, 14})


def test_parts_in_any_order_add_up_to_the_same_digits() -> None:
    truth, predicted, confidence = pixels(4, (300, 100))
    parts = [confidence_counts(*row, IGNORE) for row in zip(truth, predicted, confidence, strict=True)]
    expected = confidence_counts(truth, predicted, confidence, IGNORE)
    for order in (parts, parts[::-1]):
        total = sum(order, ConfidenceCounts.none())
        np.testing.assert_array_equal(total.confidence_B, expected.confidence_B)
        np.testing.assert_array_equal(total.pixels_B, expected.pixels_B)
        np.testing.assert_array_equal(total.correct_B, expected.correct_B)


def test_honest_confidences_have_no_error_and_boasting_ones_have_their_excess() -> None:
    truth, predicted = np.zeros(100, np.uint8), (np.arange(100) >= 75).astype(np.uint8)
    assert confidence_counts(truth, predicted, np.full(100, 0.75, np.float16), IGNORE).error == 0
    assert confidence_counts(truth, predicted, np.ones(100, np.float16), IGNORE).error == pytest.approx(0.25)


def test_nothing_labelled_is_no_number() -> None:
    counts = confidence_counts(np.full(4, IGNORE), np.zeros(4, np.uint8), np.ones(4, np.float16), IGNORE)
    assert math.isnan(counts.error)
    assert math.isnan(counts.mean_confidence)
    assert np.isnan(counts.accuracy_B).all()
