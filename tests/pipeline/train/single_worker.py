"""A run's only training worker, without Ray: its spec, and its group, whose messages stay in this process."""

from types import SimpleNamespace
from typing import Any

import torch

from pipeline.cluster.progress_actor import ProgressActor
from pipeline.config.training import ModelConfig, OptimizationConfig, ValidationConfig
from pipeline.train.batches import BatchSchedule
from pipeline.train.worker_group import WorkerGroup
from pipeline.train.worker_spec import WorkerSpec
from tests.pipeline.run_records import run_config

STEPS_PER_EPOCH, EPOCHS = 4, 3


class LocalProgressActor:
    """A ProgressActor whose remote calls happen at once."""

    def __init__(self) -> None:
        self.actor = ProgressActor()

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self.actor, method))


def worker_spec(
    output: str = "run", checkpoint_every: int | None = None, validate_every: int = 1, **recipe: Any
) -> WorkerSpec:
    """Return the spec of a run of three epochs of four steps of two images."""
    config = run_config(output).model_copy(
        update={
            "model": ModelConfig(backbone="resnet18", width=16),
            "optimization": OptimizationConfig(**{"epochs": EPOCHS, "batch_size": 2} | recipe),
            "checkpoint_every": checkpoint_every,
            "validation": ValidationConfig(every=validate_every),
        }
    )
    schedule = BatchSchedule(2 * STEPS_PER_EPOCH, 2, 0, config.data, config.augment, fill=(0.0, 0.0, 0.0))
    return WorkerSpec(config, schedule, None, output, LocalProgressActor())


def worker_group(spec: WorkerSpec, rank: int = 0) -> WorkerGroup:
    return WorkerGroup(rank, world_size=1, device=torch.device("cpu"), progress_actor=spec.progress_actor)
