"""Version check: the driver and all nodes must run the same versions, because they exchange pickled objects."""

import platform
from collections.abc import Mapping

from pipeline.cluster.packages import code, packages
from pipeline.doctor.findings import FAIL, OK, SHOWN, CheckResult

COMPARED = ("ray", "torch", "torchvision", "pyarrow")
# Reported but not compared: a checkout keeps the version of its installation, and may be a job's working directory.
OURS = "sceneparse"
CODE = "code"
DRIVER = "the driver"


def versions() -> dict[str, str | None]:
    """Return the versions in this process, without importing the packages; `code` is a hash of Sceneparse's sources."""
    found = packages()
    return {
        "Python": platform.python_version(),
        **{name: found[name] for name in (*COMPARED, OURS)},
        CODE: code()["code_sha256"][:8],
    }


def judge_versions(found: Mapping[str, Mapping[str, str | None]]) -> list[CheckResult]:
    """Compare the versions of all nodes.

    Args:
        found: place (the driver, or a node's name) -> result of `versions` there.
    """
    findings = []
    names = next(iter(found.values())).keys()
    for name in names:
        if name == OURS:
            continue
        places: dict[str, list[str]] = {}
        for place, its in found.items():
            places.setdefault(its[name] or "none", []).append(place)
        if len(places) > 1:
            usual = max(places, key=lambda version: len(places[version]))
            message = ", ".join(
                f"{version} on {_places(places[version])}" for version in sorted(places.keys() - {usual})
            )
            findings.append(CheckResult(FAIL, f"{name} is {message}, and {usual} everywhere else; {_remedy(name)}"))
        elif "none" in places:
            findings.append(CheckResult(FAIL, f"{name} is not installed; {_remedy(name)}"))
    its = next(iter(found.values()))
    message = ", ".join(f"{name} {its[name]}" for name in names if its[name])
    return findings or [CheckResult(OK, f"{message}: the same on {DRIVER} and {len(found) - 1} node(s)")]


def _places(places: list[str]) -> str:
    return ", ".join(places[:SHOWN]) + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")


def _remedy(name: str) -> str:
    if name == CODE:
        return "submit the job with --working-dir . so that all nodes run the same code, or install the same code there"
    return "install the version that constraints.txt pins on all nodes"
