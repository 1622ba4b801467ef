"""Credentials of the environment reach storage, and nothing that a job prints, writes or leaves behind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs

from pipeline import storage
from pipeline.local_s3 import local_s3
from tests.conftest import REPOSITORY
from tests.pipeline.samples import random_image
from tests.ray_head import sessions_folder
from tests.scene_data import TRAIN_OPTIONS, write_photos, write_training_set
from tests.test_segment_job import save_checkpoint, upload

pytestmark = pytest.mark.slow

PLANTED = {
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYID00000001",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+0123456789abcdefghijklmno",
    "AWS_SESSION_TOKEN": "planted-session-0123456789",
    "RAY_AUTH_TOKEN": "feedfeedfeedfeedfeedfeedfeedfeed",
}
# An identifier and no secret: error messages of S3 may repeat it.
SECRETS = {name: value.encode() for name, value in PLANTED.items() if name != "AWS_ACCESS_KEY_ID"}


@dataclass(frozen=True)
class Planted:
    """Where jobs run with planted credentials; the server takes any."""

    environment: dict[str, str]
    sessions: Path  # Ray's logs

    def run(self, *command: str, code: int = 0) -> bytes:
        """What a job says, all of it."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        assert done.returncode == code, done.stdout.decode()
        return done.stdout

    def told_by_ray(self) -> dict[str, bytes]:
        logs = [path for path in self.sessions.rglob("*") if path.suffix in (".log", ".out", ".err", ".json")]
        return {str(path): path.read_bytes() for path in logs if path.is_file()}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    folder = tmp_path_factory.mktemp("planted")
    with local_s3(folder) as server, sessions_folder() as sessions, pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.environment, **PLANTED}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        filesystem, path = storage.open_filesystem("s3://bucket")
        filesystem.mkdir(path)
        save_checkpoint(folder / "checkpoint")
        upload(folder / "checkpoint", "s3://bucket/checkpoint")
        write_photos("s3://bucket/photos", 3)
        storage.write_bytes("s3://bucket/photos/broken.jpg", random_image(8, 8).tobytes())
        # A Ray of the job's own, whose logs are this test's.
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        yield Planted({**environment, "RAY_TMPDIR": sessions}, Path(sessions))
    s3fs.S3FileSystem.clear_instance_cache()


def written(prefix: str) -> dict[str, bytes]:
    return {uri: storage.read_bytes(uri) for uri in storage.find(prefix)}


def leaks(contents: dict[str, bytes]) -> list[str]:
    return [
        f"{name} in {place}"
        for place, content in contents.items()
        for name, value in SECRETS.items()
        if value in content
    ]


def test_a_labelled_bucket_its_report_and_the_logs_hold_no_secret(planted: Planted) -> None:
    output = ["--output", "s3://bucket/labels"]
    inputs = ["--input", "s3://bucket/photos", "--checkpoint", "s3://bucket/checkpoint"]
    said = {
        "segment": planted.run("jobs/segment_bucket.py", *inputs, *output, "--verbose"),
        "verify": planted.run("jobs/verify.py", *output),
        "query": planted.run("jobs/query.py", "s3://bucket/labels", "SELECT * FROM runs", "--format", "json"),
        "report": planted.run("jobs/report.py", "s3://bucket/labels"),
    }
    left = written("s3://bucket/labels")
    assert {uri.split("/")[4] for uri in left} == {"masks", "class_stats", "classes.parquet", "runs", "report.html"}
    logs = planted.told_by_ray()
    assert any("raylet" in name for name in logs)
    assert leaks({**said, **left, **logs}) == []


def test_a_training_its_configuration_and_its_report_hold_no_secret(planted: Planted) -> None:
    write_training_set("s3://bucket/dataset", num_train=4, num_val=1)
    options = [*TRAIN_OPTIONS[: TRAIN_OPTIONS.index("--workers.count")], "--workers.count", "1"]
    said = planted.run("jobs/train.py", "--data.root", "s3://bucket/dataset", "--output", "s3://bucket/run", *options)
    left = written("s3://bucket/run")
    assert {"config.yaml", "environment.json", "report.html"} <= {uri.split("/")[4] for uri in left}
    assert leaks({"train": said, **left, **planted.told_by_ray()}) == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["jobs/report.py", "s3://no-such-bucket/labels"], b"no-such-bucket"),
        (["jobs/query.py", "s3://bucket/labels", "SELECT * FROM no_such_table"], b"no_such_table"),
        (["jobs/train.py", "--config", "no-such-file.yaml"], b"no-such-file.yaml"),
    ],
)
def test_errors_hold_no_secret(planted: Planted, command: list[str], says: bytes) -> None:
    said = planted.run(*command, code=2)
    assert says in said
    assert leaks({"error": said}) == []


def test_a_leak_would_be_seen() -> None:
    assert leaks({"here": b"x=" + PLANTED["AWS_SECRET_ACCESS_KEY"].encode()}) == ["AWS_SECRET_ACCESS_KEY in here"]
