"""Nodes of a `ray.cluster_utils.Cluster`, all on this machine."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any
from unittest import mock

import psutil
import ray._private.services
from ray.cluster_utils import Cluster

from pipeline.demo.server_process import free_ports
from tests.ray_head import STARTED_TOO_SLOWLY, STARTS
from tests.warm_start import warm_start


def add_node(cluster: Cluster, num_cpus: int, environment: Mapping[str, str] | None = None, **options: Any) -> Any:
    """Add a node whose workers have this environment, too; its agent's port is not the one that all nodes take.

    A node that does not come is tried again: another process may have taken one of its ports meanwhile.
    """
    # Ray gives a node half a minute to start, which cannot be configured and is too short where others start meanwhile.
    with mock.patch.object(ray._private.services, "get_node", _wait_for_node):
        for attempt in range(1, STARTS + 1):
            (agent,) = free_ports(1)
            before = _children()
            try:
                return cluster.add_node(
                    num_cpus=num_cpus,
                    object_store_memory=2**28,
                    dashboard_agent_listen_port=agent,
                    env_vars={**warm_start(), **(environment or {})},
                    **options,
                )
            except Exception as error:
                if attempt == STARTS or STARTED_TOO_SLOWLY not in str(error):
                    raise
                for process in _children() - before:  # or it might still come, as one node too many
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


def raylet_pid(node: Any) -> int:
    """Return the process id of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


_get_node = ray._private.services.get_node


def _wait_for_node(gcs_address: str, node_id: str) -> dict[str, Any]:
    """Return what Ray's own function returns, once it knows the node."""
    deadline = time.monotonic() + 300
    while True:
        try:
            return _get_node(gcs_address, node_id)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
