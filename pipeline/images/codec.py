"""Decoding and encoding of images, label maps and masks as NumPy arrays. No module outside this folder does either."""

import io
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.images.bmp_fields import bit_fields, bmp_size, has_bit_fields
from pipeline.images.formats import (
    IMAGE_ERRORS,
    ImageError,
    check_bytes,
    check_pixels,
    deadline,
    format_of,
    opened,
    quiet,
)
from pipeline.images.label_files import decode_label
from pipeline.images.layout_checks import check_layout
from pipeline.images.pixels import as_rgb, first_frame, jpeg_pixels, load, on_white, orientation, turned
from pipeline.images.raster import WHITE, Raster
from pipeline.images.repairs import decode_with_repair
from pipeline.images.tiff_samples import decode_tiff

__all__ = [
    "IMAGE_ERRORS",
    "ImageError",
    "Raster",
    "decode_image",
    "decode_label",
    "decode_mask",
    "decode_raster",
    "encode_image",
    "encode_mask",
    "encode_png",
    "overlay",
    "shrink",
]


# Number of shapes of shrunk images between a square and an aspect ratio of 2.
SHAPES = 32


def decode_image(
    content: bytes,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
    seconds: float | None = None,
    rendering: Rendering = AS_DECLARED,
) -> NDArray[np.uint8]:
    """Decode an image file as a viewer shows it; pixels of a TIFF without data are white.

    Arguments and errors are those of `decode_raster`.

    Returns: H x W x 3 uint8, RGB.
    """
    return decode_raster(content, max_pixels, max_bytes, seconds, rendering).filled(WHITE)


def decode_raster(
    content: bytes,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
    seconds: float | None = None,
    rendering: Rendering = AS_DECLARED,
) -> Raster:
    """Decode an image file as a viewer shows it, with the pixels of a TIFF that have no data.

    EXIF orientation is applied, 16-bit samples are scaled to 8 bits, transparency is composited on white, and only the
    first frame of an animation is decoded. ICC profiles are ignored. docs/images.md has every rule.

    Args:
        content: the file.
        max_pixels: larger images are rejected before decoding.
        max_bytes: larger files are rejected before decoding.
        seconds: limit of the CPU time for decoding, best effort (see formats.deadline).
        rendering: bands and value range of a TIFF; other formats have neither.

    Raises: ImageError.
    """
    with deadline(seconds), quiet():
        check_bytes(content, max_bytes)
        if format_of(content) == "TIFF":
            return decode_tiff(content, max_pixels, rendering)
        return Raster(decode_with_repair(lambda whole: _decoded(whole, max_pixels), content))


def _decoded(content: bytes, max_pixels: int | None) -> NDArray[np.uint8]:
    check_layout(format_of(content), content)
    if format_of(content) == "BMP" and has_bit_fields(content):
        return np.ascontiguousarray(_of_bit_fields(content, max_pixels))
    image = opened(content, max_pixels)
    pixels_HW3 = jpeg_pixels(content, image) if image.format in ("JPEG", "MPO") else None
    if pixels_HW3 is None:
        frame = first_frame(image)
        load(image)
        pixels_HW3 = _inside(as_rgb(image, content), frame)
    return np.ascontiguousarray(turned(pixels_HW3, orientation(image)))


def _of_bit_fields(content: bytes, max_pixels: int | None) -> NDArray[np.uint8]:
    width, height = bmp_size(content)
    check_pixels(width, height, max_pixels)
    samples_HWC = bit_fields(content)
    return samples_HWC if samples_HWC.shape[-1] == 3 else on_white(samples_HWC, is_associated=False)


def _inside(pixels_HW3: NDArray[np.uint8], frame: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
    """Return pixels that are white outside the first frame, which may be smaller than its animation."""
    if frame is None:
        return pixels_HW3
    left, top, right, bottom = frame
    paper_HW3 = np.full_like(pixels_HW3, 255)
    paper_HW3[top:bottom, left:right] = pixels_HW3[top:bottom, left:right]
    return paper_HW3


def decode_mask(content: bytes, max_pixels: int | None = None) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a mask written by Sceneparse.

    Masks larger than `max_pixels` are rejected before decoding.

    Returns: H x W class ids with one or two bytes each, since a scene may have billions of pixels.
    Raises: ImageError.
    """
    with quiet():
        image = opened(content, max_pixels)
        load(image)
    if image.mode not in ("L", "P", "I;16"):
        raise ImageError("NotALabelMap", f"has mode {image.mode}, but masks have one channel of 8 or 16 bits")
    return np.asarray(image)


def encode_mask(class_ids_HW: NDArray[np.integer], palette: NDArray[np.uint8]) -> bytes:
    """Encode class ids as PNG: 8-bit with a palette for up to 256 classes, 16-bit gray beyond.

    Args:
        class_ids_HW: H x W uint8 or uint16.
        palette: K x 3 uint8, the color of each class.
    """
    if class_ids_HW.dtype == np.uint8:
        image = Image.fromarray(class_ids_HW)
        # The palette needs all 256 entries: with fewer, Pillow packs several pixels into a byte and truncates the
        # ignore index.
        image.putpalette(np.pad(palette, ((0, 256 - len(palette)), (0, 0))).astype(np.uint8).tobytes())
    else:
        image = Image.fromarray(class_ids_HW.astype(np.uint16))
    # Masks have large areas of one value: level 1 is within a few percent of the best size in a fraction of the time.
    return _saved(image, "PNG", compress_level=1)


def encode_image(image_HW3: NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode an RGB image as JPEG."""
    return _saved(Image.fromarray(image_HW3), "JPEG", quality=quality)


def encode_png(samples: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Encode H x W (8- or 16-bit gray) or H x W x 3 (8-bit) samples as PNG without conversion."""
    return _saved(Image.fromarray(samples), "PNG", compress_level=1)


def overlay(
    image_HW3: NDArray[np.uint8],
    class_ids_HW: NDArray[np.integer],
    palette: NDArray[np.uint8],
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """Return the image blended with the colors of its mask; pixels with ids beyond the palette do not change."""
    colors_HW3 = palette[np.minimum(class_ids_HW, len(palette) - 1)]
    mixed_HW3 = (image_HW3 * (1 - opacity) + colors_HW3 * opacity).round().astype(np.uint8)
    return np.where((class_ids_HW < len(palette))[..., None], mixed_HW3, image_HW3)


def shrink(image_HW3: NDArray[np.uint8], long_side: int | None) -> NDArray[np.uint8]:
    """Shrink the image by area averaging to a long side of at most `long_side` pixels; None returns it unchanged.

    The short side is rounded to a multiple of 1/32 of the long one (1/64, 1/128 ... for narrow strips), so that images
    of many shapes have few sizes and fill batches. 4:3 and 16:9 keep their aspect ratio, and no side changes by more
    than 3%. docs/segmentation.md reports the effect on labels.
    """
    height, width = image_HW3.shape[:2]
    return _resized(image_HW3, _shrunk_size(height, width, long_side))


def _shrunk_size(height: int, width: int, long_side: int | None) -> tuple[int, int]:
    longest, shortest = max(height, width), min(height, width)
    if long_side is None or longest <= long_side:
        return height, width
    step = long_side / (SHAPES << int(math.log2(longest / shortest)))
    short_side = max(1, round(round(shortest * long_side / longest / step) * step))
    return (long_side, short_side) if height > width else (short_side, long_side)


def _resized(image_HW3: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image_HW3.shape[:2] == size:
        return image_HW3
    return cv2.resize(image_HW3, size[::-1], interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
