"""Pixels of an opened image: decoded, turned, and brought to 8-bit RGB."""

from typing import Any, TypeVar

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from pipeline.images import libtiff_errors
from pipeline.images.formats import ImageError, check_scans, failures

# What libjpeg warns of where parts of the picture are missing or wrong; Pillow would hand out gray in their place.
DAMAGE = (
    "premature end",
    "bad huffman code",
    "bad arithmetic code",
    "instead of rst",
    "inconsistent progression",
    "invalid scan",
)
STRIP_SAMPLES = 1 << 20  # converted at a time, so that converting takes little memory
FLOAT_ONE = 2.0  # float samples that stay below are meant as 0 to 1, else as 0 to 255

ORIENTATION = ExifTags.Base.Orientation

Scalar = TypeVar("Scalar", bound=np.generic)


def load(image: ImageFile.ImageFile) -> None:
    """Decode the pixels with Pillow."""
    with libtiff_errors.collected() as errors:
        try:
            with failures("cannot be decoded"):
                image.load()
        except ImageError as error:
            # libtiff's own words say more than Pillow's.
            raise ImageError(error.kind, f"cannot be decoded: {errors[0]}") if errors else error from None
        if errors:
            raise ImageError("Corrupt", f"cannot be decoded: {errors[0]}")


def orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8, that the pixels are still to be turned by."""
    if image.format == "TIFF":
        return 1  # Pillow has turned it
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata is no reason to fail
        return 1
    return turn if turn in range(1, 9) else 1


def turned(image: NDArray[Scalar], turn: int) -> NDArray[Scalar]:
    """A view of H x W or H x W x 3 in the orientation that EXIF's value 1 to 8 stands for."""
    if turn in (3, 4, 6, 7):
        image = image[::-1]
    if turn in (2, 3, 7, 8):
        image = image[:, ::-1]
    return image.swapaxes(0, 1) if turn >= 5 else image


def jpeg_pixels(content: bytes, image: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    """Pixels of a JPEG as Pillow decodes them, in a fraction of the time.

    Returns: H x W x 3, or None if it is to be left to Pillow.
    """
    check_scans(content)
    try:
        with failures("cannot be decoded"):
            if image.mode == "CMYK":
                return _without_ink(simplejpeg.decode_jpeg(content, "CMYK"))
            return simplejpeg.decode_jpeg(content, "RGB")
    except ImageError as error:
        if error.kind != "Corrupt" or any(damage in error.message.lower() for damage in DAMAGE):
            raise
        return None  # stray bytes between its segments, say, which every viewer passes over


def _without_ink(cmyk_HW4: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of a JPEG's four inks, which all programs store inverted, as Adobe's did first."""
    black_HW = np.ascontiguousarray(cmyk_HW4[..., 3])
    return np.dstack([cv2.multiply(cmyk_HW4[..., ink], black_HW, scale=1 / 255) for ink in range(3)])


def as_rgb(image: ImageFile.ImageFile, content: bytes) -> NDArray[np.uint8]:
    """H x W x 3 of a decoded image of any mode."""
    transparency = image.info.get("transparency")
    if image.mode in ("I;16", "I;16B", "I", "F"):
        samples_HW, black, white = _samples(image)
        gray_HW = _scaled(samples_HW, black, white)
        if isinstance(transparency, int):
            gray_HW[samples_HW == transparency] = 255
        return np.dstack([gray_HW] * 3)
    if isinstance(transparency, tuple) and content[24:25] == b"\x10":  # a PNG of 16-bit colour, read as its high bytes
        image.info["transparency"] = tuple(sample >> 8 for sample in transparency)
    with failures("its colours"):
        if image.mode == "RGB" and transparency is None:
            return np.asarray(image)
        if image.mode == "La":
            image = image.convert("LA")  # type: ignore[assignment]
        if transparency is not None or "A" in image.getbands():
            layers = image if image.mode == "RGBA" else image.convert("RGBA")
            paper = Image.new("RGB", layers.size, "white")
            paper.paste(layers, mask=layers)
            return np.asarray(paper)
        return np.asarray(image.convert("RGB"))


def _samples(image: ImageFile.ImageFile) -> tuple[NDArray[Any], float, float]:
    """Samples of more than 8 bits, H x W, and those that are shown black and white: the ends of what they can be."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits, signed = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0], tags.get(TiffImagePlugin.SAMPLEFORMAT) == (2,)
    samples_HW = np.asarray(image)
    if image.mode == "F":
        white = 1.0 if np.max(samples_HW, initial=0, where=np.isfinite(samples_HW)) < FLOAT_ONE else 255.0
    else:
        white = 2.0 ** (bits - signed) - 1
        if bits == 32 and not signed:
            samples_HW = samples_HW.view(np.uint32)  # Pillow has signed ones only
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return (samples_HW, white, 0.0) if inverted else (samples_HW, 0.0, white)


def _scaled(samples_HW: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    """Samples as 8-bit gray; what is no number is black."""
    gray_HW = np.empty(samples_HW.shape, np.uint8)
    rows = max(1, STRIP_SAMPLES // samples_HW.shape[1])
    for start in range(0, len(samples_HW), rows):
        strip = (samples_HW[start : start + rows].astype(np.float64) - black) * (255 / (white - black))
        gray_HW[start : start + rows] = np.nan_to_num(strip).round().clip(0, 255)
    return gray_HW
