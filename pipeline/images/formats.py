"""What an image file says of itself before its pixels are decoded: format, size, and what decoding may cost."""

import io
import logging
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

ImageFile.LOAD_TRUNCATED_IMAGES = False
# Size limits are our own and apply before decoding; Pillow's would warn or raise at another size.
Image.MAX_IMAGE_PIXELS = None
# Pillow's own reader of uncompressed TIFF takes 16-bit planes for 8-bit ones; libtiff reads all that it can.
TiffImagePlugin.READ_LIBTIFF = True
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of damaged files is in the ImageError

# Kind of ImageError -> what it tells. Tables are grouped by these words, so they stay few.
IMAGE_ERRORS = {
    "Empty": "the file has no bytes",
    "NotAnImage": "the file begins as no image format does",
    "Unsupported": "an image, but of a format or of samples that are not decoded here",
    "Corrupt": "a known format, but damaged or cut off",
    "TooLarge": "more pixels or bytes than the limits allow, or than there is memory for",
    "TooSlow": "decoding took, or would take, longer than allowed",
    "NotALabelMap": "an annotation whose samples are no label ids",
    "UnknownColor": "an annotation with a colour that stands for no class",
}

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0\*",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "PPM": rb"P[1-6]\s",
}
OPENERS: dict[str, Callable[..., ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
_UNSUPPORTED = {
    "big-endian BigTIFF": rb"MM\0\+",
    "AVIF or HEIF": rb"....ftyp(?:av|he|mif|msf)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "Photoshop": rb"8BPS",
    "OpenEXR": rb"v/1\x01",
    "Windows icon": rb"\0\0\x01\0[^\0]",
}

# What Pillow says of files that it could read if it knew more.
UNSUPPORTED_SAMPLES = (
    "unknown pixel mode",
    "unknown data organization",
    "samples per pixel",
    "cannot handle",
    "unsupported",
    "not supported",
    "not yet supported",
)
# A progressive JPEG has about ten scans. Each costs a pass over all coefficients, and may be a few bytes long.
MAX_JPEG_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
ALARM_EVERY = 0.1  # s
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@dataclass(eq=False)
class ImageError(Exception):
    """An image that cannot be used; `kind` is one of KINDS."""

    kind: str
    message: str

    def __post_init__(self) -> None:
        assert self.kind in IMAGE_ERRORS, self.kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.message)

    def __str__(self) -> str:
        return self.message


def format_of(content: bytes) -> str:
    """Pillow's name of the file's format. Raises ImageError."""
    if not content:
        raise ImageError("Empty", "the file has no bytes")
    for format, signature in _SIGNATURES.items():
        if re.match(signature, content, re.DOTALL):
            return format
    for name, signature in _UNSUPPORTED.items():
        if re.match(signature, content, re.DOTALL):
            raise ImageError("Unsupported", f"{name} is not supported; convert it to JPEG or PNG")
    raise ImageError("NotAnImage", f"not in a known image format; it starts with {content[:16]!r}")


def webp_size(content: bytes) -> tuple[int, int]:
    """Width and height of a WebP, which Pillow makes room for as soon as it opens one. Raises ImageError."""
    chunk, head = content[12:16], content[20:30]
    if len(head) == 10 and chunk == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if len(head) == 10 and chunk == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    if len(head) >= 5 and chunk == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise ImageError("Corrupt", "damaged header: a WebP without a size")


def check_pixels(width: int, height: int, max_pixels: int | None, what: str = "") -> None:
    """Raise ImageError if the size exceeds the limit."""
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError("TooLarge", f"{what}{width} x {height} is {width * height} pixels; the limit is {max_pixels}")


def check_scans(content: bytes) -> None:
    """Raise ImageError for a JPEG of so many scans that one call of its decoder would last for minutes."""
    # Counted roughly first: these two bytes also occur in metadata and behind the image.
    if content.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return
    position, scans = 2, 0
    while (marker := _JPEG_MARKER.search(content, position)) and content[marker.end() - 1] != _END_OF_IMAGE:
        scans += content[marker.end() - 1] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    if scans > MAX_JPEG_SCANS:
        raise ImageError("TooSlow", f"a JPEG of {scans} scans; the limit is {MAX_JPEG_SCANS}")


def check_tiles(image: TiffImagePlugin.TiffImageFile, max_pixels: int | None) -> None:
    """Raise ImageError for a TIFF whose tiles reach so far beyond it that they exceed the limit."""
    width, height = image._tile_size  # before it is turned
    tile_width = image.tag_v2.get(TiffImagePlugin.TILEWIDTH)
    tile_height = image.tag_v2.get(TiffImagePlugin.TILELENGTH)
    if tile_width is None or tile_height is None:
        return
    if not all(isinstance(side, int) and side > 0 for side in (tile_width, tile_height)):
        raise ImageError("Corrupt", f"damaged header: its tiles are {tile_width} x {tile_height}")
    columns, rows = -(-width // tile_width), -(-height // tile_height)
    check_pixels(columns * tile_width, rows * tile_height, max_pixels, "with its tiles, ")


def opened(content: bytes, max_pixels: int | None = None, max_bytes: int | None = None) -> ImageFile.ImageFile:
    """An image whose header is read and within the limits."""
    if max_bytes is not None and len(content) > max_bytes:
        raise ImageError("TooLarge", f"the file has {len(content)} bytes; the limit is {max_bytes}")
    format = format_of(content)
    if format == "WEBP":
        check_pixels(*webp_size(content), max_pixels)
    with failures("damaged header"):
        image = OPENERS[format](io.BytesIO(content))
    check_pixels(*image.size, max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiles(image, max_pixels)
    return image


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Every way to fail becomes an ImageError: Pillow raises whatever its parsing runs into."""
    try:
        yield
    except MemoryError:
        raise ImageError("TooLarge", f"{what}: there is not enough memory") from None
    except Exception as error:
        message = str(error)[:200]
        if any(phrase in message.lower() for phrase in UNSUPPORTED_SAMPLES):
            raise ImageError("Unsupported", f"its samples or compression are not supported: {message}") from None
        raise ImageError("Corrupt", f"{what}: {message}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Damaged metadata is no reason to print."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Expired(BaseException):
    """Not an Exception, so that no library takes it for damage of the file."""


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise ImageError after so many seconds of this process's CPU time; None is no deadline.

    CPU time, so that a busy machine makes no image fail. It ends Python code and what calls C in steps, not
    one call in C. Signals reach the main thread alone, in which Ray runs its tasks: in any other there is no deadline.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signal_number: int, frame: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGPROF, expire)
    try:
        # Again and again, since an exception in the midst of a callback from C is lost.
        signal.setitimer(signal.ITIMER_PROF, seconds, ALARM_EVERY)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _Expired:
        raise ImageError("TooSlow", f"not decoded after {seconds:g} s of CPU time") from None
    finally:
        signal.signal(signal.SIGPROF, before)
