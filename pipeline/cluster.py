"""Connecting to Ray, and what it offers."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

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

    A local Ray ends with this process. Does nothing if this process is connected already.
    """
    if ray.is_initialized():
        return
    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        require_listener(address)
    else:
        options |= {"address": "local", "num_cpus": max(LOCAL_CPUS, os.cpu_count() or 1), "include_dashboard": False}
    with nullcontext() if verbose else _quiet_core():
        ray.init(**options)
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(level)
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


@dataclass(frozen=True)
class Resources:
    """What the cluster has in all, in use or not, and what it may have once its autoscaler has grown it."""

    cpus: int
    gpus: int
    max_cpus: int
    max_gpus: int
    cpu_nodes: int  # nodes that have CPUs to compute with
    node_cpus: int  # of the smallest of them


def resources() -> Resources:
    """Resources of the living nodes now, and of all that the cluster's configuration allows."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    node_cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    cpus, gpus = sum(node_cpus), int(sum(node.get("GPU", 0) for node in nodes))
    # Ray's own libraries ask this too; there is no public question. None without an autoscaler.
    allowed = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return Resources(
        cpus=cpus,
        gpus=gpus,
        max_cpus=max(cpus, allowed.get("CPU", 0)),
        max_gpus=max(gpus, allowed.get("GPU", 0)),
        cpu_nodes=len(node_cpus),
        node_cpus=min(node_cpus, default=0),
    )
