"""Formats other than TIFF: the pixels and ids that were written, or a refusal; damage beside the picture is none."""

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.images.codec import ImageError, decode_image, decode_label
from pipeline.images.formats import failures
from tests.pipeline.image_corpus import heif, picture
from tests.pipeline.samples import encoded, random_image

PICTURE_HW3 = picture()
GRAY_HW = np.ascontiguousarray(PICTURE_HW3[..., 0])


def refusal(content: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(content)
    return caught.value


def refused_label(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_label(content)
    assert caught.value.kind == "NotALabelMap"
    return caught.value.message


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize(
    ("format", "options"), [("JPEG2000", {"irreversible": False}), ("TGA", {}), ("TGA", {"compression": "tga_rle"})]
)
def test_lossless_formats_have_the_pixels_of_a_png(format: str, options: dict[str, Any], mode: str) -> None:
    image = Image.fromarray(np.dstack([PICTURE_HW3, GRAY_HW])).convert(mode)
    np.testing.assert_array_equal(decode_image(encoded(image, format, **options)), decode_image(encoded(image, "PNG")))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_qoi_has_the_pixels_of_a_png(mode: str) -> None:
    image = Image.fromarray(np.dstack([PICTURE_HW3, GRAY_HW])).convert(mode)
    np.testing.assert_array_equal(decode_image(encoded(image, "QOI")), decode_image(encoded(image, "PNG")))


def test_avif_is_decoded_and_refused_as_a_label() -> None:
    content = encoded(PICTURE_HW3, "AVIF", quality=95)
    np.testing.assert_allclose(decode_image(content).astype(int), PICTURE_HW3, atol=32)
    assert "AVIF" in refused_label(content)
    assert "JPEG 2000" in refused_label(encoded(GRAY_HW, "JPEG2000"))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_lossless_heif_has_the_pixels_of_a_png_and_is_refused_as_a_label(mode: str) -> None:
    image = Image.fromarray(np.dstack([PICTURE_HW3, GRAY_HW])).convert(mode)
    content = heif(image)
    np.testing.assert_array_equal(decode_image(content), decode_image(encoded(image, "PNG")))
    assert "HEIF" in refused_label(content)


def test_heif_of_more_than_8_bits_takes_the_high_ones() -> None:
    content = heif(Image.fromarray(GRAY_HW * np.uint16(257)))
    assert pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False).info["bit_depth"] > 8
    np.testing.assert_allclose(decode_image(content)[..., 0].astype(int), GRAY_HW, atol=1)


def test_heif_is_limited_in_pixels_and_corrupt_if_it_is_cut_off() -> None:
    content = heif(Image.fromarray(PICTURE_HW3))
    with pytest.raises(ImageError) as caught:
        decode_image(content, max_pixels=100)
    assert caught.value.kind == "TooLarge"
    for size in (30, 200, len(content) // 2, len(content) - 5):
        assert refusal(content[:size]).kind == "Corrupt"


@pytest.mark.parametrize("turn", range(1, 9))
def test_heif_is_turned_by_its_own_rotation_and_not_once_more_by_exif(turn: int) -> None:
    image = Image.fromarray(PICTURE_HW3)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    image.info["exif"] = exif.tobytes()
    content = heif(image)
    opened = pillow_heif.HeifImageFile(io.BytesIO(content))
    np.testing.assert_array_equal(decode_image(content), np.asarray(opened))


def test_heif_without_its_extra_is_unsupported_with_the_extras_name(monkeypatch: pytest.MonkeyPatch) -> None:
    content = heif(Image.fromarray(PICTURE_HW3))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = refusal(content)
    assert error.kind == "Unsupported"
    assert "pip install 'sceneparse[heif]'" in error.message


def test_16_bit_gray_jpeg_2000_is_scaled() -> None:
    samples_HW = GRAY_HW * np.uint16(257)
    np.testing.assert_array_equal(decode_image(encoded(samples_HW, "JPEG2000"))[..., 0], GRAY_HW)


def test_a_4_band_jpeg_2000_that_names_no_alpha_is_refused() -> None:
    content = encoded(np.dstack([PICTURE_HW3, GRAY_HW]), "JPEG2000", no_jp2=True)
    error = refusal(content)
    assert (error.kind, "4 bands of 8-bit unsigned" in error.message) == ("Unsupported", True)


@pytest.mark.parametrize("format", ["JPEG2000", "TGA", "QOI", "AVIF"])
def test_a_truncated_file_is_refused(format: str) -> None:
    content = encoded(random_image(40, 50), format)
    assert refusal(content[: len(content) // 2]).kind == "Corrupt"


def photoshop(samples_CHW: NDArray[np.uint8], mode: int, resources: bytes = b"") -> bytes:
    channels, height, width = samples_CHW.shape
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, height, width, 8, mode)
    return head + struct.pack(">II", 0, len(resources)) + resources + struct.pack(">IH", 0, 0) + samples_CHW.tobytes()


def test_the_composite_of_a_photoshop_file_is_decoded_and_other_channels_are_refused() -> None:
    samples_CHW = np.moveaxis(PICTURE_HW3, 2, 0).copy()
    np.testing.assert_array_equal(decode_image(photoshop(samples_CHW, 3)), PICTURE_HW3)
    inks_CHW = np.concatenate([samples_CHW, np.full_like(samples_CHW[:1], 255)])
    np.testing.assert_array_equal(decode_image(photoshop(inks_CHW, 4)), PICTURE_HW3)
    assert "4 channels of 8 bits, RGB" in refusal(photoshop(inks_CHW, 3)).message
    assert "multichannel" in refusal(photoshop(samples_CHW[:1], 7)).message
    without = b"8BIM\x04\x21\0\0" + struct.pack(">II", 5, 1) + b"\0\0"
    assert "without a composite" in refusal(photoshop(samples_CHW, 3, without)).message


def test_a_tga_whose_alpha_is_undefined_is_refused() -> None:
    content = bytearray(encoded(np.dstack([PICTURE_HW3, GRAY_HW]), "TGA"))
    content[17] &= 0xF0
    error = refusal(bytes(content))
    assert (error.kind, "32 bits per pixel, 0 of them alpha" in error.message) == ("Unsupported", True)


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"\0\0\0\x18ftypcrx ", "CR3"), (b"FUJIFILMCCD-RAW ", "RAF"), (b"IIRO\x08\0", "ORF"), (b"IIU\0\x18\0", "RW2")],
)
def test_a_cameras_raw_file_is_named(start: bytes, name: str) -> None:
    error = refusal(start + bytes(100))
    assert (error.kind, f"({name})" in error.message) == ("Unsupported", True)


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("maxval", [1, 15, 100, 255, 256, 4095, 65535])
def test_label_ids_of_a_pgm_are_not_stretched(maxval: int, is_plain: bool) -> None:
    ids_HW = np.random.default_rng(0).integers(0, maxval + 1, (9, 11))
    packed = ids_HW.astype("u1" if maxval < 256 else ">u2").tobytes()
    body = " ".join(map(str, ids_HW.flat)).encode() if is_plain else packed
    content = b"%s 11 9 %d\n" % (b"P2" if is_plain else b"P5", maxval) + body + b"\n"
    np.testing.assert_array_equal(decode_label(content), ids_HW)
    np.testing.assert_allclose(decode_image(content)[..., 0], ids_HW * (255 / maxval), atol=0.501)


def test_label_colors_of_a_stretched_ppm_and_ids_of_a_bitmap_are_refused() -> None:
    ppm = b"P6 1 1 100\n" + bytes([100, 0, 0])
    with pytest.raises(ImageError, match="colors up to 100"):
        decode_label(ppm, {(255, 0, 0): 1})
    assert "white as 0" in refused_label(b"P1 2 1\n0 1\n")


def test_a_gif_is_white_around_a_smaller_first_frame() -> None:
    palette = Image.fromarray(np.zeros((4, 6), np.uint8))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    content = bytearray(encoded(palette, "GIF"))
    content[6:10] = struct.pack("<HH", 12, 8)
    place = content.index(b",\0\0\0\0")
    content[place + 1 : place + 5] = struct.pack("<HH", 3, 2)
    expected_HW3 = np.full((8, 12, 3), 255, np.uint8)
    expected_HW3[2:6, 3:9] = (200, 0, 0)
    np.testing.assert_array_equal(decode_image(bytes(content)), expected_HW3)
    assert "smaller than the image" in refused_label(bytes(content))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_only_lacks_its_end_marker_is_whole(mode: str) -> None:
    content = encoded(Image.fromarray(random_image(64, 64)).convert(mode), "JPEG")
    np.testing.assert_array_equal(decode_image(content[:-2]), decode_image(content))
    assert refusal(content[:-40]).kind == "Corrupt"


def test_a_progressive_jpeg_that_ends_after_a_scan_is_corrupt() -> None:
    content = encoded(random_image(64, 64), "JPEG", progressive=True)
    assert refusal(content[: content.rindex(b"\xff\xda")]).kind == "Corrupt"


@pytest.mark.parametrize("name", [b"pHYs", b"gAMA", b"tIME", b"iCCP", b"zTXt", b"cHRM"])
@pytest.mark.parametrize("has_checksum", [True, False])
def test_a_png_with_a_damaged_part_beside_its_picture_is_whole(name: bytes, has_checksum: bool) -> None:
    content = encoded(PICTURE_HW3, "PNG")
    checksum = zlib.crc32(name + b"\1") if has_checksum else 0
    chunk = struct.pack(">I", 1) + name + b"\1" + struct.pack(">I", checksum)
    np.testing.assert_array_equal(decode_image(content[:33] + chunk + content[33:]), PICTURE_HW3)
    label = encoded(GRAY_HW, "PNG")
    np.testing.assert_array_equal(decode_label(label[:33] + chunk + label[33:]), GRAY_HW)


def test_a_png_with_a_damaged_picture_or_palette_is_corrupt() -> None:
    content = bytearray(encoded(Image.fromarray(PICTURE_HW3).quantize(16), "PNG"))
    content[content.index(b"PLTE") + 6] ^= 1
    assert refusal(bytes(content)).kind == "Corrupt"


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF800, 0x07E0, 0x001F, 0)),
        (16, (0x7C00, 0x03E0, 0x001F, 0)),
        (16, (0x0F00, 0x00F0, 0x000F, 0)),
        (32, (0x3FF00000, 0x000FFC00, 0x000003FF, 0)),
        (32, (0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)),
        (32, (0xFF, 0xFF00, 0xFF0000, 0)),
    ],
)
@pytest.mark.parametrize("is_top_down", [True, False])
def test_bit_fields_of_a_bmp_are_read_by_their_masks(bits: int, masks: tuple[int, ...], is_top_down: bool) -> None:
    words_HW = np.random.default_rng(0).integers(0, 2**bits, (5, 7), np.uint64)
    rows = np.zeros((5, -(-7 * bits // 32) * 4), np.uint8)
    rows[:, : 7 * bits // 8] = words_HW.astype(f"<u{bits // 8}").view(np.uint8)
    head = struct.pack("<IiiHHI20x4I52x", 124 - 16, 7, -5 if is_top_down else 5, 1, bits, 3, *masks)
    body = (rows if is_top_down else rows[::-1]).tobytes()
    content = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body
    light = [((words_HW & mask) // (mask & -mask)) / (mask // (mask & -mask)) if mask else 1 for mask in masks]
    expected = [255 * (band * light[3] + 1 - light[3]) for band in light[:3]]
    np.testing.assert_allclose(decode_image(content), np.dstack(expected), atol=1.001 if masks[3] else 0.501)


@pytest.mark.parametrize("colors", ["random", "gray", "inverted gray"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_bmp_of_any_palette_has_its_colors_and_its_indices(bits: int, colors: str) -> None:
    rng = np.random.default_rng(bits)
    indices_HW = rng.integers(0, 2**bits, (10, 16))
    palette_K3 = rng.integers(0, 256, (2**bits, 3)).astype(np.uint8)
    if colors != "random":
        ramp = np.linspace(0, 255, 2**bits).astype(np.uint8)[:, None].repeat(3, 1)
        palette_K3 = ramp if colors == "gray" else ramp[::-1]
    bits_HSB = indices_HW[..., None] >> np.arange(bits)[::-1] & 1
    rows = np.packbits(bits_HSB.reshape(10, -1).astype(np.uint8), axis=1)
    body = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))[::-1].tobytes()
    table = np.pad(palette_K3[:, ::-1], ((0, 0), (0, 1))).tobytes()
    start = 54 + len(table)
    head = struct.pack("<IHHI", start + len(body), 0, 0, start)
    content = b"BM" + head + struct.pack("<IiiHHI20x", 40, 16, 10, 1, bits, 0) + table + body
    np.testing.assert_array_equal(decode_image(content), palette_K3[indices_HW])
    np.testing.assert_array_equal(decode_label(content), indices_HW)


@pytest.mark.parametrize("num_colors", [2, 3, 16, 200])
@pytest.mark.parametrize("is_gray", [False, True])
def test_a_gif_of_any_palette_has_its_colors_and_its_indices(is_gray: bool, num_colors: int) -> None:
    rng = np.random.default_rng(num_colors)
    indices_HW = rng.integers(0, num_colors, (13, 17)).astype(np.uint8)
    indices_HW.flat[:num_colors] = np.arange(num_colors)
    palette_K3 = rng.permutation(256 * 3).reshape(256, 3)[:num_colors].astype(np.uint8)
    if is_gray:
        palette_K3 = np.arange(num_colors, dtype=np.uint8)[:, None].repeat(3, 1)
    image = Image.fromarray(indices_HW)
    image.putpalette(palette_K3.tobytes())
    content = encoded(image, "GIF", optimize=False)
    np.testing.assert_array_equal(decode_image(content), palette_K3[indices_HW])
    np.testing.assert_array_equal(decode_label(content), indices_HW)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_lossless_webp_has_the_pixels_of_a_png(mode: str) -> None:
    image = Image.fromarray(np.dstack([PICTURE_HW3, GRAY_HW])).convert(mode)
    content = encoded(image, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decode_image(content), decode_image(encoded(image, "PNG")))


@pytest.mark.parametrize("error", [KeyError(5), IndexError("index out of range"), struct.error("unpack_from")])
def test_an_error_inside_pillow_is_no_bare_number_or_python_message(error: Exception) -> None:
    with pytest.raises(ImageError, match="its structure is not valid"), failures("damaged header"):
        raise error
