"""Storage as every node sees it: whether it writes, reads back and deletes there, and how fast."""

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

OBJECT = 8_000_000  # bytes of each object whose transfer is timed
SMALL = 64_000  # bytes
AT_ONCE = 8  # objects that a node writes at the same time
# Storage tells by itself of a server that hangs, within two minutes (docs/storage.md).
ACCESS_LIMIT = 150.0  # seconds
TRANSFER_LIMIT = 90.0  # seconds of one node, or of all at once
ALONE, ALONE_SECONDS = 8, 120.0  # nodes that are timed one after another, and for how long in all
UNEVEN = 0.5  # of the median rate
MARKER = "marker"
STORAGE_FAILED = ": storage failed: "  # as pipeline/storage/files.py tells of what it has no remedy for
S3_REMEDY = "check AWS_ENDPOINT_URL, the region and the network there"


@dataclass(frozen=True)
class Access:
    """What came of a new folder of the storage."""

    findings: list[CheckResult]
    nodes: list[Node]  # those that have full access
    wrote: bool  # whether anybody is known to have written there


@dataclass(frozen=True)
class Rates:
    """MB/s of one node."""

    up: float
    down: float


def write_marker(folder: str) -> bytes:
    """Write the file that every node must find. Raises UserError."""
    content = os.urandom(SMALL)
    storage.write_bytes(storage.join(folder, MARKER), content)
    return content


def round_trip(folder: str, name: str, marker: bytes | None) -> None:
    """Write a small file, read it back, compare and delete it, and read the marker that the driver wrote.

    Raises: UserError.
    """
    uri, content = storage.join(folder, name), os.urandom(SMALL)
    storage.write_bytes(uri, content)
    _expect(uri, content)
    try:
        storage.remove(uri)
    except UserError as error:
        raise UserError(f"is written and read, but not deleted: {error}") from None
    if storage.exists(uri):
        raise UserError(f"{uri}: is still there after it was deleted; allow s3:DeleteObject")
    if marker is not None:
        place = storage.join(folder, MARKER)
        if not storage.exists(place):
            raise UserError(
                f"{place}: what the driver wrote there is not found, so this is another place; use a bucket, or a "
                "folder that all nodes share"
            )
        _expect(place, marker)


def _expect(uri: str, content: bytes) -> None:
    if storage.read_bytes(uri) != content:
        raise UserError(f"{uri}: what is read is not what was written; this storage cannot be used")


def transfer(folder: str, name: str, megabytes: int) -> Rates:
    """Write and read back so many megabytes, in objects of OBJECT bytes at most, and delete them. Raises UserError."""
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
                raise UserError(f"{uri}: what is read is not what was written; this storage cannot be used")
        list(pool.map(storage.remove, uris))
    return Rates(size / (written - start), size / (read - written))


def check_access(roll: Roll, folder: str) -> Access:
    """Have the driver and every node use a new folder of the storage."""
    own = here(write_marker, folder, limit=ACCESS_LIMIT)
    marker = own.value if isinstance(own, Answer) else None
    questions = [send(round_trip, node, folder, _file_name(node), marker) for node in roll.nodes]
    done, findings = answered(roll.collect(questions, ACCESS_LIMIT))
    if isinstance(own, Silence):
        findings.insert(0, CheckResult(FAIL, own.sentence, "the driver"))
    # Of the folder in place of each one's own file, so that nodes with the same fault share a line.
    files = [MARKER, *(_file_name(node) for node in roll.nodes)]
    for name in files:
        findings = [replace(f, message=f.message.replace(f"/{name}", "")) for f in findings]
    if folder.startswith(storage.S3_SCHEMES):
        findings = [
            replace(f, message=f"{f.message}; {S3_REMEDY}") if STORAGE_FAILED in f.message else f for f in findings
        ]
    told = f"written, read back and deleted by the driver and {len(done)} node(s)"
    return Access(findings or [CheckResult(OK, told)], list(done), wrote=marker is not None or bool(done))


def _file_name(node: Node) -> str:
    return f"node-{node.id[:12]}"


def check_bandwidth(roll: Roll, folder: str, nodes: Sequence[Node], megabytes: int) -> list[CheckResult]:
    """Time the nodes one after another (some of them, where there are many), then all at once."""
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
    """Tell how fast storage was, and which nodes are much slower than the others."""
    findings = []
    if alone:
        told = f"one node, {megabytes} MB: {_told(alone)}"
        if together:
            up, down = (sum(getattr(rates, way) for rates in together.values()) for way in ("up", "down"))
            told += f"; {len(together)} at once: {_told(together)} each, {up:.0f} up and {down:.0f} down in all"
        findings.append(CheckResult(OK, told))
    for way in ("up", "down"):
        usual = median(getattr(rates, way) for rates in alone.values()) if alone else 0.0
        for name, rates in alone.items():
            rate = getattr(rates, way)
            if len(alone) > 2 and rate < UNEVEN * usual:
                told = f"{way} {rate:.0f} MB/s where others have {usual:.0f}"
                findings.append(
                    CheckResult(WARN, f"{told}; compare its type, zone and route to storage, or replace it", name)
                )
    return findings


def _told(rates: dict[str, Rates]) -> str:
    up = spread((its.up for its in rates.values()), lambda rate: f"{rate:.0f}")
    down = spread((its.down for its in rates.values()), lambda rate: f"{rate:.0f}")
    return f"up {up}, down {down} MB/s"
