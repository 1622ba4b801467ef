"""Jobs on a Ray cluster of several nodes on this machine, which come and go while they run."""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from pipeline import storage
from pipeline.cluster.connection import Node
from tests.conftest import REPOSITORY
from tests.nodes_driver import NOTES
from tests.output_checks import check_invariants
from tests.ray_head import ACCESS
from tests.ray_nodes import add_node
from tests.scene_data import write_photos
from tests.test_segment_job import save_checkpoint

ROWS_PER_PART = 16


class Nodes:
    """The cluster; its first node is the head, where the driver is."""

    def __init__(self, nodes: list[Node], notes: Path) -> None:
        self._cluster = Cluster()
        self._notes = notes
        notes.mkdir()
        self._nodes: list[Any] = []
        for node in nodes:
            self.add(node)
        self._cluster.wait_for_nodes(60)
        self.environment = {**ACCESS, "RAY_ADDRESS": self._cluster.address}

    def add(self, node: Node) -> None:
        options: dict[str, Any] = {} if self._nodes else {"include_dashboard": False}
        environment = {NOTES: str(self._notes)}
        self._nodes.append(add_node(self._cluster, node.cpus, environment, num_gpus=node.gpus, **options))

    def kill(self, number: int) -> None:
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)

    def that_did(self, stage: str) -> set[int]:
        """Numbers of the nodes, from 0 in the order of their coming, that have worked on a stage."""
        names = {f"{stage}.{node.node_id}": number for number, node in enumerate(self._nodes)}
        return {names[path.name] for path in self._notes.iterdir() if path.name in names}

    def shutdown(self) -> None:
        self._cluster.shutdown()


class Job:
    """A job in a process of its own."""

    def __init__(self, environment: Mapping[str, str], log: Path, job: str, *options: str) -> None:
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nodes_driver", job, *options],
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def wait_until(self, holds: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self._process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.1)

    def status(self, seconds: float = 400) -> int:
        """Of the process, which ends within that time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {seconds:g} s:\n{self.printed}") from None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Labelling(Job):
    """jobs/segment_bucket.py on photos that lie in the folder, or are put there."""

    def __init__(self, folder: Path, environment: Mapping[str, str], photos: int, *options: str) -> None:
        self._photos, self._output, checkpoint = folder / "photos", folder / "labels", folder / "checkpoint"
        if not self._photos.exists():
            save_checkpoint(checkpoint, width=64)
            write_photos(str(self._photos), photos)
        places = {"--input": self._photos, "--output": self._output, "--checkpoint": checkpoint}
        given = itertools.chain(*((option, str(place)) for option, place in places.items()))
        options = (*given, "--rows-per-part", str(ROWS_PER_PART), *options)
        super().__init__(environment, folder / "driver.log", "segment_bucket", *options)

    def wait_for_parts(self, number: int) -> None:
        self.wait_until(lambda: len(list(self._output.glob("masks/*.parquet"))) >= number)

    def check(self) -> None:
        """Every photo has its row, and nothing is wrong with the output."""
        rows = check_invariants(str(self._output), [storage.absolute(str(path)) for path in self._photos.iterdir()])
        assert {row["status"] for row in rows.values()} == {"ok"}


@contextlib.contextmanager
def cluster_of(folder: Path, *nodes: Node) -> Iterator[Nodes]:
    cluster = Nodes(list(nodes), folder / "notes")
    try:
        yield cluster
    finally:
        cluster.shutdown()
