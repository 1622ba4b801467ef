"""jobs/report.py as it is used: what its page says, and what becomes of outputs that are large, odd or incomplete."""

import base64
import html
import io
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import storage
from pipeline.datasets.scenes import scene
from pipeline.errors import UserError
from pipeline.images.codec import decode_image
from pipeline.output.parquet import read_table, write_table
from pipeline.output.schema import CLASSES, SCHEMA_VERSION, table
from tests.in_process import run_script
from tests.output_samples import add_part, build, failed, scene_photo, write_output
from tests.pipeline.image_corpus import tiff
from tests.pipeline.images.test_nodata import with_nodata
from tests.small_output import NAMES, PALETTE, labelled, write_small_output

SKY = NAMES.index("sky")


def page_of(output: Path, **options: int) -> str:
    return Path(build(output, **options).uri.removeprefix("file://")).read_text()


def text_of(page: str) -> str:
    """Return the text that a reader sees."""
    body = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def facts_of(page: str) -> dict:
    return json.loads(re.search(r'id="facts">(.*?)</script>', page, re.DOTALL)[1])


def masks_of(page: str) -> list[np.ndarray]:
    """The pictures' masks, H x W x 3, in their order."""
    found = re.findall(r'class="mask" src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")) for content in found]


def plain(side: int, class_id: int) -> np.ndarray:
    return np.full((side, side), class_id, np.uint8)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos that are there, and a failure."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = [scene_photo(folder / "photos", f"{n}.jpg", n, 0.95 - 0.1 * n) for n in range(4)]
    write_output(folder / "labels", [*rows, failed("s3://photos/broken.jpg")])
    return folder / "labels"


def test_the_page_says_what_the_tables_say(output: Path) -> None:
    page = page_of(output)
    text = text_of(page)
    for words in (
        "5 images",
        "4 labeled",
        "1 failed 20% of the images",
        "0.800 mean confidence",
        "decode Empty 1 20.00% s3://photos/broken.jpg the file has no bytes",
        "4 of the 4 labeled images",
        "0:00:20",  # of the run
        "s3://models/scenes/best",
        "193 129 4 100.00%",  # the one size
    ):
        assert words in text, words
    assert page.count("<svg") == 6
    assert page.count('class="image" src="data:image/jpeg') == 4
    assert "not available" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # needs no network
    assert [p["confidence"] for p in facts_of(page)["pictures"]] == pytest.approx([0.65, 0.75, 0.85, 0.95])


def test_class_areas_and_frequencies_are_those_of_the_masks(tmp_path: Path) -> None:
    half_HW = plain(10, SKY)
    half_HW[:5] = NAMES.index("boat")
    write_output(tmp_path, [labelled("s3://a/1", half_HW, 0.9), labelled("s3://a/2", plain(10, SKY), 0.5)])
    text = text_of(page_of(tmp_path))
    assert "sky 75.00% 100.00% 2 0.633" in text  # confidence: 50 pixels of 0.9 and 100 of 0.5
    assert "boat 25.00% 50.00% 1 0.900" in text
    assert f"{len(NAMES) - 2} classes that occur in no image" in text


def test_images_that_are_gone_leave_a_note_and_their_masks(tmp_path: Path) -> None:
    gone = (tmp_path / "gone.jpg").as_uri()
    write_output(tmp_path / "labels", [labelled(gone, plain(8, SKY), 0.5)])
    page = page_of(tmp_path / "labels")
    text = text_of(page)
    assert "The image is missing for 1 of 1 pictures (no image: NotFound: the file does not exist" in text
    assert "image not available" in text
    assert "sky 100.00%" in text
    (mask_HW3,) = masks_of(page)
    assert (mask_HW3 == PALETTE[SKY]).all()


def test_a_bucket_that_cannot_be_reached_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(uris: list[str]) -> None:
        asked.append(uris)
        raise UserError(f"{uris[0]}: storage failed: no route")

    monkeypatch.setattr(storage, "fetch_objects", unreachable)
    write_output(tmp_path, [labelled(f"s3://far/{n}", plain(8, SKY), 0.5) for n in range(20)])
    text = text_of(page_of(tmp_path))
    assert len(asked) == 1
    assert "The image is missing for 20 of 20 pictures" in text
    assert "no route" in text


def test_an_image_that_was_replaced_is_not_shown_with_the_old_mask(tmp_path: Path) -> None:
    row = scene_photo(tmp_path / "photos", "a.jpg", 0, 0.5)
    scene_photo(tmp_path / "photos", "a.jpg", 1, 0.5, size=(129, 129))
    write_output(tmp_path / "labels", [row])
    page = page_of(tmp_path / "labels")
    (picture,) = facts_of(page)["pictures"]
    assert picture["notes"] == [
        "no image: it has changed since it was labeled: it was 193 × 129 pixels and is now 129 × 129"
    ]
    assert len(masks_of(page)) == 1


def test_a_thousand_classes_keep_their_names_and_colours(tmp_path: Path) -> None:
    palette_K3 = np.random.default_rng(0).permutation(256**3)[:1000]
    palette_K3 = np.stack([palette_K3 >> 16, palette_K3 >> 8 & 255, palette_K3 & 255], 1)
    names = [f"class number {k} <of $1$ thousand>" for k in range(1000)]
    ids_HW = np.arange(1000, dtype=np.uint16).repeat(4).reshape(40, 100)  # in pairs of pixels, twice
    few_HW = np.array([[3, 999], [700, 300]], np.uint16)
    write_output(
        tmp_path, [labelled("s3://a/all", ids_HW, 0.9), labelled("s3://a/few", few_HW, 0.5)], names, palette_K3
    )
    page = page_of(tmp_path)
    assert html.escape(names[999]) in page
    assert names[999] not in page  # unescaped
    assert "Shows the 24 largest of 1,000 classes by area" in text_of(page)
    few_HW3, all_HW3 = masks_of(page)  # the least confident first
    assert (few_HW3 == palette_K3[few_HW]).all()
    # A PNG's palette has no room for all of them: those that fit are right, the rest is gray.
    gray_HW = (all_HW3 == 96).all(-1)
    assert (all_HW3 == palette_K3[ids_HW])[~gray_HW].all()
    assert len(np.unique(ids_HW[~gray_HW])) == 255
    assert len(page) < 3_000_000


def test_an_output_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    odd = tmp_path / "it's [1] * <b>"
    write_output(odd, [labelled("s3://a/1", plain(8, SKY), 0.5)])
    page = page_of(odd)
    assert "1 labeled" in text_of(page)
    assert "<h1>it&#39;s [1] * &lt;b&gt;</h1>" in page
    assert len(masks_of(page)) == 1


def test_an_image_of_one_pixel(tmp_path: Path) -> None:
    photo = tmp_path / "dot.png"
    Image.new("RGB", (1, 1), (7, 8, 9)).save(photo)
    write_output(tmp_path / "labels", [labelled(photo.as_uri(), plain(1, SKY), 0.5)])
    page = page_of(tmp_path / "labels")
    assert "1 × 1" in [p["size"] for p in facts_of(page)["pictures"]]
    assert masks_of(page)[0].shape == (1, 1, 3)
    assert page.count('class="image"') == 1


def test_rare_classes_and_doubtful_images_come_into_a_small_gallery(tmp_path: Path) -> None:
    rows = [labelled(f"s3://a/{n:03}", plain(8, SKY), 0.9) for n in range(200)]
    rare_HW = plain(8, SKY)
    rare_HW[0, 0] = NAMES.index("boat")
    rows += [labelled("s3://a/rare", rare_HW, 0.9), labelled("s3://a/doubtful", plain(8, SKY), 0.2)]
    write_output(tmp_path, rows)
    page = page_of(tmp_path, pictures=8)
    reasons = {p["uri"]: p["reason"] for p in facts_of(page)["pictures"]}
    assert len(reasons) == 8
    assert reasons["s3://a/rare"] == "most of a class"
    assert reasons["s3://a/doubtful"] == "least confident"
    assert list(reasons.values()).count("random") >= 2
    assert "8 of the 202 labeled images" in text_of(page)


def test_of_many_parts_a_sample_is_read_and_the_page_says_so(tmp_path: Path) -> None:
    write_output(tmp_path, [labelled(f"s3://a/{n}", plain(8, SKY), 0.9) for n in range(30)])
    for part in range(1, 8):
        add_part(tmp_path, [labelled(f"s3://{part}/{n}", plain(8, SKY), 0.9) for n in range(30)])
    report = build(tmp_path, max_parts=2)
    text = text_of(Path(report.uri.removeprefix("file://")).read_text())
    assert "is based on a random sample of 2 of the 8 parts: 60 of about 240 images" in text
    assert "about 240 images" in text
    assert "sky 100.00% 100.00% 60 0.900" in text
    assert len(report.notes) == 2  # and the pictures that lack their images
    again = build(tmp_path, max_parts=2)
    assert again.bytes == report.bytes  # the same sample each time


def test_the_page_grows_no_larger_than_asked(output: Path) -> None:
    whole = build(output)
    assert len(facts_of(page_of(output, max_bytes=whole.bytes + 5_000))["pictures"]) == 4
    small = build(output, max_bytes=whole.bytes - 10_000)
    assert small.bytes <= whole.bytes - 10_000
    assert "more pictures did not fit into the page" in small.notes[0]
    assert "<dialog" not in page_of(output, pictures=0)


def test_only_the_masks_of_the_pictures_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)
    masks = [noise.integers(0, len(NAMES), (256, 256), np.uint8) for _ in range(40)]
    write_output(tmp_path, [labelled(f"s3://a/{n}", ids_HW, 0.5 + n / 1000) for n, ids_HW in enumerate(masks)])
    (part,) = (tmp_path / "masks").iterdir()
    pq.write_table(pq.read_table(part), part, row_group_size=4)
    opened, read = storage.open_file, []

    def counted(uri: str) -> object:
        file = opened(uri)
        fetch = file._fetch

        def counting(span: object) -> bytes:
            read.append(len(content := fetch(span)))
            return content

        file._fetch = counting
        return file

    monkeypatch.setattr(storage, "open_file", counted)
    build(tmp_path, pictures=1)
    assert 4 * 256 * 256 / 4 < sum(read) < part.stat().st_size / 4


# Outputs that are not whole


def test_a_run_that_goes_on_counts_as_far_as_it_is(tmp_path: Path) -> None:
    write_small_output(tmp_path)
    waiting = add_part(tmp_path, [labelled("s3://photos/waiting.jpg", plain(8, SKY), 0.9)])
    storage.remove(f"{tmp_path}/masks/{waiting}")  # its statistics are written, its masks not yet
    text = text_of(page_of(tmp_path))
    assert "no run has finished yet; results cover the images labeled so far" in text
    assert "3 images" in text
    assert "sky 50.00% 100.00% 2" in text  # of the two whole images


def test_an_output_without_a_labelled_image(tmp_path: Path) -> None:
    write_output(tmp_path, [failed("s3://photos/a.jpg"), failed("s3://photos/b.jpg")])
    text = text_of(page_of(tmp_path))
    assert "2 failed 100% of the images" in text
    assert "No images have been labeled." in text


def test_an_output_of_an_older_schema_has_a_note(tmp_path: Path) -> None:
    write_small_output(tmp_path)
    older = {b"sceneparse.schema_version": b"1", b"sceneparse.model_id": b"model"}
    classes = read_table(f"{tmp_path}/classes.parquet").replace_schema_metadata(older)
    write_table(f"{tmp_path}/classes.parquet", classes)
    for uri in storage.find(f"{tmp_path}/masks"):
        write_table(uri, read_table(uri).drop_columns(["low_confidence_boxes", "carried"]))
    text = text_of(page_of(tmp_path))
    assert f"has table schema version 1, but this Sceneparse uses {SCHEMA_VERSION}" in text
    assert "2 labeled" in text


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    done = run_script("jobs/report.py", *map(str, arguments))
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def test_an_output_that_is_empty_or_not_ours_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no masks/.*use the --output of a jobs/segment_bucket.py run"):
        build(tmp_path)
    write_small_output(tmp_path)
    foreign = pa.table({"class_id": [0], "class_name": ["cat"]})
    write_table(f"{tmp_path}/classes.parquet", foreign)
    with pytest.raises(UserError, match=r"was not written by segment_bucket\.py"):
        build(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_output_that_a_run_has_only_begun(tmp_path: Path) -> None:
    write_table(f"{tmp_path}/classes.parquet", table([], CLASSES))
    with pytest.raises(UserError, match="a run has started but not written a part yet"):
        build(tmp_path)


@pytest.mark.slow
def test_the_job_writes_where_it_is_told(output: Path, tmp_path: Path) -> None:
    done = run(output, "--to", tmp_path / "pages" / "a.html", "--gallery", 2)
    first, *_, last = done.stdout.splitlines()
    assert first == f"Reading {output.as_uri()}"
    assert last.startswith(f"file://{tmp_path}/pages/a.html  ")
    assert "2 of the 4 labeled images" in text_of((tmp_path / "pages" / "a.html").read_text())
    assert "has no masks" in run(tmp_path, code=2).stderr
    assert "--max-parts" in run(output, "--max-parts", 0, code=2).stderr


@pytest.mark.slow
def test_output_images_and_page_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    row = scene_photo(tmp_path, "a.jpg", 0, 0.5)
    storage.write_bytes(f"{bucket}/photos/a.jpg", (tmp_path / "a.jpg").read_bytes())
    ids_HW = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
    write_output(tmp_path / "labels", [labelled(f"{bucket}/photos/{name}.jpg", ids_HW, 0.5) for name in ("a", "gone")])
    for uri in storage.find(str(tmp_path / "labels")):
        name = uri.partition("/labels/")[2]
        storage.write_bytes(f"{bucket}/labels/{name}", storage.read_bytes(uri))
    report = build(f"{bucket}/labels")
    assert report.uri == f"{bucket}/labels/report.html"
    page = storage.read_bytes(report.uri).decode()
    assert page.count('class="image"') == 1
    assert "The image is missing for 1 of 2 pictures" in text_of(page)
    filesystem, path = storage.open_filesystem(report.uri)
    assert filesystem.info(path)["ContentType"] == "text/html"  # else a browser would not show it


def holed_photo(folder: Path) -> dict:
    """Write a photo whose upper third has no data; returns its row, with labels below."""
    image_HW3, _ = scene(0, 0, 129, 193)
    image_HW3 = image_HW3.clip(1)
    image_HW3[:43] = 0
    content = tiff(image_HW3, photometric="rgb", **with_nodata("0"))
    storage.write_bytes(f"{folder}/0.tif", content)
    ids_HW = np.full((129, 193), SKY, np.uint8)
    ids_HW[:43] = 255
    row = labelled(f"file://{folder}/0.tif", ids_HW, 0.9)
    sky = row["classes"][0] | {"pixel_fraction": 1.0}
    return row | {"size_bytes": len(content), "classes": [sky]}


def test_pixels_without_data_are_light_gray_in_the_mask_and_white_in_the_image(tmp_path: Path) -> None:
    write_output(tmp_path / "labels", [holed_photo(tmp_path / "photos")])
    page = page_of(tmp_path / "labels")
    (picture,) = facts_of(page)["pictures"]
    assert picture["notes"] == ["33.3% of the pixels have no data"]
    (mask_HW3,) = masks_of(page)
    assert (mask_HW3[:43] == 144).all()
    assert (mask_HW3[43:] == PALETTE[SKY]).all()
    (found,) = re.findall(r'class="image" src="data:image/jpeg;base64,([^"]+)"', page)
    assert decode_image(base64.b64decode(found))[:30].min() > 250
    assert "sky 100.00%" in text_of(page)


def test_pictures_have_the_bands_of_the_last_run_and_few_levels_are_a_note(tmp_path: Path) -> None:
    row = scene_photo(tmp_path / "photos", "0.tif", 0, 0.9)
    image_HW3, _ = scene(0, 0, 129, 193)
    bands_HW4 = np.dstack([image_HW3[..., ::-1], image_HW3[..., 0]])
    content = tiff(bands_HW4, photometric="minisblack", planarconfig="contig")
    storage.write_bytes(f"{tmp_path}/photos/0.tif", content)
    write_output(tmp_path / "labels", [row | {"size_bytes": len(content)}])
    (record,) = (tmp_path / "labels" / "runs").iterdir()
    assert "no image: the current file: bands other than gray" in text_of(page_of(tmp_path / "labels"))
    run = json.loads(record.read_text()) | {"few_levels": 3}
    run["configuration"] |= {"bands": "3,2,1", "value_range": None}
    record.write_text(json.dumps(run))
    page = page_of(tmp_path / "labels")
    assert "fewer than 16 different pixel values, in all finished runs: 3." in text_of(page)
    (found,) = re.findall(r'class="image" src="data:image/jpeg;base64,([^"]+)"', page)
    shown_HW3 = decode_image(base64.b64decode(found))
    np.testing.assert_allclose(shown_HW3.mean((0, 1)), image_HW3.mean((0, 1)), atol=3)
