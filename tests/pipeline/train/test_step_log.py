"""Log lines, records and the error for a loss that is not finite."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.training.step import StepResult
from pipeline.train import step_log
from pipeline.train import worker_spec as worker_spec_module
from pipeline.train.step_log import URIS_SHOWN, StepLog
from pipeline.train.worker_group import TrainingAborted
from pipeline.train.worker_spec import WorkerSpec
from tests.pipeline.train.single_worker import worker_group, worker_spec


def result(main: float, auxiliary: float | None = None) -> StepResult:
    return StepResult(torch.tensor(main), None if auxiliary is None else torch.tensor(auxiliary), None)


def log_of(spec: WorkerSpec, *results: StepResult) -> StepLog:
    log = StepLog(spec, worker_group(spec))
    for one in results:
        log.add(one)
    return log


def test_a_line_and_a_record_have_the_means_since_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_spec_module, "MIN_LINES", 6)  # of twelve steps
    spec = worker_spec(log_every=10)
    log = log_of(spec, result(1.0, 3.0))
    assert not log.is_due
    log.add(result(2.0, 5.0))
    assert log.is_due
    log.write(6, rate=0.01, gradient_norm=torch.tensor(2.5), last_checkpoint=None)
    assert not log.is_due
    log.add(result(4.0, 4.0))
    log.write(7, rate=0.005, gradient_norm=None, last_checkpoint=None)
    update = spec.progress_actor.actor.read()
    first, second = update.records
    speed = first.pop("images_per_second")
    assert first == {
        **{"kind": "step", "step": 6, "epoch": 1.5, "loss": 1.5, "auxiliary_loss": 4.0},
        **{"learning_rate": 0.01, "gradient_norm": 2.5},
    }
    assert (second["loss"], second["auxiliary_loss"], second["gradient_norm"]) == (4.0, 4.0, None)
    line = f"Epoch 2/3 · step 2/4 · loss 1.5000 · learning rate 1.00e-02 · {speed:.1f} images/s · "
    assert update.lines[0].startswith(line)
    assert update.lines[0].endswith(" left")


@pytest.mark.parametrize("last_checkpoint", [None, "s3://bucket/run/checkpoint_00000004"])
def test_a_loss_that_is_not_finite_names_its_step_its_images_and_the_checkpoint_to_resume_from(
    monkeypatch: pytest.MonkeyPatch, last_checkpoint: str | None
) -> None:
    asked: list[list[int]] = []

    def get_pairs(_: Any, indices: Any) -> list[Any]:
        asked.append(list(indices))
        return [SimpleNamespace(image_uri=f"image {index}") for index in range(URIS_SHOWN + 1)]

    monkeypatch.setattr(step_log, "get_pairs", get_pairs)
    spec = worker_spec()
    log = log_of(spec, result(1.0), result(float("nan"), 2.0), result(float("inf")))
    with pytest.raises(TrainingAborted) as aborted:
        log.write(7, rate=0.01, gradient_norm=None, last_checkpoint=last_checkpoint)
    message, *uris = str(aborted.value).split("\n  ")
    assert message.startswith("the loss became nan (auxiliary 2.0) in step 6, epoch 2; lower optimization.learning")
    assert re.search(f"the last good checkpoint is {last_checkpoint}," if last_checkpoint else "no checkpoint", message)
    assert asked == [list(spec.schedule.indices(5))]
    assert uris == [*(f"image {index}" for index in range(URIS_SHOWN)), "..."]
    update = spec.progress_actor.actor.read()
    assert len(update.lines) == 1
    assert update.records == []
