"""Decoding of an opened image, EXIF orientation, and conversion to 8-bit RGB."""

from typing import Any, TypeVar

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from pipeline.images import libtiff_errors
from pipeline.images.formats import ImageError, check_scans, failures

# Warnings of libjpeg about missing or wrong parts of the picture, which Pillow would fill with gray.
DAMAGE = (
    "premature end",
    "bad huffman code",
    "bad arithmetic code",
    "instead of rst",
    "inconsistent progression",
    "invalid scan",
)
STRIP_SAMPLES = 1 << 20  # converted at a time, to limit memory
FLOAT_ONE = 2.0  # float samples that are all below this range from 0 to 1, others from 0 to 255

MIN_LEVELS = 16  # different values of an image that is more than black, or than noise

ORIENTATION = ExifTags.Base.Orientation

Scalar = TypeVar("Scalar", bound=np.generic)


def load(image: ImageFile.ImageFile) -> None:
    """Decode the pixels with Pillow."""
    with libtiff_errors.collected() as errors:
        try:
            with failures("cannot be decoded"):
                image.load()
        except ImageError as error:
            # libtiff's message is more specific than Pillow's.
            raise ImageError(error.kind, f"cannot be decoded: {errors[0]}") if errors else error from None
        if errors:
            raise ImageError("Corrupt", f"cannot be decoded: {errors[0]}")


def first_frame(image: ImageFile.ImageFile) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a GIF's first frame before it is loaded; None if it fills the image."""
    if image.format != "GIF" or not image.tile or image.tile[0].extents in (None, (0, 0, *image.size)):
        return None
    return image.tile[0].extents


def orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 to 8, that has not been applied to the pixels yet."""
    if image.format == "HEIF":  # whose own rotation has been applied, and whose EXIF does not count
        return 1
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # an image with damaged metadata is still usable
        return 1
    return turn if turn in range(1, 9) else 1


def turned(image: NDArray[Scalar], turn: int) -> NDArray[Scalar]:
    """Return a view of an H x W or H x W x 3 array with the EXIF orientation `turn`, 1 to 8, applied."""
    if turn in (3, 4, 6, 7):
        image = image[::-1]
    if turn in (2, 3, 7, 8):
        image = image[:, ::-1]
    return image.swapaxes(0, 1) if turn >= 5 else image


def jpeg_pixels(content: bytes, image: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    """Decode a JPEG to the same pixels as Pillow, in a fraction of the time.

    Returns: H x W x 3, or None if Pillow must decode the file.
    """
    check_scans(content)
    try:
        with failures("cannot be decoded"):
            if image.mode == "CMYK":
                return without_ink(simplejpeg.decode_jpeg(content, "CMYK"))
            return simplejpeg.decode_jpeg(content, "RGB")
    except ImageError as error:
        if error.kind != "Corrupt" or any(damage in error.message.lower() for damage in DAMAGE):
            raise
        return None  # for example stray bytes between segments, which every viewer skips


def without_ink(cmyk_HW4: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert inverted inks (as in all CMYK JPEGs, following Adobe), H x W x 4, to RGB."""
    black_HW = np.ascontiguousarray(cmyk_HW4[..., 3])
    return np.dstack([cv2.multiply(cmyk_HW4[..., ink], black_HW, scale=1 / 255) for ink in range(3)])


def as_rgb(image: ImageFile.ImageFile, content: bytes) -> NDArray[np.uint8]:
    """Return a decoded image of any mode as H x W x 3."""
    transparency = image.info.get("transparency")
    if image.mode in ("I;16", "I;16B", "I"):
        samples_HW = np.asarray(image)
        gray_HW = scaled(samples_HW, 0, 2**16 - 1)
        if isinstance(transparency, int):
            gray_HW[samples_HW == transparency] = 255
        return np.dstack([gray_HW] * 3)
    if isinstance(transparency, tuple) and content[24:25] == b"\x10":  # Pillow reads 16-bit color PNGs as high bytes
        image.info["transparency"] = tuple(sample >> 8 for sample in transparency)
    with failures("color conversion"):
        if image.mode == "RGB" and transparency is None:
            return np.asarray(image)
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())  # type: ignore[assignment]
        if transparency is not None or "A" in image.getbands():
            layers = image if image.mode == "RGBA" else image.convert("RGBA")
            paper = Image.new("RGB", layers.size, "white")
            paper.paste(layers, mask=layers)
            return np.asarray(paper)
        return np.asarray(image.convert("RGB"))


def scaled(
    samples_HW: NDArray[Any], black: float | NDArray[np.float64], white: float | NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return samples, H x W or H x W x C, as 8-bit ones, by ends for all or one for each of C bands; NaN is black."""
    gray_HW = np.empty(samples_HW.shape, np.uint8)
    rows = max(1, STRIP_SAMPLES // (samples_HW[0].size or 1))
    for start in range(0, len(samples_HW), rows):
        strip = (samples_HW[start : start + rows].astype(np.float64) - black) * (255 / (white - black))
        gray_HW[start : start + rows] = np.nan_to_num(strip).round().clip(0, 255)
    return gray_HW


def on_white(bands_HWC: NDArray[np.uint8], is_associated: bool) -> NDArray[np.uint8]:
    """Composite on white; the last band is alpha, by which the others may be multiplied already."""
    height, width, bands = bands_HWC.shape
    composed_HWC = np.empty((height, width, bands - 1), np.uint8)
    rows = max(1, STRIP_SAMPLES // (width * bands))
    for start in range(0, height, rows):
        strip_HWC = bands_HWC[start : start + rows].astype(np.uint32)
        opacity_HW1 = strip_HWC[..., -1:]
        light_HWC = strip_HWC[..., :-1] * (255 if is_associated else opacity_HW1) + 255 * (255 - opacity_HW1)
        composed_HWC[start : start + rows] = ((light_HWC + 127) // 255).clip(max=255)
    return composed_HWC


def has_few_levels(image_HW3: NDArray[np.uint8]) -> bool:
    """Return True if the samples have fewer than MIN_LEVELS different values, as in 12 bits taken for 16."""
    return levels_of(image_HW3[::8, ::8]).sum() < MIN_LEVELS and bool(levels_of(image_HW3).sum() < MIN_LEVELS)


def levels_of(image_HW3: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return for each of 256 values whether a sample has it."""
    samples_HS = np.ascontiguousarray(image_HW3).reshape(len(image_HW3), -1)
    return cv2.calcHist([samples_HS], [0], None, [256], [0, 256]).ravel() > 0
