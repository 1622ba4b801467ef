"""TIFFs read window by window: the same pixels as pipeline/images/codec.py, with a few tiles of the file in memory.

The tiles (or strips) of a window are copied to a small TIFF, which `decode_image` decodes. So the rules for samples,
colors and damage are those of whole images. docs/decisions/0005-windows.md gives the reasons.
"""

import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

from pipeline.images import tiff_directory
from pipeline.images.codec import decode_image
from pipeline.images.formats import OPENERS, ImageError, failures, quiet
from pipeline.images.pixels import turned

# Without big-endian BigTIFF, which is not supported for whole images either.
SIGNATURE = re.compile(rb"II[*+]\0|MM\0\*")
SIGNATURE_BYTES = 4
MAX_TILE_PIXELS = 32 * 2**20  # a tile is decoded as a whole, which takes up to 20 bytes per pixel
MAX_TILE_BYTES = 256 * 2**20  # of the file, per read
DECODED_TOGETHER = 4 * 2**20  # pixels of neighboring tiles
GAP = 1 << 16  # bytes; a gap between two tiles up to this size is read rather than skipped
OLD_JPEG, FLOAT = 6, 3  # values of COMPRESSION and SAMPLE_FORMAT


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
        # Rows and columns as stored, before the EXIF orientation; the same holds for tiles.
        self._size = directory.number(tiff_directory.LENGTH), directory.number(tiff_directory.WIDTH)
        if min(self._size) < 1:
            raise ImageError("Corrupt", f"damaged header: {self._size[1]} x {self._size[0]} pixels")
        if directory.number(tiff_directory.COMPRESSION, 1) == OLD_JPEG:
            raise ImageError("Unsupported", "a TIFF with old-style JPEG compression cannot be read by window")
        if directory.number(tiff_directory.SAMPLE_FORMAT, 1) == FLOAT:
            raise ImageError(
                "Unsupported",
                "a TIFF with float samples cannot be read by window, because white depends on the largest sample",
            )
        self._lay_out(min(max_pixels, MAX_TILE_PIXELS))
        self._turn = _orientation(directory)
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
        self._is_tiled = tiff_directory.TILE_OFFSETS in directory
        if self._is_tiled:
            self._tile = directory.number(tiff_directory.TILE_LENGTH), directory.number(tiff_directory.TILE_WIDTH)
        else:
            self._tile = min(directory.number(tiff_directory.ROWS_PER_STRIP, height), height), width
        if min(self._tile) < 1:
            raise ImageError("Corrupt", f"damaged header: its tiles are {self._tile[1]} x {self._tile[0]}")
        if self._tile[0] * self._tile[1] > max_pixels:
            raise ImageError(
                "TooLarge",
                f"{width} x {height} is {width * height} pixels in {'tiles' if self._is_tiled else 'strips'} of "
                f"{self._tile[1]} x {self._tile[0]}, too large to be read by window; save it with tiles of 512 x 512",
            )
        self._tiles = -(-height // self._tile[0]), -(-width // self._tile[1])
        self._planes = (
            directory.number(tiff_directory.SAMPLES, 1) if directory.number(tiff_directory.PLANES, 1) == 2 else 1
        )
        tags = (
            (tiff_directory.TILE_OFFSETS, tiff_directory.TILE_BYTES)
            if self._is_tiled
            else (tiff_directory.STRIP_OFFSETS, tiff_directory.STRIP_BYTES)
        )
        if not all(tag in directory for tag in tags):
            raise ImageError("Unsupported", "a TIFF without the lengths of its strips cannot be read by window")
        self._offsets, self._lengths = (directory.numbers(tag) for tag in tags)
        needed = self._planes * self._tiles[0] * self._tiles[1]
        if min(len(self._offsets), len(self._lengths)) < needed:
            raise ImageError("Corrupt", f"damaged header: it has {len(self._offsets)} tiles or strips of {needed}")

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


def _orientation(directory: tiff_directory.Directory) -> int:
    """Return the EXIF orientation, 1 to 8, that Pillow finds in a file with these tags."""
    gray = {tiff_directory.WIDTH: 1, tiff_directory.LENGTH: 1, tiff_directory.BITS: 8, tiff_directory.PHOTOMETRIC: 1}
    content = directory.small_tiff(
        [b"\0"], {**gray, tiff_directory.STRIP_BYTES: [1]}, kept=(tiff_directory.ORIENTATION, tiff_directory.XMP)
    )
    with quiet(), failures("damaged header"):
        turn = OPENERS["TIFF"](io.BytesIO(content)).getexif().get(ExifTags.Base.Orientation, 1)
    if turn not in range(1, 9):
        raise ImageError("Corrupt", f"damaged header: its orientation is {turn}")
    return int(turn)
