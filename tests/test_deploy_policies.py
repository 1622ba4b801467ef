"""The two jobs on storage that holds them to the S3 policies of deploy/aws/account.yaml."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from pipeline import storage
from pipeline.local_s3 import local_s3, s3_environment
from tests.aws_account import aws_account
from tests.conftest import REPOSITORY
from tests.guarded_s3 import Call, GuardedS3, guarded_s3, listed, statements
from tests.ray_head import ray_head
from tests.scene_data import TRAIN_OPTIONS, write_photos, write_training_set

pytestmark = pytest.mark.slow

BUCKET = "bucket"
# Needed when an upload in parts fails, which none does here.
UNUSED = {"s3:AbortMultipartUpload"}

Calls = tuple[set[Call], set[Call]]  # allowed and refused


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of the stack, by the job they are for."""
    with aws_account(tmp_path_factory.mktemp("home"), BUCKET) as account:
        return {name: account.policy(f"sceneparse-{name}") for name in ("training", "segmentation")}


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GuardedS3, Callable[..., None]]]:
    """Guarded storage with a dataset and photos, and what runs a job on it."""
    folder: Path = tmp_path_factory.mktemp("guarded")
    with (
        local_s3(folder) as server,
        guarded_s3(server.endpoint, {"Statement": []}) as guard,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        filesystem, path = storage.open_filesystem(f"s3://{BUCKET}")
        filesystem.mkdir(path)
        write_training_set(f"s3://{BUCKET}/dataset", num_val=1)
        write_photos(f"s3://{BUCKET}/photos", 9)
        environment = s3_environment(guard.endpoint, key="local", secret="local")
        with ray_head(folder, environment) as head:

            def run(script: str, *arguments: str) -> None:
                done = subprocess.run(
                    [sys.executable, script, *arguments],
                    cwd=REPOSITORY,
                    env={**os.environ, **environment, **head.environment},
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrefused: {guard.refused}"

            yield guard, run
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def training(guard: tuple[GuardedS3, Callable[..., None]], policies: dict[str, dict[str, Any]]) -> Calls:
    """A training of three steps that writes a checkpoint after each, and deletes one that is neither best nor last."""
    storage_guard, run = guard
    storage_guard.policy = policies["training"]
    on_one_worker = TRAIN_OPTIONS[: TRAIN_OPTIONS.index("--workers.count")]
    smaller = ["--no-model.auxiliary", "--model.bins", "1"]  # fewer bytes to upload, with the same requests
    options = [*on_one_worker, *smaller, "--optimization.epochs", "1", "--checkpoint-every", "1"]
    run("jobs/train.py", "--data.root", f"s3://{BUCKET}/dataset", "--output", f"s3://{BUCKET}/runs/mine", *options)
    return storage_guard.take()


@pytest.fixture(scope="module")
def segmentation(
    guard: tuple[GuardedS3, Callable[..., None]], policies: dict[str, dict[str, Any]], training: Calls
) -> Calls:
    """A labelling, another that finds something half done, and a verification that mends."""
    storage_guard, run = guard
    storage_guard.policy = policies["segmentation"]
    output = f"s3://{BUCKET}/labels"
    command = ["--input", f"s3://{BUCKET}/photos", "--output", output, "--checkpoint", f"s3://{BUCKET}/runs/mine/best"]
    run("jobs/segment_bucket.py", *command)
    storage.remove(next(iter(storage.find(f"{output}/masks"))))
    run("jobs/segment_bucket.py", *command)
    run("jobs/verify.py", "--output", output, "--deep", "--repair")
    return storage_guard.take()


@pytest.mark.parametrize("name", ["training", "segmentation"])
def test_job_succeeds_with_its_policy_and_needs_all_of_it(
    name: str, policies: dict[str, dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    allowed, refused = request.getfixturevalue(name)
    assert not refused
    unused = {
        (statement["Sid"], action)
        for statement in policies[name]["Statement"]
        for action in set(listed(statement["Action"])) - UNUSED
        if not any(action == call.action and statement in statements(policies[name], call) for call in allowed)
    }
    assert not unused


def test_policies_confine_each_job_to_its_places(policies: dict[str, dict[str, Any]]) -> None:
    for name, action, key in (
        ("training", "s3:PutObject", "dataset/images/train/0.jpg"),
        ("training", "s3:DeleteObject", "labels/masks/part.parquet"),
        ("training", "s3:GetObject", "photos/1.jpg"),
        ("segmentation", "s3:PutObject", "photos/1.jpg"),
        ("segmentation", "s3:DeleteObject", "runs/mine/best/model.safetensors"),
        ("segmentation", "s3:GetObject", "dataset/images/train/0.jpg"),
        ("segmentation", "s3:DeleteObject", "labels2/masks/part.parquet"),
    ):
        assert not statements(policies[name], Call(action, f"arn:aws:s3:::{BUCKET}/{key}")), (name, action, key)


def test_a_job_without_its_policy_is_refused(guard: tuple[GuardedS3, Callable[..., None]]) -> None:
    storage_guard, run = guard
    storage_guard.policy = {"Statement": []}
    with pytest.raises(AssertionError, match="access denied"):
        run("jobs/verify.py", "--output", f"s3://{BUCKET}/labels")
    assert storage_guard.take()[1]
