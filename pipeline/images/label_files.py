"""Decoding of annotation files: label ids as samples, palette indices or colors. Refuses files that may hold others."""

import io
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipeline.images.formats import ImageError, format_of, opened, quiet
from pipeline.images.layout_checks import check_layout
from pipeline.images.pixels import first_frame, load, orientation, turned
from pipeline.images.repairs import decode_with_repair
from pipeline.images.tiff_directory import COMPRESSION, Directory
from pipeline.images.tiff_layout import FLOAT, RGB, read_layout
from pipeline.images.tiff_samples import decode_tiff_label

Color = tuple[int, int, int]

LOSSY = "which changes label ids and colors: export the annotations again as PNG, from their source"
DEEP_COLORS = "has 16-bit colors; save its ids in one channel, or its colors in 8 bits"
LOSSY_FORMATS = {
    "JPEG": "JPEG",
    "AVIF": "AVIF or HEIF, whose compression may be lossy",
    "HEIF": "AVIF or HEIF, whose compression may be lossy",
    "JPEG2000": "JPEG 2000, whose compression may be lossy",
}
# Values of TIFF's compression tag: JPEG, JPEG 2000, WebP, JPEG XL.
LOSSY_TIFF = frozenset({6, 7, 33003, 33004, 33005, 34712, 34892, 50001, 50002, 52546})
_GRAY_STEPS = {2: 85, 4: 17}  # Pillow stretches gray samples of few bits to 0 ... 255
_PNG_ORIENTATION = (b"eXIf", b"tEXtRaw profile type exif", b"zTXtRaw profile type exif", b"iTXtXML:com.adobe.xmp")


class UnknownColorError(ImageError):
    """Error of an annotation with colors of no class; `colors` has the pixels of each color, 0xRRGGBB, in the file."""

    colors: Mapping[int, int] = MappingProxyType({})

    @classmethod
    def of(cls, message: str, colors: Mapping[int, int]) -> "UnknownColorError":
        error = cls("UnknownColor", message)
        error.colors = colors
        return error


def decode_label(
    content: bytes, colors: Mapping[Color, int] | None = None, max_pixels: int | None = None, rgb_ids: bool = False
) -> NDArray[np.int32]:
    """Decode an annotation whose samples (or palette indices) are label ids, or whose colors encode them.

    Args:
        content: the file.
        colors: (red, green, blue) -> label id; without it a color image is rejected, since its samples are not ids.
        max_pixels: larger annotations are rejected before decoding.
        rgb_ids: a color image holds label ids, the same in its three channels.

    Returns: H x W int32.
    Raises: ImageError; UnknownColorError if a color is not in `colors`.
    """
    with quiet():
        if format_of(content) == "TIFF":
            return _tiff_label(content, colors, max_pixels, rgb_ids)
        return decode_with_repair(lambda whole: _label(whole, colors, max_pixels, rgb_ids), content)


def _label(
    content: bytes, colors: Mapping[Color, int] | None, max_pixels: int | None, rgb_ids: bool
) -> NDArray[np.int32]:
    image = _lossless(content, max_pixels)
    maxval = _maxval(image)
    load(image)
    turn = orientation(image)
    if (colors or rgb_ids) and image.mode in ("RGB", "RGBA"):
        if _bits(content, image) == 16:
            raise ImageError("NotALabelMap", DEEP_COLORS)
        if maxval is not None:
            raise ImageError("NotALabelMap", f"has colors up to {maxval}; save them as PNG")
        return _ids_of_rgb(turned(np.asarray(image.convert("RGB")), turn), colors, rgb_ids)
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise ImageError(
            "NotALabelMap",
            f"has mode {image.mode}, but label ids require a single channel (8-bit, 16-bit or palette)",
        )
    samples_HW = np.asarray(image)
    if image.mode == "L" and (step := _GRAY_STEPS.get(_bits(content, image))):
        samples_HW = samples_HW // step
    if maxval is not None:  # Pillow stretches samples up to maxval
        samples_HW = np.rint(samples_HW * (maxval / (255 if image.mode == "L" else 65535)))
    return np.ascontiguousarray(turned(samples_HW, turn), np.int32)


def _maxval(image: ImageFile.ImageFile) -> int | None:
    """Return the highest sample of a PNM before it is loaded, if Pillow scales from it."""
    arguments = image.tile[0].args if image.format == "PPM" else None
    maxval = arguments[1] if isinstance(arguments, tuple) else None
    return None if maxval in (None, 255, 65535) else maxval


def _tiff_label(
    content: bytes, colors: Mapping[Color, int] | None, max_pixels: int | None, rgb_ids: bool
) -> NDArray[np.int32]:
    if Directory(io.BytesIO(content), len(content)).number(COMPRESSION, 1) in LOSSY_TIFF:
        raise ImageError("NotALabelMap", f"is TIFF with lossy compression, {LOSSY}")
    samples_HWC, layout = decode_tiff_label(content, max_pixels)
    if layout.photometric == RGB and (colors or rgb_ids):
        if layout.dtype != np.uint8 or layout.bits != 8:
            raise ImageError("NotALabelMap", DEEP_COLORS)
        return _ids_of_rgb(samples_HWC[..., :3].astype(np.uint8, copy=False), colors, rgb_ids)
    if layout.bands != 1 or layout.sample_format == FLOAT:
        raise ImageError("NotALabelMap", f"has {layout}, but label ids require a single channel of integers")
    samples_HW = samples_HWC[..., 0]
    if layout.bits >= 32 and (lowest_and_highest := _beyond_int32(samples_HW)):
        raise ImageError("NotALabelMap", f"has samples from {lowest_and_highest}, but label ids have 32 bits")
    return np.ascontiguousarray(samples_HW, np.int32)


def _beyond_int32(samples_HW: NDArray[np.generic]) -> str | None:
    lowest, highest = int(samples_HW.min()), int(samples_HW.max())
    limits = np.iinfo(np.int32)
    return None if limits.min <= lowest and highest <= limits.max else f"{lowest} to {highest}"


def is_one_bit(content: bytes) -> bool:
    """Return True if the samples of an image have one bit: its label ids are 0 and 1. Raises ImageError."""
    with quiet():
        if format_of(content) == "TIFF":
            return read_layout(Directory(io.BytesIO(content), len(content))).bits == 1
        return opened(content).mode == "1"


def exif_orientation(content: bytes) -> int:
    """Return the EXIF orientation of an image that can be opened, 1 to 8; it is 1 for TIFF, which has no other."""
    format = format_of(content)
    # Pillow decodes the pixels of a PNG to find EXIF data behind them, so look only where there are such data.
    if format not in ("JPEG", "PNG", "WEBP") or (format == "PNG" and not _png_has_orientation(content)):
        return 1
    with quiet():
        return orientation(opened(content))


def _png_has_orientation(content: bytes) -> bool:
    """Return True if a PNG has a chunk that may hold an EXIF orientation; reads the chunks' heads, not the pixels."""
    position = 8
    while position + 8 <= len(content):
        if content.startswith(_PNG_ORIENTATION, position + 4):
            return True
        position += 12 + int.from_bytes(content[position : position + 4], "big")
    return False


def _lossless(content: bytes, max_pixels: int | None) -> ImageFile.ImageFile:
    """Open an annotation. Raises ImageError if its compression is lossy, or may be."""
    format = format_of(content)
    if format in LOSSY_FORMATS:
        raise ImageError("NotALabelMap", f"is {LOSSY_FORMATS[format]}, {LOSSY}")
    check_layout(format, content)
    image = opened(content, max_pixels)
    if lossy := _lossy_format(image, content):
        raise ImageError("NotALabelMap", f"is {lossy}, {LOSSY}")
    if image.format == "PPM" and content[1:2] in b"14":
        raise ImageError(
            "NotALabelMap", "is a bitmap that stores white as 0, which programs write for 1; save it as PNG"
        )
    if first_frame(image):
        raise ImageError("NotALabelMap", "has a first frame smaller than the image, with no label ids around it")
    return image


def _lossy_format(image: ImageFile.ImageFile, content: bytes) -> str | None:
    """Return the name of an image's format if its compression is lossy, otherwise None."""
    if image.format == "WEBP" and _is_lossy_webp(content):
        return "lossy WebP"
    return None


def _is_lossy_webp(content: bytes) -> bool:
    """Return True unless every picture in a WebP is lossless; reads the chunks, not the pixels."""
    position, end = 12, len(content)
    while position + 8 <= end:
        name, size = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "little")
        if name == b"VP8 ":
            return True
        # Frames of an animation are chunks within ANMF, behind 16 bytes.
        position += 24 if name == b"ANMF" else 8 + size + size % 2
    return False


def _bits(content: bytes, image: Image.Image) -> int:
    """Return the bits of a sample in the file, 8 where the format has no other; of palettes, the bits of an index."""
    if image.format == "PNG":
        return content[24]  # the header is always the first chunk
    return 8


def _ids_of_rgb(colored_HW3: NDArray[np.uint8], colors: Mapping[Color, int] | None, rgb_ids: bool) -> NDArray[np.int32]:
    return _ids_of_channels(colored_HW3) if rgb_ids or not colors else _ids_of_colors(colored_HW3, colors)


def _ids_of_channels(colored_HW3: NDArray[np.uint8]) -> NDArray[np.int32]:
    if not _is_gray(colored_HW3):
        raise ImageError("NotALabelMap", "has colors, but data.rgb_ids expects the same id in all three channels")
    return np.ascontiguousarray(colored_HW3[..., 0], np.int32)


def _is_gray(colored_HW3: NDArray[np.uint8]) -> bool:
    return bool((colored_HW3 == colored_HW3[..., :1]).all())


def _ids_of_colors(colored_HW3: NDArray[np.uint8], colors: Mapping[Color, int]) -> NDArray[np.int32]:
    listed = sorted(((red << 16) + (green << 8) + blue, label_id) for (red, green, blue), label_id in colors.items())
    codes_C, ids_C = (np.array(column, np.int32) for column in zip(*listed, strict=True))
    codes_HW = colored_HW3.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    places_HW = np.searchsorted(codes_C, codes_HW).clip(max=len(codes_C) - 1)
    is_unknown_HW = codes_C[places_HW] != codes_HW
    if is_unknown_HW.any():
        y, x = np.argwhere(is_unknown_HW)[0]
        found, counts = np.unique(codes_HW, return_counts=True)
        message = "is a color image, and its color ({}, {}, {}) at column {}, row {}, belongs to no class, or to two"
        if _is_gray(colored_HW3):
            message += "; all its colors are gray, as in annotations that repeat the label id in three channels"
        raise UnknownColorError.of(
            message.format(*colored_HW3[y, x], x, y), dict(zip(found.tolist(), counts.tolist(), strict=True))
        )
    return ids_C[places_HW]
