"""jobs/train.py on a Ray cluster and a bucket, as a user runs it."""

import posixpath
import re

import numpy as np
import pytest

import models
from pipeline import storage
from tests.conftest import RunJob, make_bucket
from tests.finished_training import OPTIONS, FinishedTraining
from tests.pipeline.samples import encoded
from tests.scene_data import SIZE, TRAIN_OPTIONS, write_training_set

pytestmark = pytest.mark.slow


def test_prints_progress_and_metrics(uninterrupted: FinishedTraining) -> None:
    printed = uninterrupted.printed
    assert "Starting the workers and preparing the first batch" in printed
    assert "Epoch 1/2 · step 2/4 · loss " in printed
    assert "learning rate " in printed
    assert "images/s" in printed
    assert "left" in printed
    assert "Epoch 2/2 · validation mIoU" in printed
    assert "Best checkpoint" in printed
    assert "Verdict" in printed


def test_keeps_best_and_last_as_checkpoints_without_training_state(uninterrupted: FinishedTraining) -> None:
    output = uninterrupted.output
    for name in ("best", "last"):
        files = [posixpath.basename(uri) for uri in storage.find(f"{output}/{name}")]
        assert files == ["config.json", "model.safetensors"]
        with storage.local_copy(f"{output}/{name}") as folder:
            _, metadata = models.load(folder)
        assert metadata.classes[0] == "sky"
        assert 0 <= metadata.metrics["miou"] <= 1
    with storage.local_copy(f"{output}/last") as folder:
        assert models.load(folder)[1].metrics["epoch"] == 2


def test_the_same_command_on_a_finished_run_changes_nothing(uninterrupted: FinishedTraining, run_job: RunJob) -> None:
    output = uninterrupted.output
    before = storage.read_bytes(f"{output}/last/model.safetensors")
    again = run_job("jobs/train.py", "--data.root", uninterrupted.root, "--output", output, *OPTIONS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "· loss " not in again.stdout
    assert storage.read_bytes(f"{output}/last/model.safetensors") == before


def test_another_configuration_is_refused_with_the_differing_keys(
    uninterrupted: FinishedTraining, run_job: RunJob
) -> None:
    output = uninterrupted.output
    renamed = [option.replace('"sky"', '"heaven"') for option in OPTIONS]
    other = run_job(
        *("jobs/train.py", "--data.root", uninterrupted.root, "--output", output, *renamed),
        *("--optimization.learning-rate", "0.5"),
    )
    assert other.returncode == 2
    assert "optimization.learning_rate: 0.01 before, 0.5 now" in other.stderr
    assert "data.classes: [{'name': 'sky'" in other.stderr
    assert "data.root" not in other.stderr


def test_a_bad_annotation_met_by_one_worker_stops_all_with_its_name(run_job: RunJob) -> None:
    root = make_bucket()
    write_training_set(root, num_train=24)  # of which the check before the training reads two in three
    unknown_HW3 = np.full((SIZE, SIZE, 3), (7, 8, 9), np.uint8)
    storage.write_bytes(f"{root}/annotations/train/0005.png", encoded(unknown_HW3, "PNG"))
    done = run_job("jobs/train.py", "--data.root", root, "--output", f"{root}/run", *TRAIN_OPTIONS)
    assert done.returncode == 2
    assert f"error: annotation {root}/annotations/train/0005.png: " in done.stderr
    assert "(7, 8, 9)" in done.stderr  # its color, which is no class's
    assert "Traceback" not in done.stderr


def test_a_loss_that_is_not_finite_stops_with_the_step_the_images_and_the_last_checkpoint(
    uninterrupted: FinishedTraining, run_job: RunJob
) -> None:
    root, output = uninterrupted.root, uninterrupted.beside("nan")
    options = ["--optimization.learning-rate", "1e30", "--checkpoint-every", "1", "--optimization.precision", "float32"]
    done = run_job("jobs/train.py", "--data.root", root, "--output", output, *TRAIN_OPTIONS, *options)
    assert done.returncode == 2
    assert re.search(
        r"error: the loss became (nan|inf).* in step \d, epoch 1; lower optimization.learning_rate", done.stderr
    )
    assert f"the last good checkpoint is {output}/checkpoint_0000000" in done.stderr
    named = re.findall(rf"^  {root}/images/train/\d+.jpg$", done.stderr, re.MULTILINE)
    assert len(named) == 4  # the batch's images
    assert "Traceback" not in done.stderr
    checkpoint = re.search(r"last good checkpoint is (\S+),", done.stderr)
    assert checkpoint
    with storage.local_copy(checkpoint[1]) as folder:
        models.load(folder)


def test_more_workers_than_the_cluster_holds_are_refused(uninterrupted: FinishedTraining, run_job: RunJob) -> None:
    output = uninterrupted.beside("big")
    done = run_job(
        *("jobs/train.py", "--data.root", uninterrupted.root, "--output", output, *TRAIN_OPTIONS),
        *("--workers.count", "2", "--workers.cpus", "50"),
    )
    assert done.returncode == 2
    assert (
        "2 workers with 50 CPU(s) each, 1 validation predictors with 1 CPU(s) each and 1 CPU(s) for decoding need "
        "102 CPUs and 0 GPUs, but the cluster has 8 and 0; lower workers.count or workers.cpus, or add nodes"
        in done.stderr
    )
