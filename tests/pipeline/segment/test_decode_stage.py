"""Decoding tasks: each image with its own file, failures as rows, nothing downloaded that is not wanted."""

import itertools
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.config.bands import Rendering
from pipeline.images.codec import shrink
from pipeline.output.schema import LISTED, image_id, table
from pipeline.segment import decode_stage
from pipeline.segment.decode_stage import Limits, Preparation, decode
from pipeline.segment.image_rows import decoded_images
from pipeline.storage import s3_objects
from tests.pipeline.image_corpus import tiff
from tests.pipeline.images.test_nodata import with_nodata
from tests.pipeline.samples import encoded, random_image, write_file

LIMITS = Limits(max_pixels=10_000, max_bytes=50_000, seconds=60)


def listed(rows: list[dict[str, Any]]) -> pa.Table:
    return table([{"image_id": image_id(row["image_uri"]), **row} for row in rows], LISTED)


def decoded(rows: list[dict[str, Any]], long_side: int | None = None) -> dict[str, dict[str, Any]]:
    tables = list(decode(listed(rows), LIMITS, Preparation(long_side)))
    return {row["image_uri"]: row for part in tables for row in part.to_pylist()}


@pytest.fixture
def images(tmp_path: Path) -> dict[str, np.ndarray]:
    """Forty images of different content and size, by URI."""
    made = {}
    for number in range(40):
        image_HW3 = random_image(height=20 + number, width=30, seed=number)
        path = write_file(tmp_path / f"{number:02d}.png", encoded(image_HW3, "PNG"))
        made[storage.absolute(str(path))] = image_HW3
    return made


def test_every_image_has_its_own_pixels_however_they_were_fetched(images: dict[str, np.ndarray]) -> None:
    rows = decoded([{"image_uri": uri, "size_bytes": 3000} for uri in images])
    assert list(rows) == list(images)
    for uri, image_HW3 in images.items():
        row = rows[uri]
        assert (row["height"], row["width"]) == image_HW3.shape[:2]
        assert row["pixels"] == image_HW3.tobytes()
        assert row["size_bytes"] == Path(uri.removeprefix("file://")).stat().st_size


def test_large_images_are_handed_on_in_pieces(images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_stage, "DECODED_BYTES", 10_000)
    tables = list(decode(listed([{"image_uri": uri} for uri in images]), LIMITS, Preparation()))
    assert len(tables) > 5
    assert sorted(uri for part in tables for uri in part["image_uri"].to_pylist()) == list(images)


def test_images_of_one_size_are_handed_on_together_whatever_lies_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = []
    for number in range(60):
        shape = ((24, 32), (32, 24), (32, 32))[number % 3]
        uris.append(str(write_file(tmp_path / f"{number:02d}.png", encoded(random_image(*shape, seed=number), "PNG"))))
    monkeypatch.setattr(decode_stage, "DECODED_BYTES", 30_000)
    pieces = [
        [(row["input_height"], row["input_width"]) for row in part.to_pylist()]
        for part in decode(listed([{"image_uri": uri} for uri in uris]), LIMITS, Preparation())
    ]
    assert sum(map(len, pieces)) == 60
    changes = sum(a != b for sizes in pieces for a, b in itertools.pairwise(sizes))
    assert changes < len(pieces) + 3
    assert max(map(len, pieces)) >= 4


def test_an_image_is_shrunk_to_the_long_side_and_keeps_its_own_size(images: dict[str, np.ndarray]) -> None:
    uri = list(images)[-1]  # 59 x 30
    row = decoded([{"image_uri": uri}], long_side=32)[uri]
    assert (row["height"], row["width"], row["input_height"], row["input_width"]) == (59, 30, 32, 16)


def test_an_image_that_vanished_since_it_was_listed_is_a_row(images: dict[str, np.ndarray]) -> None:
    gone, *others = list(images)
    Path(gone.removeprefix("file://")).unlink()
    rows = decoded([{"image_uri": uri, "size_bytes": 3000} for uri in images])
    assert (rows[gone]["error_stage"], rows[gone]["error_type"]) == ("download", "NotFound")
    assert [rows[uri]["error_type"] for uri in others] == [None] * 39


def test_an_image_that_changed_since_it_was_listed_is_described_as_it_was_read(bucket: str) -> None:
    uri, image_HW3 = f"{bucket}/a.png", random_image(height=20, width=30, seed=0)
    content = encoded(image_HW3, "PNG")
    storage.write_bytes(uri, content)
    row = decoded([{"image_uri": uri, "size_bytes": 17, "etag": "of what was listed"}])[uri]
    assert (row["size_bytes"], row["error_type"], row["pixels"]) == (len(content), None, image_HW3.tobytes())
    (found,) = storage.fetch_objects([uri])
    assert isinstance(found, storage.Fetched)
    assert row["etag"] == found.etag != "of what was listed"


def test_what_failed_in_the_listing_is_not_fetched_and_keeps_its_reason(
    images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    fetch = storage.fetch_objects
    monkeypatch.setattr(storage, "fetch_objects", lambda uris, wanted: fetched.extend(uris) or fetch(uris, wanted))
    good = next(iter(images))
    refused = {"error_stage": "list", "error_type": "NotAllowed", "error_message": "is outside s3://bucket"}
    rows = decoded([{"image_uri": "file:///etc/passwd", **refused}, {"image_uri": good}])
    assert fetched == [good]
    assert {key: rows["file:///etc/passwd"][key] for key in refused} == refused
    assert rows[good]["error_type"] is None


def test_a_file_that_is_too_large_is_not_downloaded(
    images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "fetch_objects", lambda uris, _: [] if not uris else pytest.fail("fetched"))
    row = decoded([{"image_uri": "s3://bucket/huge.tif", "size_bytes": 50_001}])["s3://bucket/huge.tif"]
    assert (row["error_stage"], row["error_type"]) == ("download", "TooLarge")
    assert row["error_message"] == "50001 bytes; the limit is 50000"


@pytest.mark.parametrize("name", ["large.png", "a\nb.png"], ids=["obstore", "botocore"])
def test_an_object_whose_size_was_not_known_is_not_read_if_it_is_too_large(
    name: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = f"{bucket}/{name}", f"{bucket}/{name}.small.png"
    image_HW3 = random_image(20, 30, seed=0)
    storage.write_bytes(small, encoded(image_HW3, "PNG"))
    storage.write_bytes(large, b"\0" * 50_001)
    read: list[int] = []
    get, body = s3_objects.obstore.get, s3_objects._body

    class Answer:
        def __init__(self, answer: Any) -> None:
            self.meta, self._answer = answer.meta, answer

        def bytes(self) -> Any:
            content = self._answer.bytes()
            read.append(len(content))
            return content

    def noted_body(answer: dict[str, Any], end: float) -> bytes:
        content = body(answer, end)
        read.append(len(content))
        return content

    monkeypatch.setattr(s3_objects.obstore, "get", lambda *given, **options: Answer(get(*given, **options)))
    monkeypatch.setattr(s3_objects, "_body", noted_body)
    rows = decoded([{"image_uri": large}, {"image_uri": small}, {"image_uri": f"{bucket}/gone.png"}])
    assert read == [len(encoded(image_HW3, "PNG"))]
    assert (rows[large]["error_stage"], rows[large]["error_type"]) == ("download", "TooLarge")
    assert rows[large]["error_message"] == "50001 bytes; the limit is 50000"
    assert rows[large]["size_bytes"] == 50_001
    assert rows[small]["pixels"] == image_HW3.tobytes()
    assert rows[f"{bucket}/gone.png"]["error_type"] == "NotFound"


def test_a_file_on_a_disk_whose_size_was_not_known_is_not_read_if_it_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    path.touch()
    os.truncate(path, 1 << 43)  # more than there is memory for, and of no blocks
    (row,) = decoded([{"image_uri": f"file://{path}"}]).values()
    assert (row["error_stage"], row["error_type"]) == ("download", "TooLarge")
    assert row["error_message"] == f"{1 << 43} bytes; the limit is 50000"


@pytest.mark.parametrize("told", [True, False])
def test_of_other_stores_the_size_is_asked_before_a_file_is_read(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/photos/large.png", b"\0" * 50_001)
    memory.pipe("/photos/small.png", b"no image")
    reads: list[str] = []
    cat_file, size = type(memory).cat_file, type(memory).size

    def noted(self: Any, path: str, *arguments: Any, **options: Any) -> bytes:
        reads.append(path)
        return cat_file(self, path, *arguments, **options)

    def size_of(self: Any, path: str) -> int:
        if not told:
            raise FileNotFoundError(path)  # as fsspec calls what a web server does not tell
        return size(self, path)

    monkeypatch.setattr(type(memory), "cat_file", noted)
    monkeypatch.setattr(type(memory), "size", size_of)
    rows = decoded([{"image_uri": f"memory://photos/{name}"} for name in ("large.png", "small.png", "gone.png")])
    failed = {uri.rpartition("/")[2]: (row["error_stage"], row["error_type"]) for uri, row in rows.items()}
    assert failed == {
        "large.png": ("download" if told else "decode", "TooLarge"),
        "small.png": ("decode", "NotAnImage"),
        "gone.png": ("download", "NotFound"),
    }
    assert any("large" in path for path in reads) != told


def test_files_whose_sizes_were_not_known_are_not_in_memory_together(
    images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {uri: Path(uri.removeprefix("file://")).stat().st_size for uri in images}
    most = 3 * max(sizes.values())
    monkeypatch.setattr(decode_stage, "FETCHED_BYTES", most)
    fetch, together = storage.fetch_objects, []

    def noted(uris: list[str], is_wanted: Any) -> list[Any]:
        found = fetch(uris, is_wanted)
        together.append(sum(len(file.content) for file in found if isinstance(file, storage.Fetched)))
        return found

    monkeypatch.setattr(storage, "fetch_objects", noted)
    rows = decoded([{"image_uri": uri} for uri in images])
    assert max(together) <= most
    assert sum(together) == sum(sizes.values()), "something was read twice"
    assert list(rows) == list(images), "work that is repeated would come in another order"
    assert {uri: rows[uri]["pixels"] for uri in rows} == {uri: image.tobytes() for uri, image in images.items()}
    # A file larger than all that is read together comes alone.
    monkeypatch.setattr(decode_stage, "FETCHED_BYTES", 10)
    rows = decoded([{"image_uri": uri} for uri in images])
    assert {uri: rows[uri]["pixels"] for uri in rows} == {uri: image.tobytes() for uri, image in images.items()}


def test_failures_are_rows_beside_the_images_that_went_well(tmp_path: Path, images: dict[str, np.ndarray]) -> None:
    broken = {
        "text.jpg": (b"no image", "decode", "NotAnImage"),
        "empty.jpg": (b"", "decode", "Empty"),
        "wide.png": (encoded(random_image(101, 100), "PNG"), "decode", "TooLarge"),
    }
    uris = {storage.absolute(str(write_file(tmp_path / name, told[0]))): told[1:] for name, told in broken.items()}
    uris[storage.absolute(str(tmp_path / "gone.jpg"))] = ("download", "NotFound")
    rows = decoded([{"image_uri": uri} for uri in [*uris, *images]])
    assert {uri: (rows[uri]["error_stage"], rows[uri]["error_type"]) for uri in uris} == uris
    assert all(rows[uri]["error_type"] is None for uri in images)
    assert all(rows[uri]["error_message"] and rows[uri]["pixels"] is None for uri in uris)


def test_pixels_without_data_have_the_mean_color_before_the_image_is_shrunk(tmp_path: Path) -> None:
    image_HW3, valid_HW = random_image(41, 61).clip(1), np.random.default_rng(0).random((41, 61)) < 0.5
    content = tiff(np.where(valid_HW[..., None], image_HW3, 0).astype(np.uint8), photometric="rgb", **with_nodata("0"))
    full = storage.absolute(str(write_file(tmp_path / "full.tif", tiff(image_HW3, photometric="rgb"))))
    holed = storage.absolute(str(write_file(tmp_path / "holed.tif", content)))
    preparation = Preparation(long_side=32, fill=(123.675, 116.28, 103.53))
    table = pa.concat_tables(decode(listed([{"image_uri": uri} for uri in (full, holed)]), LIMITS, preparation))
    whole, image = sorted(decoded_images(table), key=lambda image: image.image_uri)
    assert (whole.valid, whole.valid_HW) == (None, None)
    assert image.valid_HW is not None
    np.testing.assert_array_equal(image.valid_HW, valid_HW)
    np.testing.assert_array_equal(image.valid_rows(slice(3, 7)), valid_HW[None, 3:7])
    filled_HW3 = np.where(valid_HW[..., None], image_HW3, [124, 116, 104]).astype(np.uint8)
    np.testing.assert_array_equal(image.input_HW3, shrink(filled_HW3, 32))


def test_an_image_without_any_data_is_an_error_row(tmp_path: Path) -> None:
    content = tiff(np.zeros((8, 8), np.uint8), **with_nodata("0"))
    (row,) = decoded([{"image_uri": storage.absolute(str(write_file(tmp_path / "sea.tif", content)))}]).values()
    assert (row["error_stage"], row["error_type"]) == ("decode", "Empty")
    assert row["error_message"].startswith("no pixel has data")


def test_bands_of_the_preparation_are_decoded_and_few_levels_are_marked(tmp_path: Path) -> None:
    bands_HW4 = np.dstack([random_image(20, 30), np.ones((20, 30), np.uint8)])
    content = tiff(bands_HW4, photometric="minisblack", planarconfig="contig")
    uri = storage.absolute(str(write_file(tmp_path / "four.tif", content)))
    for bands, few_levels in (("3,2,1", False), ("4", True)):
        preparation = Preparation(rendering=Rendering.of(bands, None))
        (row,) = next(decode(listed([{"image_uri": uri}]), LIMITS, preparation)).to_pylist()
        chosen_HWC = bands_HW4[..., [int(band) - 1 for band in bands.split(",")]]
        assert row["pixels"] == np.broadcast_to(chosen_HWC, (20, 30, 3)).tobytes()
        assert row["few_levels"] == few_levels
