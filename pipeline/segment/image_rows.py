"""Rows of the tables that pass between the stages: images as listed, as decoded and as predicted.

The fields are the columns of the schemas in pipeline.output.schema. Does not import torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.output.schema import table


@dataclass(frozen=True)
class ListedImage:
    """Row of a LISTED table: an image to label, or the reason why it cannot be labeled."""

    image_id: bytes
    image_uri: str
    etag: str | None = None
    size_bytes: int | None = None
    carried: list[dict[str, str]] | None = None
    error_stage: str | None = None
    error_type: str | None = None
    error_message: str | None = None

    def failed(self, stage: str, error_type: str, message: str) -> Self:
        """Return the row of the same image with this error."""
        return replace(self, error_stage=stage, error_type=error_type, error_message=message)


@dataclass(frozen=True)
class DecodedImage(ListedImage):
    """Row of a DECODED table: a listed image with its pixels, or to be read by window, or with an error."""

    width: int | None = None
    height: int | None = None
    seconds: float = 0.0
    input_width: int | None = None
    input_height: int | None = None
    pixels: bytes | pa.Buffer | None = field(default=None, repr=False)
    valid: bytes | None = field(default=None, repr=False)
    by_window: bool | None = None
    few_levels: bool | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image. Not for an image with an error."""
        assert self.height is not None
        assert self.width is not None
        return self.height, self.width

    @property
    def input_HW3(self) -> NDArray[np.uint8]:
        """Pixels as an array. Not for an image with an error, or to be read by window."""
        assert self.pixels is not None
        assert self.input_height is not None
        assert self.input_width is not None
        return np.frombuffer(self.pixels, np.uint8).reshape(self.input_height, self.input_width, 3)

    def valid_rows(self, rows: slice) -> NDArray[np.bool_] | None:
        """Return which pixels of a strip of rows of the full-size image have data, 1 x S x W; None: all have.

        Not for an image to be read by window.
        """
        if self.valid is None:
            return None
        height, width = self.size
        bits_1HB = np.frombuffer(self.valid, np.uint8).reshape(1, height, -1)
        return np.unpackbits(bits_1HB[:, rows], axis=2, count=width).view(np.bool_)

    @property
    def valid_HW(self) -> NDArray[np.bool_] | None:
        """Pixels of the full-size image that have data; None: all have. Not for an image to be read by window."""
        valid_1HW = self.valid_rows(slice(None))
        return None if valid_1HW is None else valid_1HW[0]


@dataclass(frozen=True)
class PredictedImage(DecodedImage):
    """Row of a PREDICTED table, which leaves out the pixels: a decoded image with its labels, or with an error."""

    mask: dict[str, Any] | None = field(default=None, repr=False)
    mean_confidence: float | None = None
    mean_entropy: float | None = None
    low_confidence_fraction: float | None = None
    low_confidence_boxes: list[dict[str, int]] | None = None
    classes: list[dict[str, Any]] | None = None
    has_nodata: bool | None = None

    def with_mask(self, png: bytes) -> Self:
        return replace(self, mask={"bytes": png, "path": self.image_id.hex() + ".png"})


Image = TypeVar("Image", bound=ListedImage)


def listed_images(listed: pa.Table) -> list[ListedImage]:
    """Return the rows of a LISTED table."""
    return [ListedImage(**row) for row in listed.to_pylist()]


def decoded_images(decoded: pa.Table) -> list[DecodedImage]:
    """Return the rows of a DECODED table, whose pixels are not copied."""
    rows = decoded.drop_columns(["pixels"]).to_pylist()
    return [DecodedImage(**row, pixels=pixels.as_buffer()) for row, pixels in zip(rows, decoded["pixels"], strict=True)]


def to_table(images: Iterable[ListedImage], schema: pa.Schema) -> pa.Table:
    """Return rows as a table of the schema's columns."""
    return table([vars(image) for image in images], schema)
