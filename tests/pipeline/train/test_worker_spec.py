"""The steps at which a run writes and validates checkpoints, and logs its progress."""

from dataclasses import replace

import pytest

from tests.pipeline.train.single_worker import EPOCHS, STEPS_PER_EPOCH, worker_spec

STEPS = range(1, STEPS_PER_EPOCH * EPOCHS + 1)


def test_without_an_interval_each_epoch_ends_with_a_checkpoint_that_is_validated() -> None:
    spec = worker_spec()
    assert [step for step in STEPS if spec.is_checkpoint_due(step)] == [4, 8, 12]
    assert [step for step in STEPS if spec.is_validation_due(step)] == [4, 8, 12]


def test_an_interval_adds_checkpoints_that_are_not_validated() -> None:
    spec = worker_spec(checkpoint_every=3)
    assert [step for step in STEPS if spec.is_checkpoint_due(step)] == [3, 4, 6, 8, 9, 12]
    assert [step for step in STEPS if spec.is_validation_due(step)] == [4, 8, 12]


@pytest.mark.parametrize(
    ("num_epochs", "log_every", "interval"), [(2, 10, 1), (5, 10, 2), (5, 1, 1), (25, 10, 10), (100, 10, 10)]
)
def test_a_short_run_logs_ten_lines_and_a_long_one_follows_the_option(
    num_epochs: int, log_every: int, interval: int
) -> None:
    spec = worker_spec(log_every=log_every)
    recipe = spec.config.optimization.model_copy(update={"epochs": num_epochs})
    short = replace(spec, config=spec.config.model_copy(update={"optimization": recipe}))
    assert short.total_steps == STEPS_PER_EPOCH * num_epochs
    assert short.log_every == interval


def test_the_learning_rate_ends_at_its_minimum_as_in_mmsegmentation() -> None:
    """PolyLR of MMEngine: (base - eta_min) * (1 - step / steps) ** power + eta_min."""
    spec = worker_spec(learning_rate=0.01, min_learning_rate=1e-4)
    rates = [spec.learning_rate(step) for step in range(12)]
    assert rates == pytest.approx([0.0099 * (1 - step / 12) ** 0.9 + 1e-4 for step in range(12)])
    assert worker_spec(learning_rate=0.01).learning_rate(6) == pytest.approx(0.01 * 0.5**0.9)


def test_steps_set_the_length_of_a_run_whose_last_step_is_saved_and_validated() -> None:
    spec = worker_spec(epochs=None, steps=10)
    assert (spec.total_steps, spec.num_epochs) == (10, 2.5)
    assert [step for step in range(1, 11) if spec.is_checkpoint_due(step)] == [4, 8, 10]
    assert [step for step in range(1, 11) if spec.is_validation_due(step)] == [4, 8, 10]


def test_the_last_epoch_is_validated_whatever_the_interval() -> None:
    spec = worker_spec(validate_every=2)
    assert [step for step in STEPS if spec.is_validation_due(step)] == [8, 12]
