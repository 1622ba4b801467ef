"""Checks of an image file before decoding its pixels: format, size and decoding cost."""

import io
import logging
import re
import signal
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    PsdImagePlugin,
    QoiImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

ImageFile.LOAD_TRUNCATED_IMAGES = False
# Our own size limits apply before decoding; Pillow's limit would warn or raise at a different size.
Image.MAX_IMAGE_PIXELS = None
# Pillow's own reader of uncompressed TIFFs mistakes 16-bit planes for 8-bit ones, so libtiff reads them.
TiffImagePlugin.READ_LIBTIFF = True
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # the ImageError already describes the damage

# Kind of ImageError -> description. Tables are grouped by these kinds, so keep them few.
IMAGE_ERRORS = {
    "Empty": "the file has no bytes, or none of its pixels has data",
    "NotAnImage": "the file does not begin like any image format",
    "Unsupported": "an image of a format or sample type that is not decoded",
    "Corrupt": "a known format, but damaged or truncated",
    "TooLarge": "more pixels or bytes than the limits allow, or than fit into memory",
    "TooSlow": "decoding took, or would take, longer than allowed",
    "NotALabelMap": "an annotation whose samples are not label ids",
    "UnknownColor": "an annotation with a color that belongs to no class",
}

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "PPM": rb"P[1-6]\s",
    "AVIF": rb"....ftypavi[fs]",
    "HEIF": rb"....ftyp(?:he[iv][cmsx]|m[is]f1)",
    "JPEG2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "PSD": rb"8BPS\0\x01",
    "QOI": rb"qoif",
    # TGA has no signature: type and color map agree, and the depth is one of five.
    "TGA": (
        rb".(?:\x01[\x01\x09]...[\0\x01][\x0f\x10\x18\x20]|\0[\x02\x03\x0a\x0b]\0{5}).{8}"
        rb"[\x08\x0f\x10\x18\x20][\0-\x3f]"
    ),
}
OPENERS: dict[str, Callable[..., ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PSD": PsdImagePlugin.PsdImageFile,
    "QOI": QoiImagePlugin.QoiImageFile,
    "TGA": TgaImagePlugin.TgaImageFile,
}
_UNSUPPORTED = {
    "HEIF": rb"....ftyp(?:av|he|mif|msf)",
    "a camera's raw file (CR3)": rb"....ftypcrx",
    "a camera's raw file (RAF)": rb"FUJIFILMCCD-RAW",
    "a camera's raw file (ORF)": rb"II(?:RO|RS)|MMOR",
    "a camera's raw file (RW2)": rb"IIU\0",
    "a camera's raw file (X3F)": rb"FOVb",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "Photoshop's format for large documents": rb"8BPS",
    "OpenEXR": rb"v/1\x01",
    "Windows icon": rb"\0\0\x01\0[^\0]",
}

# Phrases in Pillow's errors for valid files with features that it does not support.
UNSUPPORTED_SAMPLES = (
    "unknown data organization",
    "samples per pixel",
    "cannot handle",
    "unsupported",
    "not supported",
    "not yet supported",
)
# A progressive JPEG has about ten scans. Each scan costs a pass over all coefficients, even if it has only a few bytes.
MAX_JPEG_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
ALARM_EVERY = 0.1  # s
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@dataclass(eq=False)
class ImageError(Exception):
    """Error of an image that cannot be used; `kind` is a key of IMAGE_ERRORS."""

    kind: str
    message: str

    def __post_init__(self) -> None:
        assert self.kind in IMAGE_ERRORS, self.kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.message)

    def __str__(self) -> str:
        return self.message


def format_of(content: bytes) -> str:
    """Return Pillow's name of the file's format. Raises ImageError."""
    if not content:
        raise ImageError("Empty", "the file has no bytes")
    for format, signature in _SIGNATURES.items():
        if re.match(signature, content, re.DOTALL):
            return format
    for name, signature in _UNSUPPORTED.items():
        if re.match(signature, content, re.DOTALL):
            raise ImageError("Unsupported", f"{name} is not supported; convert it to JPEG or PNG")
    raise ImageError("NotAnImage", f"not a known image format; the file starts with {content[:16]!r}")


def webp_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a WebP, since Pillow allocates its memory when opening it. Raises ImageError."""
    chunk, head = content[12:16], content[20:30]
    if len(head) == 10 and chunk == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if len(head) == 10 and chunk == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    if len(head) >= 5 and chunk == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise ImageError("Corrupt", "damaged header: the WebP has no size")


def check_pixels(width: int, height: int, max_pixels: int | None, what: str = "") -> None:
    """Raise ImageError if the size exceeds the limit."""
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError("TooLarge", f"{what}{width} x {height} is {width * height} pixels; the limit is {max_pixels}")


def check_bytes(content: bytes, max_bytes: int | None) -> None:
    """Raise ImageError if the file exceeds the limit."""
    if max_bytes is not None and len(content) > max_bytes:
        raise ImageError("TooLarge", f"the file has {len(content)} bytes; the limit is {max_bytes}")


def check_scans(content: bytes) -> None:
    """Raise ImageError if a JPEG has so many scans that a single call of its decoder would take minutes."""
    # This cheap count is an upper bound: the two bytes also occur in metadata and after the image.
    if content.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return
    position, scans = 2, 0
    while (marker := _JPEG_MARKER.search(content, position)) and content[marker.end() - 1] != _END_OF_IMAGE:
        scans += content[marker.end() - 1] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    if scans > MAX_JPEG_SCANS:
        raise ImageError("TooSlow", f"the JPEG has {scans} scans; the limit is {MAX_JPEG_SCANS}")


def opened(content: bytes, max_pixels: int | None = None) -> ImageFile.ImageFile:
    """Return the image with its header read and checked against the limit; its pixels are not decoded yet."""
    format = format_of(content)
    if format == "WEBP":
        check_pixels(*webp_size(content), max_pixels)
    opener = _heif_opener() if format == "HEIF" else OPENERS[format]
    with failures("damaged header"):
        image = opener(io.BytesIO(content))
    check_pixels(*image.size, max_pixels)
    return image


def _heif_opener() -> Callable[..., ImageFile.ImageFile]:
    """Return the opener of HEIF files. Raises ImageError if the extra is not installed."""
    try:
        import pillow_heif  # in the first such file, since few inputs have any
    except ImportError:
        raise ImageError(
            "Unsupported",
            "HEIF needs pillow-heif, which is not installed; run pip install 'sceneparse[heif]', or convert it to JPEG",
        ) from None
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False
    opener: Callable[..., ImageFile.ImageFile] = pillow_heif.HeifImageFile
    return opener


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Convert every exception to an ImageError, since Pillow passes on arbitrary exceptions of its parsers."""
    try:
        yield
    except MemoryError:
        raise ImageError("TooLarge", f"{what}: not enough memory") from None
    except Exception as error:
        message = str(error).strip()[:200]
        if isinstance(error, LookupError | TypeError | struct.error) or not message:
            message = "its structure is not valid"  # these name a key or an argument inside Pillow
        if any(phrase in message.lower() for phrase in UNSUPPORTED_SAMPLES):
            raise ImageError("Unsupported", f"samples or compression not supported: {message}") from None
        is_too_large = "security limit exceeded" in message.lower()  # of libheif: a gigapixel
        raise ImageError("TooLarge" if is_too_large else "Corrupt", f"{what}: {message}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings about damaged metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Expired(BaseException):
    """Expired deadline; not an Exception, so that no library handles it as a damaged file."""


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise ImageError after `seconds` of this process's CPU time; None sets no deadline.

    CPU time is used so that images do not fail on a busy machine. The deadline interrupts Python code, but not a
    single call into C. Signals reach only the main thread, in which Ray runs its tasks; other threads have no deadline.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signal_number: int, frame: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGPROF, expire)
    try:
        # The timer repeats, since an exception raised inside a callback from C is lost.
        signal.setitimer(signal.ITIMER_PROF, seconds, ALARM_EVERY)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _Expired:
        raise ImageError("TooSlow", f"not decoded after {seconds:g} s of CPU time") from None
    finally:
        signal.signal(signal.SIGPROF, before)
