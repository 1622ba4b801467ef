"""Both jobs through `ray job submit`, as README shows it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import storage
from tests.conftest import REPOSITORY, make_bucket
from tests.output_checks import check_invariants
from tests.ray_head import RayHead
from tests.scene_data import TRAIN_OPTIONS, write_photos, write_training_set

pytestmark = pytest.mark.slow


def submit(head: RayHead, *entrypoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", head.dashboard]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return subprocess.run(
        [*command, "--working-dir", ".", "--", *entrypoint],
        cwd=REPOSITORY,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_train_and_segment_as_submitted_jobs(head: RayHead) -> None:
    bucket = make_bucket()
    write_training_set(bucket, num_train=8, num_val=2)
    uris = write_photos(f"{bucket}/photos", 6)
    token = {name: head.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    options = ["--data.root", bucket, "--output", f"{bucket}/run", "--optimization.epochs", "1"]
    trained = submit(head, "python", "jobs/train.py", *TRAIN_OPTIONS, *options, **token)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "Epoch 1/1 · validation mIoU" in trained.stdout
    assert storage.exists(f"{bucket}/run/best/model.safetensors")

    options = ["--input", f"{bucket}/photos", "--output", f"{bucket}/labels", "--checkpoint", f"{bucket}/run/best"]
    segmented = submit(head, "python", "jobs/segment_bucket.py", *options, **token)
    assert segmented.returncode == 0, segmented.stdout + segmented.stderr
    rows = check_invariants(f"{bucket}/labels", uris)
    assert {row["status"] for row in rows.values()} == {"ok"}

    # The command fails as the job does, and the job's log says why.
    refused = submit(head, "python", "jobs/segment_bucket.py", *options, "--input", f"{bucket}/nothing", **token)
    assert refused.returncode != 0
    assert "no files found" in refused.stdout + refused.stderr


def test_a_submission_without_the_token_is_refused(head: RayHead) -> None:
    refused = submit(head, "python", "jobs/train.py", "--help", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 32)
    assert refused.returncode != 0
    assert "usage: jobs/train.py" not in refused.stdout
    assert "token" in (refused.stdout + refused.stderr).lower()
