"""Labelling on a Ray cluster of several nodes on this machine, which come and go while it runs."""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from pipeline import storage
from pipeline.cluster import Node
from pipeline.processes import free_ports
from tests.conftest import REPOSITORY
from tests.nodes_driver import NOTES
from tests.output_checks import check_invariants
from tests.ray_head import ACCESS
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
        (agent,) = free_ports(1)
        options: dict[str, Any] = {} if self._nodes else {"include_dashboard": False}
        added = self._cluster.add_node(
            num_cpus=node.cpus,
            num_gpus=node.gpus,
            object_store_memory=2**27,
            dashboard_agent_listen_port=agent,
            env_vars={NOTES: str(self._notes)},
            **options,
        )
        self._nodes.append(added)

    def kill(self, number: int) -> None:
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)

    def that_did(self, stage: str) -> set[int]:
        """Numbers of the nodes, from 0 in the order of their coming, that have worked on a stage."""
        names = {f"{stage}.{node.node_id}": number for number, node in enumerate(self._nodes)}
        return {names[path.name] for path in self._notes.iterdir() if path.name in names}

    def shutdown(self) -> None:
        self._cluster.shutdown()


class Labelling:
    """A run of the job in a process of its own."""

    def __init__(self, folder: Path, nodes: Nodes, photos: int, *options: str) -> None:
        self._folder = folder
        if not (folder / "photos").exists():
            save_checkpoint(folder / "checkpoint")
            write_photos(str(folder / "photos"), photos)
        places = {"--input": "photos", "--output": "labels", "--checkpoint": "checkpoint"}
        arguments = [*itertools.chain(*((option, str(folder / name)) for option, name in places.items())), *options]
        self._log = folder / "driver.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nodes_driver", "--rows-per-part", str(ROWS_PER_PART), *arguments],
                cwd=REPOSITORY,
                env={**os.environ, **nodes.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def wait_until(self, holds: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self._process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.1)

    def wait_for_parts(self, number: int) -> None:
        masks = self._folder / "labels" / "masks"
        self.wait_until(lambda: len(list(masks.glob("*.parquet"))) >= number)

    def status(self, seconds: float = 180) -> int:
        """Of the process, which ends within that time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {seconds:g} s:\n{self.printed}") from None

    def check(self) -> None:
        """Every photo has its row, and nothing is wrong with the output."""
        photos = sorted((self._folder / "photos").iterdir())
        rows = check_invariants(str(self._folder / "labels"), [storage.absolute(str(path)) for path in photos])
        assert {row["status"] for row in rows.values()} == {"ok"}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def cluster_of(folder: Path, *nodes: Node) -> Iterator[Nodes]:
    cluster = Nodes(list(nodes), folder / "notes")
    try:
        yield cluster
    finally:
        cluster.shutdown()
