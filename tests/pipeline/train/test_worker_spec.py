"""The steps at which a run writes and validates checkpoints."""

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


def test_the_last_epoch_is_validated_whatever_the_interval() -> None:
    spec = worker_spec(validate_every=2)
    assert [step for step in STEPS if spec.is_validation_due(step)] == [8, 12]
