"""Rows of images that are labelled by window: who may be one, and every way to fail on the way becomes a reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import storage
from pipeline.config.bands import Rendering
from pipeline.config.training import ProtocolConfig
from pipeline.demo.server_process import LOOPBACK, free_ports
from pipeline.errors import UserError
from pipeline.images.codec import ImageError
from pipeline.images.tiff_windows import TiffWindows
from pipeline.output.schema import LISTED, image_id, table
from pipeline.segment import large_images
from pipeline.segment.decode_stage import Limits, Preparation, decode
from pipeline.segment.image_rows import DecodedImage
from pipeline.segment.large_images import ReadFault, with_error
from pipeline.storage import s3_client
from pipeline.storage.s3_objects import Unreachable
from tests.pipeline.image_corpus import tiff
from tests.pipeline.samples import encoded, random_image, write_file

IMAGE_HW3 = random_image(200, 300)
TILED = tiff(IMAGE_HW3, photometric="rgb", tile=(64, 64))
LIMITS = Limits(max_pixels=10_000, max_bytes=1_000_000, seconds=60)
SMALL_FILES = LIMITS._replace(max_bytes=100_000)


def decoded(uri: str, size: int | None, limits: Limits, by_window: bool) -> dict[str, Any]:
    listed = table([{"image_id": image_id(uri), "image_uri": uri, "size_bytes": size}], LISTED)
    (part,) = decode(listed, limits, Preparation(by_window=by_window))
    return part.to_pylist()[0]


@pytest.mark.parametrize("limits", [LIMITS, SMALL_FILES], ids=["too many pixels", "too many bytes"])
def test_a_large_tiff_becomes_a_row_without_pixels(tmp_path: Path, limits: Limits) -> None:
    uri = storage.absolute(str(write_file(tmp_path / "named as another.png", TILED)))
    row = decoded(uri, len(TILED), limits, by_window=True)
    assert (row["by_window"], row["height"], row["width"], row["size_bytes"]) == (True, 200, 300, len(TILED))
    assert row["pixels"] is None
    assert row["error_type"] is None


def test_without_the_protocol_it_is_too_large_and_says_the_way(tmp_path: Path) -> None:
    uri = storage.absolute(str(write_file(tmp_path / "large.tif", TILED)))
    row = decoded(uri, len(TILED), LIMITS, by_window=False)
    assert (row["error_stage"], row["error_type"], row["by_window"]) == ("decode", "TooLarge", None)
    assert row["error_message"].endswith(large_images.HOW)


def test_another_format_is_not_downloaded_to_find_that_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "fetch_objects", lambda uris, _: [] if not uris else pytest.fail("fetched"))
    content = encoded(IMAGE_HW3, "PNG")
    uri = storage.absolute(str(write_file(tmp_path / "large.tif", content)))
    row = decoded(uri, len(content), SMALL_FILES, by_window=True)
    assert (row["error_stage"], row["error_type"]) == ("download", "TooLarge")


def test_a_missing_file_and_a_damaged_one_say_so_before_they_reach_a_predictor(tmp_path: Path) -> None:
    gone = decoded(storage.absolute(str(tmp_path / "gone.tif")), 200_000, SMALL_FILES, by_window=True)
    assert (gone["error_stage"], gone["error_type"]) == ("download", "NotFound")
    # The directory, and not the first tile.
    cut = TILED[: int(np.frombuffer(TILED[4:8], "<u4")[0]) + 400]
    uri = storage.absolute(str(write_file(tmp_path / "cut.tif", cut)))
    damaged = decoded(uri, 200_000, SMALL_FILES, by_window=True)
    assert (damaged["error_stage"], damaged["error_type"]) == ("decode", "Corrupt")


def test_more_pixels_than_a_mask_may_have_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_images, "MAX_PIXELS", 200 * 300 - 1)
    with pytest.raises(ImageError, match="the limit for labeling by window is 59999") as caught:
        large_images.describe_content(listed("large.tif"), TILED, 10_000)
    assert caught.value.kind == "TooLarge"


def listed(uri: str) -> DecodedImage:
    return DecodedImage(image_id(uri), uri)


def described(uri: str) -> DecodedImage:
    image = large_images.describe_file(listed(uri), 10_000)
    assert image is not None
    return image


class Reader:
    """In a predictor's place: reads the top of an image, lets something happen, and reads the rest."""

    def __init__(self, happens: Any) -> None:
        self._happens = happens

    def predict_windows(self, image: TiffWindows, valid_rows: Any) -> np.ndarray:
        top_HW3 = image.read(0, 64, 0, image.width)
        self._happens()
        return np.concatenate([top_HW3, image.read(64, image.height, 0, image.width)])


def test_an_object_is_read_by_window_from_a_bucket(bucket: str) -> None:
    uri = f"{bucket}/large.tif"
    storage.write_bytes(uri, TILED)
    image = described(uri)
    np.testing.assert_array_equal(large_images.predict_windows(Reader(lambda: None), image)[1], IMAGE_HW3)


def test_it_is_told_how_far_an_image_has_been_read(tmp_path: Path) -> None:
    uri = storage.absolute(str(write_file(tmp_path / "large.tif", TILED)))
    image = described(uri)
    shares: list[float] = []
    _, read_HW3 = large_images.predict_windows(Reader(lambda: None), image, shares.append)
    np.testing.assert_array_equal(read_HW3, IMAGE_HW3)
    assert shares == [64 / len(IMAGE_HW3), 1.0]


def test_bands_and_levels_of_an_image_read_by_window(tmp_path: Path) -> None:
    bands_HW4 = np.dstack([IMAGE_HW3, IMAGE_HW3[..., 0] // 32])
    content = tiff(bands_HW4, photometric="minisblack", planarconfig="contig", tile=(64, 64))
    uri = storage.absolute(str(write_file(tmp_path / "four.tif", content)))
    for bands, has_few_levels in (("3,2,1", False), ("4,4,4", True)):
        rendering = Rendering.of(bands, None)
        image = large_images.describe_file(listed(uri), 10_000, rendering)
        assert image is not None
        read, read_HW3 = large_images.predict_windows(Reader(lambda: None), image, rendering=rendering)
        np.testing.assert_array_equal(read_HW3, bands_HW4[..., [int(band) - 1 for band in bands.split(",")]])
        assert read.few_levels == has_few_levels


@pytest.mark.parametrize("when", ["before", "between two windows"])
def test_an_object_that_changes_is_a_failed_download(bucket: str, when: str) -> None:
    uri = f"{bucket}/large.tif"
    storage.write_bytes(uri, TILED)
    image = described(uri)

    def change() -> None:
        storage.write_bytes(uri, tiff(IMAGE_HW3[::-1].copy(), photometric="rgb", tile=(64, 64)))

    if when == "before":
        change()
    with pytest.raises(ReadFault) as caught:
        large_images.predict_windows(Reader(change), image)
    said = with_error(image, caught.value)
    assert (said.error_stage, said.error_type) == ("download", "StorageError")
    assert said.error_message is not None
    assert "changed" in said.error_message
    assert str(image.etag) in said.error_message


def test_an_object_that_vanishes_is_a_failed_download(bucket: str) -> None:
    uri = f"{bucket}/large.tif"
    storage.write_bytes(uri, TILED)
    image = described(uri)
    with pytest.raises(ReadFault) as caught:
        large_images.predict_windows(Reader(lambda: storage.remove(uri)), image)
    assert with_error(image, caught.value).error_type == "NotFound"


def test_a_server_that_is_gone_is_no_failure_of_the_image(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all that is left of a bucket would become rows of failures, and would be done."""
    uri = f"{bucket}/large.tif"
    storage.write_bytes(uri, TILED)
    image = described(uri)

    def leave() -> None:
        raise Unreachable("nothing answers")

    with pytest.raises(UserError, match=f"{uri}: storage failed: nothing answers"):
        large_images.predict_windows(Reader(leave), image)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, f"http://{LOOPBACK}:{free_ports(1)[0]}")
    with pytest.raises(UserError, match="storage failed"):
        large_images.describe_file(listed(uri), 10_000)
    s3_client.forget()


@pytest.mark.parametrize(
    ("protocol", "long_side", "applies"),
    [
        (ProtocolConfig(mode="sliding", base_size=None), None, True),
        (ProtocolConfig(mode="sliding", base_size=None), 1024, False),
        (ProtocolConfig(mode="sliding"), None, False),
        (ProtocolConfig(mode="sliding", base_size=None, short_side=512), None, False),
        (ProtocolConfig(base_size=None), None, False),
    ],
)
def test_only_crops_at_the_own_size_go_by_window(
    protocol: ProtocolConfig, long_side: int | None, applies: bool
) -> None:
    assert large_images.applies(protocol, long_side) == applies
