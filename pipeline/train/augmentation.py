"""Data augmentation: photometric distortion, then scale, rotation, mirror and crop as one affine warp, then blur."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config.training import AugmentConfig
from pipeline.train.photometric import UNCHANGED, Distortion, distorted, random_distortion

BLUR_KERNEL = (5, 5)
BAND_ROWS = 64
MAX_POSITIONS = 10  # that are checked against cat_max_ratio, as in MMSegmentation's RandomCrop

Label = NDArray[np.uint8] | NDArray[np.int32]


class Draw(NamedTuple):
    """Random parameters of one crop."""

    scale: float
    angle: float  # radians
    mirrored: bool
    across: float  # horizontal position of the crop in the scaled image, from -0.5 (left) to 0.5 (right)
    down: float  # vertical position, from -0.5 (top) to 0.5 (bottom)
    blurred: bool
    distortion: Distortion = UNCHANGED


def random_draw(augment: AugmentConfig, rng: np.random.Generator) -> Draw:
    """Draw crop parameters uniformly from the configured ranges."""
    draw = Draw(
        scale=rng.uniform(*augment.scale),
        angle=math.radians(rng.uniform(-augment.rotation, augment.rotation)),
        mirrored=bool(rng.random() < augment.mirror),
        across=rng.uniform(-0.5, 0.5),
        down=rng.uniform(-0.5, 0.5),
        blurred=bool(rng.random() < augment.blur),
    )
    if rng.random() >= augment.rotation_probability:
        draw = draw._replace(angle=0.0)
    return draw._replace(distortion=random_distortion(rng)) if augment.photometric else draw


def random_crop(
    image_HW3: NDArray[np.uint8],
    label_HW: Label,
    augment: AugmentConfig,
    fill: tuple[float, float, float],
    ignore_index: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], Label]:
    """Return one random training crop, resampled once: the image bilinearly, the label by nearest neighbor.

    Outside the image, the crop is filled with `fill` (R, G, B, 0 to 255) or with the image's reflection, depending on
    augment.padding. The label is `ignore_index` there in both cases.

    Returns: image h x w x 3 and label h x w, where h x w is augment.crop. The label is uint8 if its ids and
        `ignore_index` are below 256, otherwise int32.
    """
    draw = random_draw(augment, rng)
    if augment.short_side is not None:
        draw = draw._replace(scale=draw.scale * augment.short_side / min(label_HW.shape))
    if augment.cat_max_ratio < 1:
        draw = varied_draw(label_HW, draw, augment, ignore_index, rng)
    return crop_of(image_HW3, label_HW, draw, augment, fill, ignore_index)


def varied_draw(
    label_HW: Label, draw: Draw, augment: AugmentConfig, ignore_index: int, rng: np.random.Generator
) -> Draw:
    """Return the draw, at another position if one class would have too large a share of the crop's labeled pixels.

    A position is accepted if the crop has two classes or more, and each less than augment.cat_max_ratio of its labeled
    pixels. After MAX_POSITIONS rejected ones, the next is taken as it is. Source: MMSegmentation's RandomCrop.
    """
    for _ in range(MAX_POSITIONS):
        matrix = affine(draw, (label_HW.shape[0], label_HW.shape[1]), augment.crop)
        crop_HW = warped_label(label_HW, matrix, augment.crop, ignore_index)
        counts = np.unique(crop_HW[crop_HW != ignore_index], return_counts=True)[1]
        if len(counts) > 1 and counts.max() < augment.cat_max_ratio * counts.sum():
            break
        draw = draw._replace(across=rng.uniform(-0.5, 0.5), down=rng.uniform(-0.5, 0.5))
    return draw


def crop_of(
    image_HW3: NDArray[np.uint8],
    label_HW: Label,
    draw: Draw,
    augment: AugmentConfig,
    fill: tuple[float, float, float],
    ignore_index: int,
) -> tuple[NDArray[np.uint8], Label]:
    """Return the crop with the given parameters; arguments and results are those of `random_crop`."""
    matrix = affine(draw, image_HW3.shape[:2], augment.crop)
    reflected = augment.padding == "reflect"
    crop_HW3 = warped_image(image_HW3, matrix, augment.crop, None if reflected else fill, draw.distortion)
    if draw.blurred:
        crop_HW3 = cv2.GaussianBlur(crop_HW3, BLUR_KERNEL, 0, hint=cv2.ALGO_HINT_APPROX)  # twice as fast
    return crop_HW3.astype(np.uint8, copy=False), warped_label(label_HW, matrix, augment.crop, ignore_index)


def affine(draw: Draw, image_size: tuple[int, int], crop_size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the 2 x 3 matrix from image to crop coordinates (x, y of pixel centers).

    It composes the usual steps: scale, rotate about the center, mirror, then crop at a uniformly random position. A
    scaled image that is smaller than the crop is padded evenly on both sides.
    """
    height, width = image_size
    crop_height, crop_width = crop_size
    # Offset of the crop's center from the scaled image's center.
    shift_x = draw.across * max(0.0, width * draw.scale - crop_width)
    shift_y = draw.down * max(0.0, height * draw.scale - crop_height)

    cosine, sine = draw.scale * math.cos(draw.angle), draw.scale * math.sin(draw.angle)
    mirror = -1.0 if draw.mirrored else 1.0
    linear = np.array([[mirror * cosine, mirror * -sine], [sine, cosine]])
    image_centre = np.array([(width - 1) / 2, (height - 1) / 2])
    crop_centre = np.array([(crop_width - 1) / 2 - shift_x, (crop_height - 1) / 2 - shift_y])
    return np.column_stack([linear, crop_centre - linear @ image_centre])


def warped_image(
    image_HW3: NDArray[Any],
    matrix: NDArray[np.float64],
    crop_size: tuple[int, int],
    fill: tuple[float, float, float] | None,
    distortion: Distortion = UNCHANGED,
) -> NDArray[Any]:
    """Return the crop of a distorted image, interpolated bilinearly.

    Outside is `fill`, which is not distorted, or the reflection if `fill` is None.
    """
    if fill is None:
        # No cropping first: a reflection can show pixels that the crop itself does not cover.
        border, outside = cv2.BORDER_REFLECT_101, (0.0, 0.0, 0.0, 0.0)
    else:
        image_HW3, matrix = _seen(image_HW3, matrix, crop_size)
        border, outside = cv2.BORDER_CONSTANT, (*fill, 0.0)
    if distortion != UNCHANGED:
        image_HW3 = distorted(image_HW3, distortion)
    # Warping four channels is twice as fast as three. The warp runs in bands, because the system would allocate a large
    # temporary array anew for each image, which can take longer than the warp.
    image_HW4 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2RGBA)
    crop_HW3 = np.empty((*crop_size, 3), image_HW3.dtype)
    matrix = matrix.copy()
    for start in range(0, crop_size[0], BAND_ROWS):
        band_SW3 = crop_HW3[start : start + BAND_ROWS]
        size = crop_size[1], len(band_SW3)
        band_SW4 = cv2.warpAffine(image_HW4, matrix, size, borderMode=border, borderValue=outside)
        cv2.cvtColor(band_SW4, cv2.COLOR_RGBA2RGB, dst=band_SW3)
        matrix[1, 2] -= BAND_ROWS
    return crop_HW3


def warped_label(label_HW: Label, matrix: NDArray[np.float64], crop_size: tuple[int, int], ignore_index: int) -> Label:
    """Return the label of a crop by nearest neighbor, `ignore_index` outside, with the dtype of `random_crop`."""
    label_HW, matrix = _seen(label_HW, matrix, crop_size)
    in_bytes = max(ignore_index, int(label_HW.max())) < 256
    crop_HW = cv2.warpAffine(
        # OpenCV cannot warp int32; float32 represents every id up to 2**24 exactly.
        label_HW.astype(np.uint8 if in_bytes else np.float32, copy=False),
        matrix,
        crop_size[::-1],
        flags=cv2.INTER_NEAREST,
        borderValue=(ignore_index,),
    )
    return crop_HW.astype(np.uint8, copy=False) if in_bytes else crop_HW.astype(np.int32)


def _seen(
    image: NDArray[Any], matrix: NDArray[np.float64], crop_size: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the image rectangle that a crop can show, at least one pixel, and the matrix from it to the crop.

    In a large image the rectangle is a small part, and only this part needs a dtype conversion.
    """
    height, width = crop_size
    corners_34 = np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]], np.float64)
    columns_4, rows_4 = cv2.invertAffineTransform(matrix) @ corners_34
    firsts, ends = [], []
    for positions, size in ((columns_4, image.shape[1]), (rows_4, image.shape[0])):
        firsts.append(min(max(0, math.floor(positions.min()) - 1), size - 1))
        ends.append(max(firsts[-1] + 1, min(size, math.ceil(positions.max()) + 2)))
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ firsts
    return image[firsts[1] : ends[1], firsts[0] : ends[0]], shifted
