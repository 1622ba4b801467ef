"""Results of a check and their output: one line per check, more only if nodes differ."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

SHOWN = 8  # maximum number of different findings per check, and of named nodes per finding
CHECK_WIDTH = 14


class Level(StrEnum):
    """Severity of a finding. Only FAIL results in exit code 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


OK, WARN, FAIL = Level


@dataclass(frozen=True)
class CheckResult:
    """Single finding of a check. The message of a problem ends with the remedy."""

    level: Level
    message: str
    node: str | None = None  # None: the whole cluster


def lines(check: str, findings: Iterable[CheckResult], nodes: int) -> Iterator[str]:
    """Yield the lines of a check, the most severe first. Nodes with the same finding share a line.

    Args:
        nodes: number of checked nodes, so that a finding on all of them can be printed as such.
    """
    where: dict[tuple[Level, str], list[str]] = {}
    for finding in findings:
        where.setdefault((finding.level, finding.message), []).extend([finding.node] if finding.node else [])
    for level in (FAIL, WARN, OK):
        of_level = [(message, found) for (its_level, message), found in where.items() if its_level == level]
        for message, found in of_level[:SHOWN]:
            place = f"{_named(found, nodes)}: " if found else ""
            yield f"{level:<4}  {check:<{CHECK_WIDTH}}  {place}{message}"
        if len(of_level) > SHOWN:
            yield f"{level:<4}  {check:<{CHECK_WIDTH}}  ... and {len(of_level) - SHOWN} more of this kind"


def _named(found: list[str], nodes: int) -> str:
    if len(found) == nodes and nodes > 1:
        return f"all {nodes} nodes"
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def size(count: float) -> str:
    """Format a number of bytes, for example `12.3 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def spread(values: Iterable[float], shown: Callable[[float], str]) -> str:
    """Format a range as `minimum to maximum`, or as one value if both are equal."""
    ordered = sorted(values)
    low, high = shown(ordered[0]), shown(ordered[-1])
    return low if low == high else f"{low} to {high}"
