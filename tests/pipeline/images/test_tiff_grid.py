"""Of every kind of TIFF, the pixels and label ids are those that were written, or the file is refused."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.images.codec import ImageError, decode_image, decode_label
from pipeline.images.tiff_windows import TiffWindows
from tests.pipeline.image_corpus import picture, tiff
from tests.pipeline.images.tiff_grid import Case, cases, handmade_tiff
from tests.pipeline.samples import encoded

PICTURE_HW3 = picture()
GRAY_HW = np.ascontiguousarray(PICTURE_HW3[..., 0])


def check(case: Case) -> None:
    _check_pixels(case)
    _check_label(case)
    _check_bands(case)


def _check_pixels(case: Case) -> None:
    if case.pixels_HW3 is None:
        error = refusal(case.content)
        assert error.kind == "Unsupported", case.name
        assert f"{case.samples_HWC.shape[2]} band" in error.message, case.name
        return
    decoded_HW3 = decode_image(case.content)
    rounding = 1.501 if "alpha" in case.name or "CMYK" in case.name else 0.501
    np.testing.assert_allclose(decoded_HW3, case.pixels_HW3, atol=rounding, err_msg=case.name)
    if case.samples_HWC.dtype.kind == "f":
        with pytest.raises(ImageError, match="cannot be read by window"):
            windows(case.content)
        return
    window_HW3 = windows(case.content).read(5, 20, 9, 40)
    np.testing.assert_array_equal(window_HW3, decoded_HW3[5:20, 9:40], err_msg=case.name)


def _check_label(case: Case) -> None:
    limits, samples_HWC = np.iinfo(np.int32), case.samples_HWC
    is_label = samples_HWC.shape[2] == 1 and samples_HWC.dtype.kind in "uib"
    if is_label and limits.min <= samples_HWC.min() and samples_HWC.max() <= limits.max:
        np.testing.assert_array_equal(decode_label(case.content), samples_HWC[..., 0], err_msg=case.name)
        return
    with pytest.raises(ImageError) as caught:
        decode_label(case.content)
    assert caught.value.kind in ("NotALabelMap", "Unsupported"), case.name


def _check_bands(case: Case) -> None:
    samples_HWC = case.samples_HWC.astype(np.float64)
    bands = samples_HWC.shape[2], 1, (samples_HWC.shape[2] + 1) // 2
    low, high = float(samples_HWC.min()), float(samples_HWC.max())
    rendering = Rendering.of(",".join(map(str, bands)), f"{low!r},{high!r}")
    if case.name.startswith(("palette", "CMYK")):
        with pytest.raises(ImageError, match="a selection of bands"):
            decode_image(case.content, rendering=rendering)
        return
    light_HW3 = (samples_HWC[..., [band - 1 for band in bands]] - low) * (255 / (high - low))
    expected_HW3 = 255 - light_HW3 if case.name.startswith("inverted") else light_HW3
    decoded_HW3 = decode_image(case.content, rendering=rendering)
    np.testing.assert_allclose(decoded_HW3, expected_HW3, atol=0.501, err_msg=case.name)
    window_HW3 = windows(case.content, rendering).read(5, 20, 9, 40)
    np.testing.assert_array_equal(window_HW3, decoded_HW3[5:20, 9:40], err_msg=case.name)


def windows(content: bytes, rendering: Rendering = AS_DECLARED) -> TiffWindows:
    return TiffWindows(io.BytesIO(content), len(content), rendering=rendering)


def refusal(content: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(content)
    return caught.value


def test_a_sample_of_the_grid_is_decoded_as_written_or_refused() -> None:
    for case in cases(every=23):
        check(case)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_whole_grid_is_decoded_as_written_or_refused() -> None:
    for case in cases():
        check(case)


@pytest.mark.parametrize("letters", ["i2", "i4", "f4"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_big_endian_signed_and_float_gray_has_the_pixels_of_little_endian_gray(
    letters: str, compression: str | None
) -> None:
    samples_HW = GRAY_HW.astype(letters) * (1 if letters == "f4" else 100)
    little, big = (tiff(samples_HW, byteorder=order, compression=compression) for order in "<>")
    np.testing.assert_array_equal(decode_image(big), decode_image(little))
    if letters != "f4":
        np.testing.assert_array_equal(decode_label(big), samples_HW)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "zstd", "lzma", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "LA", "I", "F", "1"])
def test_what_libtiff_compressed_has_the_pixels_of_what_it_did_not(mode: str, compression: str) -> None:
    image = Image.fromarray(PICTURE_HW3).convert(mode)
    content = encoded(image, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_image(content), decode_image(encoded(image, "TIFF")))


@pytest.mark.parametrize("predictor", [2, 3])
def test_predicted_float_samples_are_read(predictor: int) -> None:
    image = Image.fromarray(GRAY_HW.astype(np.float32) / 300)
    content = encoded(image, "TIFF", compression="tiff_adobe_deflate", tiffinfo={317: predictor})
    assert not np.array_equal(content, encoded(image, "TIFF", compression="tiff_adobe_deflate"))
    np.testing.assert_array_equal(decode_image(content), decode_image(encoded(image, "TIFF")))


@pytest.mark.parametrize("planar", ["separate", "contig"])
def test_a_4_band_georeferenced_file_whose_infrared_is_tagged_as_alpha_is_refused(planar: str) -> None:
    samples = np.dstack([PICTURE_HW3, GRAY_HW])
    stored = np.moveaxis(samples, 2, 0).copy() if planar == "separate" else samples
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": planar, "extrasamples": ["unassalpha"]}
    assert decode_image(tiff(stored, **options)).shape == PICTURE_HW3.shape
    error = refusal(tiff(stored, extratags=[(33550, "d", 3, (1.0, 1.0, 0.0), True)], **options))
    assert error.kind == "Unsupported"
    assert "4 bands of 8-bit unsigned samples, RGB with alpha" in error.message


def test_a_color_map_of_8_bit_values_is_not_black() -> None:
    indices_HW = np.arange(256, dtype=np.uint8).reshape(16, 16)
    color_map = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    content = tiff(indices_HW, photometric="palette", colormap=color_map)
    np.testing.assert_array_equal(decode_image(content), color_map.T[indices_HW])


@pytest.mark.parametrize(
    ("make", "extra", "name"),
    [
        ("NIKON CORPORATION", [], "NEF"),
        ("SONY", [], "ARW"),
        ("Canon", [], "CR2"),
        ("Unknown", [], "thumbnail first"),
        ("Leica", [(50706, "B", 4, b"\1\4\0\0", True)], "DNG"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_the_thumbnail_of_a_cameras_raw_file_is_refused(make: str, extra: list[Any], name: str, order: str) -> None:
    content = tiff(
        PICTURE_HW3,
        photometric="rgb",
        byteorder=order,
        subfiletype=1,
        extratags=[(271, "s", 0, make, True), *extra],
        metadata=None,
    )
    error = refusal(content)
    assert (error.kind, f"({name})" in error.message) == ("Unsupported", True)
    with pytest.raises(ImageError, match="raw file"):
        windows(content)


def test_a_full_size_preview_beside_sensor_data_is_refused() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(PICTURE_HW3, photometric="rgb", subifds=1, extratags=[(271, "s", 0, "NIKON D70", True)])
        writer.write(GRAY_HW, photometric="cfa", extratags=[(33421, "H", 2, (2, 2), True)])
    assert "(NEF)" in refusal(buffer.getvalue()).message


def test_the_first_page_that_is_a_reduced_copy_is_refused() -> None:
    assert "reduced copy" in refusal(tiff(PICTURE_HW3, photometric="rgb", subfiletype=1)).message


def handmade(tags: dict[int, int], strip: bytes) -> bytes:
    return handmade_tiff({tag: [value] for tag, value in {277: 1, 278: tags[257], **tags}.items()}, [strip])


@pytest.mark.parametrize(
    ("compression", "name"),
    [(6, "old-style JPEG"), (34887, "LERC"), (50001, "WebP"), (34712, "JPEG 2000"), (50002, "JPEG XL"), (999, "999")],
)
def test_a_compression_that_is_not_decoded_is_named(compression: int, name: str) -> None:
    error = refusal(handmade({256: 4, 257: 4, 258: 8, 259: compression, 262: 1}, bytes(16)))
    assert (error.kind, name in error.message) == ("Unsupported", True)


@pytest.mark.parametrize("photometric", [8, 32844, 4])
def test_colors_that_are_not_decoded_are_refused(photometric: int) -> None:
    assert refusal(handmade({256: 4, 257: 4, 258: 8, 259: 1, 262: photometric}, bytes(16))).kind == "Unsupported"


def test_fill_order_is_that_of_the_file() -> None:
    strip = bytes([0b10000000, 0b00000010])
    reversed_strip = bytes([0b00000001, 0b01000000])
    tags = {256: 8, 257: 2, 258: 1, 259: 1, 262: 1}
    expected = decode_image(handmade(tags, strip))
    assert expected[..., 0].tolist() == [[255, *[0] * 7], [*[0] * 6, 255, 0]]
    np.testing.assert_array_equal(decode_image(handmade({**tags, 266: 2}, reversed_strip)), expected)
    deflated = {**tags, 259: 8}
    np.testing.assert_array_equal(decode_image(handmade(deflated, zlib.compress(strip))), expected)


def with_sparse_tiles(content: bytes) -> bytes:
    """Return the file with offset and length 0 for its first tile."""
    damaged = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = file.pages.first.tags  # type: ignore[union-attr]
        for name in ("TileOffsets", "TileByteCounts"):
            size = {3: 2, 4: 4}[int(tags[name].dtype)]
            damaged[tags[name].valueoffset : tags[name].valueoffset + size] = bytes(size)
    return bytes(damaged)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", "<>")
def test_a_tile_that_a_sparse_file_does_not_store_is_zeros(compression: str | None, order: str) -> None:
    written = tiff(PICTURE_HW3, photometric="rgb", tile=(16, 16), compression=compression, byteorder=order)
    content = with_sparse_tiles(written)
    expected_HW3 = PICTURE_HW3.copy()
    expected_HW3[:16, :16] = 0
    np.testing.assert_array_equal(decode_image(content), expected_HW3)
    window_HW3 = windows(content).read(0, 40, 0, 56)
    np.testing.assert_array_equal(window_HW3, expected_HW3)


def test_a_tag_about_the_camera_beyond_the_end_of_the_file_is_no_damage() -> None:
    content = bytearray(tiff(PICTURE_HW3, photometric="rgb", extratags=[(271, "s", 0, "A maker of cameras", True)]))
    entry = content.index(struct.pack("<HH", 271, 2))
    struct.pack_into("<I", content, entry + 8, 0x7FFFFFFF)
    np.testing.assert_array_equal(decode_image(bytes(content)), PICTURE_HW3)


def test_a_fax_label_that_stores_white_as_zero_is_refused() -> None:
    content = encoded(Image.fromarray(GRAY_HW > 100), "TIFF", compression="group4", tiffinfo={262: 0})
    with pytest.raises(ImageError, match="fax") as caught:
        decode_label(content)
    assert caught.value.kind == "NotALabelMap"


def jpeg_tiff(samples: NDArray[np.uint8], photometric: int, planar: bool = False) -> bytes:
    """Return a TIFF whose only strip (or one per plane) is a JPEG that holds the samples without conversion."""
    height, width = samples.shape[:2]
    planes = [samples[..., band].copy() for band in range(3)] if planar else [samples]
    options = {} if planar or samples.ndim == 2 else {"keep_rgb": True}
    strips = [encoded(plane, "JPEG", quality=100, subsampling=0, **options) for plane in planes]
    bands = 1 if samples.ndim == 2 else 3
    tags = {256: [width], 257: [height], 258: [8] * bands, 259: [7], 262: [photometric], 277: [bands], 278: [height]}
    return handmade_tiff({**tags, 284: [1 + planar]}, strips)


@pytest.mark.parametrize(("photometric", "planar"), [(0, False), (1, False), (2, False), (2, True)])
def test_jpeg_in_tiff_has_the_colors_of_its_tags(photometric: int, planar: bool) -> None:
    samples = PICTURE_HW3 if photometric == 2 else GRAY_HW
    expected = 255 - samples if photometric == 0 else samples
    decoded_HW3 = decode_image(jpeg_tiff(samples, photometric, planar))
    expected_HW3 = expected if expected.ndim == 3 else expected[..., None]
    np.testing.assert_allclose(decoded_HW3.astype(int), np.broadcast_to(expected_HW3, decoded_HW3.shape), atol=8)
