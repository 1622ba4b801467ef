"""jobs/validate_dataset.py as a user runs it: what it prints and writes, and its exit code."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import storage
from pipeline.datasets.scenes import CLASSES, scene
from pipeline.images.codec import encode_image, encode_mask
from tests.conftest import RunJob
from tests.scene_data import PALETTE, SIZE, write_training_set

pytestmark = pytest.mark.slow

SCRIPT = "jobs/validate_dataset.py"
CLASS_OPTION = ("--data.classes", json.dumps([{"name": entry.name, "color": entry.color} for entry in CLASSES]))


def test_a_good_dataset_in_a_bucket_passes_with_the_recipe_that_trains_on_it(
    run_job: RunJob, bucket: str, tmp_path: Path
) -> None:
    write_training_set(f"{bucket}/scenes", num_train=40, num_val=5)
    recipe = tmp_path / "recipe.yaml"
    classes = [{"name": entry.name, "color": list(entry.color)} for entry in CLASSES]
    recipe.write_text(yaml.safe_dump({"data": {"classes": classes}, "augment": {"crop": [65, 65]}}))
    options = ["--config", str(recipe), "--data.root", f"{bucket}/scenes", "--output", f"{bucket}/check"]
    done = run_job(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    assert "40 pairs in train, 5 pairs in val" in done.stdout
    assert "0 error(s)" in done.stdout
    about = json.loads(storage.read_bytes(f"{bucket}/check/dataset.json"))
    labels = np.stack([scene(0, index, SIZE, SIZE)[1] for index in range(40)])
    assert [found["pixel_count"] for found in about["splits"]["train"]["classes"]] == [
        int((labels == k).sum()) for k in range(len(CLASSES))
    ]
    assert storage.read_bytes(f"{bucket}/check/dataset.html").startswith(b"<!doctype html>")


def test_a_bad_dataset_fails_with_everything_that_is_wrong_with_it(run_job: RunJob, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    write_training_set(str(root), num_train=6, num_val=2)
    image_HW3, label_HW = scene(0, 0, SIZE, SIZE)
    (root / "images/train/0001.jpg").write_bytes(b"")
    (root / "annotations/train/0002.png").write_bytes(b"no image")
    (root / "annotations/train/0003.png").write_bytes(encode_mask(np.full((SIZE, SIZE), 77, np.uint8), PALETTE))
    (root / "annotations/train/0004.png").write_bytes(encode_mask(label_HW[:-1], PALETTE))
    (root / "annotations/train/0005.png").unlink()
    (root / "images/val/copy.jpg").write_bytes(encode_image(image_HW3))
    (root / "annotations/val/copy.png").write_bytes(encode_mask(label_HW, PALETTE))
    done = run_job(SCRIPT, *CLASS_OPTION, "--data.root", str(root), "--output", str(tmp_path / "check"))
    assert done.returncode == 1, done.stderr
    about = json.loads((tmp_path / "check/dataset.json").read_text())
    errors = {
        found["kind"]: [example["where"].rpartition("/")[2] for example in found["examples"]]
        for found in about["findings"]
        if found["severity"] == "error"
    }
    assert errors == {
        "unreadable image": ["0001.jpg"],
        "unreadable annotation": ["0002.png"],
        "ids outside the classes": ["0003.png"],
        "sizes differ": ["0004.png"],
        "missing annotation": ["0005.jpg"],
        "duplicate between splits": ["0000.jpg (train)"],
    }
    for kind in errors:
        assert f"error       {kind}: 1; " in done.stdout


def test_a_dataset_that_is_not_there_at_all_is_the_users_to_mend(run_job: RunJob, tmp_path: Path) -> None:
    done = run_job(SCRIPT, "--data.format", "voc", "--data.root", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: file://{tmp_path}/ImageSets/Segmentation/train.txt: not found")
    assert "Traceback" not in done.stderr
