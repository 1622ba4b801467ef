"""Images too large to be decoded whole, as rows: what can be said of one before it is labelled, and its labelling.

Does not import torch, as the stages do not.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.training import ProtocolConfig
from pipeline.errors import UserError
from pipeline.images.formats import ImageError
from pipeline.images.tiff_directory import Readable
from pipeline.images.tiff_windows import SIGNATURE_BYTES, TiffWindows, is_tiff
from pipeline.output.errors import failure
from pipeline.storage.range_file import RangeFile

# The mask is in memory, a byte for each pixel or two.
MAX_PIXELS = 4_000_000_000
MAX_MASK_BYTES = 2**31 - 1  # of its PNG: what a cell of a table holds
HOW = "--protocol.mode sliding --protocol.base-size none labels TIFF by window, whatever its size"


class ReadFault(Exception):
    """A file could not be read any further; `__cause__` says why."""


def applies(protocol: ProtocolConfig, long_side: int | None) -> bool:
    """Whether large TIFF is labelled by window: in crops of the image at its own size."""
    return protocol.mode == "sliding" and protocol.base_size is None and long_side is None


def seen(uri: str, max_pixels: int) -> dict[str, Any] | None:
    """What a DECODED row says of an image that is to be labelled by window; None if it is no TIFF.

    `max_pixels` is that of the largest tile. Raises: ImageError, ReadFault.
    """
    with _opened(uri) as file:
        if not is_tiff(file.read(SIGNATURE_BYTES) or b""):
            return None
        return {"etag": file.etag, "size_bytes": file.size, **_described(file, file.size, max_pixels)}


def seen_in(content: bytes, max_pixels: int) -> dict[str, Any]:
    """As `seen`, of a TIFF that has been downloaded. Raises: ImageError."""
    return _described(io.BytesIO(content), len(content), max_pixels)


def predicted(predictor: Any, row: dict[str, Any], on_read: Callable[[float], None] | None = None) -> Any:
    """The models.Prediction of a row that `seen` has described. Raises: ImageError, ReadFault.

    Args:
        on_read: called after each reading with the share of the rows that have been read.
    """
    with _opened(row["image_uri"]) as file:
        if file.etag != row["etag"]:
            raise ReadFault from OSError(f"changed since it was looked at: its ETag was {row['etag']}, is {file.etag}")
        image = TiffWindows(file, file.size)
        return predictor.predict_windows(image if on_read is None else _Told(image, on_read))


class _Told:
    """An image of which each reading is told."""

    def __init__(self, image: TiffWindows, on_read: Callable[[float], None]) -> None:
        self._image, self._on_read = image, on_read
        self.height, self.width = image.height, image.width

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        pixels_HW3 = self._image.read(top, bottom, left, right)
        self._on_read(bottom / self.height)
        return pixels_HW3


def failed(error: ImageError | ReadFault) -> dict[str, Any]:
    """What a row says of it."""
    if isinstance(error, ImageError):
        return failure("decode", error.kind, error.message)
    assert isinstance(error.__cause__, Exception)
    return failure("download", storage.failure_kind(error.__cause__), storage.reason(error.__cause__))


def _described(file: Readable, size: int, max_pixels: int) -> dict[str, Any]:
    image = TiffWindows(file, size, max_pixels)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            "TooLarge",
            f"{image.width} x {image.height} is {image.width * image.height} pixels; by window the limit is "
            f"{MAX_PIXELS}",
        )
    image.read(0, 1, 0, 1)  # samples that cannot be decoded are found here, not on a GPU
    return {"width": image.width, "height": image.height, "by_window": True}


class _Guarded:
    """A file whose reading raises ReadFault for what concerns this file alone."""

    def __init__(self, file: RangeFile) -> None:
        self._file = file
        self.size, self.etag = file.size, file.etag

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def read(self, size: int) -> bytes | None:
        try:
            return self._file.read(size)
        except storage.UNREACHABLE:
            raise
        except Exception as error:  # as in storage.fetch_objects: the reason of one image's failure
            raise ReadFault from error


@contextmanager
def _opened(uri: str) -> Iterator[_Guarded]:
    try:
        file = storage.open_file(uri)
    except UserError as error:
        if isinstance(error.__cause__, storage.UNREACHABLE):
            raise
        raise ReadFault from error.__cause__ or error
    with file, storage.explained(uri):
        yield _Guarded(file)
