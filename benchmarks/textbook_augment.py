"""Augmentation as the chain of steps of published training code: the baseline of the single warp.

Scale, rotate about the center, mirror, pad and crop, blur: each is a separate pass over the image (Zhao et al. 2017,
section 5.1, and the authors' released training code). Uses the draws of pipeline/train/augmentation.py.
"""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.train.augmentation import BLUR_KERNEL, Draw

Pair = tuple[NDArray[Any], NDArray[Any]]


def crop_of(
    image: NDArray[Any],
    label: NDArray[Any],
    draw: Draw,
    crop_size: tuple[int, int],
    fill: tuple[float, ...],
    ignore_index: int,
) -> Pair:
    """Return one training crop; image (H, W, channels) of any type that OpenCV supports, label (H, W) uint8."""
    image, label = scaled(image, label, draw.scale)
    image, label = rotated(image, label, draw.angle, fill, ignore_index)
    if draw.mirrored:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    image, label = cropped(image, label, crop_size, (draw.across, draw.down), fill, ignore_index)
    return (cv2.GaussianBlur(image, BLUR_KERNEL, 0) if draw.blurred else image), label


def scaled(image: NDArray[Any], label: NDArray[Any], scale: float) -> Pair:
    size = [round(scale * length) for length in label.shape[::-1]]
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, size, interpolation=cv2.INTER_NEAREST),
    )


def rotated(image: NDArray[Any], label: NDArray[Any], angle: float, fill: tuple[float, ...], ignore_index: int) -> Pair:
    height, width = label.shape
    # OpenCV measures angles in the opposite direction.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -math.degrees(angle), 1)
    size = width, height
    return (
        cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=fill),
        cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=(ignore_index,)),
    )


def cropped(
    image: NDArray[Any],
    label: NDArray[Any],
    crop_size: tuple[int, int],
    place: tuple[float, float],
    fill: tuple[float, ...],
    ignore_index: int,
) -> Pair:
    """Pad evenly to the crop size where the image is smaller, then crop; `place` is from -0.5 to 0.5 in x and y."""
    missing = [max(0, wanted - have) for wanted, have in zip(crop_size, label.shape, strict=True)]
    if any(missing):
        sides = missing[0] // 2, missing[0] - missing[0] // 2, missing[1] // 2, missing[1] - missing[1] // 2
        image = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=fill)
        label = cv2.copyMakeBorder(label, *sides, cv2.BORDER_CONSTANT, value=(ignore_index,))
    free_x, free_y = label.shape[1] - crop_size[1], label.shape[0] - crop_size[0]
    left, top = round((place[0] + 0.5) * free_x), round((place[1] + 0.5) * free_y)
    window = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
    return np.ascontiguousarray(image[window]), np.ascontiguousarray(label[window])
