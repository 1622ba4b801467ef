"""Verdict on a completed training run: usual problems that its history shows, each with remedies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config.training import OptimizationConfig
from pipeline.train.history import History, Record, epochs_of, finite

# A false alarm is worse than silence, so each threshold is far from what healthy runs show.

# Below it, a class is useless: at most one in a hundred pixels that have or get the class is right.
MIN_CLASS_IOU = 0.01
# Share of the final mIoU gained in the last part of training. The poly schedule ends each run with a small gain, since
# the learning rate falls to 0. The run in docs/camvid.md, which was stopped early, gained 0.1.
MIN_GAIN = 0.08
LAST_PART = 0.25
# Overfitting: after its peak, mIoU loses this share, and the training loss falls to this share. The means of two or
# more validations are compared, since a single one scatters.
MIN_DECLINE = 0.1
MAX_LOSS_SHARE = 0.9
# From random weights, the loss falls by far more than this within the first steps, unless training fails.
STUCK_LOSS_SHARE = 0.95
MIN_LOSSES = 8  # step records; fewer scatter too much to compare the first and the last quarter
# Runs of fewer steps seldom learn all classes, whatever else is done: the one in docs/camvid.md had an mIoU of 0.08
# after 30 steps, and of 0.42 after 500.
MIN_STEPS = 500
NUM_NAMED = 4  # classes

PRETRAINED = "pretrained weights (--weights; jobs/import_weights.py imports a ResNet trained on ImageNet)"


@dataclass(frozen=True)
class Finding:
    """Problem of a training run, in one sentence without a period, and what to try next, the most promising first."""

    problem: str
    remedies: tuple[str, ...]


@dataclass(frozen=True)
class RunFacts:
    """Settings of a run that decide which remedies are left."""

    epochs: float
    steps: int | None  # if they set the length of the run
    learning_rate: float
    num_train: int  # images
    has_weights: bool  # started from pretrained weights
    favors_rare_classes: bool  # by class weights, sampling factors or online hard example mining

    @classmethod
    def of(cls, resolved: dict[str, Any]) -> "RunFacts":
        """Return those of a run's config.yaml."""
        recipe, loss = OptimizationConfig(**resolved["optimization"]), resolved["loss"]
        factors = resolved["data"].get("sampling_factors")  # earlier releases had none
        num_train = resolved["num_images"]["train"]
        return cls(
            epochs=epochs_of(recipe.total_steps(num_train), num_train // recipe.batch_size),
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            num_train=num_train,
            has_weights=resolved["weights"] is not None,
            favors_rare_classes=bool(loss["class_weights"] or factors) or loss["ohem_threshold"] is not None,
        )


def judge(history: History, facts: RunFacts) -> list[Finding]:
    """Return the findings on a run, the most important first; none unless its last epoch has been validated."""
    validations = [record for record in history.validations if record["metrics"].get("miou") is not None]
    if not validations or validations[-1]["epoch"] < facts.epochs:
        return []
    stuck = _stuck(history.steps, facts)
    if stuck:
        return [stuck]  # the other findings would follow from it
    trend = _overfitting(validations, history.steps, facts) or _still_improving(validations, facts)
    longer = None if trend else _longer(validations[-1]["step"], facts)
    found = (trend, _unlearned_classes(history.best(), facts, longer))
    return [finding for finding in found if finding]


def verdict_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the findings as lines for the terminal, two for each."""
    if not findings:
        return ["Verdict          no problems found"]
    return [
        line
        for finding in findings
        for line in (f"Verdict          {finding.problem}", f"  Try            {'; '.join(finding.remedies)}")
    ]


def _stuck(steps: Sequence[Record], facts: RunFacts) -> Finding | None:
    losses = finite(record["loss"] for record in steps)
    if facts.has_weights or len(losses) < MIN_LOSSES:  # a run that continues another one starts with a low loss
        return None
    quarter = len(losses) // 4
    first, last = np.mean(losses[:quarter]), np.mean(losses[-quarter:])
    if last < STUCK_LOSS_SHARE * first:
        return None
    return Finding(
        f"The training loss did not fall: {first:.3f} in the first quarter of training, {last:.3f} in the last",
        (
            f"a lower learning rate, such as --learning-rate {facts.learning_rate / 10:g}",
            "jobs/validate_dataset.py, to check the annotations",
        ),
    )


def _overfitting(validations: list[Record], steps: Sequence[Record], facts: RunFacts) -> Finding | None:
    width = max(2, len(validations) // 4)
    if len(validations) < 2 * width:
        return None
    windows = [validations[first : first + width] for first in range(len(validations) - width + 1)]
    mious = [_mean_miou(window) for window in windows]
    peak = int(np.argmax(mious))
    before, after = _mean_loss(steps, windows[peak]), _mean_loss(steps, windows[-1])
    if before is None or after is None or after > MAX_LOSS_SHARE * before:
        return None
    if mious[-1] > (1 - MIN_DECLINE) * mious[peak]:
        return None
    best = max(validations, key=lambda record: record["metrics"]["miou"])
    return Finding(
        f"Overfitting: mIoU fell from {best['metrics']['miou']:.4f} in epoch {best['epoch']}, which best/ keeps, to "
        f"{validations[-1]['metrics']['miou']:.4f}, while the training loss fell from {before:.3f} to {after:.3f}",
        (
            f"more training images ({facts.num_train:,} now)",
            "a lower learning rate (--learning-rate)" if facts.has_weights else PRETRAINED,
            f"fewer steps (--steps {best['step']})" if facts.steps else f"fewer epochs (--epochs {best['epoch']})",
        ),
    )


def _still_improving(validations: list[Record], facts: RunFacts) -> Finding | None:
    earlier = [record for record in validations if record["epoch"] <= (1 - LAST_PART) * facts.epochs]
    last = validations[-1]["metrics"]["miou"]
    if not earlier:
        return None
    former = max(earlier, key=lambda record: record["metrics"]["miou"])
    before = former["metrics"]["miou"]
    if last - before <= MIN_GAIN * last:
        return None
    if facts.steps:
        longer = f"more steps, such as --steps {2 * facts.steps}"
    else:
        longer = f"more epochs, such as --epochs {2 * facts.epochs:g}"
    return Finding(
        f"mIoU was still rising: {before:.4f} in epoch {former['epoch']}, {last:.4f} in epoch {facts.epochs}",
        (f"{longer} with another --output",),
    )


def _longer(num_steps: int, facts: RunFacts) -> str | None:
    """Return the remedy for a run that took fewer than MIN_STEPS steps, otherwise None."""
    if num_steps >= MIN_STEPS:
        return None
    epochs = math.ceil(facts.epochs * MIN_STEPS / num_steps)
    length = f"steps, such as --steps {MIN_STEPS}" if facts.steps else f"epochs, such as --epochs {epochs}"
    return f"more {length}, with another --output, since {num_steps} steps are few"


def _unlearned_classes(best: Record | None, facts: RunFacts, longer: str | None) -> Finding | None:
    ious: dict[str, float] = best["metrics"]["iou"] if best else {}
    names = [name for name, iou in ious.items() if iou < MIN_CLASS_IOU]
    if not names:
        return None
    listed = ", ".join(names[:NUM_NAMED]) + (f", and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else "")
    remedies = [
        *([longer] if longer else []),
        *([] if facts.has_weights else [PRETRAINED]),
        *(
            []
            if facts.favors_rare_classes
            else ["loss.class_weights, data.sampling_factors, or loss.ohem_threshold 0.7"]
        ),
        "more training images of these classes",
    ]
    return Finding(f"{len(names)} of {len(ious)} classes have an IoU below {MIN_CLASS_IOU}: {listed}", tuple(remedies))


def _mean_miou(validations: list[Record]) -> float:
    return float(np.mean([record["metrics"]["miou"] for record in validations]))


def _mean_loss(steps: Sequence[Record], window: list[Record]) -> float | None:
    """Return the mean training loss of the epochs from the first to the last validation of a window."""
    first, last = window[0]["epoch"], window[-1]["epoch"]
    losses = finite(record["loss"] for record in steps if first <= record["epoch"] <= last)
    return float(np.mean(losses)) if losses else None
