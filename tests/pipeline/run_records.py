"""Records as training's workers send them, with the shapes of a real run: losses fall, mIoU rises, both scatter."""

from typing import Any

import numpy as np

from pipeline.config.data import ClassEntry, DataConfig
from pipeline.config.jobs import TrainConfig
from pipeline.config.training import TrackingConfig
from pipeline.datasets.scenes import CLASSES, scene

CLASS_NAMES = [entry.name for entry in CLASSES]


def run_config(output: str, **tracking: Any) -> TrainConfig:
    classes = [ClassEntry(name=entry.name, color=entry.color) for entry in CLASSES]
    data = DataConfig(root="scenes", classes=classes)
    # As load_settings makes it: neither environment nor command line.
    return TrainConfig.model_construct(
        **{
            **{name: field.default for name, field in TrainConfig.model_fields.items()},
            **{"output": output, "data": data, "tracking": TrackingConfig(**tracking)},
        }
    )


def step_record(step: int, total: int = 1000, epochs: int = 10, **other: Any) -> dict[str, Any]:
    random = np.random.default_rng(step)
    done = step / total
    loss = float((0.35 + 2.6 * np.exp(-6 * done)) * random.normal(1, 0.07))
    return {
        "kind": "step",
        "step": step,
        "epoch": done * epochs,
        "loss": loss,
        "auxiliary_loss": loss * 1.3,
        "learning_rate": 0.01 * (1 - done) ** 0.9,
        "images_per_second": float(random.normal(52, 2)),
        "gradient_norm": float(random.gamma(4, 0.4)),
        **other,
    }


def validation_record(
    step: int, miou: float, epoch: int = 1, names: list[str] = CLASS_NAMES, pictures: int = 1, size: int = 96
) -> dict[str, Any]:
    random = np.random.default_rng(step)
    ious = np.clip(random.normal(miou, 0.15, len(names)), 0, 1)
    return {
        "kind": "validation",
        "step": step,
        "epoch": epoch,
        "checkpoint": f"checkpoint_{step:08d}",
        "seconds": 12.5,
        "metrics": {
            "miou": miou,
            "mean_accuracy": miou + 0.08,
            "pixel_accuracy": miou + 0.2,
            "frequency_weighted_iou": miou + 0.1,
            "iou": dict(zip(names, ious.tolist(), strict=True)),
        },
        "panel": [prediction(index, size) for index in range(pictures)],
        "worst": [{**prediction(100 + index, size), "miou": 0.1 * index} for index in range(pictures)],
    }


def prediction(index: int, size: int) -> dict[str, Any]:
    """A scene, its truth with a band that has no label, and as prediction another scene's lower half in it."""
    image_HW3, truth_HW = scene(0, index, size * 2 // 3, size)
    _, other_HW = scene(0, index + 1000, size * 2 // 3, size)
    predicted_HW = np.where(np.arange(len(truth_HW))[:, None] > len(truth_HW) // 2, other_HW, truth_HW)
    truth_HW = truth_HW.astype(np.int32)
    truth_HW[:, : size // 12] = 255
    return {
        "image_uri": f"s3://b/val/{index:04d}.jpg",
        "image": image_HW3,
        "truth": truth_HW,
        "predicted": predicted_HW,
    }
