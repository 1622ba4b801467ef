"""Calibration for int8: activation ranges from training images, accuracy from validation images.

Calibration runs in one process because it compares speeds.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import models
from models import Predictor
from models.inference.activation_ranges import activation_ranges
from models.inference.predictor import has_int8, has_native_bfloat16
from models.inference.preprocessing import checked_images
from pipeline.checkpoints.checkpoint import Checkpoint, holds_checkpoint, write_checkpoint
from pipeline.config.data import DataConfig
from pipeline.config.jobs import CalibrateConfig
from pipeline.console import duration, log
from pipeline.datasets import Pair, list_pairs, load_image, load_pair
from pipeline.errors import UserError
from pipeline.images.codec import shrink
from pipeline.metrics.confusion import Metrics, confusion_matrix

SHARES = (1.0, 0.9999, 0.999)  # of activations that a range covers; clipping the rarest ones makes finer steps
MIN_AGREEMENT = 0.98
MAX_MIOU_CHANGE = 0.005
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Result:
    """Result of one precision on the validation split."""

    miou: float
    agreement: float  # share of labeled pixels that get the same label as in float32
    images_per_second: float  # median, for the forward pass and labels of one image at a time


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration."""

    num_images: int  # from which the ranges were measured
    num_validated: int
    share: float  # the one of SHARES with the best labels on these images
    results: dict[str, Result]  # by precision

    @property
    def problem(self) -> str | None:
        """Reason to reject int8; None if int8 is accurate enough."""
        agreement = self.results["int8"].agreement
        change = self.results["int8"].miou - self.results["float32"].miou
        if agreement >= MIN_AGREEMENT and abs(change) < MAX_MIOU_CHANGE:
            return None
        return (
            f"int8 is not accurate enough for this checkpoint: {agreement:.2%} of the labeled pixels get the same "
            f"label as in float32 ({MIN_AGREEMENT:.0%} required) and mIoU changes by {change:+.4f} (less than "
            f"{MAX_MIOU_CHANGE} required); nothing was written. Label with --precision bfloat16, which needs no "
            "calibration, or try again with more --calibration-images"
        )


def calibrate(config: CalibrateConfig) -> Calibration:
    """Calibrate a checkpoint and, if int8 is accurate enough, write it with the calibration to the output.

    Raises: UserError if the checkpoint, the dataset or the output cannot be used.
    """
    if not has_int8(torch.device("cpu")):
        raise UserError(
            "calibration runs the checkpoint in int8, which needs a CPU with VNNI instructions and a PyTorch build "
            "with oneDNN; calibrate on such a machine"
        )
    model = Checkpoint.load(config.checkpoint, long_side=None)
    data = model.data_config(config.checkpoint, config.data)
    holds_checkpoint(config.output, model.model_id, model.metadata)  # reject a different checkpoint before the work
    train_pairs, val_pairs = (list_pairs(data, split) for split in (data.train_split, data.val_split))
    num_images = min(config.calibration_images, len(train_pairs))
    log(f"Calibrating {config.checkpoint} on {num_images:,} images, validating on {len(val_pairs):,}")

    chosen = [train_pairs[index * len(train_pairs) // num_images] for index in range(num_images)]
    images_1HW3 = [
        checked_images(shrink(load_image(pair, data, model.metadata.mean), data.long_side)[None]) for pair in chosen
    ]
    float32 = model.predictor("cpu", "float32")
    share, ranges = _best_ranges(model, float32, images_1HW3)

    predictors = {"float32": float32}
    if has_native_bfloat16(torch.device("cpu")):
        predictors["bfloat16"] = model.predictor("cpu", "bfloat16")
    predictors["int8"] = _int8_predictor(model, ranges)
    calibration = Calibration(
        num_images, len(val_pairs), share, _compare(predictors, val_pairs, data, model.metadata.mean)
    )
    if calibration.problem is None:
        int8_about = {
            "ranges": ranges,
            "images": num_images,
            "agreement": calibration.results["int8"].agreement,
            "miou": {precision: calibration.results[precision].miou for precision in ("float32", "int8")},
        }
        write_checkpoint(config.output, model.network, replace(model.metadata, int8=int8_about))
    return calibration


def _best_ranges(model: Checkpoint, float32: Predictor, images_1HW3: list[Tensor]) -> tuple[float, Any]:
    """Return the share of SHARES whose ranges label these images most like float32, and these ranges."""
    wanted_1HW = [float32.predict(image).class_ids_NHW for image in images_1HW3]
    tried = {}
    for share in SHARES:
        ranges = activation_ranges(model.network, model.metadata.mean, model.metadata.std, images_1HW3, share)
        int8 = _int8_predictor(model, ranges)
        agreement = _share_equal(wanted_1HW, [int8.predict(image).class_ids_NHW for image in images_1HW3])
        log(f"  ranges that cover {share:.2%} of the activations: {agreement:.2%} labeled as in float32")
        tried[share] = agreement, ranges
    best = max(tried, key=lambda share: tried[share][0])
    return best, tried[best][1]


def _int8_predictor(model: Checkpoint, ranges: Any) -> Predictor:
    about = model.metadata
    return Predictor(
        model.network, about.mean, about.std, precision="int8", calibration=models.Calibration(activation_ranges=ranges)
    )


def _share_equal(wanted: Sequence[NDArray[np.integer]], found: Sequence[NDArray[np.integer]]) -> float:
    equal = sum(int((a == b).sum()) for a, b in zip(wanted, found, strict=True))
    return equal / sum(a.size for a in wanted)


def _compare(
    predictors: dict[str, Predictor], pairs: list[Pair], data: DataConfig, fill: Sequence[float]
) -> dict[str, Result]:
    """Label each validation image in every precision in turn, and return the result by precision.

    Pixels without data have the color `fill`.
    """
    num_classes = len(data.classes)
    confusion_KK = {precision: np.zeros((num_classes, num_classes), np.int64) for precision in predictors}
    seconds = defaultdict(list)
    num_equal: Counter[str] = Counter()
    for pair in _announced(pairs):
        image_HW3, label_HW = load_pair(pair, data, fill)
        small_HW3 = shrink(image_HW3, data.long_side)
        counted_HW = label_HW != data.ignore_index
        class_ids_HW: dict[str, NDArray[np.integer]] = {}
        for precision, predictor in predictors.items():
            start = time.perf_counter()
            class_ids_HW[precision] = predictor.predict(small_HW3[None], label_HW.shape).class_ids_NHW[0]
            seconds[precision].append(time.perf_counter() - start)
            confusion_KK[precision] += confusion_matrix(
                label_HW, class_ids_HW[precision], num_classes, data.ignore_index
            )
            equal_HW = class_ids_HW[precision] == class_ids_HW["float32"]
            num_equal[precision] += int(equal_HW[counted_HW].sum())
    num_labelled = int(confusion_KK["float32"].sum())
    if not num_labelled:
        raise UserError(
            f"data.root {data.root}: every pixel of split {data.val_split!r} has the ignore_index "
            f"{data.ignore_index}, so nothing can be compared; check ignore_index and label_map"
        )
    return {
        precision: Result(
            miou=Metrics.of(confusion_KK[precision]).miou,
            agreement=num_equal[precision] / num_labelled,
            images_per_second=1 / median(seconds[precision]),
        )
        for precision in predictors
    }


def _announced(pairs: list[Pair]) -> Iterator[Pair]:
    start = last = time.monotonic()
    for number, pair in enumerate(pairs, 1):
        yield pair
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and number < len(pairs):
            left = (now - start) / number * (len(pairs) - number)
            log(f"  validated {number:,} of {len(pairs):,} images · {duration(left)} left")
            last = now
