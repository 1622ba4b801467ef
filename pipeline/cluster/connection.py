"""Connection to Ray, and the resources of its cluster."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from pipeline.cluster import ray_internals
from pipeline.console import log
from pipeline.errors import UserError

# Minimum logical CPUs of a local Ray. With fewer, the stages of a pipeline wait for each other's CPUs.
LOCAL_CPUS = 8
CONNECT_TIMEOUT = 10  # seconds
# Part of a Ray warning that appears at ten processes on a machine with two cores. Training with its ingest and
# validation has that many.
MANY_PROCESSES = "worker processes have been started on node"


def connect(verbose: bool = False) -> None:
    """Connect to the cluster at RAY_ADDRESS (set inside submitted jobs), or start a local Ray if it is not set.

    A local Ray ends with this process. An existing connection is kept. Prints a line first, because either takes
    seconds.

    Raises: UserError if no cluster listens at RAY_ADDRESS.
    """
    level = logging.INFO if verbose else logging.ERROR
    if not ray.is_initialized():
        _init(verbose, level)
    # Also for an existing connection, because importing Ray Train sets its own levels.
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(level)
    if not verbose:
        ray_internals.hide_logged_user_errors()


def _init(verbose: bool, level: int) -> None:
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        log(f"Connecting to Ray at {address}")
        require_listener(address)
    else:
        log("Starting Ray on this machine")
        options |= {"address": "local", "num_cpus": max(LOCAL_CPUS, os.cpu_count() or 1), "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with nullcontext() if verbose else ray_internals.hide_core_messages():
        ray.init(**options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # a local Ray has set its own handler, which ends without a message
    if not verbose:
        ray_internals.suppress_raylet_messages(MANY_PROCESSES)


@contextmanager
def disconnecting_on_error() -> Iterator[None]:
    """Disconnect from Ray if the `with` block raises, unless it was connected before the block."""
    connected_before = ray.is_initialized()
    try:
        yield
    except BaseException:
        if not connected_before:
            ray.shutdown()
        raise


def require_listener(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT; Ray itself would retry for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS {address}: no Ray cluster answers at this address ({error.strerror or error}); start one, "
            "correct the address, or unset RAY_ADDRESS to use only this machine"
        ) from None


class Node(NamedTuple):
    """Total resources of a node for tasks and actors, including those in use."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Resources:
    """Nodes of the cluster that are alive, and the most that its autoscaler may provide (0 without an autoscaler)."""

    nodes: tuple[Node, ...]  # sorted, so that two snapshots can be compared
    allowed_cpus: int = 0
    allowed_gpus: int = 0

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def max_cpus(self) -> int:
        return max(self.cpus, self.allowed_cpus)

    @property
    def max_gpus(self) -> int:
        return max(self.gpus, self.allowed_gpus)

    @property
    def may_grow(self) -> bool:
        return self.allowed_cpus > self.cpus or self.allowed_gpus > self.gpus

    @property
    def cpu_nodes(self) -> int:
        """Number of nodes with CPUs."""
        return sum(node.cpus > 0 for node in self.nodes)

    @property
    def node_cpus(self) -> int:
        """Number of CPUs of the smallest node with CPUs; 0 if there is none."""
        return min((node.cpus for node in self.nodes if node.cpus), default=0)

    def room_for(self, cpus: int, gpu: bool) -> int:
        """Return how many actors that reserve `cpus` and, if `gpu`, one GPU each the nodes can hold now."""
        return sum(min(node.cpus // cpus, node.gpus if gpu else node.cpus) for node in self.nodes)


def resources() -> Resources:
    """Return the resources of the nodes that are alive and the limits of the cluster's configuration."""
    living = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    allowed = ray_internals.max_resources_of_autoscaler()
    return Resources(
        tuple(sorted(Node(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in living)),
        allowed_cpus=int(allowed.get("CPU", 0)),
        allowed_gpus=int(allowed.get("GPU", 0)),
    )
