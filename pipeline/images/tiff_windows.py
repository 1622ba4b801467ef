"""TIFFs read window by window: the same pixels as pipeline/images/codec.py, with a few tiles of the file in memory.

The tiles (or strips) of a window are copied to a small TIFF, which `decode_image` decodes. So the rules for samples,
colors and damage are those of whole images. docs/decisions/0005-windows.md gives the reasons.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.images import tiff_directory
from pipeline.images.codec import decode_image
from pipeline.images.formats import ImageError
from pipeline.images.pixels import turned
from pipeline.images.tiff_layout import FLOAT, read_layout
from pipeline.images.tiff_samples import orientation_of, tile_spans

SIGNATURE = re.compile(rb"II[*+]\0|MM\0[*+]")
SIGNATURE_BYTES = 4
MAX_TILE_PIXELS = 32 * 2**20  # a tile is decoded as a whole, which takes up to 20 bytes per pixel
MAX_TILE_BYTES = 256 * 2**20  # of the file, per read
DECODED_TOGETHER = 4 * 2**20  # pixels of neighboring tiles
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

    Raises: ImageError; TooLarge if tiles or strips exceed `max_pixels`, as with a large image in a single strip, and
    Unsupported if a part cannot be decoded like the whole.
    """

    def __init__(self, file: tiff_directory.Readable, size: int, max_pixels: int = MAX_TILE_PIXELS) -> None:
        self._directory = directory = tiff_directory.Directory(file, size)
        self._layout = layout = read_layout(directory)
        # Rows and columns as stored, before the EXIF orientation; the same holds for tiles.
        self._size = layout.height, layout.width
        if layout.sample_format == FLOAT:
            raise ImageError(
                "Unsupported",
                "a TIFF with float samples cannot be read by window, because white depends on the largest sample",
            )
        self._lay_out(min(max_pixels, MAX_TILE_PIXELS))
        self._turn = orientation_of(directory)
        if self._turn >= 5 and not self._is_tiled:
            raise ImageError("Unsupported", "a TIFF in strips that is rotated by 90 degrees cannot be read by window")
        self.height, self.width = self._size if self._turn < 5 else self._size[::-1]
        # The last decoded tiles of a row of tiles: the next window usually starts in them.
        self._kept: tuple[tuple[int, int, int], NDArray[np.uint8]] | None = None

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Return the pixels of rows `top` to `bottom` and columns `left` to `right`, half open: rows x columns x 3.

        Raises: ImageError, and errors of reading the file.
        """
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
        return np.ascontiguousarray(turned(self._stored(rows, columns), self._turn))

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

    def _stored(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        """Return pixels as stored in the file, without the EXIF orientation."""
        window_HW3 = np.empty((rows[1] - rows[0], columns[1] - columns[0], 3), np.uint8)
        tile_height, tile_width = self._tile
        first, last = columns[0] // tile_width, -(-columns[1] // tile_width)
        across = slice(columns[0] - first * tile_width, columns[1] - first * tile_width)
        for row in range(rows[0] // tile_height, -(-rows[1] // tile_height)):
            top = row * tile_height
            start, stop = max(rows[0], top), min(rows[1], top + tile_height)
            tiles_HW3 = self._row_of_tiles(row, first, last)
            window_HW3[start - rows[0] : stop - rows[0]] = tiles_HW3[start - top : stop - top, across]
        return window_HW3

    def _row_of_tiles(self, row: int, first: int, last: int) -> NDArray[np.uint8]:
        """Return the pixels of tiles `first` to `last`, half open, of a row of tiles."""
        place = row, first, last
        if self._kept is None or self._kept[0] != place:
            self._kept = None  # free its memory before allocating the next
            (height, width), (tile_height, tile_width) = self._size, self._tile
            left, right = first * tile_width, min(last * tile_width, width)
            tiles_HW3 = np.empty((min(tile_height, height - row * tile_height), right - left, 3), np.uint8)
            step = max(1, DECODED_TOGETHER // (tile_height * tile_width))
            for start in range(first, last, step):
                part_HW3 = tiles_HW3[:, start * tile_width - left : (start + step) * tile_width - left]
                part_HW3[:] = self._decoded(row, start, min(start + step, last), part_HW3.shape[:2])
            self._kept = place, tiles_HW3
        return self._kept[1]

    def _decoded(self, row: int, start: int, stop: int, size: tuple[int, ...]) -> NDArray[np.uint8]:
        """Decode neighboring tiles of a row, of which `size` rows and columns are inside the image."""
        in_plane = self._tiles[0] * self._tiles[1]
        begin = row * self._tiles[1]
        numbers = [plane * in_plane + begin + column for plane in range(self._planes) for column in range(start, stop)]
        pieces = self._read_pieces([(int(self._offsets[n]), int(self._lengths[n])) for n in numbers])
        lengths = [len(piece) for piece in pieces]
        layout: dict[int, int | Sequence[int]] = {tiff_directory.LENGTH: size[0], tiff_directory.WIDTH: size[1]}
        if self._is_tiled:
            layout |= {
                tiff_directory.TILE_LENGTH: self._tile[0],
                tiff_directory.TILE_WIDTH: self._tile[1],
                tiff_directory.TILE_BYTES: lengths,
            }
        else:
            layout |= {tiff_directory.ROWS_PER_STRIP: size[0], tiff_directory.STRIP_BYTES: lengths}
        return decode_image(self._directory.small_tiff(pieces, layout))

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
