"""Training batches as tensors, for one worker."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import user_error
from pipeline.train.batches import Batch, WorkerShare, share, training_batches
from pipeline.train.worker_group import WorkerGroup
from pipeline.train.worker_spec import WorkerSpec


def load_batches(spec: WorkerSpec, workers: WorkerGroup, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this worker's images N x H x W x 3 and labels N x H x W of each step from `first_step` on.

    Raises: TrainingAborted on all workers if one of them gets a UserError. All workers must read the same steps.
    """
    part = share(spec.schedule.batch_size, workers.rank, workers.world_size)
    worker = WorkerShare(spec.schedule, spec.pairs, part, spec.config.workers.ingest_cpus)
    batches = training_batches(worker, first_step, spec.total_steps)
    for _ in range(first_step, spec.total_steps):
        batch = next_batch(batches, workers)
        yield to_tensor(batch.images_NHW3, workers.device), to_tensor(batch.labels_NHW, workers.device)


def next_batch(batches: Iterator[Batch], workers: WorkerGroup) -> Batch:
    """Return the next batch. Raises TrainingAborted on all workers if one of them gets a UserError."""
    problem, batch = None, None
    try:
        batch = next(batches)
    except Exception as error:
        found = user_error(error)
        if found is None:
            raise
        problem = str(found)
    if workers.any(problem is not None):
        workers.abort_on_problem(problem)
    assert batch is not None
    return batch


def to_tensor(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array, because Ray's arrays are read-only; for a GPU, into pinned memory."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=dtype, pin_memory=device.type == "cuda")
    tensor.numpy()[...] = array
    return tensor
