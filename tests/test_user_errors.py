"""An error that the user can fix, raised in a Ray task or actor, ends each job with one line on stderr."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import storage
from pipeline.datasets import validation
from pipeline.errors import UserError
from pipeline.export_masks import run as export_run
from pipeline.images.codec import encode_mask
from tests.conftest import RunJob, run_process
from tests.evaluation_samples import save_model
from tests.pipeline.samples import write_file
from tests.ray_head import RayHead
from tests.scene_data import PALETTE, TRAIN_OPTIONS, write_training_set
from tests.small_output import write_small_output
from tests.test_job_submit import submit

pytestmark = pytest.mark.slow

NUM_FILES = 240  # enough to judge the error rate
OUTSIDE = "label id(s) 77 are outside the 11 classes (0 to 10) and not the ignore_index 255; add a class for each to "
OUTSIDE += "data.classes, which has 11, or map each with data.label_map to the class that it means"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "best")


def write_label_outside(root: str, name: str) -> str:
    """Overwrite an annotation by one of an unknown class, and return its URI."""
    uri = f"{root}/annotations/{name}"
    storage.write_bytes(uri, encode_mask(np.full((65, 65), 77, np.uint8), PALETTE))
    return uri


def evaluation_of(root: str, checkpoint: str) -> tuple[list[str], str]:
    """Write a dataset with an unknown class; return the options of its evaluation, and the error."""
    write_training_set(root, num_train=0, num_val=2)
    label = write_label_outside(root, "val/1001.png")
    return ["--checkpoint", checkpoint, "--data.root", root], f"annotation {label}: {OUTSIDE}"


@pytest.mark.parametrize("where", ["on the head", "on a Ray of its own"])
def test_a_segmentation_of_files_that_are_no_images(
    where: str, run_job: RunJob, checkpoint: str, tmp_path: Path
) -> None:
    for number in range(NUM_FILES):
        write_file(tmp_path / "texts" / f"{number:03}.jpg", b"no image")
    run = run_job if where == "on the head" else run_process
    options = ["--input", str(tmp_path / "texts"), "--output", str(tmp_path / "labels"), "--max-error-rate", "0.1"]
    done = run("jobs/segment_bucket.py", *options, "--checkpoint", checkpoint)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: max_error_rate 0.1: ")
    assert line.endswith("raise --max-error-rate")


def test_an_evaluation_with_labels_of_no_class(run_job: RunJob, checkpoint: str, tmp_path: Path) -> None:
    options, error = evaluation_of(tmp_path.as_uri(), checkpoint)
    done = run_job("jobs/evaluate.py", *options)
    assert (done.returncode, done.stderr) == (2, f"error: {error}\n")


def test_a_submitted_evaluation_with_labels_of_no_class(head: RayHead, checkpoint: str, tmp_path: Path) -> None:
    options, error = evaluation_of(tmp_path.as_uri(), checkpoint)
    token = {name: head.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    done = submit(head, "python", "jobs/evaluate.py", *options, **token)
    assert done.returncode != 0
    log = done.stdout[done.stdout.index("Loading PyTorch and Ray") :].splitlines()
    assert log[2].startswith("Evaluating ")
    assert log[3] == f"error: {error}"
    assert "Traceback" not in done.stdout + done.stderr


def test_a_training_that_meets_labels_of_no_class(run_job: RunJob, tmp_path: Path) -> None:
    root = f"{tmp_path.as_uri()}/set"
    write_training_set(root, num_train=20, num_val=1)
    label = write_label_outside(root, "train/0004.png")  # not among those that are read before the start
    done = run_job("jobs/train.py", *TRAIN_OPTIONS, "--data.root", root, "--output", str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (2, f"error: annotation {label}: {OUTSIDE}\n")


def test_a_validation_whose_storage_fails(run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Iterator[Any]:
        raise UserError("s3://photos/a.png: storage failed")
        yield

    monkeypatch.setattr(validation, "read_block", unreachable)
    write_training_set(tmp_path.as_uri(), num_train=2, num_val=1)
    classes = json.dumps([{"name": f"class {k}", "color": [k, k, k]} for k in range(11)])
    done = run_job("jobs/validate_dataset.py", "--data.root", str(tmp_path), "--data.classes", classes)
    assert (done.returncode, done.stderr) == (2, "error: s3://photos/a.png: storage failed\n")


def test_an_export_whose_part_is_damaged_meanwhile(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_output(tmp_path / "labels")
    (part,) = (tmp_path / "labels" / "masks").iterdir()
    export_on_ray = export_run._on_ray

    def damaged_meanwhile(*arguments: Any) -> Any:
        part.write_bytes(part.read_bytes()[:-100])
        return export_on_ray(*arguments)

    monkeypatch.setattr(export_run, "FEW", 0)
    monkeypatch.setattr(export_run, "_on_ray", damaged_meanwhile)
    done = run_job("jobs/export_masks.py", str(tmp_path / "labels"), "--to", str(tmp_path / "masks"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {part.as_uri()}: is damaged or truncated: ")
