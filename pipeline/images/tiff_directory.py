"""First directory of a TIFF or BigTIFF, and small TIFFs with the same tags built from some of its tiles.

Tags are copied without interpretation, so a decoder treats the samples of a small TIFF like those of the whole file.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.images.formats import ImageError

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
SAMPLES, PLANES, SAMPLE_FORMAT, XMP = 277, 284, 339, 700
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTES = 273, 278, 279
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
LAYOUT = (WIDTH, LENGTH, STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTES, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES)
FILL_ORDER, PREDICTOR, COLOR_MAP, INK_SET, EXTRA_SAMPLES = 266, 317, 320, 332, 338
GDAL_NODATA = 42113
# Tags that define how samples are stored and shown. The numbers are two fax options, JPEG tables, YCbCr coefficients,
# subsampling and positions, and reference black and white.
OF_SAMPLES = (
    *(BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, SAMPLE_FORMAT),
    *(FILL_ORDER, PREDICTOR, COLOR_MAP, INK_SET, EXTRA_SAMPLES, GDAL_NODATA, 292, 293, 347, 529, 530, 531, 532),
)
SUBFILE_TYPE, MAKE, SUB_DIRECTORIES, DNG_VERSION = 254, 271, 330, 50706
GEO_TAGS = (33550, 33922, 34264, 34735, 42112)  # GeoTIFF's scale, points, matrix and keys, and GDAL's metadata
# Tags that say where a picture comes from.
OF_ORIGIN = (SUBFILE_TYPE, MAKE, SUB_DIRECTORIES, DNG_VERSION, *GEO_TAGS)
# A file whose values of these tags are missing is still usable.
OPTIONAL = {*OF_ORIGIN, XMP, GDAL_NODATA}
NEEDED = {*LAYOUT, *OF_SAMPLES, *OF_ORIGIN, ORIENTATION, XMP}

# Format characters of struct for each TIFF type; 16 to 18 are BigTIFF's.
TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
TYPES |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
LONG = 4
MAX_TAGS = 4096
MAX_SUB_DIRECTORIES = 16
MAX_TAG_BYTES = 64 * 2**20  # enough to list eight million tiles
READ_AHEAD = 1 << 16  # bytes; most tags are close together


class Readable(Protocol):
    """File interface that Directory needs."""

    def seek(self, offset: int, /) -> int: ...

    def read(self, size: int, /) -> bytes | None: ...


class Tag(NamedTuple):
    """Directory entry: type, number of values, and their bytes as stored in the file."""

    kind: int
    length: int
    content: bytes


class Directory:
    """First directory of a TIFF file, and access to the file. Raises ImageError, and errors of reading the file."""

    def __init__(self, file: Readable, size: int) -> None:
        self._file, self._size = file, size
        self._ahead = 0, b""  # bytes read ahead, with their offset in the file
        head = self._header(0, 16)
        self._order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        self._is_big = head[2:4] in (b"+\0", b"\0+")
        if not self._order or not (self._is_big or head[2:4] in (b"*\0", b"\0*")):
            raise ImageError("Corrupt", f"not a TIFF; the file starts with {head[:4]!r}")
        start = self._unpack("Q", head[8:]) if self._is_big else self._unpack("I", head[4:8])
        self._tags = dict(self._entries(start))
        self._ahead = 0, b""

    @property
    def is_big_endian(self) -> bool:
        """True if the file's numbers begin with their most significant byte."""
        return self._order == ">"

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags

    def read(self, start: int, length: int) -> bytes:
        """Read `length` bytes of the file at `start`."""
        if start + length > self._size:
            raise ImageError(
                "Corrupt", f"truncated: the file has {self._size} bytes, and byte {start + length} is missing"
            )
        self._file.seek(start)
        content = bytearray()
        while len(content) < length:
            piece = self._file.read(length - len(content))
            if not piece:
                raise ImageError("Corrupt", f"truncated: byte {start + len(content)} is missing")
            content += piece
        return bytes(content)

    def number(self, tag: int, default: int | None = None) -> int:
        """Return the tag's first value, or the default if the tag is missing."""
        if tag not in self._tags:
            if default is None:
                raise ImageError("Corrupt", f"damaged header: tag {tag} is missing")
            return default
        return int(self.numbers(tag)[0])

    def numbers(self, tag: int) -> NDArray[np.unsignedinteger]:
        """Return the tag's values."""
        kind, _, content = self._tags[tag]
        if TYPES[kind] not in "BHIQ" or not content:
            raise ImageError("Corrupt", f"damaged header: tag {tag} has no integer values")
        return np.frombuffer(content, f"{self._order}u{struct.calcsize('<' + TYPES[kind])}")

    def text(self, tag: int) -> str:
        """Return the tag's text, empty if the tag is missing."""
        return self._tags[tag].content.split(b"\0")[0].decode("latin-1").strip() if tag in self._tags else ""

    def sub_photometrics(self) -> list[int]:
        """Return the photometric interpretations of the directories that belong to this one."""
        if SUB_DIRECTORIES not in self._tags:
            return []
        starts = self.numbers(SUB_DIRECTORIES)[:MAX_SUB_DIRECTORIES]
        found = []
        for start in starts:
            if start + 8 > self._size:
                continue
            tags = dict(self._entries(int(start)))
            if PHOTOMETRIC in tags:
                found.append(int.from_bytes(tags[PHOTOMETRIC].content[:2], "big" if self.is_big_endian else "little"))
        return found

    def small_tiff(
        self, pieces: Sequence[bytes], layout: Mapping[int, int | Sequence[int]], kept: Sequence[int] = OF_SAMPLES
    ) -> bytes:
        """Return a TIFF with these tiles or strips and the `kept` tags of this file.

        `layout` has the other tags; the pieces are tiles if it has TILE_BYTES, otherwise strips.
        """
        entries = {tag: self._tags[tag] for tag in kept if tag in self._tags}
        body, offsets = bytearray(8), []
        for piece in pieces:
            offsets.append(len(body) if piece else 0)  # 0 marks a tile that the file does not store
            body += piece
        places = {TILE_OFFSETS if TILE_BYTES in layout else STRIP_OFFSETS: offsets}
        for tag, value in {**layout, **places}.items():
            values = [value] if isinstance(value, int) else value
            if max(values, default=0) >= 1 << 32:
                raise ImageError("TooLarge", f"tag {tag} of the TIFF's tiles is {max(values)}, beyond its 32 bits")
            entries[tag] = Tag(LONG, len(values), struct.pack(f"{self._order}{len(values)}I", *values))
        table = bytearray(struct.pack(self._order + "H", len(entries)))
        for tag, (kind, length, content) in sorted(entries.items()):
            inline = content
            if len(content) > 4:
                body += bytes(len(body) % 2)
                inline = struct.pack(self._order + "I", len(body))
                body += content
            table += struct.pack(self._order + "HHI4s", tag, kind, length, inline)
        body += bytes(len(body) % 2)
        struct.pack_into(self._order + "2sHI", body, 0, b"II" if self._order == "<" else b"MM", 42, len(body))
        return bytes(body + table + bytes(4))

    def _entries(self, start: int) -> Iterator[tuple[int, Tag]]:
        count_letter, letters = ("Q", "HHQ8s") if self._is_big else ("H", "HHI4s")
        head, entry = struct.calcsize("<" + count_letter), struct.Struct(self._order + letters)
        count = self._unpack(count_letter, self._header(start, head))
        if count > MAX_TAGS:
            raise ImageError("Corrupt", f"damaged header: {count} tags; the limit is {MAX_TAGS}")
        for tag, kind, values, inline in entry.iter_unpack(self._header(start + head, count * entry.size)):
            if tag not in NEEDED or kind not in TYPES:
                continue
            num_bytes = struct.calcsize("<" + TYPES[kind]) * values
            if tag in OPTIONAL and self._is_outside(inline, num_bytes):
                continue
            if num_bytes > MAX_TAG_BYTES:
                raise ImageError(
                    "TooLarge", f"tag {tag} of the TIFF has {num_bytes} bytes; the limit is {MAX_TAG_BYTES}"
                )
            content = inline[:num_bytes]
            if num_bytes > len(inline):
                content = self._header(self._unpack("Q" if self._is_big else "I", inline), num_bytes)
            yield tag, Tag(kind, values, content)

    def _is_outside(self, inline: bytes, num_bytes: int) -> bool:
        """Return True if the values of a tag, `num_bytes` of them, are beyond the end of the file."""
        if num_bytes <= len(inline):
            return False
        return bool(self._unpack("Q" if self._is_big else "I", inline) + num_bytes > self._size)

    def _header(self, start: int, length: int) -> bytes:
        """Read like `read`, but read ahead, since the following bytes are probably needed next."""
        place, content = self._ahead
        if not place <= start <= start + length <= place + len(content):
            content = self.read(start, min(max(length, READ_AHEAD), max(length, self._size - start)))
            place = start
            self._ahead = place, content
        return content[start - place : start - place + length]

    def _unpack(self, letter: str, content: bytes) -> int:
        return int(struct.unpack(self._order + letter, content)[0])
