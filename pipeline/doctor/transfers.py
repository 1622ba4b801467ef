"""Storage checks: every node writes, reads back and deletes files in the storage, and its bandwidth is measured."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median

from pipeline import storage
from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult, spread
from pipeline.doctor.nodes import Answer, Node, Roll, Silence, answered, here, send
from pipeline.errors import UserError

OBJECT = 8_000_000  # bytes per timed object
SMALL = 64_000  # bytes
AT_ONCE = 8  # concurrent writes per node
# The storage layer itself reports a hanging server within two minutes (docs/storage.md).
ACCESS_LIMIT = 150.0  # seconds
TRANSFER_LIMIT = 90.0  # seconds for one node, or for all in parallel
ALONE, ALONE_SECONDS = 8, 120.0  # maximum number of nodes timed one after another, and total seconds for them
UNEVEN = 0.5  # share of the median rate below which a node is reported
MARKER = "marker"
STORAGE_FAILED = ": storage failed: "  # in errors of pipeline/storage/files.py without a specific remedy
S3_REMEDY = "check AWS_ENDPOINT_URL, the region and the network there"


@dataclass(frozen=True)
class Access:
    """Result of the access check in a new folder of the storage."""

    findings: list[CheckResult]
    nodes: list[Node]  # with full access
    wrote: bool  # True if the driver or a node has written to the folder


@dataclass(frozen=True)
class Rates:
    """Rates of one node, MB/s."""

    up: float
    down: float


def write_marker(folder: str) -> bytes:
    """Write the file that every node must find, and return its content. Raises UserError."""
    content = os.urandom(SMALL)
    storage.write_bytes(storage.join(folder, MARKER), content)
    return content


def round_trip(folder: str, name: str, marker: bytes | None) -> None:
    """Write a small file, read it back, compare and delete it; then read the marker that the driver wrote.

    Raises: UserError.
    """
    uri, content = storage.join(folder, name), os.urandom(SMALL)
    storage.write_bytes(uri, content)
    _expect(uri, content)
    try:
        storage.remove(uri)
    except UserError as error:
        raise UserError(f"writing and reading work, but deleting fails: {error}") from None
    if storage.exists(uri):
        raise UserError(f"{uri}: still exists after it was deleted; allow s3:DeleteObject")
    if marker is not None:
        place = storage.join(folder, MARKER)
        if not storage.exists(place):
            raise UserError(
                f"{place}: the file that the driver wrote is not found, so this is not the same storage; use a bucket, "
                "or a folder that all nodes share"
            )
        _expect(place, marker)


def _expect(uri: str, content: bytes) -> None:
    if storage.read_bytes(uri) != content:
        raise UserError(f"{uri}: the content read differs from what was written; use another storage")


def transfer(folder: str, name: str, megabytes: int) -> Rates:
    """Write, read back and delete `megabytes` MB in objects of at most OBJECT bytes. Raises UserError."""
    count = max(1, round(megabytes * 1_000_000 / OBJECT))
    contents = [os.urandom(min(OBJECT, megabytes * 1_000_000)) for _ in range(count)]
    uris = [storage.join(folder, f"{name}-{number}") for number in range(count)]
    size = sum(map(len, contents)) / 1e6
    with ThreadPoolExecutor(AT_ONCE) as pool:
        start = time.perf_counter()
        list(pool.map(storage.write_bytes, uris, contents))
        written = time.perf_counter()
        found = storage.fetch(uris)
        read = time.perf_counter()
        for uri, content, its in zip(uris, contents, found, strict=True):
            if isinstance(its, Exception):
                with storage.explained(uri):
                    raise its
            if its != content:
                raise UserError(f"{uri}: the content read differs from what was written; use another storage")
        list(pool.map(storage.remove, uris))
    return Rates(size / (written - start), size / (read - written))


def check_access(roll: Roll, folder: str) -> Access:
    """Check access from the driver and from every node, in a new folder of the storage."""
    own = here(write_marker, folder, limit=ACCESS_LIMIT)
    marker = own.value if isinstance(own, Answer) else None
    questions = [send(round_trip, node, folder, _file_name(node), marker) for node in roll.nodes]
    done, findings = answered(roll.collect(questions, ACCESS_LIMIT))
    if isinstance(own, Silence):
        findings.insert(0, CheckResult(FAIL, own.sentence, "the driver"))
    # Messages name the folder instead of each node's own file, so that nodes with the same problem share a line.
    files = [MARKER, *(_file_name(node) for node in roll.nodes)]
    for name in files:
        findings = [replace(f, message=f.message.replace(f"/{name}", "")) for f in findings]
    if folder.startswith(storage.S3_SCHEMES):
        findings = [
            replace(f, message=f"{f.message}; {S3_REMEDY}") if STORAGE_FAILED in f.message else f for f in findings
        ]
    message = f"written, read back and deleted by the driver and {len(done)} node(s)"
    return Access(findings or [CheckResult(OK, message)], list(done), wrote=marker is not None or bool(done))


def _file_name(node: Node) -> str:
    return f"node-{node.id[:12]}"


def check_bandwidth(roll: Roll, folder: str, nodes: Sequence[Node], megabytes: int) -> list[CheckResult]:
    """Time up to ALONE nodes one after another, then all nodes in parallel."""
    findings: list[CheckResult] = []
    alone: dict[Node, Rates] = {}
    end = time.monotonic() + ALONE_SECONDS
    for node in nodes[:ALONE]:
        limit = min(TRANSFER_LIMIT, end - time.monotonic())
        if limit > 0:
            question = send(transfer, node, folder, f"alone-{_file_name(node)}", megabytes)
            rates, silent = answered(roll.collect([question], limit))
            alone |= rates
            findings += _timed_out(silent, megabytes)
    together: dict[Node, Rates] = {}
    if len(nodes) > 1:
        questions = [send(transfer, node, folder, f"together-{_file_name(node)}", megabytes) for node in nodes]
        together, silent = answered(roll.collect(questions, TRANSFER_LIMIT))
        findings += _timed_out(silent, megabytes)
    return findings + judge_rates(
        {node.name: rates for node, rates in alone.items()},
        {node.name: rates for node, rates in together.items()},
        megabytes,
    )


def _timed_out(silent: list[CheckResult], megabytes: int) -> list[CheckResult]:
    return [CheckResult(f.level, f"{megabytes} MB up and down: {f.message}", f.node) for f in silent]


def judge_rates(alone: dict[str, Rates], together: dict[str, Rates], megabytes: int) -> list[CheckResult]:
    """Report the rates of the storage, and the nodes that are much slower than the others."""
    findings = []
    if alone:
        message = f"one node, {megabytes} MB: {_format_rates(alone)}"
        if together:
            up, down = (sum(getattr(rates, way) for rates in together.values()) for way in ("up", "down"))
            message += f"; {len(together)} in parallel: {_format_rates(together)} each"
            message += f", {up:.0f} up and {down:.0f} down in total"
        findings.append(CheckResult(OK, message))
    for way in ("up", "down"):
        usual = median(getattr(rates, way) for rates in alone.values()) if alone else 0.0
        for name, rates in alone.items():
            rate = getattr(rates, way)
            if len(alone) > 2 and rate < UNEVEN * usual:
                message = f"{way} {rate:.0f} MB/s, but the median is {usual:.0f}"
                findings.append(
                    CheckResult(WARN, f"{message}; compare its type, zone and route to storage, or replace it", name)
                )
    return findings


def _format_rates(rates: dict[str, Rates]) -> str:
    up = spread((its.up for its in rates.values()), lambda rate: f"{rate:.0f}")
    down = spread((its.down for its in rates.values()), lambda rate: f"{rate:.0f}")
    return f"up {up}, down {down} MB/s"
