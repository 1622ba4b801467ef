"""What a result was measured on."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def about() -> dict[str, Any]:
    """How a report begins: when and where it was made, of which commit, and how busy the machine was."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": processor(),
        "load_average": os.getloadavg()[0],
    }


def processor() -> str:
    """The CPU's name and how many of its threads this process may use."""
    names = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{name}, {len(os.sched_getaffinity(0))} threads"


def commit() -> str | None:
    """The repository's commit, with a plus sign if files differ from it; None where there is no git."""
    if shutil.which("git") is None:
        return None
    folder = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    if found.returncode:
        return None
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=folder, capture_output=True).returncode
    return found.stdout.strip() + ("+" if changed else "")
