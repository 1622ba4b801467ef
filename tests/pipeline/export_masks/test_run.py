"""Exports that go on where they stopped, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.export_masks import main
from pipeline import storage
from pipeline.errors import UserError
from pipeline.export_masks import tasks
from pipeline.export_masks.run import SETTINGS
from pipeline.images.codec import decode_image, decode_label, encode_image
from pipeline.output import parts
from pipeline.output.parquet import read_table
from tests.conftest import REPOSITORY
from tests.pipeline.exported_output import KEYS, SIZE, ThreeImages, tree, write_output
from tests.pipeline.image_corpus import tiff
from tests.small_output import write_small_output


@pytest.fixture
def three(tmp_path: Path) -> ThreeImages:
    return ThreeImages(f"file://{tmp_path}")


# Going on


def written(target: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(target.removeprefix("file://")).rglob("*.png")}


def test_the_same_command_does_only_what_is_left(three: ThreeImages, capsys: pytest.CaptureFixture[str]) -> None:
    target = three.export("png")
    before = written(target)
    capsys.readouterr()
    three.export("png")
    printed = capsys.readouterr().out
    assert printed.startswith(f"Exporting   {three.labels}\n"), "nothing is printed before the output is read"
    assert "0 exported, 3 already exported" in printed
    assert written(target) == before
    write_output(three.labels, {f"{three.photos}/2024/new.jpg": np.zeros((1, 1), np.uint8)}, run_id="3")
    three.export("png")
    assert "1 exported, 3 already exported" in capsys.readouterr().out
    assert {**written(target), **before} == written(target)
    assert "new.png" in written(target)


def test_the_recorded_settings_are_those_of_version_0_1_so_that_its_exports_go_on(three: ThreeImages) -> None:
    recorded = json.loads(storage.read_bytes(f"{three.export('png')}/.export/settings.json"))["settings"]
    assert recorded == {
        "format": "png",
        "where": None,
        "strip": None,
        "split": "train",
        "copy_images": True,
        "opacity": 0.5,
        "things": [],
        "label_ids": {},
        "min_area": 16,
        "min_confidence": None,
        "checkpoint": None,
        "precision": None,
        "output": three.labels,
        "model": recorded["model"],
    }


def test_an_interrupted_export_goes_on_with_the_parts_that_are_missing(
    three: ThreeImages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, called = tasks._exported, []

    def stops(*arguments: Any, **options: Any) -> Any:
        called.append(arguments)
        if len(called) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(tasks, "THREADS", 1)
    monkeypatch.setattr(tasks, "_exported", stops)
    with pytest.raises(KeyboardInterrupt):
        three.export("coco-rle")
    monkeypatch.setattr(tasks, "_exported", real)
    target = three.export("coco-rle")
    assert "already exported" in (said := capsys.readouterr().out)
    assert "3 exported" not in said, "nothing was kept of what was done"
    assert len(json.loads(storage.read_bytes(f"{target}/annotations.json"))["images"]) == 3


def test_files_about_all_images_follow_the_output(three: ThreeImages) -> None:
    """A part that was rewritten, as after --retry-errors, counts once."""
    target = three.export("coco-rle")
    first = three.parts[0]
    masks, class_stats = (read_table(f"{three.labels}/{table}/{first}") for table in ("masks", "class_stats"))
    uris = [f"{three.photos}/{key}" for key in KEYS]
    parts.write_part(
        three.labels,
        parts.part_name("run", masks[:1]),
        masks[:1],
        class_stats.filter(pc.equal(class_stats["image_uri"], uris[0])),
    )
    parts.remove_part(three.labels, first)
    write_output(three.labels, {uris[1]: np.full(SIZE, 5, np.uint8)}, run_id="run3")
    three.export("coco-rle")
    content = json.loads(storage.read_bytes(f"{target}/annotations.json"))
    assert sorted(image["file_name"] for image in content["images"]) == KEYS
    numbers = {image["file_name"]: image["id"] for image in content["images"]}
    of_second = [entry for entry in content["annotations"] if entry["image_id"] == numbers[KEYS[1]]]
    assert [entry["category_id"] for entry in of_second] == [6]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("--where", "width > 3", "where None, not 'width > 3'"), ("--format", "overlay", "format 'png', not 'overlay'")],
)
def test_a_target_holds_one_export(three: ThreeImages, option: str, value: str, told: str) -> None:
    target = three.export("png")
    with pytest.raises(UserError, match=f"was exported with {told}; choose another target"):
        main([three.labels, "--to", target, option, value])


def test_new_images_elsewhere_do_not_move_the_names(three: ThreeImages) -> None:
    target = three.export("png")
    write_output(three.labels, {"s3://other/z.jpg": np.zeros((1, 1), np.uint8)}, run_id="3")
    with pytest.raises(UserError, match="but now some images are not in it; choose another target"):
        main([three.labels, "--to", target])


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"folder": ""}'])
def test_a_target_whose_record_is_damaged_is_refused(three: ThreeImages, content: bytes) -> None:
    target = three.export("png")
    storage.write_bytes(f"{target}/{SETTINGS}", content)
    with pytest.raises(UserError, match=f"{SETTINGS}: not a settings file of an export; choose another target"):
        main([three.labels, "--to", target])


# What is missing or in the way


def test_an_output_with_labels_of_two_models_is_refused(three: ThreeImages) -> None:
    write_output(three.labels, {"s3://photos/z.jpg": np.zeros((1, 1), np.uint8)}, run_id="3", model_id="another")
    with pytest.raises(UserError, match=r"contains masks of several models; run python jobs/verify\.py for details"):
        three.export("png")


def test_images_that_are_gone_are_told_and_tried_again(three: ThreeImages, capsys: pytest.CaptureFixture[str]) -> None:
    gone = f"{three.photos}/{KEYS[0]}"
    content = storage.read_bytes(gone)
    storage.remove(gone)
    target = three.export("overlay", code=1)
    said = capsys.readouterr().out
    assert "2 exported, 0 already exported, 1 failed" in said
    assert f"  {gone}: NotFound: " in said
    assert tree(target) == ["2023/b.jpg", "2024/c 1.jpg", "classes.csv"]
    storage.write_bytes(gone, content)
    three.export("overlay")
    assert "2 exported, 1 already exported, 0 failed" in capsys.readouterr().out
    assert "2023/a.jpg" in tree(target)


def test_an_image_has_the_bands_that_the_last_run_selected(three: ThreeImages) -> None:
    bands_HW4 = np.zeros((*SIZE, 4), np.uint8)
    bands_HW4[..., 3] = 200
    content = tiff(bands_HW4, photometric="minisblack", planarconfig="contig")
    for key in KEYS:
        storage.write_bytes(f"{three.photos}/{key}", content)
    configuration = {"bands": "4,1,1", "value_range": "0,200"}
    run = {"run_id": "run2", "configuration": configuration, "outcomes": {"ok": 3}}
    storage.write_bytes(f"{three.labels}/runs/run2.json", json.dumps(run).encode())
    target = three.export("overlay", "--opacity", "0")
    exported_HW3 = decode_image(storage.read_bytes(f"{target}/2023/a.jpg"))
    np.testing.assert_allclose(exported_HW3.astype(int), np.full((*SIZE, 3), (255, 0, 0)), atol=4)


def test_an_image_of_another_size_than_its_mask_is_told(three: ThreeImages, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write_bytes(f"{three.photos}/{KEYS[0]}", encode_image(np.zeros((5, 7, 3), np.uint8)))
    three.export("overlay", code=1)
    assert (
        "is 7 x 5 pixels, but its mask is 32 x 24; the image has changed since it was labeled"
        in capsys.readouterr().out
    )


def test_images_are_not_written_over(three: ThreeImages) -> None:
    with pytest.raises(
        UserError, match=r"contains .*2023/a.jpg, an image of the output that the export could overwrite"
    ):
        three.export("png", target=three.photos)
    with pytest.raises(UserError, match="is inside the output"):
        three.export("png", target=f"{three.labels}/masks")


def test_other_peoples_files_are_not_written_over(three: ThreeImages) -> None:
    storage.write_bytes(f"{three.root}/png/notes.txt", b"mine")
    with pytest.raises(
        UserError, match=r"contains files not written by an export, such as .*notes.txt; choose an empty"
    ):
        three.export("png")


def test_an_output_without_anything_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no masks/\*.parquet; use the --output of a jobs/segment_bucket.py run"):
        main([f"{tmp_path}/labels", "--to", f"{tmp_path}/target"])
    assert not (tmp_path / "target").exists()


def test_an_output_without_a_labelled_image_says_where_to_look(tmp_path: Path) -> None:
    write_small_output(tmp_path / "labels")
    (name,) = (tmp_path / "labels/masks").iterdir()
    table = pq.read_table(name)
    pq.write_table(table.filter(pc.equal(table["image_uri"], "s3://photos/c.jpg")), name)
    with pytest.raises(UserError, match=r"has no labeled images; run python jobs/query.py OUTPUT failures to see why"):
        main([f"{tmp_path}/labels", "--to", f"{tmp_path}/target"])


def test_a_condition_that_is_true_of_nothing_is_told(three: ThreeImages) -> None:
    with pytest.raises(UserError, match=r"--where width = 1: matches none of its 3 labeled images"):
        three.export("png", "--where", "width = 1")


def test_failed_images_are_left_out_and_an_unfinished_run_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small_output(tmp_path / "labels")
    assert main([f"{tmp_path}/labels", "--to", f"{tmp_path}/target"]) == 0
    assert tree(f"{tmp_path}/target") == ["a.png", "b.png", "classes.csv"]
    assert "note: output" in (said := capsys.readouterr().err)
    assert "no run has finished yet" in said


def test_an_output_of_an_older_schema_is_exported_with_a_note(
    three: ThreeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"{three.labels}/classes.parquet".removeprefix("file://")
    pq.write_table(pq.read_table(uri).replace_schema_metadata({"sceneparse.schema_version": "2"}), uri)
    for name in three.parts:
        part = f"{three.labels}/masks/{name}".removeprefix("file://")
        pq.write_table(pq.read_table(part).drop_columns(["low_confidence_boxes", "carried"]), part)
    assert len(tree(three.export("coco-panoptic"))) == 4
    assert "has table schema version 2, but this Sceneparse uses" in capsys.readouterr().err


def test_tables_of_something_else_are_refused(three: ThreeImages) -> None:
    uri = f"{three.labels}/classes.parquet".removeprefix("file://")
    pq.write_table(pq.read_table(uri).replace_schema_metadata(None), uri)
    with pytest.raises(UserError, match=r"its classes.parquet was not written by segment_bucket.py"):
        three.export("png")


def test_a_damaged_part_is_named(three: ThreeImages) -> None:
    uri = f"{three.labels}/masks/{three.parts[0]}"
    content = bytearray(storage.read_bytes(uri))
    start = content.index(b"\x89PNG")
    content[start : start + 60] = bytes(60)
    storage.write_bytes(uri, bytes(content))
    assert main([three.labels, "--to", f"{three.root}/t", "--format", "coco-rle"]) == 1
    storage.write_bytes(uri, bytes(content[:-100]))
    with pytest.raises(UserError, match=three.parts[0]):
        three.export("png")


@pytest.mark.parametrize("kind", ["png", "coco-panoptic", "coco-rle", "yolo-seg", "fiftyone", "dataset", "overlay"])
def test_a_thousand_classes_and_an_image_of_one_pixel(kind: str, tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(1000)]
    masks = {
        f"file://{tmp_path}/photos/many.jpg": (np.arange(40 * 50).reshape(40, 50) % 1000).astype(np.uint16),
        f"file://{tmp_path}/photos/one.jpg": np.array([[999]], np.uint16),
    }
    for uri, ids_HW in masks.items():
        storage.write_bytes(uri, encode_image(np.zeros((*ids_HW.shape, 3), np.uint8)))
    write_output(tmp_path / "labels", masks, names)
    assert main([f"{tmp_path}/labels", "--to", f"{tmp_path}/target", "--format", kind]) == 0
    if kind == "png":
        assert decode_label((tmp_path / "target/one.png").read_bytes()).tolist() == [[999]]
    if kind == "yolo-seg":
        assert (tmp_path / "target/labels/train/one.txt").read_bytes() == b"", "smaller than --min-area"
    if kind.startswith("coco"):
        (path,) = (tmp_path / "target").glob("*.json")
        annotations = json.loads(path.read_bytes())["annotations"]
        assert len(annotations) == (1001 if kind == "coco-rle" else 2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--format", "dataset", "--min-confidence", "0.5"], "min_confidence and checkpoint must be set together"),
        (["--min-confidence", "0.5", "--checkpoint", "c"], "min_confidence works only with format dataset"),
        (["--split", "../up"], "split: '../up' is not allowed"),
        (
            ["--format", "coco-panoptic", "--things", "dog"],
            "things: 'dog': not a class of the output; its classes are sky, grass",
        ),
    ],
)
def test_options_that_do_not_fit_are_told(three: ThreeImages, options: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        main([three.labels, "--to", f"{three.root}/t", *options])
    assert not storage.exists(f"{three.root}/t")


def test_without_images_to_label_it_needs_neither_ray_nor_torch(three: ThreeImages) -> None:
    arguments = [three.labels, "--to", f"{three.root}/t"]
    code = f"import sys; from jobs.export_masks import main; main({arguments}); "
    code += "assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
