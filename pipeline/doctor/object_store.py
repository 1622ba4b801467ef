"""Object store check: each node must be able to read objects from another node, as training and labeling do."""

import hashlib
import os
import time
from typing import Any

import numpy as np
import ray
import ray.exceptions

from pipeline.doctor.findings import FAIL, OK, CheckResult, spread
from pipeline.doctor.nodes import Node, Roll, answered, send
from pipeline.errors import UserError

MEGABYTES = 16
READ_LIMIT = 45.0  # seconds; corresponds to a third of a megabyte per second
LIMIT = 60.0


def make_object() -> np.ndarray:
    """Return random bytes, preceded by their hash."""
    content = os.urandom(MEGABYTES * 1_000_000)
    return np.frombuffer(hashlib.sha256(content).digest() + content, np.uint8)


def read_object(held: list[Any]) -> float:
    """Get an object and return the time it took, in seconds.

    Args:
        held: the reference, in a list so that Ray passes the reference and not the object.

    Raises: UserError if the object does not arrive in time, or is corrupt.
    """
    start = time.perf_counter()
    try:
        found = ray.get(held[0], timeout=READ_LIMIT)
    except ray.exceptions.GetTimeoutError:
        raise UserError(
            f"{MEGABYTES} MB from another node's object store did not arrive within {READ_LIMIT:.0f} s; open all "
            "TCP ports between the nodes (security group, firewall, network policy)"
        ) from None
    seconds = time.perf_counter() - start
    if hashlib.sha256(found[32:]).digest() != found[:32].tobytes():
        raise UserError("an object from another node's object store arrived corrupted; replace the node")
    return seconds


def check_objects(roll: Roll) -> list[CheckResult]:
    """Let each node read an object of the next node."""
    nodes = roll.nodes
    made = {node: send(make_object, node).reference for node in nodes}
    questions = [send(read_object, node, [made[source]]) for node, source in zip(nodes, _next(nodes), strict=True)]
    seconds, findings = answered(roll.collect(questions, LIMIT))
    sources = {node.name: source.name for node, source in zip(nodes, _next(nodes), strict=True)}
    findings = [CheckResult(FAIL, f"from {sources[f.node or '']}: {f.message}", f.node) for f in findings]
    if findings or not seconds:
        return findings
    if len(nodes) == 1:
        return [CheckResult(OK, f"the only node reads {MEGABYTES} MB from its own store")]
    rates = spread((MEGABYTES / max(took, 1e-6) for took in seconds.values()), lambda rate: f"{rate:.0f} MB/s")
    return [CheckResult(OK, f"each node reads {MEGABYTES} MB from the next node: {rates}")]


def _next(nodes: list[Node]) -> list[Node]:
    return nodes[1:] + nodes[:1]
