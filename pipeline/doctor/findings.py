"""What a check finds, and how it is told: one line for a check, more only where nodes differ."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

SHOWN = 8  # different findings of a check that are told, and nodes of one finding that are named
CHECK_WIDTH = 14


class Level(StrEnum):
    """How bad a finding is; only FAIL gives exit code 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


OK, WARN, FAIL = Level


@dataclass(frozen=True)
class CheckResult:
    """One thing that a check found; a message of something wrong ends with what to do."""

    level: Level
    message: str
    node: str | None = None  # None: about the cluster


def lines(check: str, findings: Iterable[CheckResult], nodes: int) -> Iterator[str]:
    """The lines of a check, the worst first; nodes with the same finding share a line.

    Args:
        nodes: how many were checked, so that a finding of every one says so.
    """
    where: dict[tuple[Level, str], list[str]] = {}
    for finding in findings:
        where.setdefault((finding.level, finding.message), []).extend([finding.node] if finding.node else [])
    for level in (FAIL, WARN, OK):
        told = [(message, found) for (its_level, message), found in where.items() if its_level == level]
        for message, found in told[:SHOWN]:
            place = f"{_named(found, nodes)}: " if found else ""
            yield f"{level:<4}  {check:<{CHECK_WIDTH}}  {place}{message}"
        if len(told) > SHOWN:
            yield f"{level:<4}  {check:<{CHECK_WIDTH}}  ... and {len(told) - SHOWN} more of this kind"


def _named(found: list[str], nodes: int) -> str:
    if len(found) == nodes and nodes > 1:
        return f"all {nodes} nodes"
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def size(count: float) -> str:
    """`12.3 GB` of so many bytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def spread(values: Iterable[float], shown: Callable[[float], str]) -> str:
    """`least to most`, or the one value that all have."""
    ordered = sorted(values)
    low, high = shown(ordered[0]), shown(ordered[-1])
    return low if low == high else f"{low} to {high}"
