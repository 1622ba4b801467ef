"""Feeds training: tasks anywhere in the cluster decode and augment, each worker receives its batches in order.

What a batch holds is a function of (seed, epoch, step, worker) alone, so that a resumed run sees what an
uninterrupted one would have seen. That is why this is Ray tasks in a fixed order and not a streaming split of
Ray Data, which hands out blocks as they come (docs/decisions/0001-ingest.md).
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import ray
from numpy.typing import NDArray

from pipeline.data_config import DataConfig
from pipeline.datasets import Pair, load_pair
from pipeline.recipe import AugmentConfig
from pipeline.warp import random_crop

BATCHES_AHEAD = 2  # per CPU of ingest: one being made, one waiting


class Batch(NamedTuple):
    """Images N x H x W x 3 uint8 RGB and their labels N x H x W int32, of one size."""

    images_NHW3: NDArray[np.uint8]
    labels_NHW: NDArray[np.int32]


def share(total: int, rank: int, world_size: int) -> slice:
    """The part of `total` things that falls to a worker; shares differ by one at most."""
    return slice(total * rank // world_size, total * (rank + 1) // world_size)


def epoch_order(num_pairs: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the pairs."""
    return np.random.default_rng([seed, epoch]).permutation(num_pairs)


def training_batches(
    pairs: list[Pair],
    data: DataConfig,
    augment: AugmentConfig,
    fill: tuple[float, float, float],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    rank: int,
    world_size: int,
    cpus: int,
) -> Iterator[Batch]:
    """One worker's share of each global batch of an epoch; a last batch that would not be full is left out."""
    order = epoch_order(len(pairs), seed, epoch)
    shares = []
    for start in range(0, len(pairs) - batch_size + 1, batch_size):
        indices = order[start : start + batch_size][share(batch_size, rank, world_size)]
        shares.append([(pairs[index], [seed, epoch, int(index)]) for index in indices])
    return _in_order(_training_batch, shares, (data, augment, fill), cpus)


def validation_pairs(pairs: list[Pair], data: DataConfig, *, cpus: int) -> Iterator[Batch]:
    """Whole images in the order of `pairs`, one in each batch."""
    return _in_order(_validation_pair, [[pair] for pair in pairs], (data,), cpus)


def _in_order(task: Any, work: list[Any], arguments: tuple[Any, ...], cpus: int) -> Iterator[Batch]:
    """Results of `task` for each piece of work, in order, a few of them made ahead."""
    remote = ray.remote(task).options(num_cpus=1, scheduling_strategy="SPREAD")
    pieces = iter(work)
    underway: deque[Any] = deque()
    for piece in pieces:
        underway.append(remote.remote(piece, *arguments))
        if len(underway) >= BATCHES_AHEAD * cpus:
            yield ray.get(underway.popleft())
    while underway:
        yield ray.get(underway.popleft())


def _training_batch(
    work: list[tuple[Pair, list[int]]], data: DataConfig, augment: AugmentConfig, fill: tuple[float, float, float]
) -> Batch:
    cv2.setNumThreads(1)
    crops = []
    for pair, seeds in work:
        image_HW3, label_HW = load_pair(pair, data)
        rng = np.random.default_rng(seeds)
        crops.append(random_crop(image_HW3, label_HW, augment, fill, data.ignore_index, rng))
    images, labels = zip(*crops, strict=True)
    return Batch(np.stack(images), np.stack(labels))


def _validation_pair(work: list[Pair], data: DataConfig) -> Batch:
    image_HW3, label_HW = load_pair(work[0], data)
    return Batch(image_HW3[None], label_HW[None])
