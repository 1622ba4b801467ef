"""Evaluation of a checkpoint on annotated images: tasks load pairs, actors predict and count, the driver adds up.

pairs -> load (tasks) -> Evaluator (actors) -> one row of counts for each block

Counts are whole numbers, and what is not is summed in the order of the pairs, so that neither the number of actors nor
the order in which blocks are done changes a digit.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from pipeline import storage
from pipeline.cluster import connection
from pipeline.cluster.ray_data import map_by_actors, map_tables
from pipeline.config.data import DataConfig
from pipeline.config.training import ProtocolConfig
from pipeline.datasets import Pair
from pipeline.errors import UserError, user_error
from pipeline.evaluate.stages import EvalCounts, EvalOptions, Evaluator, ImageResult, counts_of, listed_block, load
from pipeline.metrics.boundary_iou import BoundaryCounts
from pipeline.metrics.calibration_error import ConfidenceCounts
from pipeline.metrics.confusion import Metrics, rounded

IMAGES_PER_BLOCK = 4
# Loading waits for storage half of its time; and stages that reserve the same would be fused by Ray Data, so that
# predictors would wait, too.
LOAD_CPUS = 0.5

OnProgress = Callable[[int, int], None]
"""Called with the number of images done, and of all."""


@dataclass(frozen=True)
class ImageScore:
    """How well one image was labelled; the ratios are nan where none of its pixels is labelled."""

    image_uri: str
    label_uri: str
    labelled_pixels: int
    miou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Images are in the order of their URIs.

    Each entry of `panel` and `worst` is a dict of image_uri, miou, pixel_accuracy and three small arrays of one size:
    image (H x W x 3 uint8), truth and predicted (H x W class ids).
    """

    confusion_KK: NDArray[np.int64]
    metrics: Metrics
    confidence: ConfidenceCounts | None
    boundary: BoundaryCounts | None
    temperature_factor: float | None  # by which the logits should be divided; None if that was not asked for
    images: list[ImageScore]
    panel: list[dict[str, Any]]
    worst: list[dict[str, Any]]  # the lowest mIoU first
    seconds: float

    def as_dict(self, class_names: list[str]) -> dict[str, Any]:
        """All ratios as JSON types, with what was counted beside `Metrics.as_dict`."""
        values = self.metrics.as_dict(class_names)
        if self.boundary is not None:
            values["boundary_iou"] = rounded(self.boundary.mean)
        if self.confidence is not None:
            values["expected_calibration_error"] = rounded(self.confidence.error)
            values["mean_confidence"] = rounded(self.confidence.mean_confidence)
        return values


def evaluate(
    checkpoint_uri: str,
    pairs: Sequence[Pair],
    data: DataConfig,
    protocol: ProtocolConfig,
    *,
    gpu: bool,
    predictors: int,
    predictor_cpus: int,
    precision: str,
    threads: int | None = None,
    boundary: bool = False,
    calibration: bool = True,
    fit_temperature: bool = False,
    panel: int = 0,
    worst: int = 0,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Label the pairs' images and compare with their annotations, on the Ray that this process is connected to.

    Args:
        predictors, predictor_cpus: number of actors, and the CPUs that each reserves; one more CPU has to be free.
        precision: as `models.Predictor` takes it.
        threads: of each CPU predictor; None: `predictor_cpus`.
        boundary, calibration, fit_temperature: whether to count these, too.
        panel: number of images, the first by URI, that are kept to look at.
        worst: number of images of the lowest mIoU that are kept to look at.

    Raises: UserError for an unusable checkpoint or pair, naming the file, where no pixel is labelled, or where the
    cluster cannot hold the predictors.
    """
    started = time.monotonic()
    pairs = sorted(pairs, key=lambda pair: (pair.image_uri, pair.label_uri))
    load_tasks = _load_tasks(predictors, predictor_cpus, gpu)
    blocks = [
        listed_block(first, pairs[first : first + IMAGES_PER_BLOCK]) for first in range(0, len(pairs), IMAGES_PER_BLOCK)
    ]
    loaded = map_tables(
        load,
        blocks,
        num_cpus=LOAD_CPUS,
        concurrency=min(load_tasks, len(blocks)),  # Ray warns of tasks that cannot be
        data=data,
    )
    counted = map_by_actors(
        loaded,
        Evaluator,
        {
            "checkpoint": storage.absolute(checkpoint_uri),
            "data": data,
            "protocol": protocol,
            "device": "cuda" if gpu else "cpu",
            "precision": precision,
            "threads": threads or predictor_cpus,
            "eval_options": EvalOptions(boundary, calibration, fit_temperature, panel, worst > 0),
        },
        ray.data.ActorPoolStrategy(size=min(predictors, len(blocks))),
        num_cpus=predictor_cpus,
        gpu=gpu,
    )
    total = EvalCounts.none(len(data.classes))
    shown: list[ImageResult] = []
    lowest: list[ImageResult] = []
    for part in _parts(counted):
        shown += [image for image in part.images if image.number < panel]
        lowest = _lowest(lowest + part.images, worst)
        total += _without_pictures(part)
        if on_progress:
            on_progress(len(total.images), len(pairs))

    images = sorted(total.images, key=lambda image: image.number)
    if [image.number for image in images] != list(range(len(pairs))):
        raise RuntimeError(f"{len(images)} results for {len(pairs)} pairs; an image was lost or counted twice")
    if not total.confusion_KK.any():
        raise UserError(
            f"data.root {data.root}: every pixel of split {data.val_split!r} has the ignore_index "
            f"{data.ignore_index}, so nothing can be validated; check ignore_index and label_map"
        )
    return Evaluation(
        confusion_KK=total.confusion_KK,
        metrics=Metrics.of(total.confusion_KK),
        confidence=total.confidence if calibration else None,
        boundary=total.boundary if boundary else None,
        temperature_factor=_best_temperature(images) if fit_temperature else None,
        images=[_score(image) for image in images],
        panel=[_entry(image) for image in sorted(shown, key=lambda image: image.number)],
        worst=[_entry(image) for image in lowest],
        seconds=time.monotonic() - started,
    )


def _load_tasks(predictors: int, predictor_cpus: int, gpu: bool) -> int:
    """Loading tasks at once: half of the CPUs that the predictors leave."""
    have = connection.resources()
    left = have.max_cpus - predictors * predictor_cpus
    if left < 1:
        raise UserError(
            f"predictors: {predictors} with {predictor_cpus} CPU(s) each leave none of the cluster's {have.max_cpus} "
            "CPUs for decoding; lower predictors or predictor_cpus, or add CPUs"
        )
    if gpu and predictors > have.max_gpus:
        raise UserError(
            f"predictors: {predictors} on GPUs asked for, but the cluster has {have.max_gpus} GPU(s); lower it, add "
            "GPU nodes, or set gpu: false"
        )
    return max(1, left // 2)


def _parts(counted: ray.data.Dataset) -> Iterator[EvalCounts]:
    """The parts as they are done. Raises UserError where a failure goes back to one."""
    try:
        for table in counted.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from counts_of(table)
    except Exception as error:
        raise user_error(error) or error from None


def _without_pictures(part: EvalCounts) -> EvalCounts:
    """The part without what would fill the driver's memory."""
    return replace(part, images=[replace(image, picture=None) for image in part.images])


def _lowest(images: list[ImageResult], count: int) -> list[ImageResult]:
    """The images of the lowest mIoU, those of equal ones in their order."""
    labelled = [image for image in images if image.labelled_pixels]
    return sorted(labelled, key=lambda image: (image.miou, image.number))[:count]


def _best_temperature(images: list[ImageResult]) -> float:
    from models.inference.temperature import best_temperature

    slopes_NT = np.stack([image.slopes_T for image in images if image.slopes_T is not None])
    return best_temperature(np.array([math.fsum(slopes_N) for slopes_N in slopes_NT.T]))


def _score(image: ImageResult) -> ImageScore:
    pair = image.pair
    return ImageScore(pair.image_uri, pair.label_uri, image.labelled_pixels, image.miou, image.pixel_accuracy)


def _entry(image: ImageResult) -> dict[str, Any]:
    assert image.picture is not None
    about = {"image_uri": image.pair.image_uri, "miou": image.miou, "pixel_accuracy": image.pixel_accuracy}
    return about | image.picture.arrays()
