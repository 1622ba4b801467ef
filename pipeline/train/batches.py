"""Training input: Ray Data decodes and augments on any node, and each worker receives its batches in order.

The content of a batch is a function of (seed, step, worker) only, so a resumed run sees the same batches as an
uninterrupted one. Therefore each worker reads its own ordered dataset of step numbers instead of a streaming split of a
shared one, which hands out blocks in the order of completion (docs/decisions/0001-ingest.md).
"""

import functools
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from pipeline.config.data import DataConfig
from pipeline.config.training import AugmentConfig
from pipeline.datasets import Pair, load_pair
from pipeline.train.augmentation import random_crop

# Starting a task costs as much as several crops, so a task makes several batches, but few enough not to pile up.
TASK_BYTES, TASK_STEPS = 64_000_000, 16
# A run reads a sequence of datasets, because Ray Data slows down with thousands of tasks in one dataset. Only its size
# limits how far a dataset runs ahead: with a memory limit, Ray Data's scheduler would busy-wait in the trainer process.
# Starting the next dataset takes less than a second per DATASET_STEPS steps.
DATASET_STEPS, DATASET_BYTES = 1024, 512_000_000
THREADS = 4  # per task, so that one decodes while others wait for storage
BATCHES_AHEAD = 2


class Batch(NamedTuple):
    """Images N x H x W x 3 uint8 RGB, and labels N x H x W of an integer dtype."""

    images_NHW3: NDArray[np.uint8]
    labels_NHW: NDArray[np.integer]


def share(total: int, rank: int, world_size: int) -> slice:
    """Return a worker's slice of `total` items. Slice lengths differ by at most one."""
    return slice(total * rank // world_size, total * (rank + 1) // world_size)


@functools.lru_cache(maxsize=4)
def epoch_order(num_pairs: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits the pairs."""
    return np.random.default_rng([seed, epoch]).permutation(num_pairs)


def put_pairs(pairs: Sequence[Pair]) -> Any:
    """Put the pairs into the object store, so that a task can read only those it needs, and return the reference."""
    return ray.put(pa.array([pickle.dumps(pair) for pair in pairs], pa.large_binary()))


def get_pairs(pairs_ref: Any, indices: Sequence[int] | NDArray[np.int64]) -> list[Pair]:
    """Return the pairs at `indices` from a reference that `put_pairs` returned."""
    table = ray.get(pairs_ref)
    return [pickle.loads(table[int(index)].as_buffer()) for index in indices]


@dataclass(frozen=True)
class BatchSchedule:
    """Assignment of images to steps, and how they are loaded. An epoch's incomplete last batch is dropped.

    If `num_entries` of the list of pairs is larger than `num_pairs`, because some images are in it several times, each
    epoch visits `num_pairs` entries that it draws without replacement.
    """

    num_pairs: int  # of the dataset
    batch_size: int  # over all workers
    seed: int
    data: DataConfig
    augment: AugmentConfig
    fill: tuple[float, float, float]  # color outside an image and of its pixels without data, R, G, B
    num_entries: int | None = None  # of the list of pairs; None: num_pairs

    @property
    def steps_per_epoch(self) -> int:
        return self.num_pairs // self.batch_size

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the indices of a step's entries, of all workers in rank order."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.num_entries or self.num_pairs, self.seed, epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    @property
    def label_type(self) -> np.dtype[Any]:
        """The smallest dtype that holds all labels: transferring one byte per pixel takes a quarter of the time."""
        return np.dtype(np.uint8 if max(len(self.data.classes) - 1, self.data.ignore_index) < 256 else np.int32)

    @property
    def batch_bytes(self) -> int:
        """Size of one global batch, over all workers."""
        height, width = self.augment.crop
        return self.batch_size * height * width * (3 + self.label_type.itemsize)

    def load_crop(self, step: int, pair: Pair, index: int) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """Load a pair and return its random crop for this step's epoch."""
        image_HW3, label_HW = load_pair(pair, self.data, self.fill)
        rng = np.random.default_rng([self.seed, step // self.steps_per_epoch, index])
        return random_crop(image_HW3, label_HW, self.augment, self.fill, self.data.ignore_index, rng)


@dataclass(frozen=True)
class WorkerShare:
    """One worker's part of every global batch."""

    schedule: BatchSchedule
    pairs_ref: Any  # of put_pairs
    part: slice  # of a global batch, see `share`
    cpus: int  # tasks that prepare batches in advance

    @property
    def batch_bytes(self) -> int:
        """Size of this worker's images and labels of one step."""
        count = self.part.stop - self.part.start
        return max(1, self.schedule.batch_bytes * count // self.schedule.batch_size)


def training_batches(worker: WorkerShare, first_step: int, total_steps: int) -> Iterator[Batch]:
    """Yield one worker's share of each global batch from `first_step` on.

    Raises: the errors of `load_pair`, wrapped by Ray, at the batch that contains the pair.
    """
    steps = min(DATASET_STEPS, max(1, DATASET_BYTES // worker.batch_bytes))
    for start in range(first_step, total_steps, steps):
        yield from _dataset(worker, start, min(start + steps, total_steps))


def _dataset(worker: WorkerShare, first_step: int, end: int) -> Iterator[Batch]:
    steps_per_task = min(TASK_STEPS, max(1, TASK_BYTES // worker.batch_bytes))
    num_steps = end - first_step
    num_tasks = -(-num_steps // steps_per_task)
    dataset = ray.data.range(num_steps, override_num_blocks=num_tasks)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    # Ray aborts a dataset that makes no progress for 30 minutes, but training may pause to validate or wait for a node.
    dataset.context.execution_no_progress_timeout_s = -1
    batches = dataset.map_batches(
        _make_batches,  # type: ignore[arg-type]  # Ray's type hints do not cover extra arguments
        fn_kwargs={"worker": worker, "first_step": first_step},
        batch_size=None,
        num_cpus=1,
        concurrency=min(worker.cpus, num_tasks),  # Ray warns if this exceeds the number of tasks
    )
    for row in batches.iter_batches(batch_size=1, prefetch_batches=BATCHES_AHEAD):
        yield Batch(row["images"][0], row["labels"][0])


def _make_batches(
    block: dict[str, NDArray[np.int64]], worker: WorkerShare, first_step: int
) -> Iterator[dict[str, NDArray[Any]]]:
    schedule = worker.schedule
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(THREADS) as pool:
        for step in block["id"] + first_step:
            indices = schedule.indices(int(step))[worker.part]
            crop = functools.partial(schedule.load_crop, int(step))
            images, labels = zip(*pool.map(crop, get_pairs(worker.pairs_ref, indices), indices.tolist()), strict=True)
            yield {"images": np.stack(images)[None], "labels": np.stack(labels).astype(schedule.label_type)[None]}
