"""Versions of the code and packages of this process."""

import hashlib
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sceneparse", "torch", "torchvision", "ray", "pyarrow", "numpy", "opencv-python-headless", "pillow")
ROOT = Path(__file__).parents[2]
SOURCES = ("models", "pipeline", "jobs")


def code(root: Path = ROOT) -> dict[str, Any]:
    """Return the commit of the code, whether tracked files differ from it, and a SHA-256 hash of the sources.

    Commit and difference are None without git. A job's working directory is uploaded to the cluster without .git; there
    the environment variable GIT_COMMIT may name the commit.
    """
    commit, dirty = None, None
    top = _git(root, "rev-parse", "--show-toplevel")
    if top and Path(top).resolve() == root.resolve():  # not an outer repository
        commit = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain", "--untracked-files=no")
        dirty = None if status is None else bool(status)
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return {"git_commit": commit or os.environ.get("GIT_COMMIT"), "git_dirty": dirty, "code_sha256": digest.hexdigest()}


def packages() -> dict[str, str | None]:
    """Return the versions of the packages that affect results; None for a package that is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git prints; None if git is missing or fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
