"""The training loop of a worker, with a network, batches and checkpoints that take no time of their own."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch

from models.training.step import StepResult
from pipeline.train import speed, worker
from pipeline.train.worker import train_remaining_steps
from tests.pipeline.train.single_worker import worker_group, worker_spec


def test_the_start_of_the_input_pipeline_does_not_lower_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = worker_spec()
    clock = SimpleNamespace(now=0.0)

    def load_batches(*_: Any) -> Iterator[tuple[None, None]]:
        clock.now += 1000
        for _ in range(spec.total_steps):
            yield None, None

    def training_step(*_: Any) -> StepResult:
        clock.now += 0.5
        return StepResult(torch.tensor(1.0), None, None)

    checkpoints = SimpleNamespace(resume=lambda *_: 0, save=lambda *_, **__: None, latest=None)
    for name, fake in {
        "join_workers": lambda _: worker_group(spec),
        "set_backend_options": lambda *_: None,
        "build_training_step": lambda *_, **__: training_step,
        "load_batches": load_batches,
        "RunCheckpoints": lambda *_: checkpoints,
        "PreemptionNotices": lambda _: SimpleNamespace(has_new=lambda: False),
    }.items():
        monkeypatch.setattr(worker, name, fake)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray.train, "get_all_reported_checkpoints", lambda: None)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    images_per_step, seconds_per_step = 2, 0.5
    assert train_remaining_steps(spec) == images_per_step / seconds_per_step
    first = spec.progress_actor.actor.read().records[0]
    assert (first["step"], first["images_per_second"]) == (1, images_per_step / seconds_per_step)
