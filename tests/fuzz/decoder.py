"""Cases for what decodes images: whole, as label maps, and TIFF by window."""

import io
import random
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import numpy as np

from pipeline.config.bands import Rendering
from pipeline.images.codec import ImageError, decode_image, decode_label
from pipeline.images.tiff_windows import SIGNATURE_BYTES, TiffWindows, is_tiff
from tests.fuzz.mutation import NUMBERS, damaged
from tests.pipeline import image_corpus

WINDOW = 300  # pixels, of each side
RENDERING = Rendering.of("1", "2%,98%")


@cache
def _names() -> dict[bytes, str]:
    return {content: name for name, content in image_corpus.seeds().items()}


def seeds() -> list[bytes]:
    """Whole images of every format."""
    return list(_names())


def mutated(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A damaged file; half of the time its checksums are right, or what is damaged are its tags."""
    way = rng.random()
    if way < 0.1 and content in _names():
        return image_corpus.resized(_names()[content], content, *rng.choice(image_corpus.ABSURD))
    if way < 0.5 and content.startswith(b"\x89PNG"):
        return _with_other_chunks(content, rng)
    if way < 0.6 and content[:4] in (b"II*\0", b"MM\0*"):
        return _with_other_tags(content, rng)
    return damaged(content, rng, others)


def check(content: bytes) -> str:
    """Decode in every way there is. Raises whatever is neither an image nor an ImageError."""
    try:
        image_HW3 = decode_image(content, image_corpus.MAX_PIXELS, seconds=10)
        found = "decoded"
        assert (image_HW3.ndim, image_HW3.shape[2], image_HW3.dtype) == (3, 3, np.uint8)
        assert 0 < image_HW3[..., 0].size <= image_corpus.MAX_PIXELS
    except ImageError as error:
        found = f"{error.kind}: {error.message}"
    if not found.startswith("TooLarge"):  # of annotations there is no limit
        with suppress(ImageError):
            label_HW = decode_label(content)
            assert (label_HW.ndim, label_HW.dtype) == (2, np.int32)
    if is_tiff(content[:SIGNATURE_BYTES]):
        with suppress(ImageError):
            decode_image(content, image_corpus.MAX_PIXELS, seconds=10, rendering=RENDERING)
    return f"{found}; by window: {_by_window(content)}" if is_tiff(content[:SIGNATURE_BYTES]) else found


def _by_window(content: bytes) -> str:
    try:
        image = TiffWindows(io.BytesIO(content), len(content), image_corpus.MAX_PIXELS)
        rows, columns = min(image.height, WINDOW), min(image.width, WINDOW)
        for top, left in ((0, 0), (image.height - rows, image.width - columns)):
            assert image.read(top, top + rows, left, left + columns).shape == (rows, columns, 3)
    except ImageError as error:
        return f"{error.kind}: {error.message}"
    return "decoded"


def _with_other_chunks(content: bytes, rng: random.Random) -> bytes:
    """A PNG whose chunks are damaged, repeated, removed or out of order, each with its checksum."""
    chunks, position = [], 8
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        chunks.append((content[position + 4 : position + 8], content[position + 8 : position + 8 + length]))
        position += 12 + length
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(chunks) or 1)
        way = rng.random()
        if way < 0.6 and chunks:
            name, data = chunks[place]
            chunks[place] = (name, _pixels_damaged(data, rng) if name == b"IDAT" else damaged(data, rng))
        elif way < 0.8:
            name = rng.choice(
                (b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"sBIT")
            )
            chunks.insert(place, (name, rng.randbytes(rng.randrange(40))))
        else:
            chunks[place : place + 1] = chunks[place : place + 1] * rng.choice((0, 2))
        rng.shuffle(chunks) if rng.random() < 0.05 else None
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _pixels_damaged(data: bytes, rng: random.Random) -> bytes:
    with suppress(zlib.error):
        if rng.random() < 0.5:
            return zlib.compress(damaged(zlib.decompress(data), rng))
    return damaged(data, rng)


def _with_other_tags(content: bytes, rng: random.Random) -> bytes:
    """A TIFF in which entries of the first directory say something else."""
    order = "<" if content[:2] == b"II" else ">"
    file = bytearray(content)
    start = int.from_bytes(content[4:8], "little" if order == "<" else "big")
    count = int.from_bytes(content[start : start + 2], "little" if order == "<" else "big")
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = start + 2 + 12 * rng.randrange(max(1, count))
        if entry + 12 > len(content):
            break
        field = rng.randrange(4)
        if field == 0:
            tag = rng.choice((256, 257, 258, 259, 262, 274, 277, 278, 284, 317, 320, 322, 323, 338, 339, 347, 530, 700))
            struct.pack_into(order + "H", file, entry, tag)
        elif field == 1:
            struct.pack_into(order + "H", file, entry + 2, rng.randrange(20))
        elif field == 2:
            struct.pack_into(order + "I", file, entry + 4, rng.choice((*range(9), *NUMBERS)) & 0xFFFFFFFF)
        else:
            shape, limit = rng.choice((("H", 0xFFFF), ("I", 0xFFFFFFFF)))
            struct.pack_into(order + shape, file, entry + 8, rng.choice((*range(40), *NUMBERS)) & limit)
    return bytes(file)
