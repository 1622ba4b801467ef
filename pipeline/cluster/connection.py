"""Connecting to Ray, and what it offers."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
import ray._private.state
import ray._private.worker

from pipeline.errors import UserError

# A local Ray counts CPUs logically. With fewer than this, the stages of a pipeline wait for one another's CPUs.
LOCAL_CPUS = 8
CONNECT_TIMEOUT = 10  # seconds
# On a machine of two cores Ray warns of ten processes, which a training with its ingest and validation has.
MANY_PROCESSES = "worker processes have been started on node"


def connect(verbose: bool = False) -> None:
    """Connect to the cluster that RAY_ADDRESS names (as it does inside a submitted job), else start a local Ray.

    A local Ray ends with this process. If this process is connected already, it stays so.
    """
    level = logging.INFO if verbose else logging.ERROR
    if not ray.is_initialized():
        _init(verbose, level)
    # Also of an earlier job's connection: Ray Train's import has set levels of its own since.
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(level)


def _init(verbose: bool, level: int) -> None:
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        require_listener(address)
    else:
        options |= {"address": "local", "num_cpus": max(LOCAL_CPUS, os.cpu_count() or 1), "include_dashboard": False}
    with nullcontext() if verbose else _quiet_core():
        ray.init(**options)
    if not verbose:
        leave_out(MANY_PROCESSES)


@contextmanager
def disconnecting_on_error() -> Iterator[None]:
    """End the connection to Ray that was made in the block, if the block raises."""
    connected_before = ray.is_initialized()
    try:
        yield
    except BaseException:
        if not connected_before:
            ray.shutdown()
        raise


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Start Ray's C++ core without its notices, which go past Python's logging; those of a failed start are shown.

    The level comes from the environment alone, and the core tells on the terminal that it took it from there.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            yield
        except BaseException:
            told.seek(0)
            os.write(terminal, told.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def leave_out(notice: str) -> None:
    """Keep one of the raylet's notices from the terminal; Ray has no setting for it, and prints all others."""
    show = ray._private.worker.print_to_stdstream

    def show_others(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if not any(notice in line for line in data.get("lines", ())):
            show(data, *arguments, **options)

    ray._private.worker.print_to_stdstream = show_others


def require_listener(address: str) -> None:
    """Raise UserError where nothing listens at HOST:PORT; Ray itself would try again for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS {address}: no Ray cluster answers there ({error.strerror or error}); start one, correct the "
            "address, or unset RAY_ADDRESS to use this machine alone"
        ) from None


class Node(NamedTuple):
    """What a node has for tasks and actors, in use or not."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Resources:
    """The cluster's living nodes, and what it may have once its autoscaler has grown it; 0: there is none."""

    nodes: tuple[Node, ...]  # in an order that is theirs, so that two looks can be compared
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
        """How many nodes have CPUs to compute with."""
        return sum(node.cpus > 0 for node in self.nodes)

    @property
    def node_cpus(self) -> int:
        """CPUs of the smallest of them."""
        return min((node.cpus for node in self.nodes if node.cpus), default=0)

    def room_for(self, cpus: int, gpu: bool) -> int:
        """How many actors that reserve so much the nodes can hold now."""
        return sum(min(node.cpus // cpus, node.gpus if gpu else node.cpus) for node in self.nodes)


def resources() -> Resources:
    """Resources of the living nodes now, and of all that the cluster's configuration allows."""
    living = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # Ray's own libraries ask this too; there is no public question. None without an autoscaler.
    allowed = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return Resources(
        tuple(sorted(Node(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in living)),
        allowed_cpus=int(allowed.get("CPU", 0)),
        allowed_gpus=int(allowed.get("GPU", 0)),
    )
