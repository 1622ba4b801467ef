"""TIFFs read window by window: the same pixels as pipeline/images/codec.py, with a few tiles of the file in memory.

The tiles (or strips) of a window are copied to a small TIFF, which is decoded like a whole one. So the rules for
samples, colors and damage are those of whole images. docs/decisions/0005-windows.md gives the reasons.
"""

import io
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.images import tiff_directory
from pipeline.images.formats import ImageError, quiet
from pipeline.images.raster import WHITE, Raster
from pipeline.images.tiff_layout import FLOAT, read_layout
from pipeline.images.tiff_samples import (
    Ends,
    Samples,
    decimated,
    decimation,
    ends_of,
    orientation_of,
    samples_to_show,
    shown,
    tile_spans,
)

SIGNATURE = re.compile(rb"II[*+]\0|MM\0[*+]")
SIGNATURE_BYTES = 4
MAX_TILE_PIXELS = 32 * 2**20  # a tile is decoded as a whole, which takes up to 20 bytes per pixel
MAX_TILE_BYTES = 256 * 2**20  # of the file, per read
DECODED_TOGETHER = 4 * 2**20  # pixels of neighboring tiles
UNPACKED_TOGETHER = 2**28  # bytes of their samples, in all bands
GAP = 1 << 16  # bytes; a gap between two tiles up to this size is read rather than skipped


def is_tiff(head: bytes) -> bool:
    """Return True if `head` is the start of a TIFF that Sceneparse can decode."""
    return SIGNATURE.match(head) is not None


class TiffWindows:
    """TIFF that is decoded window by window; `height` and `width` are in pixels, as a viewer shows the image.

    Args:
        file: the file; its read errors are passed on.
        size: of the file in bytes.
        max_pixels: limit of the largest tile or strip; values above MAX_TILE_PIXELS have no effect.
        rendering: bands and value range; percentiles are those of the whole image, which is read once for them.

    Raises: ImageError; TooLarge if tiles or strips exceed `max_pixels`, as with a large image in a single strip, and
    Unsupported if a part cannot be decoded like the whole.
    """

    def __init__(
        self,
        file: tiff_directory.Readable,
        size: int,
        max_pixels: int = MAX_TILE_PIXELS,
        rendering: Rendering = AS_DECLARED,
    ) -> None:
        self._directory = directory = tiff_directory.Directory(file, size)
        self._layout = layout = read_layout(directory, rendering=rendering)
        self._rendering = rendering
        # Rows and columns as stored, before the EXIF orientation; the same holds for tiles.
        self._size = layout.height, layout.width
        if layout.sample_format == FLOAT and rendering.value_range is None:
            raise ImageError(
                "Unsupported",
                "a TIFF with float samples cannot be read by window, because white depends on the largest sample; set "
                "a value range (--value-range)",
            )
        self._lay_out(min(max_pixels, MAX_TILE_PIXELS))
        self._turn = orientation_of(directory)
        if self._turn >= 5 and not self._is_tiled:
            raise ImageError("Unsupported", "a TIFF in strips that is rotated by 90 degrees cannot be read by window")
        self.height, self.width = self._size if self._turn < 5 else self._size[::-1]
        # The last decoded tiles of a row of tiles: the next window usually starts in them.
        self._kept: tuple[tuple[int, int, int], Raster] | None = None

    def check(self) -> None:
        """Decode the first tile, to find samples that cannot be decoded. Raises: ImageError, and errors of reading."""
        self._samples(0, 0, 1)

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Return rows `top` to `bottom` and columns `left` to `right`, half open, as `decode_image` does.

        Returns: rows x columns x 3; pixels without data are white.
        Raises: ImageError, and errors of reading the file.
        """
        return self.read_raster(top, bottom, left, right).filled(WHITE)

    def read_raster(self, top: int, bottom: int, left: int, right: int) -> Raster:
        """Return the same as `read`, with the pixels that have data; they may be none."""
        assert 0 <= top < bottom <= self.height
        assert 0 <= left < right <= self.width
        rows, columns = (top, bottom), (left, right)
        # Apply the inverse of `turned`.
        if self._turn >= 5:
            rows, columns = columns, rows
        if self._turn in (3, 4, 6, 7):
            rows = self._size[0] - rows[1], self._size[0] - rows[0]
        if self._turn in (2, 3, 7, 8):
            columns = self._size[1] - columns[1], self._size[1] - columns[0]
        return self._stored(rows, columns).turned(self._turn)

    def _lay_out(self, max_pixels: int) -> None:
        """Locate the tiles; a strip is a tile as wide as the image."""
        directory, (height, width) = self._directory, self._size
        layout = self._layout
        self._is_tiled, self._planes, self._tiles = layout.is_tiled, layout.num_planes, layout.tiles
        self._tile = layout.tile_height, layout.tile_width
        if self._tile[0] * self._tile[1] > max_pixels:
            raise ImageError(
                "TooLarge",
                f"{width} x {height} is {width * height} pixels in {'tiles' if self._is_tiled else 'strips'} of "
                f"{self._tile[1]} x {self._tile[0]}, too large to be read by window; save it with tiles of 512 x 512",
            )
        self._offsets, self._lengths = tile_spans(directory, layout)

    def _stored(self, rows: tuple[int, int], columns: tuple[int, int]) -> Raster:
        """Return a window as stored in the file, without the EXIF orientation."""
        tile_height, tile_width = self._tile
        first, last = columns[0] // tile_width, -(-columns[1] // tile_width)
        across = slice(columns[0] - first * tile_width, columns[1] - first * tile_width)
        window = _Canvas(rows[1] - rows[0], columns[1] - columns[0])
        for row in range(rows[0] // tile_height, -(-rows[1] // tile_height)):
            top = row * tile_height
            start, stop = max(rows[0], top), min(rows[1], top + tile_height)
            part = self._row_of_tiles(row, first, last).part(slice(start - top, stop - top), across)
            window.put(start - rows[0], 0, part)
        return window.raster()

    def _row_of_tiles(self, row: int, first: int, last: int) -> Raster:
        """Return tiles `first` to `last`, half open, of a row of tiles."""
        place = row, first, last
        if self._kept is None or self._kept[0] != place:
            self._kept = None  # free its memory before allocating the next
            (height, width), (tile_height, tile_width) = self._size, self._tile
            left, right = first * tile_width, min(last * tile_width, width)
            tiles = _Canvas(min(tile_height, height - row * tile_height), right - left)
            for start, stop in self._groups(first, last):
                tiles.put(0, start * tile_width - left, self._decoded(row, start, stop))
            self._kept = place, tiles.raster()
        return self._kept[1]

    def _groups(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the columns, half open, of tiles that are decoded together."""
        in_pixels = DECODED_TOGETHER // (self._tile[0] * self._tile[1])
        in_bytes = UNPACKED_TOGETHER // (self._tile[0] * self._layout.row_bytes)
        step = max(1, min(in_pixels, in_bytes))
        for start in range(first, last, step):
            yield start, min(start + step, last)

    def _decoded(self, row: int, start: int, stop: int) -> Raster:
        """Return the pixels of neighboring tiles of a row that are inside the image."""
        samples = self._samples(row, start, stop)
        ends, value_range = None, self._rendering.value_range
        if value_range is not None:
            ends = self._percentiles if self._rendering.has_percentiles else ends_of(samples.bands_HWC[0], value_range)
        return Raster(shown(samples, self._layout, self._directory, ends), samples.valid_HW)

    @cached_property
    def _percentiles(self) -> Ends:
        """Ends of a value range with percentiles, for which the whole file is read."""
        value_range = self._rendering.value_range
        assert value_range is not None
        step = decimation(self._layout)
        found = []
        for row in range(self._tiles[0]):
            top = row * self._tile[0]
            if top + -top % step < min(top + self._tile[0], self._size[0]):
                for start, stop in self._groups(0, self._tiles[1]):
                    corner = top, start * self._tile[1]
                    found.append(decimated(self._samples(row, start, stop), corner, step))
        return ends_of(np.concatenate(found), value_range)

    def _samples(self, row: int, start: int, stop: int) -> Samples:
        """Return the samples of the bands to show of neighboring tiles of a row that are inside the image."""
        in_plane = self._tiles[0] * self._tiles[1]
        begin = row * self._tiles[1]
        numbers = [plane * in_plane + begin + column for plane in range(self._planes) for column in range(start, stop)]
        pieces = self._read_pieces([self._span(number) for number in numbers])
        lengths = [len(piece) for piece in pieces]
        height = min(self._tile[0], self._size[0] - row * self._tile[0])
        width = min(stop * self._tile[1], self._size[1]) - start * self._tile[1]
        tags: dict[int, int | Sequence[int]] = {tiff_directory.LENGTH: height, tiff_directory.WIDTH: width}
        if self._is_tiled:
            tags |= {
                tiff_directory.TILE_LENGTH: self._tile[0],
                tiff_directory.TILE_WIDTH: self._tile[1],
                tiff_directory.TILE_BYTES: lengths,
            }
        else:
            tags |= {tiff_directory.ROWS_PER_STRIP: height, tiff_directory.STRIP_BYTES: lengths}
        content = self._directory.small_tiff(pieces, tags)
        directory = tiff_directory.Directory(io.BytesIO(content), len(content))
        with quiet():
            return samples_to_show(directory, read_layout(directory, rendering=self._rendering), self._rendering)

    def _span(self, number: int) -> tuple[int, int]:
        """Return the offset and the length of a tile; of a plane that is not selected, (0, 0)."""
        plane, bands = number // (self._tiles[0] * self._tiles[1]), self._rendering.bands
        if self._layout.is_planar and self._layout.is_of_bytes and bands is not None and plane + 1 not in bands:
            return 0, 0
        return int(self._offsets[number]), int(self._lengths[number])

    def _read_pieces(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of tiles, given by offset and length, with as few reads as possible."""
        pieces = [b""] * len(spans)
        for group in _neighbours(spans):
            begin, end = spans[group[0]][0], max(sum(spans[index]) for index in group)
            if end - begin > MAX_TILE_BYTES:
                raise ImageError("TooLarge", f"a tile or strip has {end - begin} bytes; the limit is {MAX_TILE_BYTES}")
            content = self._directory.read(begin, end - begin)
            for index in group:
                offset, length = spans[index]
                pieces[index] = content[offset - begin : offset - begin + length]
        return pieces


class _Canvas:
    """Image that is put together from its parts, all of which must be put."""

    def __init__(self, height: int, width: int) -> None:
        self._pixels_HW3 = np.empty((height, width, 3), np.uint8)
        self._valid_HW: NDArray[np.bool_] | None = None

    def put(self, top: int, left: int, part: Raster) -> None:
        """Copy a part to the place of its upper left corner."""
        height, width, _ = part.pixels_HW3.shape
        place = slice(top, top + height), slice(left, left + width)
        self._pixels_HW3[place] = part.pixels_HW3
        if part.valid_HW is not None:
            if self._valid_HW is None:
                self._valid_HW = np.ones(self._pixels_HW3.shape[:2], np.bool_)
            self._valid_HW[place] = part.valid_HW

    def raster(self) -> Raster:
        return Raster(self._pixels_HW3, self._valid_HW)


def _neighbours(spans: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Yield groups of indices of spans (offset, length) that are close to each other, each sorted by offset."""
    group: list[int] = []
    end = 0
    for index in sorted(range(len(spans)), key=lambda index: spans[index]):
        offset, length = spans[index]
        if group and (offset > end + GAP or offset + length > spans[group[0]][0] + MAX_TILE_BYTES):
            yield group
            group = []
        group.append(index)
        end = max(end, offset + length)
    yield group
