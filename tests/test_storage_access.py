"""The two jobs on storage that holds them to the S3 policies of deploy/aws, with credentials planted to be found again.

One training and one labeled bucket serve both: each job needs all that its policy allows and nothing more, and no
secret of the environment is in what a job prints, writes, or leaves in Ray's logs.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import s3fs

from pipeline import storage
from pipeline.demo.local_s3 import local_s3, s3_environment
from tests.aws_account import aws_account
from tests.conftest import REPOSITORY
from tests.guarded_s3 import Call, GuardedS3, guarded_s3, listed, statements
from tests.pipeline.samples import random_image
from tests.ray_head import ACCESS, ray_head
from tests.requirements import SHM
from tests.scene_data import TRAIN_OPTIONS, write_photos, write_training_set

pytestmark = pytest.mark.slow

BUCKET = "bucket"
# Needed when an upload in parts fails, which none does here.
UNUSED = {"s3:AbortMultipartUpload"}

PLANTED = {
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYID00000001",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+0123456789abcdefghijklmno",
    "AWS_SESSION_TOKEN": "planted-session-0123456789",
}
# The key's id is an identifier and no secret: error messages of S3 may repeat it.
SECRETS = {
    name: value.encode()
    for name, value in {**PLANTED, "RAY_AUTH_TOKEN": ACCESS["RAY_AUTH_TOKEN"]}.items()
    if name != "AWS_ACCESS_KEY_ID"
}


@dataclass
class Guarded:
    """Jobs in processes of their own on guarded storage, and what they printed. The server takes any credentials."""

    guard: GuardedS3
    environment: dict[str, str]
    sessions: Path  # with Ray's logs
    printed: dict[str, bytes] = field(default_factory=dict)  # by job

    def run(self, *command: str, code: int = 0) -> bytes:
        """Return all that a job printed; it must end with this exit code."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
        assert done.returncode == code, f"{done.stdout.decode()}\nrefused: {self.guard.refused}"
        self.printed[command[0]] = self.printed.get(command[0], b"") + done.stdout
        return done.stdout

    def logs(self) -> dict[str, bytes]:
        """Return what lies in Ray's folder of logs, by path."""
        logs = [path for path in self.sessions.rglob("*") if path.suffix in (".log", ".out", ".err", ".json")]
        return {str(path): path.read_bytes() for path in logs if path.is_file()}


@dataclass(frozen=True)
class Ran:
    """The calls of one job, and what it left."""

    allowed: set[Call]
    refused: set[Call]
    written: dict[str, bytes]  # by URI


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the policies of the stack, by the job they are for."""
    with aws_account(tmp_path_factory.mktemp("home"), BUCKET) as account:
        return {name: account.policy(f"sceneparse-{name}") for name in ("training", "segmentation")}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Guard storage with a dataset and photos, and start a Ray head that reaches it through the guard."""
    SHM.check()
    folder: Path = tmp_path_factory.mktemp("guarded")
    with (
        local_s3(folder) as server,
        guarded_s3(server.endpoint, {"Statement": []}) as guard,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**server.environment, **PLANTED}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        filesystem, path = storage.open_filesystem(f"s3://{BUCKET}")
        filesystem.mkdir(path)
        write_training_set(f"s3://{BUCKET}/dataset", num_val=1)
        write_photos(f"s3://{BUCKET}/photos", 9)
        storage.write_bytes(f"s3://{BUCKET}/photos/broken.jpg", random_image(8, 8).tobytes())
        environment = {**s3_environment(guard.endpoint, key="", secret=""), **PLANTED}
        with ray_head(folder, environment, dashboard=False, log_monitor=True) as head:
            yield Guarded(guard, {**os.environ, **environment, **head.environment}, head.sessions)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def training(guarded: Guarded, policies: dict[str, dict[str, Any]]) -> Ran:
    """Train three steps, write a checkpoint after each, and delete one that is neither best nor last."""
    guarded.guard.policy = policies["training"]
    on_one_worker = [*TRAIN_OPTIONS[: TRAIN_OPTIONS.index("--workers.count")], "--workers.count", "1"]
    smaller = ["--no-model.auxiliary", "--model.bins", "1"]  # fewer bytes to upload, with the same requests
    options = [*on_one_worker, *smaller, "--optimization.epochs", "1", "--checkpoint-every", "1"]
    places = ["--data.root", f"s3://{BUCKET}/dataset", "--output", f"s3://{BUCKET}/runs/mine"]
    guarded.run("jobs/train.py", *places, *options)
    return Ran(*guarded.guard.take(), written(f"s3://{BUCKET}/runs/mine"))


@pytest.fixture(scope="module")
def segmentation(guarded: Guarded, policies: dict[str, dict[str, Any]], training: Ran) -> Ran:
    """Label a bucket, go on where something is half done, verify with repair, query, and report."""
    guarded.guard.policy = policies["segmentation"]
    output = f"s3://{BUCKET}/labels"
    command = ["--input", f"s3://{BUCKET}/photos", "--output", output, "--checkpoint", f"s3://{BUCKET}/runs/mine/best"]
    guarded.run("jobs/segment_bucket.py", *command, "--verbose")
    storage.remove(next(iter(storage.find(f"{output}/masks"))))
    guarded.run("jobs/segment_bucket.py", *command)
    guarded.run("jobs/verify.py", output, "--deep", "--repair")
    calls = guarded.guard.take()
    guarded.run("jobs/query.py", output, "SELECT * FROM runs", "--format", "json")
    guarded.run("jobs/report.py", output)
    guarded.guard.take()
    return Ran(*calls, written(output))


def written(prefix: str) -> dict[str, bytes]:
    return {uri: storage.read_bytes(uri) for uri in storage.find(prefix)}


def leaks(contents: dict[str, bytes]) -> list[str]:
    return [
        f"{name} in {place}"
        for place, content in contents.items()
        for name, value in SECRETS.items()
        if value in content
    ]


@pytest.mark.parametrize("name", ["training", "segmentation"])
def test_job_succeeds_with_its_policy_and_needs_all_of_it(
    name: str, policies: dict[str, dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    ran: Ran = request.getfixturevalue(name)
    assert not ran.refused
    unused = {
        (statement["Sid"], action)
        for statement in policies[name]["Statement"]
        for action in set(listed(statement["Action"])) - UNUSED
        if not any(action == call.action and statement in statements(policies[name], call) for call in ran.allowed)
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


def test_a_job_without_its_policy_is_refused(guarded: Guarded) -> None:
    before, guarded.guard.policy = guarded.guard.policy, {"Statement": []}
    assert b"access denied" in guarded.run("jobs/verify.py", f"s3://{BUCKET}/labels", code=2)
    assert guarded.guard.take()[1]
    guarded.guard.policy = before


def test_a_labeled_bucket_its_report_and_the_logs_hold_no_secret(guarded: Guarded, segmentation: Ran) -> None:
    kinds = {uri.split("/")[4] for uri in segmentation.written}
    assert kinds == {"_leases", "masks", "class_stats", "classes.parquet", "runs", "report.html"}
    assert guarded.printed.keys() >= {f"jobs/{job}.py" for job in ("segment_bucket", "verify", "query", "report")}
    logs = guarded.logs()
    assert any("raylet" in name for name in logs)
    assert leaks({**guarded.printed, **segmentation.written, **logs}) == []


def test_a_training_its_configuration_and_its_report_hold_no_secret(guarded: Guarded, training: Ran) -> None:
    kinds = {uri.split("/")[5] for uri in training.written}
    assert {"config.yaml", "environment.json", "report.html"} <= kinds
    assert leaks({"train": guarded.printed["jobs/train.py"], **training.written, **guarded.logs()}) == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["jobs/report.py", "s3://no-such-bucket/labels"], b"no-such-bucket"),
        (["jobs/query.py", f"s3://{BUCKET}/labels", "SELECT * FROM no_such_table"], b"no_such_table"),
        (["jobs/train.py", "--config", "no-such-file.yaml"], b"no-such-file.yaml"),
    ],
)
def test_errors_hold_no_secret(guarded: Guarded, segmentation: Ran, command: list[str], says: bytes) -> None:
    printed = guarded.run(*command, code=2)
    assert says in printed
    assert leaks({"error": printed}) == []


def test_a_leak_would_be_seen() -> None:
    assert leaks({"here": b"x=" + PLANTED["AWS_SECRET_ACCESS_KEY"].encode()}) == ["AWS_SECRET_ACCESS_KEY in here"]
