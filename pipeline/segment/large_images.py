"""Images too large to decode whole: describe them as DECODED rows, and label them window by window.

Does not import torch, because the decode stage imports this module.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.config.training import ProtocolConfig
from pipeline.errors import UserError
from pipeline.images.formats import ImageError
from pipeline.images.nodata import no_data
from pipeline.images.pixels import MIN_LEVELS, levels_of
from pipeline.images.raster import WHITE
from pipeline.images.tiff_windows import SIGNATURE_BYTES, TiffWindows, is_tiff
from pipeline.segment.image_rows import DecodedImage, Image
from pipeline.segment.prediction_rows import with_ignored
from pipeline.storage.range_file import RangeFile

# The whole mask is held in memory, one or two bytes per pixel.
MAX_PIXELS = 4_000_000_000
MAX_MASK_BYTES = 2**31 - 1  # of the mask's PNG: the most that a cell of an Arrow table holds
HOW = "use --protocol.mode sliding --protocol.base-size none to label TIFFs of any size window by window"

Decoded = TypeVar("Decoded", bound=DecodedImage)


class ReadFault(Exception):
    """Failure to read a file any further; `__cause__` holds the reason."""


def applies(protocol: ProtocolConfig, long_side: int | None) -> bool:
    """Return whether large TIFFs are labeled by window, which requires crops of the image at its original size."""
    is_resized = protocol.base_size is not None or protocol.short_side is not None or long_side is not None
    return protocol.mode == "sliding" and not is_resized


def describe_file(image: DecodedImage, max_pixels: int, rendering: Rendering = AS_DECLARED) -> DecodedImage | None:
    """Return the image as one to be labeled by window, without downloading it; None if its file is not a TIFF.

    Args:
        max_pixels: limit for the pixels of a tile.
        rendering: bands and value range.

    Raises: ImageError, ReadFault.
    """
    with _opened(image.image_uri) as file:
        if not is_tiff(file.read(SIGNATURE_BYTES) or b""):
            return None
        windows = TiffWindows(file, file.size, max_pixels, rendering)
        return _described(replace(image, etag=file.etag, size_bytes=file.size), windows)


def describe_content(
    image: DecodedImage, content: bytes, max_pixels: int, rendering: Rendering = AS_DECLARED
) -> DecodedImage:
    """Return the same as `describe_file` for a TIFF that has been downloaded. Raises: ImageError."""
    return _described(image, TiffWindows(io.BytesIO(content), len(content), max_pixels, rendering))


def predict_windows(
    predictor: Any,
    image: Decoded,
    on_read: Callable[[float], None] | None = None,
    rendering: Rendering = AS_DECLARED,
    fill: Sequence[float] = WHITE,
) -> tuple[Decoded, Any]:
    """Return an image that `describe_file` or `describe_content` returned, and its models.Prediction.

    Args:
        on_read: called after each read with the fraction of the image's rows that have been read.
        rendering: bands and value range.
        fill: color of pixels without data, R, G, B from 0 to 255.

    Raises: ImageError, such as Empty if no pixel has data; ReadFault, also if the object's ETag is no longer the
    image's.
    """
    with _opened(image.image_uri) as file:
        if file.etag != image.etag:
            raise ReadFault from OSError(
                f"the object changed during the run: its ETag was {image.etag} and is now {file.etag}"
            )
        watched = _Watched(TiffWindows(file, file.size, rendering=rendering), on_read, fill)
        prediction = predictor.predict_windows(watched, watched.valid_rows)
    if watched.has_nodata:
        if not watched.has_data:
            raise no_data()
        prediction = with_ignored(prediction, watched.valid_rows)
    return replace(image, few_levels=watched.has_few_levels), prediction


class _Watched:
    """Image that records levels and data of the rows read, and calls `on_read` after each read.

    Pixels without data have the color `fill`. `has_data` is True once a pixel that has data has been read.
    """

    def __init__(self, image: TiffWindows, on_read: Callable[[float], None] | None, fill: Sequence[float]) -> None:
        self._image, self._on_read, self._fill = image, on_read, fill
        self._levels = np.zeros(256, np.bool_)
        self._valid_HB: NDArray[np.uint8] | None = None  # bits of each row; None: all pixels read have data
        self.has_data = False
        self.height, self.width = image.height, image.width

    @property
    def has_few_levels(self) -> bool:
        """True if the samples read so far have few different values."""
        return bool(self._levels.sum() < MIN_LEVELS)

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        raster = self._image.read_raster(top, bottom, left, right)
        self._record_data(slice(top, bottom), raster.valid_HW)
        if self.has_few_levels and raster.with_data_HW3.size:
            self._levels |= levels_of(raster.with_data_HW3)
        if self._on_read is not None:
            self._on_read(bottom / self.height)
        return raster.filled(self._fill)

    @property
    def has_nodata(self) -> bool:
        """True if a pixel without data has been read."""
        return self._valid_HB is not None

    def _record_data(self, rows: slice, valid_SW: NDArray[np.bool_] | None) -> None:
        """Record which pixels of whole rows, as predictors read them, have data."""
        self.has_data |= valid_SW is None or bool(valid_SW.any())
        if valid_SW is None:
            return
        if self._valid_HB is None:
            self._valid_HB = np.full((self.height, -(-self.width // 8)), 255, np.uint8)
        self._valid_HB[rows] = np.packbits(valid_SW, axis=1)

    def valid_rows(self, rows: slice) -> NDArray[np.bool_] | None:
        """Return which pixels of rows that have been read have data, 1 x S x W; None: all pixels read so far."""
        if self._valid_HB is None:
            return None
        return np.unpackbits(self._valid_HB[None, rows], axis=2, count=self.width).view(np.bool_)


def with_error(image: Image, error: ImageError | ReadFault) -> Image:
    """Return the image's row with this error."""
    if isinstance(error, ImageError):
        return image.failed("decode", error.kind, error.message)
    assert isinstance(error.__cause__, Exception)
    return image.failed("download", storage.failure_kind(error.__cause__), storage.reason(error.__cause__))


def _described(image: DecodedImage, windows: TiffWindows) -> DecodedImage:
    if windows.width * windows.height > MAX_PIXELS:
        raise ImageError(
            "TooLarge",
            f"{windows.width} x {windows.height} is {windows.width * windows.height} pixels; the limit for labeling by "
            f"window is {MAX_PIXELS}",
        )
    windows.check()  # finds samples that cannot be decoded here instead of on a GPU
    return replace(image, width=windows.width, height=windows.height, by_window=True)


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
