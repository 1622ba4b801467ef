"""A checkpoint of a run, written and resumed from."""

from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch

import models
from models.training.step import TrainingStep
from pipeline import storage
from pipeline.train.build import build_training_step
from pipeline.train.run_checkpoints import RunCheckpoints
from pipeline.train.worker_group import TrainingAborted
from pipeline.train.worker_spec import WorkerSpec
from tests.pipeline.train.single_worker import worker_group, worker_spec

SIZE = 65


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Reports to Ray Train, which here copies each checkpoint into `tmp_path`."""
    calls: list[Any] = []

    def report(metrics: Any, checkpoint: Any, checkpoint_dir_name: str, validation: bool) -> None:
        checkpoint.to_directory(str(tmp_path / checkpoint_dir_name))
        calls.append((metrics, checkpoint_dir_name, validation))

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray, "get", lambda value: value)  # of the actor in this process
    return calls


def training_step(spec: WorkerSpec) -> TrainingStep:
    return build_training_step(spec.config, spec.schedule.data, torch.device("cpu"), is_resumed=False)


@pytest.mark.slow
def test_a_run_resumes_with_the_state_that_was_saved(tmp_path: Path, reported: list[Any]) -> None:
    spec = worker_spec(str(tmp_path))
    trained = training_step(spec)
    trained(torch.randint(256, (2, SIZE, SIZE, 3), dtype=torch.uint8), torch.zeros(2, SIZE, SIZE, dtype=torch.int64), 1)
    checkpoints = RunCheckpoints(spec, worker_group(spec))
    assert checkpoints.resume(None, trained) == 0
    assert checkpoints.latest is None
    checkpoints.save(trained, 6, validate=True)
    name = "checkpoint_00000006"
    assert reported == [({"steps": 6, "miou": -1.0}, name, True)]
    assert checkpoints.latest == storage.join(str(tmp_path), name)
    _, metadata = models.load(tmp_path / name)
    assert metadata.metrics == {"epoch": 1.5}

    resumed, later = training_step(spec), RunCheckpoints(spec, worker_group(spec))
    assert later.resume(ray.train.Checkpoint.from_directory(str(tmp_path / name)), resumed) == 6
    assert later.latest == checkpoints.latest
    torch.testing.assert_close(resumed.state_dict(), trained.state_dict(), rtol=0, atol=0)
    update = spec.progress_actor.actor.read()
    assert update.lines == ["Resumed after step 6 of 12 (epoch 1.50)"]
    assert update.records == [{"kind": "resume", "step": 0}, {"kind": "resume", "step": 6}]


def test_no_checkpoint_is_written_after_a_failed_validation(tmp_path: Path, reported: list[Any]) -> None:
    spec = worker_spec(str(tmp_path))
    spec.progress_actor.report_error.remote("image v.jpg: damaged")
    with pytest.raises(TrainingAborted, match=r"^image v\.jpg: damaged$"):
        RunCheckpoints(spec, worker_group(spec)).save(training_step(spec), 6, validate=False)
    assert reported == []
