"""Batches as tensors, and errors of reading them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.train.batch_loader import next_batch, to_tensor
from pipeline.train.batches import Batch
from pipeline.train.worker_group import TrainingAborted
from tests.pipeline.train.single_worker import worker_group, worker_spec

BATCH = Batch(np.zeros((2, 3, 4, 3), np.uint8), np.zeros((2, 3, 4), np.int32))


def failing(error: Exception) -> Iterator[Batch]:
    yield BATCH
    raise error


def test_an_error_that_the_user_can_fix_aborts_at_its_batch() -> None:
    workers = worker_group(worker_spec())
    cause = RuntimeError("task failed")
    cause.__cause__ = UserError("image a.jpg: damaged")
    batches = failing(cause)
    assert next_batch(batches, workers) is BATCH
    with pytest.raises(TrainingAborted, match=r"^image a\.jpg: damaged$"):
        next_batch(batches, workers)


def test_any_other_error_is_left_to_ray_train_which_restarts_the_worker() -> None:
    batches = failing(ConnectionError("node lost"))
    next(batches)
    with pytest.raises(ConnectionError, match="node lost"):
        next_batch(batches, worker_group(worker_spec()))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_read_only_array_is_copied_with_its_dtype(dtype: type[np.generic]) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    array.setflags(write=False)
    tensor = to_tensor(array, torch.device("cpu"))
    np.testing.assert_array_equal(tensor.numpy(), array, strict=True)
    tensor += 1
    assert array[0, 0] == 0
