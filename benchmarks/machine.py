"""Description of the machine and the code that a result was measured with."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def about() -> dict[str, Any]:
    """Return the first fields of a report: date, commit, machine, and how busy the machine was."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": processor(),
        "load_average": os.getloadavg()[0],
    }


def processor() -> str:
    """Return the name of the CPU and the number of threads that this process may use."""
    names = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{name}, {len(os.sched_getaffinity(0))} threads"


def commit() -> str | None:
    """Return the commit of the repository, followed by + if files have changed; None without git."""
    if shutil.which("git") is None:
        return None
    folder = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    if found.returncode:
        return None
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=folder, capture_output=True).returncode
    return found.stdout.strip() + ("+" if changed else "")
