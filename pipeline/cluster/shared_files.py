"""Check that all nodes of a cluster see the local files of a job."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.errors import UserError

SECONDS = 30.0  # to wait for nodes; one that does not answer is left to the job itself


@dataclass(frozen=True)
class MissingFile:
    """Local file of the driver that other nodes lack."""

    name: str  # of the setting
    uri: str
    nodes: tuple[str, ...]  # addresses


def check_shared(uris: Mapping[str, str | None]) -> None:
    """Raise UserError if a local file that the driver sees is missing on another node of the cluster.

    Otherwise every image on such a node would fail, or results would be scattered over the nodes' disks.

    Args:
        uris: URI of a file or folder by the setting that names it. Passed over: None, URIs of buckets, and files that
            the driver does not see either.
    """
    local = {name: uri for name, uri in uris.items() if uri is not None and _exists_here(uri)}
    missing = missing_files(local, _addresses_of_other_nodes()) if local else []
    if missing:
        lines = [f"  {file.name} {file.uri}: not on {', '.join(file.nodes)}" for file in missing]
        raise UserError(
            "\n".join(["local files of this node are missing on other nodes of the cluster:", *lines])
            + "\nPut them in a bucket, or on a file system that all nodes mount at the same path"
        )


def missing_files(uris: Mapping[str, str], addresses: Mapping[str, str]) -> list[MissingFile]:
    """Return the files that nodes lack.

    Args:
        uris: local URI by setting.
        addresses: address by node id.
    """
    paths = [storage.open_filesystem(uri)[1] for uri in uris.values()]
    asked = {_seen.options(**_only_on(node)).remote(paths): node for node in addresses}
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS) if asked else ([], [])
    lacking: dict[str, list[str]] = {name: [] for name in uris}
    for reference in ready:
        try:
            seen = ray.get(reference)
        except ray.exceptions.RayError:  # the node has just been lost
            continue
        for name, is_there in zip(uris, seen, strict=True):
            if not is_there:
                lacking[name].append(addresses[asked[reference]])
    return [MissingFile(name, uris[name], tuple(sorted(nodes))) for name, nodes in lacking.items() if nodes]


def _exists_here(uri: str) -> bool:
    return storage.is_local(uri) and os.path.exists(storage.open_filesystem(uri)[1])


@ray.remote(num_cpus=0, max_retries=0)
def _seen(paths: list[str]) -> list[bool]:
    return [os.path.exists(path) for path in paths]


def _only_on(node_id: str) -> dict[str, object]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def _addresses_of_other_nodes() -> dict[str, str]:
    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here
    }
