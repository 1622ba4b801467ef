"""Photometric distortion, against the formulas of MMSegmentation's PhotoMetricDistortion."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.train.photometric import UNCHANGED, Distortion, distorted, random_distortion
from tests.pipeline.samples import random_image


def converted(values: NDArray[np.uint8], factor: float = 1.0, offset: float = 0.0) -> NDArray[np.uint8]:
    return np.clip(values.astype(np.float64) * factor + offset, 0, 255).astype(np.uint8)


def test_nothing_drawn_is_no_change() -> None:
    image_HW3 = random_image(33, 47)
    np.testing.assert_array_equal(distorted(image_HW3, UNCHANGED), image_HW3)


@pytest.mark.parametrize("is_contrast_last", [False, True])
def test_brightness_is_added_and_clipped_before_contrast_multiplies(is_contrast_last: bool) -> None:
    image_HW3 = random_image(33, 47)
    expected = converted(converted(image_HW3, offset=31.5), factor=0.6)
    drawn = Distortion(brightness=31.5, contrast=0.6, is_contrast_last=is_contrast_last)
    np.testing.assert_array_equal(distorted(image_HW3, drawn), expected)


def test_saturation_and_hue_change_their_channel_of_hsv() -> None:
    image_HW3 = random_image(33, 47)
    hsv_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2HSV)
    hsv_HW3[..., 1] = converted(hsv_HW3[..., 1], factor=1.4)
    hsv_HW3[..., 0] = (hsv_HW3[..., 0].astype(int) - 17) % 180
    expected = cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB)
    np.testing.assert_array_equal(distorted(image_HW3, Distortion(saturation=1.4, hue=-17)), expected)


def test_contrast_last_acts_on_the_recolored_image() -> None:
    image_HW3 = random_image(33, 47)
    expected = converted(distorted(image_HW3, Distortion(saturation=0.5)), factor=1.5)
    drawn = Distortion(contrast=1.5, saturation=0.5, is_contrast_last=True)
    np.testing.assert_array_equal(distorted(image_HW3, drawn), expected)


def test_each_change_happens_in_half_of_the_draws_within_its_range() -> None:
    draws = [random_distortion(np.random.default_rng(seed)) for seed in range(600)]
    for field, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -18, 18),
    ):
        values = [getattr(draw, field) for draw in draws]
        assert all(low <= value < high for value in values)
        changed = np.mean([value != getattr(UNCHANGED, field) for value in values])
        assert 0.4 < changed < 0.6, field
    assert 0.4 < np.mean([draw.is_contrast_last for draw in draws]) < 0.6


def test_the_callers_image_is_left_alone() -> None:
    image_HW3 = random_image(33, 47)
    distorted(image_HW3, Distortion(10, 1.2, 0.8, 5))
    np.testing.assert_array_equal(image_HW3, random_image(33, 47))
