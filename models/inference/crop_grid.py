"""Grid of the crops of an image at every scale, and the pixels of the image and the output that each depends on.

Shape suffixes: as in sliding.py.
"""

import ctypes
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.inference.interpolation import Taps, TapsStruct, half_pixel_positions, taps
from models.inference.preprocessing import padded_size
from models.pspnet import feature_size


class CropKey(NamedTuple):
    """Crop for one pass through the network: index of the scale, row and column of the crop, and 1 if mirrored."""

    scale: int
    row: int
    column: int
    mirror: int


class CropRow(NamedTuple):
    """Row of crops: index of the scale, and of the row in it."""

    scale: int
    row: int


class AxisStruct(ctypes.Structure):
    _fields_ = [
        ("output", TapsStruct),
        ("crop", TapsStruct),
        *((name, ctypes.c_int64) for name in ("size", "crops", "crop_size", "cells")),
        ("starts", ctypes.c_void_p),
        ("share", ctypes.c_void_p),
    ]


class ScaleStruct(ctypes.Structure):
    _fields_ = [("rows", AxisStruct), ("columns", AxisStruct), ("logits", ctypes.c_void_p)]


@dataclass(frozen=True)
class Axis:
    """Rows or columns of an image at one scale, and the crops that cover them.

    `starts` are the first pixels of the crops, below zero if the image is padded; `share` is the weight of a crop in
    each scaled pixel. `image` samples scaled pixels from those of the image, `output` samples output pixels from
    scaled ones, and `crop` samples the pixels of a crop from the `cells` of its logits.
    """

    size: int
    cells: int
    starts: NDArray[np.int32]
    share: NDArray[np.float32]
    image: Taps
    output: Taps
    crop: Taps

    @classmethod
    def make(
        cls, image_size: int, size: int, output_size: int, crop: int, stride: float, align_corners: bool
    ) -> "Axis":
        step = math.ceil(crop * stride)
        padded = max(size, crop)
        num_crops = -(-(padded - crop) // step) + 1
        starts = np.minimum(np.arange(num_crops) * step, padded - crop) - (padded - size) // 2
        change = np.zeros(size + 1, np.int64)
        np.add.at(change, starts.clip(0), 1)
        np.add.at(change, (starts + crop).clip(max=size), -1)
        num_covering = change.cumsum()[:size]
        padded_crop, _ = padded_size((crop, crop), align_corners)
        cells, _ = feature_size(padded_crop, padded_crop)
        return cls(
            size,
            cells,
            starts.astype(np.int32),
            (1 / num_covering).astype(np.float32),
            Taps.at(half_pixel_positions(image_size, size), image_size),
            Taps.at(half_pixel_positions(size, output_size), size),
            taps(crop, padded_crop, cells, crop, align_corners),
        )

    def covering(self, first: int, last: int) -> range:
        """Return the indices of the crops that contain a pixel from `first` to `last`."""
        covers = np.flatnonzero((self.starts <= last) & (self.starts + len(self.crop) > first))
        return range(int(covers[0]), int(covers[-1]) + 1)

    def pixels(self, crop: int) -> slice:
        """Return the scaled pixels in a crop."""
        start = int(self.starts[crop])
        return slice(max(start, 0), min(start + len(self.crop), self.size))

    def source(self, crop: int) -> slice:
        """Return the pixels of the image from which a crop is sampled."""
        return span_of(self.image.part(self.pixels(crop)))

    def struct(self) -> AxisStruct:
        """Return the struct for masks.c, valid as long as this object."""
        pointers = self.starts.ctypes.data, self.share.ctypes.data
        counts = self.size, len(self.starts), len(self.crop), self.cells
        return AxisStruct(self.output.struct(), self.crop.struct(), *counts, *pointers)


@dataclass(frozen=True)
class Grid:
    """All crops of an image: rows and columns of every scale; `mirrors` is 2 with mirroring, else 1."""

    scales: list[tuple[Axis, Axis]]
    mirrors: int

    def size_of(self, key: CropKey) -> tuple[int, int]:
        """Return a crop's rows and columns of pixels."""
        rows, columns = self.scales[key.scale]
        return len(rows.crop), len(columns.crop)

    def cells_of(self, key: CropKey) -> tuple[int, int]:
        """Return a crop's rows and columns of logits."""
        rows, columns = self.scales[key.scale]
        return rows.cells, columns.cells

    def crop_rows_of(self, output_rows: range) -> list[CropRow]:
        """Return the rows of crops on which these output rows depend."""
        crop_rows = []
        for scale, (rows, _) in enumerate(self.scales):
            needed = span_of(rows.output.part(slice(output_rows.start, output_rows.stop)))
            crop_rows += [CropRow(scale, row) for row in rows.covering(needed.start, needed.stop - 1)]
        return crop_rows

    def crops_in(self, crop_rows: Iterable[CropRow]) -> list[CropKey]:
        """Return the crops in these rows."""
        return [
            CropKey(scale, row, column, mirror)
            for scale, row in crop_rows
            for column in range(len(self.scales[scale][1].starts))
            for mirror in range(self.mirrors)
        ]

    def pixels_of(self, rows_of_bands: list[list[CropRow]]) -> list[tuple[int, int]]:
        """Return, for each band, the rows of the image from which its new crops are sampled, half open.

        The first row is chosen so that no later band needs a row above it, which allows reading from the top down.
        """
        spans: list[tuple[int, int]] = []
        first = self.scales[0][0].image.high[-1] + 1
        for before, crop_rows in zip([[], *rows_of_bands][-2::-1], reversed(rows_of_bands), strict=True):
            sources = [self.scales[scale][0].source(row) for scale, row in set(crop_rows) - set(before)]
            first = min([first, *(source.start for source in sources)])
            spans.append((first, max((source.stop for source in sources), default=first)))
        return spans[::-1]


def span_of(taps: Taps) -> slice:
    """Return the span of values, first to last, that the taps read."""
    return slice(int(taps.low[0]), int(taps.high[-1]) + 1)


def within(taps: Taps, span: slice) -> Taps:
    """Return the taps relative to the span."""
    return Taps(taps.low - span.start, taps.high - span.start, taps.weight)
