"""jobs/train.py on a Ray cluster and a bucket, as a user runs it."""

import os
import posixpath
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import models
from pipeline import storage
from pipeline.images import encode_image
from tests.conftest import REPOSITORY, RunJob, make_bucket
from tests.ray_head import RayHead
from tests.scene_data import SIZE, TRAIN_OPTIONS, write_training_set

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(head: RayHead) -> str:
    bucket = make_bucket()
    write_training_set(f"{bucket}/scenes")
    return f"{bucket}/scenes"


@pytest.fixture(scope="module")
def trained(root: str, run_job: RunJob) -> tuple[str, str]:
    """Output and terminal of a finished run."""
    output = posixpath.join(posixpath.dirname(root), "run")
    done = run_job("jobs/train.py", "--data.root", root, "--output", output, *TRAIN_OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout


def test_prints_progress_and_metrics(trained: tuple[str, str]) -> None:
    _, printed = trained
    assert "Epoch 1/2 · step 2/3 · loss " in printed
    assert "learning rate " in printed
    assert "images/s" in printed
    assert "left" in printed
    assert "Epoch 2/2 · validation mIoU" in printed
    assert "Best checkpoint" in printed


def test_keeps_best_and_last_as_checkpoints_without_training_state(trained: tuple[str, str]) -> None:
    output, _ = trained
    for name in ("best", "last"):
        files = [posixpath.basename(uri) for uri in storage.find(f"{output}/{name}")]
        assert files == ["config.json", "model.safetensors"]
        with storage.local_copy(f"{output}/{name}") as folder:
            _, metadata = models.load(folder)
        assert metadata.classes[0] == "sky"
        assert 0 <= metadata.metrics["miou"] <= 1
    with storage.local_copy(f"{output}/last") as folder:
        assert models.load(folder)[1].metrics["epoch"] == 2


def test_the_same_command_on_a_finished_run_changes_nothing(
    trained: tuple[str, str], root: str, run_job: RunJob
) -> None:
    output, _ = trained
    before = storage.read_bytes(f"{output}/last/model.safetensors")
    again = run_job("jobs/train.py", "--data.root", root, "--output", output, *TRAIN_OPTIONS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "loss" not in again.stdout
    assert storage.read_bytes(f"{output}/last/model.safetensors") == before


def test_another_configuration_is_refused_with_the_differing_keys(
    trained: tuple[str, str], root: str, run_job: RunJob
) -> None:
    output, _ = trained
    renamed = [option.replace('"sky"', '"heaven"') for option in TRAIN_OPTIONS]
    other = run_job(
        *("jobs/train.py", "--data.root", root, "--output", output, *renamed),
        *("--optimization.learning-rate", "0.5"),
    )
    assert other.returncode == 2
    assert "optimization.learning_rate: 0.01 before, 0.5 now" in other.stderr
    assert "data.classes: [{'name': 'sky'" in other.stderr
    assert "data.root" not in other.stderr


def test_resumes_with_the_same_command_after_a_kill_and_ends_with_the_same_weights(
    trained: tuple[str, str], root: str, head: RayHead, run_job: RunJob
) -> None:
    output = posixpath.join(posixpath.dirname(root), "killed")
    command = ["jobs/train.py", "--data.root", root, "--output", output, *TRAIN_OPTIONS]
    environment = {**os.environ, **head.environment}
    with subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, env=environment) as driver:
        deadline = time.monotonic() + 240
        # Until then a checkpoint in storage is not yet one to resume from.
        recorded = f"{output}/checkpoint_manager_snapshot.json"
        while not (storage.exists(recorded) and b"checkpoint_" in storage.read_bytes(recorded)):
            assert driver.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        driver.send_signal(signal.SIGKILL)
    done = run_job(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    if "loss" in done.stdout:  # otherwise the kill came after the last epoch
        assert "Resuming after step 3 of 6" in done.stdout
    with storage.local_copy(f"{output}/last") as folder:
        resumed, metadata = models.load(folder)
    assert metadata.metrics["epoch"] == 2
    with storage.local_copy(f"{trained[0]}/last") as folder:
        uninterrupted, _ = models.load(folder)
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_bad_annotation_met_by_one_worker_stops_all_with_its_name(run_job: RunJob) -> None:
    root = make_bucket()
    write_training_set(root)
    storage.write_bytes(f"{root}/annotations/train/0007.png", encode_image(np.full((SIZE, SIZE, 3), 7, np.uint8)))
    done = run_job("jobs/train.py", "--data.root", root, "--output", f"{root}/run", *TRAIN_OPTIONS)
    assert done.returncode == 2
    assert f"error: annotation {root}/annotations/train/0007.png: " in done.stderr
    assert "(7, 7, 7)" in done.stderr  # its colour, which is no class's
    assert "Traceback" not in done.stderr


def test_a_loss_that_is_not_finite_stops_with_the_step_the_images_and_the_last_checkpoint(
    root: str, run_job: RunJob
) -> None:
    output = posixpath.join(posixpath.dirname(root), "nan")
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


def test_more_workers_than_the_cluster_holds_are_refused(root: str, run_job: RunJob) -> None:
    done = run_job(
        *("jobs/train.py", "--data.root", root, "--output", f"{root}-big", *TRAIN_OPTIONS),
        *("--workers.count", "2", "--workers.cpus", "50"),
    )
    assert done.returncode == 2
    assert (
        "2 with 50 CPU(s) each, 1 CPU(s) for validation and one to decode images need 102 CPUs, the cluster has 8"
        in done.stderr
    )
