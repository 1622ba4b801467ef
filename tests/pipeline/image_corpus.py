"""Image files of every format that is decoded, and hundreds of damaged ones made of them.

python -m tests.pipeline.image_corpus      decode them all; print a JSON object of what came of them
"""

import io
import json
import random
import resource
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import pillow_heif
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.codec import ImageError, decode_image, decode_label
from tests.pipeline.samples import encoded

HEIGHT, WIDTH = 40, 56
MAX_PIXELS = 1_000_000
ABSURD = ((100_000, 100_000), (65_500, 65_500), (1, 4_000_000), (0, 10))  # width, height


def picture() -> NDArray[np.uint8]:
    """H x W x 3 with smooth parts and edges, so that lossy formats keep its colours."""
    rng = np.random.default_rng(0)
    small_HW3 = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(small_HW3, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def tiff(samples: NDArray[Any], **options: Any) -> bytes:
    """A TIFF as tifffile writes it, in layouts that Pillow does not write."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Name, which begins with the format -> a whole file of HEIGHT x WIDTH pixels."""
    rgb_HW3 = picture()
    gray_HW = np.ascontiguousarray(rgb_HW3[..., 0])
    gray16_HW, rgb16_HW3 = gray_HW * np.uint16(257), rgb_HW3 * np.uint16(257)
    rgba_HW4 = np.dstack([rgb_HW3, gray_HW])
    image = Image.fromarray(rgb_HW3)
    cmyk, palette, bits = image.convert("CMYK"), image.quantize(16), image.convert("1")
    exif = Image.Exif()
    exif[0x112] = 6
    frames = {"save_all": True, "append_images": [Image.fromarray(rgb_HW3[::-1].copy())]}
    return {
        "jpeg": encoded(rgb_HW3, "JPEG", quality=90),
        "jpeg progressive": encoded(rgb_HW3, "JPEG", quality=90, progressive=True),
        "jpeg 4:4:4": encoded(rgb_HW3, "JPEG", quality=90, subsampling=0, exif=exif),
        "jpeg gray": encoded(gray_HW, "JPEG", quality=90),
        "jpeg cmyk": encoded(cmyk, "JPEG", quality=90),
        "jpeg restarts": encoded(rgb_HW3, "JPEG", quality=90, restart_marker_rows=1),
        "png": encoded(rgb_HW3, "PNG", exif=exif),
        "png 1-bit": encoded(bits, "PNG"),
        "png palette": encoded(palette, "PNG", transparency=3),
        "png 16-bit gray": encoded(gray16_HW, "PNG"),
        "png 16-bit colour": cv2.imencode(".png", rgb16_HW3)[1].tobytes(),
        "png alpha": encoded(rgba_HW4, "PNG"),
        "webp": encoded(rgb_HW3, "WEBP", quality=90),
        "webp lossless": encoded(rgba_HW4, "WEBP", lossless=True, exif=exif),
        "webp animated": encoded(rgb_HW3, "WEBP", lossless=True, **frames),
        "tiff": encoded(rgb_HW3, "TIFF"),
        "tiff lzw": encoded(rgb_HW3, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(rgba_HW4, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encoded(rgb_HW3, "TIFF", compression="jpeg"),
        "tiff group 4": encoded(bits, "TIFF", compression="group4"),
        "tiff group 3": encoded(bits, "TIFF", compression="group3"),
        "tiff packbits": encoded(palette, "TIFF", compression="packbits"),
        "tiff big-endian 16-bit": tiff(gray16_HW, byteorder=">"),
        "tiff float": tiff(gray_HW.astype(np.float32) / 255),
        "tiff planes": tiff(np.moveaxis(rgb_HW3, 2, 0).copy(), photometric="rgb", planarconfig="separate"),
        "tiff tiles": tiff(rgb16_HW3, photometric="rgb", tile=(16, 16), compression="zlib"),
        "tiff pages": encoded(rgb_HW3, "TIFF", **frames),
        "tiff big": tiff(rgb_HW3, photometric="rgb", bigtiff=True),
        "gif": encoded(palette, "GIF", transparency=3),
        "gif animated": encoded(rgb_HW3, "GIF", **frames),
        "bmp": encoded(rgb_HW3, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "heif": heif(image),
        "heif alpha": heif(Image.fromarray(rgba_HW4)),
        "ppm": encoded(rgb_HW3, "PPM"),
        "pgm plain": b"P2 %d %d 255\n%s\n" % (WIDTH, HEIGHT, " ".join(map(str, gray_HW.flat)).encode()),
    }


def heif(image: Image.Image) -> bytes:
    """The image as a lossless HEIF file."""
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=-1, chroma=444, matrix_coefficients=0)
    return file.getvalue()


def mutants() -> Iterator[tuple[str, bytes]]:
    """Damaged files, the same ones every time, with names that say how."""
    whole = seeds()
    rng = random.Random(0)
    for name, content in whole.items():
        for part in (0.02, 0.1, 0.3, 0.6, 0.9, 0.99):
            yield f"{name}: cut at {part}", content[: int(part * len(content))]
        for number in range(4):
            yield f"{name}: bits flipped, {number}", flipped(content, len(content), rng)
            yield f"{name}: bits of its header flipped, {number}", flipped(content, min(200, len(content)), rng)
        for number in range(2):
            start = rng.randrange(len(content))
            length = rng.randrange(1, max(2, len(content) // 4))
            yield f"{name}: zeros, {number}", content[:start] + bytes(length) + content[start + length :]
            other_name, other = rng.choice(list(whole.items()))
            size = rng.choice((4, 16, 64))
            yield f"{name}: header of {other_name}, {number}", other[:size] + content[size:]
            yield f"{name}: then {other_name}, {number}", content[: rng.randrange(len(content))] + other
        for width, height in ABSURD:
            yield f"{name}: claims {width} x {height}", resized(name, content, width, height)


def flipped(content: bytes, below: int, rng: random.Random) -> bytes:
    """With one to eight bits flipped in its first bytes."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        damaged[rng.randrange(below)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def resized(name: str, content: bytes, width: int, height: int) -> bytes:
    """The file with another size written into its header, and its checksum set right."""
    damaged = bytearray(content)
    if name.startswith("jpeg"):
        start = next(content.index(bytes([0xFF, code])) for code in (0xC0, 0xC2) if bytes([0xFF, code, 0]) in content)
        struct.pack_into(">HH", damaged, start + 5, height % 65536, width % 65536)
    elif name.startswith("png"):
        struct.pack_into(">II", damaged, 16, width, height)
        struct.pack_into(">I", damaged, 29, zlib.crc32(damaged[12:29]))
    elif name.startswith("webp"):
        for start in (content.find(b"VP8X"), content.find(b"VP8 "), content.find(b"VP8L")):
            if start >= 0 and content[start : start + 4] == b"VP8X":
                damaged[start + 12 : start + 18] = (
                    struct.pack("<I", max(0, width - 1))[:3] + struct.pack("<I", max(0, height - 1))[:3]
                )
            elif start >= 0 and content[start : start + 4] == b"VP8 ":
                struct.pack_into("<HH", damaged, start + 14, width & 0x3FFF, height & 0x3FFF)
            elif start >= 0:
                bits = (max(0, width - 1) & 0x3FFF) | (max(0, height - 1) & 0x3FFF) << 14
                struct.pack_into("<I", damaged, start + 9, bits)
    elif name.startswith("tiff"):
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            order = file.byteorder
            for key, value in (("ImageWidth", width), ("ImageLength", height)):
                tag = file.pages.first.tags[key]  # type: ignore[union-attr]
                struct.pack_into(order + "H", damaged, tag.offset + 2, 4)  # of 32 bits
                struct.pack_into(order + "I", damaged, tag.valueoffset, value)
    elif name.startswith("gif"):
        struct.pack_into("<HH", damaged, 6, width % 65536, height % 65536)
        start = content.index(b",\0\0\0\0")
        struct.pack_into("<HH", damaged, start + 5, width % 65536, height % 65536)
    elif name.startswith("heif"):
        struct.pack_into(">II", damaged, content.index(b"ispe") + 8, width % 2**32, height % 2**32)
    elif name.startswith("bmp"):
        struct.pack_into("<ii", damaged, 18, width, height)
    else:
        damaged = bytearray(content.replace(b"%d %d" % (WIDTH, HEIGHT), b"%d %d" % (width, height), 1))
    return bytes(damaged)


def outcome(content: bytes) -> str:
    """The kind of error, or 'decoded'. Anything but an image or an ImageError is raised."""
    try:
        image_HW3 = decode_image(content, MAX_PIXELS, seconds=10)
    except ImageError as error:
        if error.kind == "TooLarge":  # of annotations there is no limit
            return error.kind
        found = error.kind
    else:
        height, width, _ = image_HW3.shape
        assert (image_HW3.shape[2], image_HW3.dtype) == (3, np.uint8)
        assert 0 < height * width <= MAX_PIXELS
        found = "decoded"
    with suppress(ImageError):
        label_HW = decode_label(content)
        assert label_HW.ndim == 2
        assert label_HW.dtype == np.int32
    return found


def main() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cv2.setNumThreads(1)
    outcomes: Counter[str] = Counter()
    for name, content in mutants():
        try:
            outcomes[outcome(content)] += 1
        except Exception as error:
            raise SystemExit(f"{name}: {type(error).__name__}: {error}") from error
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"files": sum(outcomes.values()), "outcomes": outcomes, "megabytes": megabytes}))


if __name__ == "__main__":
    main()
