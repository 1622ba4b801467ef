"""What the tests share: one Swift server, one Ray head, and ways to run a job on them as a user does."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from pipeline import storage
from tests.ray_head import ACCESS, RayHead, ray_head
from tests.small_output import write_small_output
from tests.swift import SwiftServer, swift_server

os.environ.update(ACCESS)

REPOSITORY = Path(__file__).parents[1]
_numbers = itertools.count()

RunJob = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """A Swift server with S3 API, whose address and credentials are in this process's environment."""
    with swift_server(tmp_path_factory.mktemp("swift")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(swift: SwiftServer) -> str:
    """URI of a new, empty bucket."""
    return make_bucket()


def make_bucket() -> str:
    filesystem, path = storage.open_filesystem(f"s3://bucket-{next(_numbers)}")
    filesystem.mkdir(path)
    return f"s3://{path}"


@pytest.fixture(scope="session")
def head(swift: SwiftServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray head whose workers reach the Swift server."""
    with ray_head(tmp_path_factory.mktemp("ray"), swift.environment) as running:
        yield running


@pytest.fixture(scope="module")
def connected(head: RayHead) -> Iterator[None]:
    """This process connected to the head, for a module."""
    import ray  # reads ACCESS from the environment as it is imported

    from pipeline import cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        cluster.connect()
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def run_job(head: RayHead) -> RunJob:
    """Run a job's script on the head and return what it printed; `environment` adds to the test's own."""

    def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, **head.environment, **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def small_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local output of three images: two labelled, one that failed."""
    folder = tmp_path_factory.mktemp("output")
    write_small_output(folder)
    return folder
