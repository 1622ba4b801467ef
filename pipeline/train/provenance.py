"""Provenance of a run, for reproducing it: code version, packages, hardware and data."""

import json
import platform
from datetime import UTC, datetime
from typing import Any

import ray

from pipeline import storage
from pipeline.cluster.packages import code, packages
from pipeline.url_credentials import masked

ENVIRONMENT = "environment.json"
MAX_STARTS = 100  # recorded per run; the oldest are dropped
ACCELERATOR = "accelerator_type:"  # Ray's prefix of a GPU model among a node's resources


def describe_run(output: str, arguments: list[str], dataset: str) -> dict[str, Any]:
    """Append this start of a run to OUTPUT/environment.json and return the entry; the file lists every start.

    Args:
        arguments: the job's command-line options; credentials in them are masked.
        dataset: fingerprint of the dataset.

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
    starts = [*read_starts(output), start][-MAX_STARTS:]
    storage.write_bytes(uri, (json.dumps({"starts": starts}, indent=2, ensure_ascii=False) + "\n").encode())
    return start


def read_starts(output: str) -> list[dict[str, Any]]:
    """Return the entries that `describe_run` has written, the latest last. Raises UserError."""
    uri = storage.join(output, ENVIRONMENT)
    return json.loads(storage.read_bytes(uri))["starts"] if storage.exists(uri) else []


def _cuda() -> str | None:
    """Return the CUDA version that torch was built for; None for a CPU-only build."""
    import torch

    return torch.version.cuda


def _gpus() -> list[str]:
    """Return the GPU models of this machine and, if connected, of the cluster."""
    import torch

    kinds = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    if ray.is_initialized():
        kinds |= {name.removeprefix(ACCELERATOR) for name in ray.cluster_resources() if name.startswith(ACCELERATOR)}
    return sorted(kinds)
