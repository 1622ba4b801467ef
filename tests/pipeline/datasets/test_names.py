"""Names of own data: each image meets its annotation, or the message names the difference."""

import codecs
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.data import DataConfig
from pipeline.datasets import list_pairs, list_split
from pipeline.datasets.names import common_suffix, listed_names, split_line
from pipeline.errors import UserError
from tests.pipeline.samples import write_file

COMPOSED = unicodedata.normalize("NFC", "Straße Köln")
DECOMPOSED = unicodedata.normalize("NFD", "Straße Köln")


def data_config(root: Path, **values: Any) -> DataConfig:
    own = {} if values.get("format") in ("voc", "camvid") else {"classes": ["sky", "road"]}
    return DataConfig.model_validate({"root": str(root), **own, **values})


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        write_file(root / path, b"")


def met(data: DataConfig) -> list[tuple[str, str]]:
    """The file names of each pair."""
    return [(Path(pair.image_uri).name, Path(pair.label_uri).name) for pair in list_pairs(data, "train")]


# Folders


@pytest.mark.parametrize("suffix", ["_mask", "_gt", "_label", "-seg", ".labels", "Mask"])
def test_a_suffix_of_annotations_is_recognized_and_its_option_named_once(tmp_path: Path, suffix: str) -> None:
    for number in range(20):
        touch(tmp_path, f"images/train/{number}.jpg", f"annotations/train/{number}{suffix}.png")
    (finding,) = list_split(data_config(tmp_path), "train").findings
    assert finding.kind == "suffix of annotations"
    assert finding.message == (f"20 annotation(s) are named like 0{suffix} for image 0: data.label_suffix: {suffix}")
    assert len(met(data_config(tmp_path, label_suffix=suffix))) == 20


def test_a_suffix_leaves_other_missing_annotations_in_the_report(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/train/{name}.jpg" for name in "abc"))
    touch(tmp_path, *(f"annotations/train/{name}_mask.png" for name in "abx"))
    kinds = [finding.kind for finding in list_split(data_config(tmp_path), "train").findings]
    assert kinds == ["suffix of annotations", "missing annotation", "annotation without image"]


def test_other_formats_have_no_suffix_to_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label_suffix works only with format folder"):
        data_config(tmp_path, format="voc", label_suffix="_mask")


def test_numbers_that_begin_alike_are_no_suffix() -> None:
    assert common_suffix(["1", "2"], ["10", "11", "25"]) is None


@pytest.mark.parametrize(
    "sidecar",
    [
        *("a.json", "a.xml", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini", ".DS_Store", "._a.jpg"),
        *(".ipynb_checkpoints/a-checkpoint.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg", "classes.txt"),
    ],
)
@pytest.mark.parametrize("folder", ["images", "annotations"])
def test_sidecar_files_are_left_out(tmp_path: Path, folder: str, sidecar: str) -> None:
    touch(tmp_path, "images/train/a.jpg", "annotations/train/a.png", f"{folder}/train/{sidecar}")
    listing = list_split(data_config(tmp_path), "train")
    assert (len(listing.pairs), listing.findings) == (1, [])


def test_an_annotation_that_is_only_a_sidecar_file_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.jpg", "annotations/train/a.json")
    with pytest.raises(UserError, match=r"found no annotations/train/a\.\*, but a\.json, which is no image"):
        list_pairs(data_config(tmp_path), "train")


def test_a_name_in_another_case_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/IMG_1.JPG", "annotations/train/img_1.png")
    with pytest.raises(UserError, match="but img_1, which differs in case or blanks"):
        list_pairs(data_config(tmp_path), "train")


@pytest.mark.parametrize(("image", "label"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_unicode_forms_of_one_name_meet(tmp_path: Path, image: str, label: str) -> None:
    touch(tmp_path, f"images/train/{image}.jpg", f"annotations/train/{label}.png")
    assert met(data_config(tmp_path)) == [(f"{image}.jpg", f"{label}.png")]
    touch(tmp_path, f"JPEGImages/{image}.jpg", f"SegmentationClass/{label}.png")
    for listed in (image, label):
        write_file(tmp_path / "ImageSets/Segmentation/train.txt", f"{listed}\n".encode())
        assert met(data_config(tmp_path, format="voc")) == [(f"{image}.jpg", f"{label}.png")]


def test_two_unicode_forms_of_one_name_are_named_as_such(tmp_path: Path) -> None:
    touch(tmp_path, f"images/train/{COMPOSED}.jpg", f"images/train/{DECOMPOSED}.jpg", "annotations/train/a.png")
    with pytest.raises(UserError, match="differ only in the Unicode form of their names"):
        list_pairs(data_config(tmp_path), "train")


@pytest.mark.parametrize(("image", "label"), [("a.jpg", "a.jpg.png"), ("a.JPG.jpg", "a.png"), ("a.png", "a.png.png")])
def test_double_extensions_meet(tmp_path: Path, image: str, label: str) -> None:
    touch(tmp_path, f"images/train/{image}", f"annotations/train/{label}")
    assert met(data_config(tmp_path)) == [(image, label)]
    touch(tmp_path, f"JPEGImages/{image}", f"SegmentationClass/{label}")
    write_file(tmp_path / "ImageSets/Segmentation/train.txt", image.encode())
    assert met(data_config(tmp_path, format="voc")) == [(image, label)]


def test_a_double_extension_between_two_images_is_not_guessed(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.jpg", "images/train/a.png.jpg", "annotations/train/a.jpg.png")
    kinds = [finding.kind for finding in list_split(data_config(tmp_path), "train").findings]
    assert kinds == ["missing annotation", "missing annotation", "annotation without image"]


# Lists


@pytest.mark.parametrize("name", ["IMG.2024.05.01", "a b", "scan v1.2 final", "plain"])
@pytest.mark.parametrize("line", ["{}", "{}.jpg", "JPEGImages/{}.jpg", "/Images/{0}.jpg /Labels/{0}.png"])
@pytest.mark.parametrize("format", ["voc", "camvid"])
def test_listed_names_may_have_dots_and_blanks(tmp_path: Path, name: str, line: str, format: str) -> None:
    images, labels, listed = (
        ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt")
        if format == "voc"
        else ("701_StillsRaw_full", "LabeledApproved_full", "train.txt")
    )
    touch(tmp_path, f"{images}/{name}.jpg", f"{labels}/{name}.png")
    touch(tmp_path, f"{images}/IMG.jpg", f"{labels}/IMG.png", f"{images}/scan.jpg", f"{labels}/scan.png")
    write_file(tmp_path / listed, line.format(name).encode())
    assert met(data_config(tmp_path, format=format)) == [(f"{name}.jpg", f"{name}.png")]


def test_a_listed_name_never_stands_for_a_shorter_one(tmp_path: Path) -> None:
    touch(tmp_path, "JPEGImages/a.jpg", "SegmentationClass/a.png")
    write_file(tmp_path / "ImageSets/Segmentation/train.txt", b"a.v2\n")
    with pytest.raises(UserError, match=r"found no JPEGImages/a\.v2\.\*"):
        list_pairs(data_config(tmp_path, format="voc"), "train")


def test_the_image_of_a_line_is_its_first_path() -> None:
    assert listed_names("/JPEGImages/a.jpg /SegmentationClass/b.png")[0] == "a"
    assert listed_names("images/a labels/b") == ["a"]
    assert listed_names("2008_000001  1") == ["2008_000001  1", "2008_000001"]


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("a.jpg a.png", ["a.jpg", "a.png"]),
        ("a b.jpg a b.png", ["a b.jpg", "a b.png"]),
        ("x/a.b c.jpg\ty/a.b c.png", ["x/a.b c.jpg", "y/a.b c.png"]),
        ("my photo 1.jpg", ["my photo 1.jpg"]),
        ("a.jpg b.png c.png", ["a.jpg", "b.png", "c.png"]),
    ],
)
def test_lines_of_two_paths_may_have_blanks(line: str, paths: list[str]) -> None:
    assert split_line(line) == paths


@pytest.mark.parametrize(("mark", "encoding"), [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_of_windows_editors_are_read(tmp_path: Path, mark: bytes, encoding: str, end: str) -> None:
    touch(tmp_path, "JPEGImages/a.jpg", "SegmentationClass/a.png", "JPEGImages/b.jpg", "SegmentationClass/b.png")
    write_file(tmp_path / "ImageSets/Segmentation/train.txt", mark + f"a{end}b{end}".encode(encoding))
    assert met(data_config(tmp_path, format="voc")) == [("a.jpg", "a.png"), ("b.jpg", "b.png")]
    write_file(tmp_path / "train.txt", mark + f"JPEGImages/a.jpg SegmentationClass/a.png{end}".encode(encoding))
    assert met(data_config(tmp_path, format="list")) == [("a.jpg", "a.png")]
