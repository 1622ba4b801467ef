"""Each layout of each format decodes to the result of other decoders, or to the arrays that were written."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.codec import ImageError, decode_image, decode_label
from tests.pipeline.image_corpus import picture, tiff
from tests.pipeline.samples import encoded, random_image

PICTURE_HW3 = picture()
NOISE_HW3 = random_image(33, 47)
NOISE16_HW3 = np.random.default_rng(1).integers(0, 2**16, (33, 47, 3), dtype=np.uint16)
RAMP_HW = np.arange(64, dtype=np.uint8).reshape(8, 8)
# Row and column of the first pixel of each of Adam7's passes, and the steps between its pixels.
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(samples: NDArray[Any], bits: int, color_type: int, interlaced: bool = False, *chunks: bytes) -> bytes:
    """A PNG of H x W or H x W x C samples below 2**bits, in layouts that other libraries do not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def rows(part: NDArray[Any]) -> bytes:
        planes = part.reshape(len(part), -1).astype(">u2").view(np.uint8).reshape(len(part), -1, 2)
        packed = np.packbits(
            np.unpackbits(planes.reshape(len(part), -1, 2), axis=2)[..., 16 - bits :].reshape(len(part), -1), axis=1
        )
        return b"".join(b"\0" + row.tobytes() for row in packed)

    passes = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, int(interlaced))
    body = b"".join(rows(part) for part in passes if part.size)
    parts = [chunk(b"IHDR", header), *(chunk(data[:4], data[4:]) for data in chunks)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def by_opencv(content: bytes) -> NDArray[np.uint8]:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)[..., ::-1]  # type: ignore[index,return-value]


def on_white(rgba_HW4: NDArray[Any], highest: int = 255) -> NDArray[np.floating]:
    opacity = rgba_HW4[..., 3:] / highest
    return rgba_HW4[..., :3] / highest * 255 * opacity + 255 * (1 - opacity)


# JPEG


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(33, 47), (8, 16), (1, 1), (1, 300)])
def test_a_jpeg_is_decoded_as_other_programs_do(size: tuple[int, int], subsampling: int, progressive: bool) -> None:
    content = encoded(random_image(*size), "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode_image(content), by_opencv(content))


@pytest.mark.parametrize("factor", ["440", "411"])
def test_a_jpeg_of_an_unusual_subsampling_is_decoded(factor: str) -> None:
    option = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")
    content = cv2.imencode(".jpg", NOISE_HW3, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, option])[1].tobytes()
    np.testing.assert_array_equal(decode_image(content), by_opencv(content))


def test_a_gray_jpeg_is_decoded() -> None:
    content = encoded(NOISE_HW3[..., 0].copy(), "JPEG", quality=85)
    np.testing.assert_array_equal(decode_image(content), by_opencv(content))


def test_a_jpeg_that_holds_rgb_itself_keeps_its_colours() -> None:
    content = encoded(PICTURE_HW3, "JPEG", quality=95, keep_rgb=True)
    np.testing.assert_allclose(decode_image(content).astype(int), PICTURE_HW3, atol=24)


def test_a_jpeg_of_four_inks_is_as_bright_as_its_picture() -> None:
    inks = np.random.default_rng(0).integers(0, 256, (3, 4, 4)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    content = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    np.testing.assert_allclose(decode_image(content), expected, atol=3)


def test_a_jpeg_of_inks_as_luma_and_chroma_is_as_bright_as_its_picture() -> None:
    ink = 255 - PICTURE_HW3
    ycc = cv2.cvtColor(ink, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    stored = np.dstack([ycc, np.full(ycc.shape[:2], 255, np.uint8)])
    content = bytearray(encoded(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=98, subsampling=0))
    content[content.index(b"Adobe") + 11] = 2  # the transform: YCCK
    np.testing.assert_allclose(decode_image(bytes(content)).astype(int), PICTURE_HW3, atol=12)


def test_bytes_behind_a_jpeg_or_between_its_segments_do_not_matter() -> None:
    content = encoded(NOISE_HW3, "JPEG", quality=85)
    expected = decode_image(content)
    np.testing.assert_array_equal(decode_image(content + b"trailer" * 100), expected)
    quantization = content.index(b"\xff\xdb")
    np.testing.assert_array_equal(decode_image(content[:quantization] + b"stray" + content[quantization:]), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_cut_off_and_ended_properly_is_no_gray_picture_but_corrupt(mode: str, options: dict[str, Any]) -> None:
    content = encoded(Image.fromarray(random_image(64, 64)).convert(mode), "JPEG", **options)
    for part in (0.5, 0.7, 0.95):
        with pytest.raises(ImageError) as caught:
            decode_image(content[: int(part * len(content))] + b"\xff\xd9")
        assert caught.value.kind == "Corrupt"


# PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_of_any_depth_spans_black_to_white(bits: int, interlaced: bool) -> None:
    samples_HW = np.random.default_rng(bits).integers(0, 2**bits, (19, 21))
    expected = np.round(samples_HW * 255 / (2**bits - 1))
    decoded = decode_image(png(samples_HW, bits, 0, interlaced))
    np.testing.assert_array_equal(decoded, np.dstack([expected] * 3))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_and_alpha_of_both_depths(channels: int, bits: int, interlaced: bool) -> None:
    samples = np.random.default_rng(bits).integers(0, 2**bits, (19, 21, channels))
    rgb = samples[..., :3] if channels > 2 else samples[..., :1].repeat(3, -1)
    alpha = samples[..., -1:] if channels != 3 else np.full((19, 21, 1), 2**bits - 1)
    expected = on_white(np.concatenate([rgb, alpha], -1), 2**bits - 1)
    color_type = {2: 4, 3: 2, 4: 6}[channels]
    np.testing.assert_allclose(decode_image(png(samples, bits, color_type, interlaced)), expected, atol=2)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_of_any_depth_with_transparent_entries(bits: int) -> None:
    rng = np.random.default_rng(bits)
    indices_HW = rng.integers(0, 2**bits, (19, 21))
    palette, alpha = rng.integers(0, 256, (2**bits, 3)), rng.integers(0, 256, (2**bits, 1))
    blocks = [b"PLTE" + palette.astype(np.uint8).tobytes(), b"tRNS" + alpha.astype(np.uint8).tobytes()]
    expected = on_white(np.concatenate([palette, alpha], 1)[indices_HW])
    np.testing.assert_allclose(decode_image(png(indices_HW, bits, 3, False, *blocks)), expected, atol=1)
    np.testing.assert_array_equal(decode_label(png(indices_HW, bits, 3, False, *blocks)), indices_HW)


@pytest.mark.parametrize("bits", [8, 16])
def test_one_transparent_colour_of_either_depth(bits: int) -> None:
    high = 2**bits - 1
    gray = np.array([[0, 7, high, high // 3]])
    transparent = decode_image(png(gray, bits, 0, False, b"tRNS" + struct.pack(">H", high // 3)))
    assert transparent[0, :, 0].tolist() == [0, 7 if bits == 8 else 0, 255, 255]
    colors = np.array([[[high, 0, 0], [0, high // 3, 0], [0, 0, 0]]])
    transparent = decode_image(png(colors, bits, 2, False, b"tRNS" + struct.pack(">HHH", 0, high // 3, 0)))
    assert transparent.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 0]]]


# TIFF


@pytest.mark.parametrize(("byteorder", "bigtiff"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}, {"rowsperstrip": 5}], ids=str)
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_in_any_layout_and_order(
    bits: int, compression: str | None, layout: dict[str, Any], byteorder: str, bigtiff: bool
) -> None:
    samples = NOISE_HW3 if bits == 8 else NOISE16_HW3
    expected = samples / (1 if bits == 8 else 257)
    options = {"byteorder": byteorder, "bigtiff": bigtiff, "photometric": "rgb", "compression": compression, **layout}
    np.testing.assert_allclose(decode_image(tiff(samples, **options)), expected, atol=1)
    planes = np.moveaxis(samples, 2, 0).copy()
    np.testing.assert_allclose(decode_image(tiff(planes, planarconfig="separate", **options)), expected, atol=1)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "raw"])
def test_a_losslessly_compressed_tiff_has_the_very_pixels(compression: str) -> None:
    np.testing.assert_array_equal(decode_image(encoded(NOISE_HW3, "TIFF", compression=compression)), NOISE_HW3)


def test_a_tiff_with_jpeg_inside_is_decoded_as_other_programs_do() -> None:
    content = encoded(PICTURE_HW3, "TIFF", compression="jpeg", quality=90)
    np.testing.assert_allclose(decode_image(content).astype(int), by_opencv(content), atol=2)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "raw"])
def test_a_fax_is_black_on_white(compression: str) -> None:
    bits_HW = PICTURE_HW3[..., 0] > 127
    content = encoded(Image.fromarray(bits_HW), "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_image(content)[..., 1], np.where(bits_HW, 255, 0))


def test_a_tiff_whose_zero_is_white_is_inverted() -> None:
    for samples_HW, highest in ((NOISE_HW3[..., 0], 255), (NOISE16_HW3[..., 0], 65535)):
        content = tiff(samples_HW.copy(), photometric="miniswhite")
        np.testing.assert_allclose(decode_image(content)[..., 0], 255 - samples_HW * (255 / highest), atol=0.5001)


@pytest.mark.parametrize(("type_", "highest"), [(np.int16, 2**15 - 1), (np.uint32, 2**32 - 1), (np.int32, 2**31 - 1)])
def test_whole_numbers_of_other_types_are_white_at_their_highest(type_: Any, highest: int) -> None:
    samples = np.array([[0, highest // 5, highest]], type_)
    assert decode_image(tiff(samples))[0, :, 0].tolist() == [0, 51, 255]


def test_twelve_bits_are_white_at_4095() -> None:
    packed = bytes([0xFF, 0xF0, 0x00, 0x33, 0x33, 0x33])  # 4095, 0, 819, 819
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 14) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode_image(content)[0, :, 0].tolist() == [255, 0, 51, 51]


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_float_samples_up_to_one_are_taken_as_0_to_1(compression: str | None) -> None:
    samples = np.array([[-0.5, 0, 0.2, 1, 1.5, -np.inf, np.inf]], np.float32)
    decoded = decode_image(tiff(samples, compression=compression))
    assert decoded[0, :, 0].tolist() == [0, 0, 51, 255, 255, 0, 255]


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_with_alpha_lies_on_white(bits: int, alpha: str) -> None:
    high = 2**bits - 1
    rgba = np.random.default_rng(0).integers(0, high + 1, (9, 11, 4))
    rgba[0, :5, 3], rgba[1, :5, 3] = 0, high
    stored = (
        rgba if alpha == "unassalpha" else np.dstack([rgba[..., :3] * (rgba[..., 3:] / high), rgba[..., 3]]).round()
    )
    content = tiff(stored.astype(np.uint8 if bits == 8 else np.uint16), photometric="rgb", extrasamples=[alpha])
    np.testing.assert_allclose(decode_image(content), on_white(rgba, high), atol=2.5)


def test_a_format_that_is_not_decoded_is_called_unsupported() -> None:
    with pytest.raises(ImageError, match="is not supported; convert it") as caught:
        decode_image(encoded(PICTURE_HW3, "ICO"))
    assert caught.value.kind == "Unsupported"


# Orientation


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_format_is_turned_as_opencv_turns_a_jpeg(format: str, value: int) -> None:
    exif = Image.Exif()
    exif[0x112] = value
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(format, {})
    jpeg = encoded(PICTURE_HW3, "JPEG", quality=95, subsampling=0, exif=exif)
    expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]  # type: ignore[index]
    content = encoded(PICTURE_HW3, format, exif=exif, **options)
    np.testing.assert_allclose(decode_image(content).astype(int), expected, atol=12)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_an_annotation_is_turned_as_its_image_is(format: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    ids_HW = RAMP_HW[:5]
    np.testing.assert_array_equal(decode_label(encoded(ids_HW, format, exif=exif)), ids_HW[::-1].T)


def test_a_damaged_orientation_turns_nothing() -> None:
    for value in (0, 9, 200):
        exif = Image.Exif()
        exif[0x112] = value
        np.testing.assert_array_equal(decode_image(encoded(PICTURE_HW3, "PNG", exif=exif)), PICTURE_HW3)


# Colour profiles


def test_a_colour_profile_changes_nothing() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode_image(encoded(PICTURE_HW3, format, icc_profile=profile)), PICTURE_HW3)


def test_an_mpo_shows_its_first_picture() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE_HW3).save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (56, 40))])
    assert np.abs(decode_image(buffer.getvalue()).astype(int) - PICTURE_HW3).mean() < 5
