"""Nodes of a `ray.cluster_utils.Cluster`, all on this machine."""

from collections.abc import Mapping
from typing import Any

from ray.cluster_utils import Cluster

from pipeline.processes import free_ports


def add_node(cluster: Cluster, num_cpus: int, environment: Mapping[str, str] | None = None, **options: Any) -> Any:
    """Add a node whose workers have this environment, too; its agent's port is not the one that all nodes take."""
    (agent,) = free_ports(1)
    if environment is not None:
        options["env_vars"] = dict(environment)
    return cluster.add_node(num_cpus=num_cpus, object_store_memory=2**28, dashboard_agent_listen_port=agent, **options)
