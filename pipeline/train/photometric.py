"""Random changes of brightness, contrast, saturation and hue of training images.

Source: PhotoMetricDistortion of MMSegmentation, with its ranges and order. Every change rounds down to uint8.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BRIGHTNESS = 32  # maximum change, of 255
FACTORS = (0.5, 1.5)  # of contrast and saturation
HUE = 18  # maximum change, in OpenCV's units of 2 degrees
HUES = 180  # units of a full turn


class Distortion(NamedTuple):
    """Random parameters of the distortion of one image; the defaults change nothing."""

    brightness: float = 0.0  # added to each channel
    contrast: float = 1.0  # factor of each channel
    saturation: float = 1.0  # factor
    hue: int = 0  # added, in units of 2 degrees
    is_contrast_last: bool = False  # after saturation and hue instead of before


UNCHANGED = Distortion()


def random_distortion(rng: np.random.Generator) -> Distortion:
    """Draw the parameters; each change happens with probability 0.5."""
    happens = rng.random(4) < 0.5
    brightness, contrast, saturation = (
        rng.uniform(-BRIGHTNESS, BRIGHTNESS),
        rng.uniform(*FACTORS),
        rng.uniform(*FACTORS),
    )
    return Distortion(
        brightness=brightness if happens[0] else 0.0,
        contrast=contrast if happens[1] else 1.0,
        saturation=saturation if happens[2] else 1.0,
        hue=int(rng.integers(-HUE, HUE)) if happens[3] else 0,
        is_contrast_last=bool(rng.random() < 0.5),
    )


def distorted(image_HW3: NDArray[np.uint8], distortion: Distortion) -> NDArray[np.uint8]:
    """Return the distorted RGB image."""
    levels = np.arange(256.0)
    table = _table(levels + distortion.brightness)
    contrast = _table(levels * distortion.contrast)
    if not distortion.is_contrast_last:
        table = contrast[table]
    image_HW3 = _looked_up(image_HW3, table)
    if distortion.saturation != 1 or distortion.hue:
        image_HW3 = _recolored(image_HW3, distortion)
    return _looked_up(image_HW3, contrast) if distortion.is_contrast_last else image_HW3


def _recolored(image_HW3: NDArray[np.uint8], distortion: Distortion) -> NDArray[np.uint8]:
    hues = (np.arange(256) + distortion.hue) % HUES
    unchanged = np.arange(256)
    tables = np.stack([hues, _table(unchanged * distortion.saturation), unchanged], 1).astype(np.uint8)
    hsv_HW3: Any = cv2.LUT(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2HSV), tables[None])
    return np.asarray(cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB), np.uint8)


def _table(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(values, 0, 255).astype(np.uint8)


def _looked_up(image_HW3: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.LUT(image_HW3, table), np.uint8)
