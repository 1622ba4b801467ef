"""Every kind of image file comes out as a viewer shows it, or as a reason why not; masks go out and come back."""

import pickle
import struct
import warnings
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline.images.codec import (
    ImageError,
    decode_image,
    decode_label,
    decode_mask,
    encode_image,
    encode_mask,
    overlay,
    shrink,
)
from tests.pipeline.samples import encoded, random_image

PHOTO_HW3 = random_image(height=12, width=10)


def rgb(*pixels: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One row of pixels."""
    return np.array([pixels], np.uint8)


def orientation(value: int) -> bytes:
    """An EXIF block that holds the orientation alone."""
    exif = Image.Exif()
    exif[0x112] = value
    return exif.tobytes()


def big_endian_tiff(samples_HW: NDArray[np.uint16]) -> bytes:
    """A 16-bit gray TIFF as a Mac or a camera writes it; Pillow writes little-endian ones only."""
    height, width = samples_HW.shape
    data = samples_HW.astype(">u2").tobytes()
    short, long = 3, 4
    tags = [
        (256, short, width),
        (257, short, height),
        (258, short, 16),
        (259, short, 1),
        (262, short, 1),
        (273, long, 8),
        (277, short, 1),
        (278, short, height),
        (279, long, len(data)),
    ]
    entries = [
        struct.pack(">HHI", tag, kind, 1)
        + (struct.pack(">HH", value, 0) if kind == short else struct.pack(">I", value))
        for tag, kind, value in tags
    ]
    directory = struct.pack(">H", len(tags)) + b"".join(entries) + struct.pack(">I", 0)
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + directory


def refusal(content: bytes, max_pixels: int | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(content, max_pixels)
    return caught.value


# What decodes


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_decode_to_the_very_pixels(format: str, options: dict[str, Any]) -> None:
    decoded_HW3 = decode_image(encoded(PHOTO_HW3, format, **options))
    assert decoded_HW3.dtype == np.uint8
    np.testing.assert_array_equal(decoded_HW3, PHOTO_HW3)


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_decode_to_nearly_the_same_colours(format: str, options: dict[str, Any]) -> None:
    smooth_HW3 = cv2.resize(random_image(3, 3), (48, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(decode_image(encoded(smooth_HW3, format, **options)), smooth_HW3, atol=20)


def test_an_encoded_jpeg_keeps_red_red() -> None:
    red_HW3 = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    content = encode_image(red_HW3)
    assert content.startswith(b"\xff\xd8")
    np.testing.assert_allclose(decode_image(content), red_HW3, atol=3)


def test_gray_has_three_equal_channels() -> None:
    gray_HW = PHOTO_HW3[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(gray_HW, "PNG")), np.dstack([gray_HW] * 3))


def test_black_and_white_spans_the_full_range() -> None:
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode_image(encoded(bits, "PNG")), rgb((0, 0, 0), (255, 255, 255)))


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(np.array([[1, 0, 2]], np.uint8))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), rgb((200, 0, 0), (10, 20, 30), (0, 0, 250)))


def test_transparency_lies_on_white() -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    expected = rgb((200, 0, 0), (255, 255, 255), (204, 204, 204))
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        np.testing.assert_array_equal(decode_image(encoded(rgba, format, **options)), expected)


def test_gray_with_transparency_lies_on_white() -> None:
    gray_alpha = np.array([[[100, 255], [100, 0]]], np.uint8)
    image = Image.merge("LA", [Image.fromarray(np.ascontiguousarray(gray_alpha[..., k])) for k in range(2)])
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), rgb((100, 100, 100), (255, 255, 255)))


def test_a_transparent_colour_lies_on_white() -> None:
    content = encoded(rgb((200, 0, 0), (0, 0, 250)), "PNG", transparency=(200, 0, 0))
    np.testing.assert_array_equal(decode_image(content), rgb((255, 255, 255), (0, 0, 250)))


def test_a_transparent_palette_entry_lies_on_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([200, 0, 0, 0, 0, 250])
    for format in ("PNG", "GIF"):
        decoded = decode_image(encoded(image, format, transparency=0))
        np.testing.assert_array_equal(decoded, rgb((255, 255, 255), (0, 0, 250)))


SIXTEEN_BIT = np.array([[0, 257, 65535, 128, 129, 32896]], np.uint16)


@pytest.mark.parametrize(
    "content",
    [
        encoded(SIXTEEN_BIT, "PNG"),
        encoded(SIXTEEN_BIT, "TIFF"),
        big_endian_tiff(SIXTEEN_BIT),
        b"P5 6 1 65535\n" + SIXTEEN_BIT.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "big-endian-tiff", "pgm"],
)
def test_sixteen_bit_gray_is_scaled_and_not_clipped(content: bytes) -> None:
    assert decode_image(content)[0, :, 0].tolist() == [0, 1, 255, 0, 1, 128]
    np.testing.assert_array_equal(decode_label(content), SIXTEEN_BIT.astype(np.int32))


@pytest.mark.parametrize("format", [".png", ".tiff"])
def test_sixteen_bit_colour_is_scaled_and_not_clipped(format: str) -> None:
    samples_HW3 = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    content = cv2.imencode(format, samples_HW3[..., ::-1])[1].tobytes()
    np.testing.assert_allclose(decode_image(content), samples_HW3 / 257, atol=1)


def test_float_samples_are_taken_as_0_to_255() -> None:
    samples = np.array([[-5, 7.4, 7.6, 300]], np.float32)
    assert decode_image(encoded(samples, "TIFF"))[0, :, 0].tolist() == [0, 7, 8, 255]


@pytest.mark.parametrize(
    ("cmyk", "expected"),
    [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_printers_colours_are_converted(cmyk: tuple[int, ...], expected: tuple[int, ...]) -> None:
    image = Image.new("CMYK", (16, 16), cmyk)
    for content in (encoded(image, "TIFF"), encoded(image, "JPEG", quality=95)):
        np.testing.assert_allclose(decode_image(content)[8, 8], expected, atol=4)


@pytest.mark.parametrize(
    ("value", "turned_HW3"),
    [
        (1, PHOTO_HW3),
        (2, PHOTO_HW3[:, ::-1]),
        (3, PHOTO_HW3[::-1, ::-1]),
        (4, PHOTO_HW3[::-1]),
        (5, PHOTO_HW3.transpose(1, 0, 2)),
        (6, PHOTO_HW3[::-1].transpose(1, 0, 2)),
        (7, PHOTO_HW3[::-1, ::-1].transpose(1, 0, 2)),
        (8, PHOTO_HW3[:, ::-1].transpose(1, 0, 2)),
    ],
)
def test_orientation_is_applied(value: int, turned_HW3: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(decode_image(encoded(PHOTO_HW3, "PNG", exif=orientation(value))), turned_HW3)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(format: str) -> None:
    first, second = (np.full((4, 4, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    content = encoded(first, format, save_all=True, append_images=[Image.fromarray(second)], **options)
    np.testing.assert_array_equal(decode_image(content), first)


# What does not decode


def test_no_bytes_are_called_empty() -> None:
    assert refusal(b"").kind == "Empty"


@pytest.mark.parametrize("content", [b"<html>404</html>", b"%PDF-1.7", b"\x00" * 100, b"PK\x03\x04", b"{"])
def test_other_files_are_called_no_image_and_show_how_they_start(content: bytes) -> None:
    error = refusal(content)
    assert error.kind == "NotAnImage"
    assert repr(content[:16]) in error.message


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
def test_a_truncated_image_is_corrupt_wherever_it_ends(format: str) -> None:
    content = encoded(random_image(64, 64), format)
    for share in (0.3, 0.6, 0.95):
        error = refusal(content[: int(len(content) * share)])
        assert error.kind == "Corrupt"
        assert error.message


@pytest.mark.parametrize(("format", "length"), [("JPEG", 12), ("PNG", 20), ("BMP", 20)])
def test_an_image_that_ends_in_its_header_is_corrupt(format: str, length: int) -> None:
    assert refusal(encoded(PHOTO_HW3, format)[:length]).kind == "Corrupt"


def test_flipped_bytes_never_raise_anything_but_an_image_error() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    exif = orientation(6)
    files = [encoded(PHOTO_HW3, format, exif=exif) for format in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [encoded(PHOTO_HW3, format) for format in ("GIF", "BMP")]
    for content in files:
        for _ in range(150):
            damaged = bytearray(content)
            for position in rng.integers(0, len(content), 4):
                damaged[position] = rng.integers(0, 256)
            try:
                decode_image(bytes(damaged), max_pixels=10_000)
                kinds.add("decoded")
            except ImageError as error:
                kinds.add(error.kind)
    assert kinds >= {"decoded", "Corrupt", "NotAnImage"}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_is_no_reason_to_fail(format: str) -> None:
    content = encoded(PHOTO_HW3, format, exif=b"Exif\x00\x00no block of tags")
    assert decode_image(content).shape == PHOTO_HW3.shape


def test_damaged_metadata_prints_nothing() -> None:
    # Orientation 6, and a camera maker whose text lies beyond the end of the file.
    tags = struct.pack("<HHHII", 2, 0x10F, 2, 99, 0x7FFFFFFF) + struct.pack("<HHII", 0x112, 3, 1, 6)
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<I", 8) + tags + struct.pack("<I", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(
            decode_image(encoded(PHOTO_HW3, "PNG", exif=exif)), PHOTO_HW3[::-1].transpose(1, 0, 2)
        )


def test_text_blocks_do_not_disturb() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "x" * 100_000, zip=True)
    np.testing.assert_array_equal(decode_image(encoded(PHOTO_HW3, "PNG", pnginfo=notes)), PHOTO_HW3)


def test_an_image_above_the_limit_is_refused_before_its_pixels_are_decoded() -> None:
    content = encoded(np.zeros((100, 200, 3), np.uint8), "PNG")
    assert decode_image(content, max_pixels=20_000).shape == (100, 200, 3)
    error = refusal(content, max_pixels=19_999)
    assert (error.kind, error.message) == ("TooLarge", "200 x 100 is 20000 pixels; the limit is 19999")
    header_alone = content[:60]
    assert refusal(header_alone, max_pixels=19_999).kind == "TooLarge"


def test_an_image_beyond_pillows_own_limit_is_measured_by_ours_alone() -> None:
    # 196 million pixels in a small file; Pillow refuses above 179 million unless told otherwise.
    content = encoded(Image.new("1", (14_000, 14_000)), "PNG")
    assert refusal(content, max_pixels=100_000_000).kind == "TooLarge"


def test_an_image_error_can_be_pickled_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(ImageError("Corrupt", "cannot be decoded")))
    assert (copy.kind, copy.message, str(copy)) == ("Corrupt", "cannot be decoded", "cannot be decoded")


def test_an_image_error_can_be_hashed_as_other_exceptions_can() -> None:
    error = ImageError("Empty", "the file has no bytes")
    assert len({error, error}) == 1


# Annotations


def test_label_ids_of_one_channel_are_kept() -> None:
    ids_HW = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for content in (encoded(ids_HW, "PNG"), encoded(ids_HW, "TIFF"), encoded(ids_HW, "BMP")):
        label_HW = decode_label(content)
        assert label_HW.dtype == np.int32
        np.testing.assert_array_equal(label_HW, ids_HW)


def test_label_ids_of_a_palette_are_its_indices_and_not_its_colours() -> None:
    image = Image.fromarray(np.array([[1, 0, 2]], np.uint8))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    assert decode_label(encoded(image, "PNG")).tolist() == [[1, 0, 2]]


def test_label_ids_of_two_colours_are_0_and_1() -> None:
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode_label(encoded(bits, "PNG")).tolist() == [[0, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_an_annotation_in_colour_is_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="but label ids require a single channel") as caught:
        decode_label(encoded(Image.new(mode, (4, 4)), "TIFF"))
    assert caught.value.kind == "NotALabelMap"


def test_a_truncated_annotation_is_corrupt() -> None:
    content = encoded(random_image(64, 64)[..., 0], "PNG")
    with pytest.raises(ImageError) as caught:
        decode_label(content[:1000])
    assert caught.value.kind == "Corrupt"


# Masks


def palette_of(num_classes: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (num_classes, 3)).astype(np.uint8)


@pytest.mark.parametrize("num_classes", [2, 11, 16, 17, 200, 256])
def test_an_8_bit_mask_comes_back_with_every_value_whatever_its_palette(num_classes: int) -> None:
    """With 16 colours or fewer, 255 was once packed into four bits and came back as 15."""
    ids_HW = np.random.default_rng(0).permutation(np.arange(256, dtype=np.uint8).repeat(3)).reshape(16, 48)
    content = encode_mask(ids_HW, palette_of(num_classes))
    np.testing.assert_array_equal(decode_label(content), ids_HW)


def test_a_mask_shows_its_classes_in_their_colours() -> None:
    palette = palette_of(11)
    ids_HW = np.arange(11, dtype=np.uint8).reshape(1, 11)
    np.testing.assert_array_equal(decode_image(encode_mask(ids_HW, palette)), palette[ids_HW])


def test_a_16_bit_mask_comes_back_with_every_value() -> None:
    ids_HW = np.array([[0, 1, 255, 256], [299, 300, 32768, 65535]], np.uint16)
    np.testing.assert_array_equal(decode_label(encode_mask(ids_HW, palette_of(300))), ids_HW)


def test_other_programs_read_a_mask_as_class_ids() -> None:
    ids_HW = np.random.default_rng(0).integers(0, 300, (9, 13)).astype(np.uint16)
    content = np.frombuffer(encode_mask(ids_HW, palette_of(300)), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(content, cv2.IMREAD_UNCHANGED), ids_HW)


# Pictures


def test_an_overlay_mixes_colours_and_leaves_ids_beyond_the_palette_alone() -> None:
    image_HW3 = rgb((100, 100, 100), (100, 100, 100), (9, 8, 7))
    palette = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    mixed = overlay(image_HW3, np.array([[0, 1, 255]], np.uint8), palette)
    np.testing.assert_array_equal(mixed, rgb((150, 50, 50), (50, 50, 150), (9, 8, 7)))


def test_an_overlays_opacity_goes_from_the_image_to_the_colours() -> None:
    ids_HW = np.random.default_rng(0).integers(0, 2, PHOTO_HW3.shape[:2]).astype(np.uint8)
    palette = palette_of(2)
    np.testing.assert_array_equal(overlay(PHOTO_HW3, ids_HW, palette, opacity=0), PHOTO_HW3)
    np.testing.assert_array_equal(overlay(PHOTO_HW3, ids_HW, palette, opacity=1), palette[ids_HW])


@pytest.mark.parametrize(
    ("size", "long_side", "shrunk"),
    [
        ((100, 200), 50, (25, 50)),
        ((200, 100), 50, (50, 25)),
        ((100, 200), 200, (100, 200)),
        ((100, 200), 300, (100, 200)),
        ((100, 200), None, (100, 200)),
        ((2, 1000), 64, (1, 64)),
        ((3000, 4000), 512, (384, 512)),
        ((1920, 1080), 512, (512, 288)),
        ((3000, 2000), 512, (512, 336)),
        ((3000, 2050), 512, (512, 352)),
        ((1000, 9990), 512, (52, 512)),
    ],
)
def test_shrinking_keeps_the_shape_and_never_enlarges(
    size: tuple[int, int], long_side: int | None, shrunk: tuple[int, int]
) -> None:
    assert shrink(random_image(*size), long_side).shape == (*shrunk, 3)


def test_images_of_many_shapes_shrink_to_few_sizes_of_about_their_shape() -> None:
    photos = [np.broadcast_to(np.uint8(0), (height, 1000, 3)) for height in range(500, 1000)]
    sizes = {shrink(photo_HW3, 512).shape[:2] for photo_HW3 in photos}
    assert len(sizes) == 17
    for height in range(10, 1000, 7):
        short, long = shrink(np.zeros((height, 1000, 3), np.uint8), 473).shape[:2]
        assert long == 473
        assert abs(short / (473 * height / 1000) - 1) < 1 / 32 + 0.5 / short


def test_shrinking_averages_what_it_drops() -> None:
    checkerboard_HW3 = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 200
    np.testing.assert_array_equal(shrink(checkerboard_HW3, 32), np.full((32, 32, 3), 100, np.uint8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_is_decoded_in_as_many_bytes_as_it_has(dtype: type) -> None:
    ids_HW = np.array([[0, 3, 255], [7, 200, 1]], dtype) * (1 if dtype == np.uint8 else 100)
    found_HW = decode_mask(encode_mask(ids_HW, palette_of(256)))
    assert found_HW.dtype == dtype
    np.testing.assert_array_equal(found_HW, ids_HW)


@pytest.mark.parametrize("mode", ["RGB", "1", "LA"])
def test_what_is_no_mask_is_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"has mode {mode}, but masks have one channel"):
        decode_mask(encoded(Image.new(mode, (4, 4)), "PNG"))
