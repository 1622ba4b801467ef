"""Decoded image whose pixels may lack data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.images.pixels import turned

WHITE = (255, 255, 255)  # of pixels without data in pictures for people, as of transparent ones


@dataclass(frozen=True)
class Raster:
    """RGB image, and its pixels that have data.

    Attributes:
        pixels_HW3: uint8; any values where there is no data.
        valid_HW: False where there is no data; None: every pixel has data.
    """

    pixels_HW3: NDArray[np.uint8]
    valid_HW: NDArray[np.bool_] | None = None

    def filled(self, color: Sequence[float]) -> NDArray[np.uint8]:
        """Return the image with a color, R, G, B from 0 to 255, where there is no data: H x W x 3 uint8."""
        if self.valid_HW is None:
            return self.pixels_HW3
        filled_HW3 = self.pixels_HW3.copy()
        filled_HW3[~self.valid_HW] = np.round(color)
        return filled_HW3

    def part(self, rows: slice, columns: slice) -> "Raster":
        """Return a rectangle of the image, as a view."""
        valid_HW = None if self.valid_HW is None else self.valid_HW[rows, columns]
        return Raster(self.pixels_HW3[rows, columns], valid_HW)

    def turned(self, turn: int) -> "Raster":
        """Return the image with the EXIF orientation `turn`, 1 to 8, applied."""
        valid_HW = None if self.valid_HW is None else np.ascontiguousarray(turned(self.valid_HW, turn))
        return Raster(np.ascontiguousarray(turned(self.pixels_HW3, turn)), valid_HW)

    @property
    def with_data_HW3(self) -> NDArray[np.uint8]:
        """The pixels that have data; if some have none, as an image of one row."""
        return self.pixels_HW3 if self.valid_HW is None else self.pixels_HW3[self.valid_HW][None]
