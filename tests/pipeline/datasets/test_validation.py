"""Validation of a dataset reports every error with its file, and counts the pixels correctly."""

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import s3fs
from playwright.sync_api import expect

from pipeline import storage
from pipeline.config.data import DataConfig
from pipeline.datasets import Cell, Pair, list_pairs, validation
from pipeline.datasets.pairs import DatasetFinding
from pipeline.datasets.validation import BLOCK, DatasetCheck, SplitCheck, read_block
from pipeline.datasets.validation_report import as_json, summary, write_report
from pipeline.errors import UserError
from pipeline.storage import s3_client
from tests.browser import browser, opened, outside
from tests.pipeline.samples import encoded, random_image, write_file

HEIGHT, WIDTH = 6, 8


def data_config(root: Path | str, **values: Any) -> DataConfig:
    classes = [{"name": name, "color": [k, k, k]} for k, name in enumerate(("sky", "road", "car"))]
    return DataConfig.model_validate({"root": str(root), "classes": classes, **values})


def add_pair(root: Path, name: str, label_HW: np.ndarray, seed: int = 0, split: str = "train") -> None:
    image = encoded(random_image(HEIGHT, WIDTH, seed), "PNG")
    write_file(root / "images" / split / f"{name}.png", image)
    write_file(root / "annotations" / split / f"{name}.png", encoded(label_HW.astype(np.uint8), "PNG"))


def read(pairs: list[Pair], data: DataConfig) -> dict[str, Any]:
    """The row that a task makes of these pairs."""
    block = {"split": "train", "start": 5, "pairs": pickle.dumps(pairs)}
    (read,) = read_block(pa.Table.from_pylist([block], BLOCK), data)
    (row,) = read.to_pylist()
    return row


def faults(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(finding["kind"], finding["where"].rpartition("/")[2]) for finding in row["findings"]]


def filled_check(data: DataConfig) -> DatasetCheck:
    """A check of one split of 3 pairs, of which one is wrong."""
    found = SplitCheck(3, "0123", np.array([90, 10, 0]), np.array([2, 1, 0]), images=2, ignored=7, sides=(8, 9, 6, 6))
    check = DatasetCheck(data, {"train": found})
    check.add(DatasetFinding("class that never occurs", "split train", "car"))
    check.add(DatasetFinding("unreadable image", "file:///a <b>.png", "no bytes"))
    return check


def test_counts_are_those_of_the_pixels(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 7, 255], (4, HEIGHT, WIDTH))
    for name, label_HW in zip("abcd", labels, strict=True):
        add_pair(tmp_path, name, label_HW, seed=ord(name))
    data = data_config(tmp_path, label_map={7: 2})
    row = read(list_pairs(data, "train"), data)
    assert (row["split"], row["start"], row["images"], row["findings"]) == ("train", 5, 4, [])
    assert row["pixels"] == [int((labels == raw).sum()) for raw in (0, 1, 7)]
    assert row["images_with"] == [4, 4, 4]
    assert row["ignored"] == (labels == 255).sum()
    assert row["sides"] == [WIDTH, WIDTH, HEIGHT, HEIGHT]
    assert len(row["hashes"]) == 4 * validation.HASH_BYTES


def test_every_fault_of_every_pair_is_found(tmp_path: Path) -> None:
    good = np.zeros((HEIGHT, WIDTH))
    for name in "abcdefg":
        add_pair(tmp_path, name, good)
    pairs = list_pairs(data_config(tmp_path), "train")
    write_file(tmp_path / "images/train/b.png", b"")
    write_file(tmp_path / "annotations/train/b.png", b"no image")
    (tmp_path / "images/train/c.png").unlink()
    (tmp_path / "annotations/train/d.png").unlink()
    add_pair(tmp_path, "e", np.full((HEIGHT + 1, WIDTH), 3))
    add_pair(tmp_path, "f", np.full((HEIGHT, WIDTH), 255))
    colored_HW3 = np.full((HEIGHT, WIDTH, 3), 200)
    write_file(tmp_path / "annotations/train/g.png", encoded(colored_HW3.astype(np.uint8), "PNG"))
    row = read(pairs, data_config(tmp_path))
    assert faults(row) == [
        ("unreadable image", "b.png"),
        ("unreadable annotation", "b.png"),
        ("missing image", "c.png"),
        ("missing annotation", "d.png"),
        ("ids outside the classes", "e.png"),
        ("sizes differ", "e.png"),
        ("nothing labelled", "f.png"),
        ("unknown colors", "g.png"),
    ]
    assert row["images"] == 2, "a, and f, of which a warning tells"
    assert row["pixels"] == [2 * HEIGHT * WIDTH, 0, 0], "of a, and c, whose annotation is readable"


def test_blocks_hold_every_pair_once_and_keep_row_groups_together() -> None:
    files = [Pair(f"{n}.jpg", f"{n}.png") for n in range(70)]
    cells = [Pair(f"{n}.jpg", Cell("table.parquet", n // 50, n, "mask")) for n in range(150)]
    one_group = [Pair(f"{n}.jpg", Cell("table.parquet", 0, n, "mask")) for n in range(300)]
    for listed, sizes in ((files, [32, 32, 6]), (cells, [50, 50, 50]), (one_group, [256, 44])):
        blocks = [row for table in validation._blocks({"train": listed}) for row in table.to_pylist()]
        read_pairs = [pickle.loads(block["pairs"]) for block in blocks]
        assert [len(pairs) for pairs in read_pairs] == sizes
        assert [block["start"] for block in blocks] == [sum(sizes[:n]) for n in range(len(sizes))]
        assert [pair for pairs in read_pairs for pair in pairs] == listed


@pytest.fixture
def unreachable_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """S3 at an address where nothing listens; s3fs notices the environment only in a new instance."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setattr(s3_client, "RETRIES", 0)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("unreachable_storage")
def test_storage_that_cannot_be_reached_is_no_fault_of_the_images() -> None:
    with pytest.raises(UserError, match=r"s3://bucket/a\.png: storage failed"):
        read([Pair("s3://bucket/a.png", "s3://bucket/b.png")], data_config("s3://bucket"))


def test_copies_are_found_by_their_pixels_in_and_between_splits(tmp_path: Path) -> None:
    image_HW3 = random_image(HEIGHT, WIDTH)
    other_HW3 = image_HW3.reshape(WIDTH, HEIGHT, 3)  # the same bytes in another shape
    contents = {
        "train/a.png": encoded(image_HW3, "PNG"),
        "train/b.bmp": encoded(image_HW3, "BMP"),
        "train/c.png": encoded(random_image(HEIGHT, WIDTH, 1), "PNG"),
        "train/d.png": encoded(other_HW3, "PNG"),
        "train/e.png": b"",
        "val/a.png": encoded(random_image(HEIGHT, WIDTH, 1), "PNG"),
        "val/b.png": b"",
    }
    pairs: dict[str, list[Pair]] = {"train": [], "val": []}
    for name, content in contents.items():
        path = write_file(tmp_path / name, content)
        pairs[name.split("/")[0]].append(Pair(f"file://{path}", f"file://{path}"))
    data = data_config(tmp_path)
    hashes = {
        split: np.frombuffer(read(listed, data)["hashes"], np.uint8).reshape(-1, validation.HASH_BYTES)
        for split, listed in pairs.items()
    }
    found = {(finding.kind, finding.where, finding.message) for finding in validation._duplicates(hashes, pairs)}
    at = f"file://{tmp_path}"
    assert found == {
        ("duplicate within a split", f"{at}/train/a.png (train)", f"has the same pixels as {at}/train/b.bmp (train)"),
        ("duplicate between splits", f"{at}/train/c.png (train)", f"has the same pixels as {at}/val/a.png (val)"),
    }


def test_of_each_kind_the_first_hundred_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    check = DatasetCheck(data_config(tmp_path), {})
    for number in range(250):
        check.add(DatasetFinding("unreadable image", f"{number}.png", "no bytes"))
        check.add(DatasetFinding("duplicate within a split", f"{number}.png", "the same"))
    assert (check.errors, check.warnings) == (250, 250)
    assert check.kinds == ["unreadable image", "duplicate within a split"], "errors come first"
    assert [len(found) for found in check.examples.values()] == [100, 100]


def test_the_terminal_shows_classes_findings_and_what_to_do(tmp_path: Path) -> None:
    text = "\n".join(summary(filled_check(data_config(tmp_path))))
    assert "train: 2 images and 1 pairs with errors · 8 to 9 x 6 to 6 pixels · 6.5% of the pixels ignored" in text
    assert ["1", "road", "10.0000%", "1"] in [line.split() for line in text.splitlines()]
    heading = "error       unreadable image: 1; repair the image, or remove it and its annotation"
    assert f"{heading}\n  file:///a <b>.png: no bytes" in text
    assert text.endswith("1 error(s), 1 warning(s)")


def test_of_many_classes_the_terminal_shows_the_rarest(tmp_path: Path) -> None:
    data = DataConfig.model_validate({"root": str(tmp_path), "format": "ade20k"})
    pixels_K = np.arange(150) + 1
    text = "\n".join(summary(DatasetCheck(data, {"training": SplitCheck(1, "", pixels_K, pixels_K, images=1)})))
    assert "only the 40 rarest of 150 classes" in text
    assert "wall " in text
    assert " flag" not in text


def test_the_report_stands_alone_and_escapes_what_it_shows(tmp_path: Path) -> None:
    data = data_config(tmp_path)
    add_pair(tmp_path, "a", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3)
    check = filled_check(data)
    write_report(check, {"train": list_pairs(data, "train")}, str(tmp_path / "out"))
    page = (tmp_path / "out/dataset.html").read_text()
    assert "file:///a &lt;b&gt;.png" in page
    assert page.count("data:image/jpeg;base64,") == 2  # the image, and the same with its annotation
    assert 'src="http' not in page
    assert "href=" not in page.replace('xlink:href="#', "").replace('href="#', "")
    about = json.loads(storage.read_bytes(str(tmp_path / "out/dataset.json")))
    assert about == as_json(check)
    assert about["splits"]["train"]["classes"][0] == {
        **{"class_id": 0, "class_name": "sky", "pixel_count": 90, "pixel_fraction": 0.9, "images": 2}
    }
    assert [(found["kind"], found["severity"], found["total"]) for found in about["findings"]] == [
        ("unreadable image", "error", 1),
        ("class that never occurs", "warning", 1),
    ]


def both_splits(tmp_path: Path) -> Path:
    """The report of a train and a val split, each with pairs that can be read and one whose annotation is missing."""
    data = data_config(tmp_path)
    for split, number in (("train", 7), ("val", 2)):
        for n in range(number):
            add_pair(tmp_path, f"{n}", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3, split=split)
    pairs = {split: list_pairs(data, split) for split in ("train", "val")}
    (tmp_path / "annotations" / "val" / "1.png").unlink()
    check = filled_check(data)
    check.splits["val"] = SplitCheck(2, "4567", np.array([50, 30, 20]), np.array([2, 2, 2]), images=2)
    write_report(check, pairs, str(tmp_path / "out"))
    return tmp_path / "out" / "dataset.html"


def test_the_report_has_images_of_each_split(tmp_path: Path) -> None:
    captions = re.findall(r"<figcaption>(\w+) · [^<]*/(\d)\.png</figcaption>", both_splits(tmp_path).read_text())
    assert captions == [("train", "0"), ("train", "1"), ("train", "3"), ("train", "5"), ("val", "0")]


def test_bars_of_class_frequencies_are_linear_and_sorted(tmp_path: Path) -> None:
    page = both_splits(tmp_path).read_text()
    rows = re.findall(r'class="bars">(.*?)</td>', page)
    assert [re.findall(r"width:([\d.]+)%", row) for row in rows] == [
        ["100.00", "55.56"],  # sky: 90% and 50%
        ["11.11", "33.33"],
        ["0.00", "22.22"],
    ]
    assert "90.0000%" in page
    assert "30.0000%" in page


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_the_report_fits_a_phone(tmp_path: Path, dark: bool) -> None:
    with browser() as chromium, opened(chromium, both_splits(tmp_path), width=390, dark=dark) as page:
        assert outside(page) == []
        expect(page.get_by_text("annotation", exact=True).first).to_be_visible()


def test_a_report_of_nothing_but_errors_can_be_written(tmp_path: Path) -> None:
    nothing = DatasetCheck(
        data_config(tmp_path), {"train": SplitCheck(0, "", np.zeros(3, np.int64), np.zeros(3, np.int64))}
    )
    nothing.add(DatasetFinding("no images", "images/train", "no images in images/train"))
    write_report(nothing, {"train": []}, str(tmp_path))
    page = (tmp_path / "dataset.html").read_text()
    assert "no images in images/train" in page
    assert "No readable pixel is labeled" in page
    assert "no image could be read" in "\n".join(summary(nothing))
