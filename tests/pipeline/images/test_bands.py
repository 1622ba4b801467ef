"""Bands and value ranges of TIFFs: the same whole and by window, or refused."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.bands import Rendering
from pipeline.images.codec import ImageError, decode_image
from pipeline.images.pixels import has_few_levels
from pipeline.images.tiff_windows import TiffWindows
from tests.pipeline.image_corpus import tiff
from tests.pipeline.samples import encoded

HEIGHT, WIDTH = 75, 90
TYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
STORAGE: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 48)},
    "deflated tiles with a predictor": {"tile": (16, 32), "compression": "zlib", "predictor": True},
    "big-endian strips": {"rowsperstrip": 16, "byteorder": ">"},
}


def samples(bands: int, dtype: str) -> NDArray[Any]:
    """Return random samples, H x W x bands."""
    values_HWC = np.random.default_rng(bands).normal(60, 20, (HEIGHT, WIDTH, bands)).clip(-100, 120)
    return (values_HWC if dtype[0] in "if" else values_HWC.clip(0)).astype(dtype)


def banded(samples_HWC: NDArray[Any], is_planar: bool = False, **options: Any) -> bytes:
    """Return a gray TIFF of any number of bands."""
    bands = samples_HWC.shape[-1]
    options = {"photometric": "minisblack", "extrasamples": ["unspecified"] * (bands - 1)} | options
    if bands == 1:
        return tiff(samples_HWC[..., 0], **options)
    if is_planar:
        return tiff(np.moveaxis(samples_HWC, 2, 0).copy(), planarconfig="separate", **options)
    return tiff(samples_HWC, planarconfig="contig", **options)


def by_window(content: bytes, rendering: Rendering) -> NDArray[np.uint8]:
    """Read an image in windows of 40 x 50 pixels."""
    image = TiffWindows(io.BytesIO(content), len(content), rendering=rendering)
    rows = [
        np.hstack(
            [
                image.read(top, min(top + 40, image.height), left, min(left + 50, image.width))
                for left in range(0, image.width, 50)
            ]
        )
        for top in range(0, image.height, 40)
    ]
    return np.vstack(rows)


def stretched(samples_HWC: NDArray[Any], ends: list[tuple[float, float]]) -> NDArray[np.uint8]:
    """Return samples scaled between the ends of each band."""
    black, white = np.array(ends, np.float64).T
    return ((samples_HWC.astype(np.float64) - black) * (255 / (white - black))).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("is_planar", [False, True], ids=["interleaved", "planar"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 8])
def test_selected_bands_are_scaled_by_the_range_of_every_type_whole_and_by_window(
    bands: int, dtype: str, is_planar: bool, storage: str
) -> None:
    if (dtype[0] == "f" or dtype[1] == "8") and "predictor" in storage:  # which tifffile does not write
        storage = "tiles"
    samples_HWC = samples(bands, dtype)
    content = banded(samples_HWC, is_planar, **STORAGE[storage])
    selected = [bands, 1, (bands + 1) // 2]
    rendering = Rendering.of(",".join(map(str, selected)), "10,110")
    expected_HW3 = stretched(samples_HWC[..., [band - 1 for band in selected]], [(10, 110)] * 3)
    np.testing.assert_array_equal(decode_image(content, rendering=rendering), expected_HW3)
    np.testing.assert_array_equal(by_window(content, rendering), expected_HW3)


@pytest.mark.parametrize("is_planar", [False, True], ids=["interleaved", "planar"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
def test_percentiles_are_those_of_each_band_of_the_whole_image_in_every_window(dtype: str, is_planar: bool) -> None:
    samples_HWC = samples(5, dtype)
    samples_HWC[: HEIGHT // 2] //= 2  # windows differ
    content = banded(samples_HWC, is_planar, tile=(32, 48))
    rendering = Rendering.of("5,3,1", "2%,98%")
    chosen_HW3 = samples_HWC[..., [4, 2, 0]]
    values_S3 = chosen_HW3.reshape(-1, 3).astype(np.float64)
    ends = [tuple(np.percentile(values_S3[:, band], [2, 98], method="nearest")) for band in range(3)]
    np.testing.assert_array_equal(decode_image(content, rendering=rendering), stretched(chosen_HW3, ends))
    np.testing.assert_array_equal(by_window(content, rendering), stretched(chosen_HW3, ends))


@pytest.mark.parametrize("storage", [{"rowsperstrip": 1}, {"rowsperstrip": 10}, {"tile": (64, 80)}])
def test_percentiles_of_a_large_image_are_of_the_same_pixels_by_window(
    monkeypatch: pytest.MonkeyPatch, storage: dict[str, Any]
) -> None:
    monkeypatch.setattr("pipeline.images.tiff_samples.PERCENTILE_PIXELS", 40)
    content = banded(samples(4, "u2"), **storage)
    rendering = Rendering.of("4,1,1", "10%,90%")
    np.testing.assert_array_equal(by_window(content, rendering), decode_image(content, rendering=rendering))


def test_one_band_is_gray() -> None:
    samples_HWC = samples(4, "u1")
    gray_HW3 = decode_image(banded(samples_HWC), rendering=Rendering.of("2", None))
    np.testing.assert_array_equal(gray_HW3, np.repeat(samples_HWC[..., 1:2], 3, -1))


def test_a_band_of_one_value_is_black_under_percentiles() -> None:
    samples_HWC = np.full((20, 20, 1), 700, np.uint16)
    assert not decode_image(banded(samples_HWC), rendering=Rendering.of(None, "2%,98%")).any()


def test_a_range_keeps_alpha_and_inverts_an_image_whose_zero_is_white() -> None:
    gray_HW = np.tile(np.array([0, 1000, 2000], np.uint16), (4, 1))
    alpha_HW = np.array([[65535, 65535, 65535]] * 3 + [[0, 0, 0]], np.uint16)
    content = tiff(
        np.dstack([gray_HW, alpha_HW]), photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"
    )
    rendering = Rendering.of(None, "0,2000")
    decoded_HW3 = decode_image(content, rendering=rendering)
    assert decoded_HW3[[0, 3], :, 0].tolist() == [[0, 128, 255], [255, 255, 255]]
    np.testing.assert_array_equal(by_window(content, rendering), decoded_HW3)
    inverted = tiff(gray_HW, photometric="miniswhite")
    assert decode_image(inverted, rendering=rendering)[0, :, 0].tolist() == [255, 127, 0]


def test_bands_of_a_jpeg_inside_are_those_of_its_colors() -> None:
    image_HW3 = np.full((32, 32, 3), (200, 100, 20), np.uint8)
    content = encoded(Image.fromarray(image_HW3), "TIFF", compression="jpeg", strip_size=2048)
    whole_HW3 = decode_image(content)
    swapped = Rendering.of("3,2,1", None)
    np.testing.assert_array_equal(decode_image(content, rendering=swapped), whole_HW3[..., ::-1])
    np.testing.assert_array_equal(by_window(content, swapped), whole_HW3[..., ::-1])


@pytest.mark.parametrize(
    "content",
    [
        banded(samples(4, "u2")),
        banded(samples(4, "u2"), is_planar=True),
        tiff(samples(4, "u1"), photometric="rgb", extrasamples=["unspecified"]),
        tiff(
            samples(4, "u1"),
            photometric="rgb",
            extrasamples=["unassalpha"],
            extratags=[(33550, "d", 3, (1, 1, 0), True)],
        ),
    ],
    ids=["interleaved", "planar", "RGB and another", "georeferenced alpha"],
)
def test_a_file_of_four_bands_is_refused_with_the_option_and_decoded_with_it(content: bytes) -> None:
    for rendering in (Rendering(), Rendering.of(None, "2%,98%")):
        with pytest.raises(
            ImageError, match=r"set bands \(--bands, or data.bands for a dataset\), such as 3,2,1"
        ) as caught:
            decode_image(content, rendering=rendering)
        assert caught.value.kind == "Unsupported"
    assert decode_image(content, rendering=Rendering.of("3,2,1", "2%,98%")).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (banded(samples(2, "u2")), "the bands 3,2,1 were selected, but the file has only 2"),
        (tiff(samples(1, "u1")[..., 0], photometric="palette", colormap=np.zeros((3, 256), np.uint16)), "palette"),
        (tiff(samples(4, "u1"), photometric="separated"), "CMYK"),
    ],
    ids=["too few", "palette", "inks"],
)
def test_bands_that_a_file_does_not_have_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(content, rendering=Rendering.of("3,2,1", None))
    assert caught.value.kind == "Unsupported"


def test_float_samples_by_window_name_the_option_that_they_need() -> None:
    content = banded(samples(1, "f4"))
    with pytest.raises(ImageError, match="set a value range"):
        TiffWindows(io.BytesIO(content), len(content))


@pytest.mark.parametrize(("levels", "is_few"), [(1, True), (15, True), (16, False), (256, False)])
def test_an_image_of_fewer_than_sixteen_values_has_few_levels(levels: int, is_few: bool) -> None:
    image_HW3 = np.zeros((50, 61, 3), np.uint8)
    image_HW3.reshape(-1)[-levels:] = np.arange(levels)  # in its last pixels
    assert has_few_levels(image_HW3) == is_few
