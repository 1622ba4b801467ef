"""Decoding and encoding of images, label maps and masks, on plain arrays. The only place that does either."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

ImageFile.LOAD_TRUNCATED_IMAGES = False
# Size limits are our own and apply before decoding; Pillow's would warn or raise at another size.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM")


@dataclass(eq=False)
class ImageError(Exception):
    """An image that cannot be used; `kind` is one of a few words that tables can be grouped by."""

    kind: str  # Empty, NotAnImage, Corrupt, TooLarge; of a label: NotALabelMap, UnknownColor
    message: str

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.message)

    def __str__(self) -> str:
        return self.message


def decode_image(content: bytes, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Decode an image file as a viewer shows it.

    EXIF orientation is applied, 16-bit samples are scaled to 8, transparency lies on white, and of an
    animation the first frame counts. ICC profiles are left alone.

    Returns: H x W x 3 uint8, RGB.
    Raises: ImageError.
    """
    return np.asarray(_as_rgb(_turned(_opened(content, max_pixels))))


def decode_label(content: bytes, colors: Mapping[tuple[int, int, int], int] | None = None) -> NDArray[np.int32]:
    """Decode an annotation whose samples (or palette indices) are label ids, or whose colours stand for them.

    Args:
        content: the file.
        colors: red, green, blue -> label id; without it a colour image is refused, since its samples are no ids.

    Returns: H x W int32.
    Raises: ImageError.
    """
    image = _opened(content, None)
    if colors and image.mode in ("RGB", "RGBA"):
        return _ids_of_colors(np.asarray(image.convert("RGB")), colors)
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise ImageError(
            "NotALabelMap",
            f"has mode {image.mode}, but label ids need one channel (8-bit, 16-bit or palette)",
        )
    return np.asarray(image).astype(np.int32)


def encode_mask(class_ids_HW: NDArray[np.integer], palette: NDArray[np.uint8]) -> bytes:
    """Encode class ids as PNG: 8-bit with a palette for up to 256 classes, 16-bit gray beyond.

    Args:
        class_ids_HW: H x W uint8 or uint16.
        palette: K x 3 uint8, the colour of each class.
    """
    if class_ids_HW.dtype == np.uint8:
        image = Image.fromarray(class_ids_HW)
        # All 256 entries: with fewer, Pillow would pack several pixels into a byte and cut off the ignore index.
        image.putpalette(np.pad(palette, ((0, 256 - len(palette)), (0, 0))).astype(np.uint8).tobytes())
    else:
        image = Image.fromarray(class_ids_HW.astype(np.uint16))
    # Masks are large areas of one value: level 1 is within a few percent of the best size at a fraction of the time.
    return _saved(image, "PNG", compress_level=1)


def encode_image(image_HW3: NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode an RGB image as JPEG."""
    return _saved(Image.fromarray(image_HW3), "JPEG", quality=quality)


def overlay(
    image_HW3: NDArray[np.uint8],
    class_ids_HW: NDArray[np.integer],
    palette: NDArray[np.uint8],
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """Image with its mask's colours laid over it; ids beyond the palette leave the image as it is."""
    colors_HW3 = palette[np.minimum(class_ids_HW, len(palette) - 1)]
    mixed_HW3 = (image_HW3 * (1 - opacity) + colors_HW3 * opacity).round().astype(np.uint8)
    return np.where((class_ids_HW < len(palette))[..., None], mixed_HW3, image_HW3)


def shrink(image_HW3: NDArray[np.uint8], long_side: int | None) -> NDArray[np.uint8]:
    """Image with its long side at most `long_side` pixels, averaging what it drops; None leaves it alone."""
    height, width = image_HW3.shape[:2]
    if long_side is None or max(height, width) <= long_side:
        return image_HW3
    scale = long_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _opened(content: bytes, max_pixels: int | None) -> Image.Image:
    """An opened and fully decoded image; every way to fail becomes an ImageError."""
    if not content:
        raise ImageError("Empty", "the file has no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata is no reason to fail, nor to print
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.UnidentifiedImageError:
            start = content[:16]
            raise ImageError("NotAnImage", f"not in a known image format; it starts with {start!r}") from None
        except Exception as error:
            raise ImageError("Corrupt", f"damaged header: {error}") from None
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise ImageError(
                "TooLarge", f"{image.width} x {image.height} is {pixels} pixels; the limit is {max_pixels}"
            )
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise whatever their parsing runs into
            raise ImageError("Corrupt", f"cannot be decoded: {error}") from None
    return image


def _ids_of_colors(colored_HW3: NDArray[np.uint8], colors: Mapping[tuple[int, int, int], int]) -> NDArray[np.int32]:
    listed = sorted(((red << 16) + (green << 8) + blue, label_id) for (red, green, blue), label_id in colors.items())
    codes_C, ids_C = (np.array(column, np.int32) for column in zip(*listed, strict=True))
    codes_HW = colored_HW3.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    places_HW = np.searchsorted(codes_C, codes_HW).clip(max=len(codes_C) - 1)
    unknown = np.argwhere(codes_C[places_HW] != codes_HW)
    if len(unknown):
        y, x = unknown[0]
        red, green, blue = colored_HW3[y, x]
        raise ImageError(
            "UnknownColor",
            f"is in colour, and its colour ({red}, {green}, {blue}) at column {x}, row {y}, "
            "is that of no class, or of two",
        )
    return ids_C[places_HW]


def _turned(image: Image.Image) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ImageOps.exif_transpose(image)
        except Exception:  # damaged metadata is no reason to fail
            return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I", "F"):
        samples = np.nan_to_num(np.asarray(image).astype(np.float64))
        if image.mode in ("I;16", "I;16B", "I"):
            samples = samples / 257.0  # 65535 -> 255
        return Image.fromarray(samples.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
