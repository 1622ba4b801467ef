"""Pixels of a TIFF without data, GDAL's nodata value and NaN: found whole and by window, and counted nowhere."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.bands import Rendering
from pipeline.images.codec import ImageError, Raster, decode_image, decode_label, decode_raster
from pipeline.images.pixels import has_few_levels, turned
from pipeline.images.tiff_windows import TiffWindows
from tests.pipeline.image_corpus import tiff
from tests.pipeline.images.test_bands import HEIGHT, STORAGE, WIDTH, banded, samples, stretched

GDAL_NODATA = 42113
MISSING_HW = np.zeros((HEIGHT, WIDTH), bool)
MISSING_HW[10:40, 30:70] = MISSING_HW[60, 70] = MISSING_HW[-1] = True
COLOR = (124, 116, 104)

# Sample type, value of the pixels without data, and GDAL's tag.
CASES: list[tuple[str, float, str | None]] = [
    ("f4", np.nan, None),
    ("f4", np.nan, "nan"),
    ("f4", -9999, "-9999"),
    ("f4", -3.4028234663852886e38, "-3.40282346638529e+38"),
    ("f8", 1e30, "1e30"),
    ("i2", -32768, "-32768"),
    ("u1", 0, "0"),
    ("u2", 65535, "65535.0"),
]


def with_nodata(value: str | None) -> dict[str, Any]:
    return {} if value is None else {"extratags": [(GDAL_NODATA, "s", 0, value, True)]}


def with_missing(bands: int, dtype: str, value: float) -> NDArray[Any]:
    """Return samples with `value` in all bands of the pixels of MISSING_HW; other pixels differ from it."""
    samples_HWC = samples(bands, dtype).clip(1)
    samples_HWC[MISSING_HW] = value
    return samples_HWC


def by_window(content: bytes, rendering: Rendering) -> Raster:
    """Read an image in windows of 40 x 50 pixels."""
    image = TiffWindows(io.BytesIO(content), len(content), rendering=rendering)
    pixels_HW3 = np.zeros((image.height, image.width, 3), np.uint8)
    valid_HW = np.ones((image.height, image.width), bool)
    for top in range(0, image.height, 40):
        for left in range(0, image.width, 50):
            place = slice(top, min(top + 40, image.height)), slice(left, min(left + 50, image.width))
            part = image.read_raster(place[0].start, place[0].stop, place[1].start, place[1].stop)
            pixels_HW3[place] = part.pixels_HW3
            if part.valid_HW is not None:
                valid_HW[place] = part.valid_HW
    return Raster(pixels_HW3, valid_HW)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("is_planar", [False, True], ids=["interleaved", "planar"])
@pytest.mark.parametrize(("dtype", "value", "tag"), CASES)
def test_pixels_without_data_are_found_and_the_others_are_scaled_without_them_whole_and_by_window(
    dtype: str, value: float, tag: str | None, is_planar: bool, storage: str
) -> None:
    if dtype[0] == "f" and "predictor" in storage:  # which tifffile does not write
        storage = "tiles"
    samples_HWC = with_missing(4, dtype, value)
    content = banded(samples_HWC, is_planar, **STORAGE[storage], **with_nodata(tag))
    rendering = Rendering.of("3,2,1", "2%,98%")
    found = decode_raster(content, rendering=rendering)
    assert found.valid_HW is not None
    np.testing.assert_array_equal(found.valid_HW, ~MISSING_HW)
    chosen_HW3 = samples_HWC[..., [2, 1, 0]]
    ends = [
        tuple(np.percentile(band[~MISSING_HW], (2, 98), method="nearest")) for band in np.moveaxis(chosen_HW3, 2, 0)
    ]
    expected_HW3 = stretched(np.where(MISSING_HW[..., None], 0, chosen_HW3), ends)
    expected_HW3[MISSING_HW] = COLOR
    np.testing.assert_array_equal(found.filled(COLOR), expected_HW3)
    np.testing.assert_array_equal(by_window(content, rendering).filled(COLOR), expected_HW3)


@pytest.mark.parametrize("storage", ["strips", "tiles"])
@pytest.mark.parametrize(("dtype", "value", "tag"), CASES)
def test_without_options_the_others_are_those_of_a_file_in_which_no_data_is_missing(
    dtype: str, value: float, tag: str | None, storage: str
) -> None:
    options = {"photometric": "rgb", "extrasamples": None, **STORAGE[storage]}
    content = banded(with_missing(3, dtype, value), **options, **with_nodata(tag))
    expected_HW3 = decode_image(banded(with_missing(3, dtype, 1), **options))
    expected_HW3[MISSING_HW] = COLOR
    np.testing.assert_array_equal(decode_raster(content).filled(COLOR), expected_HW3)
    if dtype[0] != "f":
        np.testing.assert_array_equal(by_window(content, Rendering()).filled(COLOR), expected_HW3)


def test_a_nodata_value_above_one_does_not_make_floats_from_0_to_1_dark() -> None:
    samples_HWC = np.where(MISSING_HW, 255.0, 0.5).astype("f4")[..., None]
    found = decode_raster(banded(samples_HWC, **with_nodata("255")))
    assert (found.filled(COLOR)[~MISSING_HW] == 128).all()


def test_a_viewer_shows_them_in_white() -> None:
    content = banded(with_missing(3, "u1", 0), photometric="rgb", extrasamples=None, **with_nodata("0"))
    assert (decode_image(content)[MISSING_HW] == 255).all()
    image = TiffWindows(io.BytesIO(content), len(content))
    np.testing.assert_array_equal(image.read(0, HEIGHT, 0, WIDTH), decode_image(content))


@pytest.mark.parametrize("turn", range(1, 9))
def test_they_turn_with_the_image(turn: int) -> None:
    buffer = io.BytesIO()
    gray_HW = with_missing(1, "u1", 0)[..., 0]
    Image.fromarray(gray_HW).save(buffer, "TIFF", tiffinfo={274: turn, GDAL_NODATA: "0"})
    expected_HW = turned(~MISSING_HW, turn)
    found = decode_raster(buffer.getvalue()).valid_HW
    assert found is not None
    np.testing.assert_array_equal(found, expected_HW)
    if turn < 5:  # it is stored in strips
        windows = by_window(buffer.getvalue(), Rendering()).valid_HW
        assert windows is not None
        np.testing.assert_array_equal(windows, expected_HW)


def test_a_palette_index_may_mean_that_there_is_no_data() -> None:
    indices_HW = samples(1, "u1")[..., 0].clip(1)
    indices_HW[MISSING_HW] = 0
    content = tiff(indices_HW, photometric="palette", colormap=np.full((3, 256), 4096, "u2"), **with_nodata("0"))
    found = decode_raster(content).valid_HW
    assert found is not None
    np.testing.assert_array_equal(found, ~MISSING_HW)


@pytest.mark.parametrize(("dtype", "value", "tag"), CASES)
def test_an_image_without_any_data_is_empty(dtype: str, value: float, tag: str | None) -> None:
    content = banded(np.full((HEIGHT, WIDTH, 1), value, dtype), **with_nodata(tag))
    with pytest.raises(ImageError, match=r"^no pixel has data: all are NaN or the GDAL nodata value") as caught:
        decode_raster(content, rendering=Rendering.of(None, "2%,98%"))
    assert caught.value.kind == "Empty"


def test_a_pixel_without_data_adds_no_level() -> None:
    rows_HW = np.add.outer(np.zeros(HEIGHT, int), np.arange(WIDTH) % 15)
    samples_HWC = np.where(MISSING_HW, 200, 1 + rows_HW).astype("u1")[..., None]
    assert not has_few_levels(decode_raster(banded(samples_HWC)).with_data_HW3)
    assert has_few_levels(decode_raster(banded(samples_HWC, **with_nodata("200"))).with_data_HW3)


@pytest.mark.parametrize("tag", ["-9999", "1e400", "0.5", "none", ""])
def test_a_value_that_no_sample_can_have_or_has_does_not_matter(tag: str) -> None:
    samples_HWC = samples(3, "u1")
    samples_HWC[0, 0] = [0, 0, 7]
    content = banded(samples_HWC, photometric="rgb", extrasamples=None, **with_nodata(tag))
    found = decode_raster(content)
    assert found.valid_HW is None
    np.testing.assert_array_equal(found.pixels_HW3, samples_HWC)


def test_a_pixel_has_data_if_one_of_its_bands_has() -> None:
    samples_HWC = samples(3, "u1").clip(1)
    samples_HWC[0, 0] = [0, 0, 7]
    content = banded(samples_HWC, photometric="rgb", extrasamples=None, **with_nodata("0"))
    assert decode_raster(content).valid_HW is None


def test_nodata_of_a_label_is_an_id_like_others() -> None:
    ids_HW = samples(1, "u1")[..., 0]
    content = tiff(ids_HW, **with_nodata("60"))
    np.testing.assert_array_equal(decode_label(content), ids_HW)
