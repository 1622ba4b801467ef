"""Windows of TIFFs: the pixels that decode_image gives, or a refusal; few bytes read; no damage taken for an image."""

import io
import random
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import tiff_windows
from pipeline.images.codec import ImageError, decode_image
from pipeline.images.tiff_windows import TiffWindows, is_tiff
from tests.pipeline.image_corpus import flipped, picture, seeds, tiff
from tests.pipeline.samples import encoded, random_image

PICTURE_HW3 = picture()
LARGE_HW3 = np.tile(PICTURE_HW3, (4, 4, 1))[:150, :210]
GRAY_HW = np.ascontiguousarray(LARGE_HW3[..., 0])
RGB16_HW3 = LARGE_HW3 * np.uint16(257) + np.uint16(3)
RGBA_HW4 = np.dstack([LARGE_HW3, GRAY_HW[::-1]])
TILES = {"tile": (32, 48)}


def turned_by(value: int, **options: Any) -> bytes:
    return tiff(LARGE_HW3, photometric="rgb", extratags=[(274, "H", 1, value, True)], **options)


def xmp(value: int) -> bytes:
    packet = f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'.encode()
    return tiff(LARGE_HW3, photometric="rgb", extratags=[(700, "B", len(packet), packet, True)], **TILES)


def by_pillow(image: Image.Image, **options: Any) -> bytes:
    """In strips of a few rows."""
    return encoded(image, "TIFF", strip_size=4096, **options)


IMAGE = Image.fromarray(LARGE_HW3)
VARIANTS = {
    **{name: content for name, content in seeds().items() if name.startswith("tiff") and "float" not in name},
    "tiles": tiff(LARGE_HW3, photometric="rgb", **TILES),
    "tiles, deflate and predictor": tiff(LARGE_HW3, photometric="rgb", compression="zlib", predictor=True, **TILES),
    "tiles, big-endian 16 bits": tiff(RGB16_HW3, photometric="rgb", byteorder=">", **TILES),
    "tiles, 16-bit gray": tiff(np.ascontiguousarray(RGB16_HW3[..., 1]), **TILES),
    "tiles, inverted 16-bit gray": tiff(
        np.ascontiguousarray(RGB16_HW3[..., 1]), photometric="miniswhite", compression="zlib", **TILES
    ),
    "tiles, inverted gray": tiff(GRAY_HW, photometric="miniswhite", **TILES),
    "tiles, signed": tiff(GRAY_HW.astype(np.int16) * 100 - 3000, **TILES),
    "tiles, 32 bits": tiff(GRAY_HW.astype(np.uint32) << 24, **TILES),
    "tiles, palette": tiff(
        GRAY_HW,
        photometric="palette",
        colormap=np.random.default_rng(0).integers(0, 65536, (3, 256), np.uint16),
        **TILES,
    ),
    "tiles, alpha": tiff(RGBA_HW4, photometric="rgb", extrasamples=["unassalpha"], **TILES),
    "tiles, premultiplied alpha": tiff(RGBA_HW4, photometric="rgb", extrasamples=["assocalpha"], **TILES),
    "tiles, 16 bits and alpha": tiff(
        RGBA_HW4 * np.uint16(257), photometric="rgb", extrasamples=["unassalpha"], **TILES
    ),
    "tiles, planes": tiff(np.moveaxis(LARGE_HW3, 2, 0).copy(), photometric="rgb", planarconfig="separate", **TILES),
    "tiles, bilevel": tiff(GRAY_HW > 120, photometric="minisblack", **TILES),
    "tiles, BigTIFF with pages": tiff(np.stack([LARGE_HW3, LARGE_HW3[::-1]]), photometric="rgb", bigtiff=True, **TILES),
    "tiles, CMYK": tiff(RGBA_HW4, photometric="separated", **TILES),
    "strips": by_pillow(IMAGE),
    "strips, LZW": by_pillow(IMAGE, compression="tiff_lzw"),
    "strips, JPEG": by_pillow(IMAGE, compression="jpeg", quality=80),
    "strips, JPEG without subsampling": by_pillow(IMAGE, compression="jpeg", quality=95, subsampling=0),
    "strips, group 4": by_pillow(IMAGE.convert("1"), compression="group4"),
    "strips, group 3": by_pillow(IMAGE.convert("1"), compression="group3"),
    "strips, CMYK": by_pillow(IMAGE.convert("CMYK")),
    "strips, gray and alpha": by_pillow(IMAGE.convert("LA"), compression="packbits"),
    "strips, zstd": by_pillow(IMAGE, compression="zstd"),
    **{f"tiles, orientation {value}": turned_by(value, **TILES) for value in range(1, 9)},
    **{f"strips, orientation {value}": turned_by(value, rowsperstrip=16) for value in range(1, 5)},
    "tiles, orientation by XMP": xmp(6),
}


def windows(content: bytes, **options: Any) -> TiffWindows:
    return TiffWindows(io.BytesIO(content), len(content), **options)


@pytest.mark.parametrize("together", [1, 2 * 32 * 48, None])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_window_is_that_rectangle_of_the_decoded_file(
    name: str, together: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if together:
        monkeypatch.setattr(tiff_windows, "DECODED_TOGETHER", together)
    content, rng = VARIANTS[name], random.Random(0)
    whole_HW3, image = decode_image(content), windows(content)
    assert (image.height, image.width) == whole_HW3.shape[:2]
    for _ in range(20):
        top, bottom = sorted(rng.sample(range(image.height + 1), 2))
        left, right = sorted(rng.sample(range(image.width + 1), 2))
        window_HW3 = image.read(top, bottom, left, right)
        np.testing.assert_array_equal(window_HW3, whole_HW3[top:bottom, left:right])
    np.testing.assert_array_equal(image.read(0, image.height, 0, image.width), whole_HW3)


class Counted(io.BytesIO):
    """Notes what is read of it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.spans: list[tuple[int, int]] = []

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        content = super().read(size)
        self.spans.append((start, len(content)))
        return content


def test_from_the_top_down_every_byte_of_the_tiles_is_read_once_and_in_few_readings() -> None:
    noise_HW3 = random_image(1024, 1024)
    file = Counted(tiff(noise_HW3, photometric="rgb", tile=(64, 64)))
    image = TiffWindows(file, len(file.getvalue()))
    assert sum(length for _, length in file.spans) < 200_000
    file.spans.clear()
    for top in range(0, 1024, 100):
        bottom = min(top + 100, 1024)
        np.testing.assert_array_equal(image.read(top, bottom, 0, 1024), noise_HW3[top:bottom])
    assert sum(length for _, length in file.spans) == noise_HW3.nbytes
    assert len(file.spans) == 16  # one for each row of tiles


def test_a_small_window_reads_its_tiles_alone() -> None:
    file = Counted(tiff(random_image(1024, 1024), photometric="rgb", tile=(64, 64)))
    image = TiffWindows(file, len(file.getvalue()))
    file.spans.clear()
    image.read(500, 501, 500, 501)
    assert sum(length for _, length in file.spans) == 64 * 64 * 3


def test_tiles_that_lie_apart_are_not_read_with_what_is_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    planes = np.moveaxis(random_image(1024, 1024), 2, 0).copy()
    content = tiff(planes, photometric="rgb", planarconfig="separate", tile=(64, 64))
    file = Counted(content)
    image = TiffWindows(file, len(content))
    file.spans.clear()
    np.testing.assert_array_equal(image.read(0, 9, 0, 70), np.moveaxis(planes, 0, 2)[:9, :70])
    assert len(file.spans) == 3
    assert sum(length for _, length in file.spans) == 3 * 2 * 64 * 64


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (tiff(GRAY_HW.astype(np.float32), **TILES), "Unsupported", "float samples cannot be read by window"),
        (tiff(np.zeros((64, 64, 7), np.uint8), photometric="minisblack", planarconfig="contig", **TILES), None, None),
        (turned_by(6, rowsperstrip=16), "Unsupported", "is rotated by 90 degrees"),
        (encoded(LARGE_HW3, "PNG"), "Corrupt", "not a TIFF"),
        (b"II*\0", "Corrupt", "truncated"),
        (b"", "Corrupt", "truncated"),
    ],
    ids=["float", "seven bands", "turned strips", "png", "head", "empty"],
)
def test_what_cannot_be_read_as_the_whole_would_be_is_refused(content: bytes, kind: str | None, message: str) -> None:
    if kind is None:  # the same refusal as that of the whole
        with pytest.raises(ImageError) as of_whole:
            decode_image(content)
        kind, message = of_whole.value.kind, of_whole.value.message[:20]
    with pytest.raises(ImageError, match=message) as caught:
        windows(content).read(0, 1, 0, 1)
    assert caught.value.kind == kind


def with_tag(content: bytes, tag: int, kind: int, value: int) -> bytes:
    """The file with another type and value of a tag that stands in its first directory."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [start + 2 + 12 * number for number in range(count)]
    (entry,) = (place for place in entries if struct.unpack_from("<H", content, place)[0] == tag)
    return content[: entry + 2] + struct.pack("<HII", kind, 1, value) + content[entry + 12 :]


SHORT, TEXT = 3, 2


@pytest.mark.parametrize(
    ("tag", "kind", "value", "expected", "message"),
    [
        (256, SHORT, 0, "Corrupt", "damaged header: 0 x 150 pixels"),
        (256, TEXT, 210, "Corrupt", "damaged header: tag 256 has no integer values"),
        (259, SHORT, 6, "Unsupported", "old-style JPEG"),
        (322, SHORT, 0, "Corrupt", "damaged header: its tiles are 0 x 32"),
    ],
)
def test_a_tag_that_makes_no_sense_is_told(tag: int, kind: int, value: int, expected: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        windows(with_tag(VARIANTS["tiles"], tag, kind, value))
    assert caught.value.kind == expected


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        (tiff(LARGE_HW3, photometric="rgb", rowsperstrip=150), "strips of 210 x 150"),
        (tiff(LARGE_HW3, photometric="rgb", tile=(160, 224)), "tiles of 224 x 160"),
    ],
)
def test_an_image_in_one_strip_or_tile_is_too_large(content: bytes, layout: str) -> None:
    with pytest.raises(ImageError, match=layout) as caught:
        windows(content, max_pixels=150 * 210 - 1)
    assert caught.value.kind == "TooLarge"


def test_a_tile_beyond_the_end_of_the_file_is_corrupt_and_those_before_it_are_not() -> None:
    content = tiff(LARGE_HW3, photometric="rgb", **TILES)
    image = windows(content[: len(content) - 1])
    np.testing.assert_array_equal(image.read(0, 32, 0, 48), LARGE_HW3[:32, :48])
    with pytest.raises(ImageError, match="truncated") as caught:
        image.read(149, 150, 209, 210)
    assert caught.value.kind == "Corrupt"


def test_a_claim_of_endless_tags_or_tiles_takes_no_memory() -> None:
    endless = {
        "tags": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(100),
        "tiles": b"II*\0" + struct.pack("<IHHHII", 8, 1, 324, 4, 2**31, 0) + bytes(4),
    }
    for content in endless.values():
        with pytest.raises(ImageError):
            windows(content)


def test_damage_raises_image_errors_alone() -> None:
    rng = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for name in ("tiles", "tiles, BigTIFF with pages", "strips, JPEG", "tiles, planes", "tiles, palette"):
        for number in range(60):
            content = VARIANTS[name]
            damaged = flipped(content, min(1000, len(content)) if number % 2 else len(content), rng)
            if number % 5 == 0:
                damaged = damaged[: rng.randrange(len(damaged))]
            try:
                image = windows(damaged, max_pixels=1_000_000)
                if image.height * image.width > 1_000_000:
                    continue
                pixels: NDArray[np.uint8] = image.read(0, image.height, 0, image.width)
                assert pixels.shape == (image.height, image.width, 3)
                outcomes["read"] += 1
            except ImageError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_tiff_is_known_by_its_first_bytes() -> None:
    assert all(is_tiff(content) for content in VARIANTS.values())
    assert not any(is_tiff(content) for name, content in seeds().items() if not name.startswith("tiff"))
    assert is_tiff(b"MM\0+\0\x08\0\0")
    assert not is_tiff(b"MM\0,")
