"""What a run was made with: code, packages, hardware and data, for whoever wants to make it again."""

import json
import platform
from datetime import UTC, datetime
from typing import Any

import ray

from pipeline import storage
from pipeline.cluster.packages import code, packages
from pipeline.url_credentials import masked

ENVIRONMENT = "environment.json"
MAX_STARTS = 100  # of one run
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
    starts = [*read_starts(output), start][-MAX_STARTS:]
    storage.write_bytes(uri, (json.dumps({"starts": starts}, indent=2, ensure_ascii=False) + "\n").encode())
    return start


def read_starts(output: str) -> list[dict[str, Any]]:
    """What `describe_run` has written for each start of a run, the latest last. Raises UserError."""
    uri = storage.join(output, ENVIRONMENT)
    return json.loads(storage.read_bytes(uri))["starts"] if storage.exists(uri) else []


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
