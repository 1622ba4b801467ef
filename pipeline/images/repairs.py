"""Repair of damage that leaves every pixel of an image readable: parts beside the picture, and a missing end marker."""

import re
import zlib
from collections.abc import Callable
from typing import TypeVar

from pipeline.images.formats import ImageError

Decoded = TypeVar("Decoded")

# Chunks of a PNG that decide its pixels; eXIf turns them.
_NEEDED_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_JPEG_END = b"\xff\xd9"
_JPEG_SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_ONE_SCAN_FRAMES = (0xC0, 0xC1)  # baseline and extended sequential
_START_OF_SCAN = 0xDA


def decode_with_repair(decode: Callable[[bytes], Decoded], content: bytes) -> Decoded:
    """Decode a file, or if it is corrupt, the file as `repaired`. Raises ImageError."""
    try:
        return decode(content)
    except ImageError as error:
        whole = repaired(content) if error.kind == "Corrupt" else None
        if whole is None:
            raise
    return decode(whole)


def repaired(content: bytes) -> bytes | None:
    """Return the file without damage beside its picture, or None if it has none that can be repaired."""
    if content.startswith(b"\x89PNG"):
        kept = _without_ancillary_chunks(content)
        return kept if kept != content else None
    if content.startswith(b"\xff\xd8") and _has_one_scan(content) and not content.endswith(_JPEG_END):
        return content + _JPEG_END
    return None


def _without_ancillary_chunks(content: bytes) -> bytes:
    parts, position = [content[:8]], 8
    while position + 12 <= len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        name, chunk = content[position + 4 : position + 8], content[position:end]
        is_whole = end <= len(content) and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if name in _NEEDED_CHUNKS or (name == b"eXIf" and is_whole):
            parts.append(chunk)
        elif not name.isalpha() or name[:1].isupper():
            return content  # another critical chunk, or no chunk at all
        position = end
    return b"".join(parts)


def _has_one_scan(content: bytes) -> bool:
    """Return True if a JPEG has a single scan of all its components; of others, a missing scan goes unnoticed."""
    position, components = 2, 0
    while (marker := _JPEG_SEGMENT.search(content, position)) is not None:
        code, start = content[marker.end() - 1], marker.end()
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            if code not in _ONE_SCAN_FRAMES or start + 8 > len(content):
                return False
            components = content[start + 7]
        if code == _START_OF_SCAN:
            is_only_scan = _JPEG_SEGMENT.search(content, start) is None
            return start + 2 < len(content) and content[start + 2] == components and is_only_scan
        position = start + int.from_bytes(content[start : start + 2], "big")
    return False
