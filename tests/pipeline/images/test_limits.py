"""Files that are made to exhaust a decoder are refused early, in bounded time and memory, and in silence."""

import io
import json
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.config.bands import Rendering
from pipeline.images import formats, tiff_layout
from pipeline.images.codec import IMAGE_ERRORS, ImageError, decode_image, decode_label, decode_mask
from tests.pipeline.image_corpus import picture, resized, seeds, tiff
from tests.pipeline.samples import encoded, random_image

ROOT = Path(__file__).parents[3]
MILLION = 1_000_000


def refusal(content: bytes, **limits: float) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(content, **limits)  # type: ignore[arg-type]
    return caught.value


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with further chunks behind its header."""
    content = encoded(picture(), "PNG")
    further = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return content[:33] + further + content[33:]


def progressive_jpeg(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has so many."""
    content = encoded(picture(), "JPEG", progressive=True)
    starts = [n for n in range(len(content)) if content[n : n + 2] == b"\xff\xda"]
    return content[:-2] + content[starts[-1] : -2] * (scans - len(starts)) + b"\xff\xd9"


# Bytes and pixels


@pytest.mark.parametrize("decode", [decode_label, decode_mask], ids=lambda decode: decode.__name__)
def test_labels_and_masks_have_the_limit_of_pixels_too(decode: Any) -> None:
    """Before they are unpacked: a PNG of one value is a thousandth of its pixels."""
    content = encoded(np.zeros((300, 400), np.uint8), "PNG")
    assert decode(content, max_pixels=120_000).shape == (300, 400)
    with pytest.raises(ImageError) as caught:
        decode(content, max_pixels=119_999)
    assert (caught.value.kind, caught.value.message) == ("TooLarge", "400 x 300 is 120000 pixels; the limit is 119999")


def test_a_file_above_the_limit_is_not_even_opened() -> None:
    content = encoded(picture(), "PNG")
    assert decode_image(content, max_bytes=len(content)).shape == picture().shape
    error = refusal(content, max_bytes=len(content) - 1)
    assert (error.kind, error.message) == (
        "TooLarge",
        f"the file has {len(content)} bytes; the limit is {len(content) - 1}",
    )
    assert refusal(b"\0" * 100, max_bytes=99).kind == "TooLarge"


@pytest.mark.parametrize("name", sorted(seeds()))
def test_a_header_that_claims_gigapixels_is_refused(name: str) -> None:
    width, height = (16_000, 16_000) if name.startswith("webp") else (60_000, 60_000)
    error = refusal(resized(name, seeds()[name], width, height), max_pixels=100 * MILLION)
    assert error.kind == "TooLarge" or ("webp" in name and error.kind == "Corrupt")


def test_a_tile_of_absurd_height_is_too_large_as_a_label() -> None:
    content = bytearray(tiff(np.zeros((40, 20), np.uint8), tile=(16, 16), compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages.first.tags["TileLength"]  # type: ignore[union-attr]
    struct.pack_into("<HII", content, tag.offset + 2, 4, 1, 2**32 - 1)
    with pytest.raises(ImageError) as caught:
        decode_label(bytes(content))
    assert caught.value.kind == "TooLarge"


def test_bands_that_unpack_to_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiff(np.zeros((64, 64, 8), np.uint16), photometric="minisblack", planarconfig="contig", tile=(16, 16))
    rendering = Rendering.of("3,2,1", None)
    monkeypatch.setattr(tiff_layout, "MAX_UNPACKED", 16 * 64 * 8 * 2)
    assert decode_image(content, rendering=rendering).shape == (64, 64, 3)
    monkeypatch.setattr(tiff_layout, "MAX_UNPACKED", 16 * 64 * 8 * 2 - 1)
    with pytest.raises(ImageError, match="a row of its tiles unpacks to 16384 bytes") as caught:
        decode_image(content, rendering=rendering)
    assert caught.value.kind == "TooLarge"


@pytest.mark.parametrize("name", [name for name in sorted(seeds()) if name.startswith("webp")])
def test_a_webp_is_measured_before_pillow_makes_room_for_it(name: str) -> None:
    content = seeds()[name]
    assert formats.webp_size(content) == (56, 40)
    assert refusal(content, max_pixels=56 * 40 - 1).kind == "TooLarge"


def test_the_tiles_of_a_tiff_count_with_what_reaches_beyond_it() -> None:
    content = tiff(np.zeros((100, 1), np.uint8), tile=(16, 16_000), compression="zlib")
    assert decode_image(content).shape == (100, 1, 3)
    error = refusal(content, max_pixels=MILLION)
    assert (error.kind, error.message) == (
        "TooLarge",
        "with its tiles, 16000 x 112 is 1792000 pixels; the limit is 1000000",
    )


# Time


def test_a_jpeg_of_very_many_scans_is_refused_and_one_of_the_usual_ten_is_not() -> None:
    decode_image(encoded(picture(), "JPEG", progressive=True))
    error = refusal(progressive_jpeg(101))
    assert (error.kind, error.message) == ("TooSlow", "the JPEG has 101 scans; the limit is 100")


def test_what_only_looks_like_scans_does_not_count() -> None:
    content = encoded(picture(), "JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 200)
    assert decode_image(content + b"\xff\xda" * 200).shape == picture().shape


def slow_image() -> bytes:
    return b"P3 2000 2000 255\n" + b"1 2 3 " * 4 * MILLION


def test_decoding_ends_at_its_deadline() -> None:
    before = time.process_time()
    error = refusal(slow_image(), seconds=0.1)
    assert (error.kind, error.message) == ("TooSlow", "not decoded after 0.1 s of CPU time")
    assert time.process_time() - before < 1


def test_a_deadline_that_is_met_leaves_nothing_behind() -> None:
    import signal

    handler = signal.getsignal(signal.SIGPROF)
    decode_image(encoded(picture(), "PNG"), seconds=0.2)
    assert signal.getsignal(signal.SIGPROF) == handler
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
    before = time.process_time()
    while time.process_time() - before < 0.4:
        pass  # no alarm arrives later


def test_a_thread_other_than_the_main_one_decodes_without_a_deadline() -> None:
    shapes = []
    content = encoded(picture(), "PNG")
    thread = threading.Thread(target=lambda: shapes.append(decode_image(content, seconds=1e-6).shape))
    thread.start()
    thread.join()
    assert shapes == [picture().shape]


# Memory. A process of its own tells how far decoding raised its peak above what a small image takes.

MEASURE = """
import json, resource, sys
from pathlib import Path
import cv2
from pipeline.images.codec import ImageError, decode_image
cv2.setNumThreads(1)
def outcome(path):
    try:
        return str(decode_image(path.read_bytes(), max_pixels=16_000_000, seconds=20).shape)
    except ImageError as error:
        return error.kind
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
paths = sorted(Path(sys.argv[1]).iterdir())
outcome(paths[0])
before, found = peak(), {}
for path in paths[1:]:
    found[path.name] = outcome(path), peak() - before
print(json.dumps(found))
"""


def measured(files: dict[str, bytes], folder: Path) -> dict[str, tuple[str, float]]:
    """Return the outcome of each file, and the megabytes by which the peak memory of a process rose meanwhile."""
    (folder / " first").write_bytes(encoded(picture(), "PNG"))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def overlapping_tags(order: str) -> bytes:
    """A TIFF directory of 5,000 tags that all point at the same 60 kB: 300 MB of values."""
    entries = b"".join(struct.pack(order + "HHII", 40_000 + n, 7, 60_000, 8) for n in range(5_000))
    return struct.pack(order + "H", 5_000) + entries + bytes(4)


def bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(150 * MILLION), 1)
    image = struct.pack("<II", 0x2A4949, 8 + 61_000) + bytes(61_000) + overlapping_tags("<")
    exif = b"Exif\0\0" + image
    pages = b"".join(
        struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 1) + struct.pack("<I", 8 + 18 * (n + 1))
        for n in range(200_000)
    )
    return {
        "text of a PNG": png_with((b"zTXt", b"Comment\0\0" + zeros)),
        "international text of a PNG": png_with(*[(b"iTXt", b"Comment\0\1\0\0\0" + zeros)] * 3),
        "profile of a PNG": png_with((b"iCCP", b"profile\0\0" + zeros)),
        "EXIF of a PNG": png_with((b"eXIf", image)),
        "EXIF of a WebP": encoded(picture(), "WEBP", exif=exif),
        "tags of a TIFF": image,
        "pages of a TIFF": b"II*\0" + struct.pack("<I", 8) + pages,
        "chunks of a PNG": png_with(*[(b"teXt", b"")] * 200_000),
        "pixels of a PNG behind its last row": encoded(picture(), "PNG")[:33]
        + struct.pack(">I", len(zeros))
        + b"IDAT"
        + zeros
        + struct.pack(">I", zlib.crc32(b"IDAT" + zeros))
        + bytes(4)
        + b"IEND\xaeB`\x82",
        "comments of a GIF": encoded(picture(), "GIF")[:-1] + b"\x21\xfe" + b"\xff" + bytes(255) * 10 + b"\0\x3b",
    }


@pytest.mark.slow
def test_small_files_take_little_memory_whatever_they_unpack_to(tmp_path: Path) -> None:
    for name, (outcome, megabytes) in measured(bombs(), tmp_path).items():
        assert megabytes < 100, name
        assert outcome in IMAGE_ERRORS or outcome == "(40, 56, 3)", name


@pytest.mark.slow
def test_an_image_takes_at_most_twenty_bytes_a_pixel(tmp_path: Path) -> None:
    rgb = Image.fromarray(random_image(125, 125)).resize((2000, 2000), Image.Resampling.NEAREST)
    gray = np.asarray(rgb)[..., 0]
    alpha = Image.fromarray(np.dstack([np.asarray(rgb), gray]))
    exif = Image.Exif()
    exif[0x112] = 6
    files = {
        "png": encoded(rgb, "PNG", exif=exif),
        "png alpha": encoded(alpha, "PNG", exif=exif),
        "png 16-bit": encoded(gray * np.uint16(257), "PNG", exif=exif),
        "jpeg": encoded(rgb, "JPEG", progressive=True, subsampling=0, exif=exif),
        "jpeg cmyk": encoded(rgb.convert("CMYK"), "JPEG", progressive=True, subsampling=0, exif=exif),
        "webp": encoded(rgb, "WEBP", exif=exif),
        "tiff": encoded(alpha, "TIFF", compression="tiff_lzw", exif=exif),
        "tiff float": tiff(gray.astype(np.float32)),
        "gif": encoded(rgb.quantize(16), "GIF"),
        "bmp": encoded(rgb, "BMP"),
    }
    for name, (outcome, megabytes) in measured(files, tmp_path).items():
        assert outcome == "(2000, 2000, 3)", name
        assert megabytes < 20 * 4, name


@pytest.mark.slow
def test_too_little_memory_is_an_error_of_its_own(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pipeline.images.codec import ImageError, decode_image\n"
        "content = open(sys.argv[1], 'rb').read()\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20), now + (100 << 20)))\n"
        "try: decode_image(content)\n"
        "except ImageError as error: print(error.kind)"
    )
    path = tmp_path / "large.png"
    path.write_bytes(encoded(Image.new("RGB", (8_000, 8_000)), "PNG"))
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("TooLarge\n", "")


# Hundreds of damaged files


@pytest.mark.slow
def test_every_damaged_file_decodes_or_says_why_not_in_silence() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.pipeline.image_corpus"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["files"] >= 500
    assert set(found["outcomes"]) >= {"decoded", "Corrupt", "NotAnImage", "TooLarge", "Unsupported"}
    assert found["outcomes"]["Corrupt"] > found["files"] / 3
    assert found["megabytes"] < 150
