"""A worker's messages to the driver, and what a worker alone agrees on with itself."""

import pytest
import ray
import torch

from pipeline.train.worker_group import TrainingAborted
from tests.pipeline.train.single_worker import worker_group, worker_spec


def test_only_the_first_worker_sends_lines_and_records() -> None:
    spec = worker_spec()
    for rank in range(3):
        workers = worker_group(spec, rank)
        workers.log(f"from {rank}")
        workers.record(kind="resume", step=rank)
    update = spec.progress_actor.actor.read()
    assert update.lines == ["from 0"]
    assert update.records == [{"kind": "resume", "step": 0}]


def test_a_worker_alone_needs_no_process_group() -> None:
    workers = worker_group(worker_spec())
    value = torch.tensor([1.0, 2.0])
    total = workers.sum(value)
    assert torch.equal(total, value)
    assert total is not value
    assert workers.any(True)
    assert not workers.any(False)
    workers.abort_on_problem(None)
    with pytest.raises(TrainingAborted, match=r"^image a\.jpg: damaged$"):
        workers.abort_on_problem("image a.jpg: damaged")


def test_a_problem_that_a_validation_reported_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda value: value)
    spec = worker_spec()
    workers = worker_group(spec)
    workers.abort_on_reported_problem()
    spec.progress_actor.report_error.remote("image v.jpg: damaged")
    with pytest.raises(TrainingAborted, match=r"^image v\.jpg: damaged$"):
        workers.abort_on_reported_problem()
