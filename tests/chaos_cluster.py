"""A Ray cluster of a head and two nodes, whose processes and nodes can be killed and are replaced."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.ray_head import ACCESS
from tests.ray_nodes import add_node, raylet_pid
from tests.warm_start import workers_of

# So that one write task runs at a time, and the head alone can end a run of two predictors.
HEAD_CPUS, NODE_CPUS, NODES = 4, 2, 2
# What the titles that Ray gives to processes have in them while they work on a run.
TITLES = MappingProxyType(
    {
        "predictor": "MapBatches(PredictStage)",
        "decoder": "ray::Readdecode",  # which begins a dataset, as reading does
        "writer": "ray::Write",
        "board": "ray::SegmentationProgressActor",
    }
)


class ChaosCluster:
    """The cluster; the driver's node, the head, stays."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._cluster = Cluster()
        self._killed: set[int] = set()
        self._add_node(HEAD_CPUS, include_dashboard=False)
        self.replace_lost_nodes()
        self.environment = {**environment, **ACCESS, "RAY_ADDRESS": self._cluster.address}  # for a driver

    def processes(self) -> list[tuple[psutil.Process, str]]:
        """Ray's processes below the cluster's own raylets, and their titles."""
        found = []
        for node in self._cluster.list_all_nodes():
            for process in workers_of(raylet_pid(node)):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    title = process.cmdline()[:1]
                    if title and title[0].startswith("ray::") and process.pid not in self._killed:
                        found.append((process, title[0]))
        return found

    def kill_worker(self, victim: str, rng: random.Random) -> bool:
        """SIGKILL one of the processes that do this now; False where there is none."""
        candidates = [process for process, title in self.processes() if TITLES[victim] in title]
        if not candidates:
            return False
        chosen = rng.choice(sorted(candidates, key=lambda process: process.pid))
        self._killed.add(chosen.pid)
        chosen.kill()
        return True

    def kill_node(self, rng: random.Random) -> bool:
        """SIGKILL all that runs on a node other than the head; False where none is left."""
        if not self._cluster.worker_nodes:
            return False
        node = rng.choice(sorted(self._cluster.worker_nodes, key=lambda node: node.node_id))
        # Its workers, too: those of a machine that is gone do not live on until they miss their raylet.
        orphans = workers_of(raylet_pid(node))
        psutil.Process(raylet_pid(node)).suspend()
        for process in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)
        return True

    def replace_lost_nodes(self) -> None:
        self._killed.clear()
        while len(self._cluster.worker_nodes) < NODES:
            self._add_node(NODE_CPUS)
        self._cluster.wait_for_nodes(120)

    def shutdown(self) -> None:
        self._cluster.shutdown()

    def _add_node(self, cpus: int, **options: Any) -> None:
        add_node(self._cluster, cpus, self._environment, **options)


@contextlib.contextmanager
def chaos_cluster(environment: Mapping[str, str]) -> Iterator[ChaosCluster]:
    """Run a cluster whose workers have this environment, too."""
    cluster = ChaosCluster(environment)
    try:
        yield cluster
    finally:
        cluster.shutdown()
