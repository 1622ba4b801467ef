"""Augmentation: scale, rotation, mirror and crop as one affine warp of the image, then blur."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.recipe import AugmentConfig

BLUR_KERNEL = (5, 5)


def random_crop(
    image_HW3: NDArray[np.uint8],
    label_HW: NDArray[np.int32],
    augment: AugmentConfig,
    fill: tuple[float, float, float],
    ignore_index: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """One random training crop, resampled once: the image bilinearly, the label by nearest neighbour.

    What lies outside the image is `fill` (R, G, B, 0 to 255) and `ignore_index`.

    Returns: image h x w x 3 and label h x w of augment.crop's size.
    """
    matrix = random_affine(image_HW3.shape[:2], augment, rng)
    blurred = rng.random() < augment.blur
    height, width = augment.crop
    size = (width, height)
    crop_HW3 = cv2.warpAffine(
        image_HW3, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )
    # OpenCV warps no int32; int16 holds every label id below 32768, and float64 would be slower.
    label = label_HW.astype(np.int16) if max(ignore_index, int(label_HW.max())) < 2**15 else label_HW.astype(np.float64)
    crop_label = cv2.warpAffine(
        label, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(ignore_index,)
    )
    if blurred:
        crop_HW3 = cv2.GaussianBlur(crop_HW3, BLUR_KERNEL, 0)
    return crop_HW3.astype(np.uint8, copy=False), crop_label.astype(np.int32)


def random_affine(image_size: tuple[int, int], augment: AugmentConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """The 2 x 3 matrix from image to crop coordinates (x, y of pixel centres) of one random augmentation.

    As the textbook chain: scale, rotate about the centre, mirror, then a crop placed uniformly; a scaled image
    smaller than the crop is padded evenly on both sides.
    """
    height, width = image_size
    crop_height, crop_width = augment.crop
    scale = rng.uniform(*augment.scale)
    angle = math.radians(rng.uniform(-augment.rotation, augment.rotation))
    mirror = -1.0 if rng.random() < augment.mirror else 1.0
    # Where the crop's centre lies on the scaled image, from that image's centre.
    free_x, free_y = max(0.0, width * scale - crop_width), max(0.0, height * scale - crop_height)
    shift_x, shift_y = rng.uniform(-0.5, 0.5) * free_x, rng.uniform(-0.5, 0.5) * free_y

    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[mirror * cosine, mirror * -sine], [sine, cosine]])
    image_centre = np.array([(width - 1) / 2, (height - 1) / 2])
    crop_centre = np.array([(crop_width - 1) / 2 - shift_x, (crop_height - 1) / 2 - shift_y])
    return np.column_stack([linear, crop_centre - linear @ image_centre])
