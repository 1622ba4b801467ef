"""What a run was made with: code, packages, hardware and data, for whoever wants to make it again."""

import hashlib
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray

from pipeline import storage
from pipeline.url_credentials import masked

ENVIRONMENT = "environment.json"
PACKAGES = ("sceneparse", "torch", "torchvision", "ray", "pyarrow", "numpy", "opencv-python-headless", "pillow")
ROOT = Path(__file__).parents[1]
SOURCES = ("models", "pipeline", "jobs")
MOST_STARTS = 100  # of one run
ACCELERATOR = "accelerator_type:"  # how Ray names a kind of GPU among a node's resources


def describe_run(output: str, arguments: list[str], dataset: str) -> dict[str, Any]:
    """Add to OUTPUT/environment.json what this start of a run is made with; the file lists every start.

    Args:
        arguments: the command line, our own job's options only.
        dataset: a fingerprint of the dataset.

    Raises: UserError.
    """
    uri = storage.join(output, ENVIRONMENT)
    start = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [masked(argument) for argument in arguments],
        "dataset": dataset,
        **code(),
        "packages": {"python": platform.python_version(), **packages()},
        "cuda": _cuda(),
        "gpus": _gpus(),
        "platform": platform.platform(),
    }
    starts = [*read_starts(output), start][-MOST_STARTS:]
    storage.write_bytes(uri, (json.dumps({"starts": starts}, indent=2, ensure_ascii=False) + "\n").encode())
    return start


def read_starts(output: str) -> list[dict[str, Any]]:
    """What `describe_run` has written for each start of a run, the latest last. Raises UserError."""
    uri = storage.join(output, ENVIRONMENT)
    return json.loads(storage.read_bytes(uri))["starts"] if storage.exists(uri) else []


def code(root: Path = ROOT) -> dict[str, Any]:
    """Commit of the code and whether files differ from it, None where there is no git; and a hash of the sources.

    A job's working directory is sent to the cluster without .git, so there GIT_COMMIT may name the commit.
    """
    commit, dirty = None, None
    top = _git(root, "rev-parse", "--show-toplevel")
    if top and Path(top).resolve() == root.resolve():  # not of a repository that this folder happens to lie in
        commit = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain", "--untracked-files=no")
        dirty = None if status is None else bool(status)
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return {"git_commit": commit or os.environ.get("GIT_COMMIT"), "git_dirty": dirty, "code_sha256": digest.hexdigest()}


def packages() -> dict[str, str | None]:
    """Versions of what computes; None for a package that is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None without git, or where it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cuda() -> str | None:
    """The CUDA version that torch was built for; None for a build without."""
    import torch

    return torch.version.cuda


def _gpus() -> list[str]:
    """Kinds of GPUs of this machine and, once connected, of the cluster."""
    import torch

    kinds = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    if ray.is_initialized():
        kinds |= {name.removeprefix(ACCELERATOR) for name in ray.cluster_resources() if name.startswith(ACCELERATOR)}
    return sorted(kinds)
