"""The history of a run: what it keeps, what a resumed run forgets, and how large it may become."""

import itertools
import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.train.history import MAX_STEPS, History, read_history, thinned
from tests.pipeline.run_records import step_record, validation_record


def written_and_read(history: History, output: Path) -> History:
    (output / "history.jsonl").write_bytes(history.content())
    return read_history(str(output))


def test_what_was_written_is_read_back_without_the_pictures(tmp_path: Path) -> None:
    history = History(mlflow_run="abc")
    history.add(step_record(10, elapsed=3.0))
    history.add(validation_record(10, 0.5) | {"elapsed": 4.0})
    assert history.steps[0]["loss"] == pytest.approx(step_record(10)["loss"], rel=1e-5)
    assert not {"panel", "worst"} & set(history.validations[0])
    assert written_and_read(history, tmp_path) == history
    assert history.elapsed == 4.0


def test_a_new_output_has_an_empty_history(tmp_path: Path) -> None:
    assert read_history(str(tmp_path / "none")) == History()


def test_a_loss_that_is_not_finite_is_none_and_the_file_stays_json(tmp_path: Path) -> None:
    history = History()
    history.add(step_record(1, loss=float("nan"), gradient_norm=float("inf"), auxiliary_loss=None))
    for line in history.content().decode().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert written_and_read(history, tmp_path).steps[0]["loss"] is None


def test_resuming_forgets_later_steps_and_keeps_earlier_validations() -> None:
    history = History()
    for step in (10, 20, 30, 40):
        history.add(step_record(step))
    history.add(validation_record(20, 0.4))
    history.add(validation_record(40, 0.6))
    history.rewind(20)
    assert [record["step"] for record in history.steps] == [10, 20]
    assert [record["step"] for record in history.validations] == [20]


def test_validations_that_end_late_or_twice_stand_once_and_in_order() -> None:
    history = History()
    for step, miou in ((20, 0.5), (10, 0.3), (20, 0.6)):
        history.add(validation_record(step, miou))
    assert [(record["step"], record["metrics"]["miou"]) for record in history.validations] == [(10, 0.3), (20, 0.6)]


def test_the_best_validation_is_the_first_of_the_highest_miou() -> None:
    history = History()
    assert history.best() is None
    for step, miou in ((10, 0.3), (20, 0.6), (30, 0.6), (40, 0.5)):
        history.add(validation_record(step, miou))
    nothing_measured = validation_record(50, 0.9)
    nothing_measured["metrics"]["miou"] = float("nan")
    history.add(nothing_measured)
    best = history.best()
    assert best
    assert best["step"] == 20


def test_a_long_run_stays_small_and_evenly_covered() -> None:
    history = History()
    record = step_record(1)
    steps = 12 * MAX_STEPS
    for step in range(1, steps + 1):
        history.add(record | {"step": step})
    kept = [record["step"] for record in thinned(history.steps, MAX_STEPS)]
    assert len(kept) <= MAX_STEPS + 1
    assert kept[-1] == steps
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert max(gaps) <= 2 * steps / MAX_STEPS
    assert len(history.content()) < 4_000_000


def test_a_damaged_history_is_named(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"kind": "step", ')
    with pytest.raises(UserError, match=r"history\.jsonl: not a valid training history"):
        read_history(str(tmp_path))
