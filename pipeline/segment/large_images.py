"""Images too large to decode whole: describe them as DECODED rows, and label them window by window.

Does not import torch, because the decode stage imports this module.
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

# The whole mask is held in memory, one or two bytes per pixel.
MAX_PIXELS = 4_000_000_000
MAX_MASK_BYTES = 2**31 - 1  # of the mask's PNG: the most that a cell of an Arrow table holds
HOW = "use --protocol.mode sliding --protocol.base-size none to label TIFFs of any size window by window"


class ReadFault(Exception):
    """Failure to read a file any further; `__cause__` holds the reason."""


def applies(protocol: ProtocolConfig, long_side: int | None) -> bool:
    """Return whether large TIFFs are labeled by window, which requires crops of the image at its original size."""
    return protocol.mode == "sliding" and protocol.base_size is None and long_side is None


def seen(uri: str, max_pixels: int) -> dict[str, Any] | None:
    """Return the columns of a DECODED row for an image to be labeled by window; None if the file is not a TIFF.

    Args:
        max_pixels: limit for the pixels of a tile.

    Raises: ImageError, ReadFault.
    """
    with _opened(uri) as file:
        if not is_tiff(file.read(SIGNATURE_BYTES) or b""):
            return None
        return {"etag": file.etag, "size_bytes": file.size, **_described(file, file.size, max_pixels)}


def seen_in(content: bytes, max_pixels: int) -> dict[str, Any]:
    """Return the same as `seen` for a TIFF that has been downloaded. Raises: ImageError."""
    return _described(io.BytesIO(content), len(content), max_pixels)


def predicted(predictor: Any, row: dict[str, Any], on_read: Callable[[float], None] | None = None) -> Any:
    """Return the models.Prediction of a row that `seen` described.

    Args:
        on_read: called after each read with the fraction of the image's rows that have been read.

    Raises: ImageError; ReadFault, also if the object's ETag is no longer the row's.
    """
    with _opened(row["image_uri"]) as file:
        if file.etag != row["etag"]:
            raise ReadFault from OSError(
                f"the object changed during the run: its ETag was {row['etag']} and is now {file.etag}"
            )
        image = TiffWindows(file, file.size)
        return predictor.predict_windows(image if on_read is None else _Told(image, on_read))


class _Told:
    """Image that calls `on_read` after each read."""

    def __init__(self, image: TiffWindows, on_read: Callable[[float], None]) -> None:
        self._image, self._on_read = image, on_read
        self.height, self.width = image.height, image.width

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        pixels_HW3 = self._image.read(top, bottom, left, right)
        self._on_read(bottom / self.height)
        return pixels_HW3


def failed(error: ImageError | ReadFault) -> dict[str, Any]:
    """Return the error columns of a row for this error."""
    if isinstance(error, ImageError):
        return failure("decode", error.kind, error.message)
    assert isinstance(error.__cause__, Exception)
    return failure("download", storage.failure_kind(error.__cause__), storage.reason(error.__cause__))


def _described(file: Readable, size: int, max_pixels: int) -> dict[str, Any]:
    image = TiffWindows(file, size, max_pixels)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            "TooLarge",
            f"{image.width} x {image.height} is {image.width * image.height} pixels; the limit for labeling by "
            f"window is {MAX_PIXELS}",
        )
    image.read(0, 1, 0, 1)  # finds samples that cannot be decoded here instead of on a GPU
    return {"width": image.width, "height": image.height, "by_window": True}


class _Guarded:
    """File whose `read` raises ReadFault for errors that concern this file alone, not the whole storage."""

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
        except Exception as error:  # as in storage.fetch_objects, this fails one image and not the run
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
