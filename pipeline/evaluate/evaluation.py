"""Evaluation of a checkpoint on annotated images: tasks load pairs, actors predict and count, the driver sums up.

pairs -> load (tasks) -> Evaluator (actors) -> one row of counts per block

Counts are integers, and floating-point values are summed in the order of the pairs. Results are therefore identical for
any number of actors and any order in which blocks finish.
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

from pipeline.checkpoints.predictor import PredictorSpec
from pipeline.cluster import connection
from pipeline.cluster.ray_data import map_by_actors, map_tables
from pipeline.cluster.sizing import Reservation, check_capacity
from pipeline.config.data import DataConfig
from pipeline.datasets import Pair
from pipeline.errors import UserError, raise_user_error
from pipeline.evaluate.stages import EvalCounts, EvalOptions, Evaluator, ImageResult, counts_of, listed_block, load
from pipeline.metrics.boundary_iou import BoundaryCounts
from pipeline.metrics.calibration_error import ConfidenceCounts
from pipeline.metrics.confusion import Metrics, rounded

IMAGES_PER_BLOCK = 4
# Loading waits for storage half of the time. Also, Ray Data would fuse stages that reserve the same resources, and then
# predictors would wait for storage, too.
LOAD_CPUS = 0.5

OnProgress = Callable[[int, int], None]
"""Callback with the number of evaluated images and the total."""


@dataclass(frozen=True)
class ImageScore:
    """Metrics of one image; the ratios are nan if none of its pixels is annotated."""

    image_uri: str
    label_uri: str
    labelled_pixels: int
    miou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`. Images are sorted by URI.

    Each entry of `panel` and `worst` is a dict of image_uri, miou, pixel_accuracy and three small arrays of the same
    size: image (H x W x 3 uint8), truth and predicted (H x W class ids).
    """

    confusion_KK: NDArray[np.int64]
    metrics: Metrics
    confidence: ConfidenceCounts | None
    boundary: BoundaryCounts | None
    temperature_factor: float | None  # divisor for the logits; None if not requested
    images: list[ImageScore]
    panel: list[dict[str, Any]]
    worst: list[dict[str, Any]]  # the lowest mIoU first
    seconds: float

    def as_dict(self, class_names: list[str]) -> dict[str, Any]:
        """Return all ratios as JSON types: those of `Metrics.as_dict`, and those of the optional counts."""
        values = self.metrics.as_dict(class_names)
        if self.boundary is not None:
            values["boundary_iou"] = rounded(self.boundary.mean)
        if self.confidence is not None:
            values["expected_calibration_error"] = rounded(self.confidence.error)
            values["mean_confidence"] = rounded(self.confidence.mean_confidence)
        return values


def evaluate(
    spec: PredictorSpec,
    pairs: Sequence[Pair],
    data: DataConfig,
    predictors: Reservation,
    options: EvalOptions = EvalOptions(),  # noqa: B008  # frozen
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Label the pairs' images and compare them with their annotations, on the connected Ray cluster.

    Raises: UserError if a checkpoint or pair is unusable (names the file), if no pixel is annotated, or if the cluster
    cannot hold the predictors and one more CPU.
    """
    started = time.monotonic()
    pairs = sorted(pairs, key=lambda pair: (pair.image_uri, pair.label_uri))
    load_tasks = _load_tasks(predictors)
    blocks = [
        listed_block(first, pairs[first : first + IMAGES_PER_BLOCK]) for first in range(0, len(pairs), IMAGES_PER_BLOCK)
    ]
    loaded = map_tables(
        load,
        blocks,
        num_cpus=LOAD_CPUS,
        concurrency=min(load_tasks, len(blocks)),  # Ray warns if this exceeds the number of tasks
        data=data,
        fill=spec.fill,
    )
    counted = map_by_actors(
        loaded,
        Evaluator,
        {"spec": spec, "data": data, "eval_options": options},
        ray.data.ActorPoolStrategy(size=min(predictors.count, len(blocks))),
        num_cpus=predictors.cpus,
        gpu=predictors.gpu,
    )
    total = EvalCounts.none(len(data.classes))
    shown: list[ImageResult] = []
    lowest: list[ImageResult] = []
    for part in _parts(counted):
        shown += [image for image in part.images if image.number < options.panel]
        lowest = _lowest(lowest + part.images, options.worst)
        total += _without_pictures(part)
        if on_progress:
            on_progress(len(total.images), len(pairs))

    images = sorted(total.images, key=lambda image: image.number)
    if [image.number for image in images] != list(range(len(pairs))):
        raise RuntimeError(f"{len(images)} results for {len(pairs)} pairs; an image was lost or counted twice")
    if not total.confusion_KK.any():
        raise UserError(
            f"data.root {data.root}: every pixel of split {data.val_split!r} has the ignore_index "
            f"{data.ignore_index}, so there is nothing to evaluate; check ignore_index and label_map"
        )
    return Evaluation(
        confusion_KK=total.confusion_KK,
        metrics=Metrics.of(total.confusion_KK),
        confidence=total.confidence if options.calibration else None,
        boundary=total.boundary if options.boundary else None,
        temperature_factor=_best_temperature(images) if options.fit_temperature else None,
        images=[_score(image) for image in images],
        panel=[_entry(image) for image in sorted(shown, key=lambda image: image.number)],
        worst=[_entry(image) for image in lowest],
        seconds=time.monotonic() - started,
    )


def _load_tasks(predictors: Reservation) -> int:
    """Return the number of concurrent load tasks: half of the CPUs that the predictors leave. Raises: UserError."""
    have = connection.resources()
    check_capacity("predictors", [predictors], have, "lower predictors or predictor_cpus, or add nodes")
    return max(1, (have.max_cpus - predictors.count * predictors.cpus) // 2)


def _parts(counted: ray.data.Dataset) -> Iterator[EvalCounts]:
    """Yield the counts of each block as it finishes. Raises UserError if one caused a failure."""
    try:
        for table in counted.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from counts_of(table)
    except Exception as error:
        raise_user_error(error)


def _without_pictures(part: EvalCounts) -> EvalCounts:
    """Drop the pictures, which would fill the driver's memory."""
    return replace(part, images=[replace(image, picture=None) for image in part.images])


def _lowest(images: list[ImageResult], count: int) -> list[ImageResult]:
    """Return the images with the lowest mIoU; ties are in image order."""
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
