"""A small network without training and a small dataset of scenes, for tests of evaluation."""

from pathlib import Path

import torch

import models
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config.data import DataConfig, EvalDataConfig
from pipeline.datasets.scenes import CLASSES


def save_model(folder: Path) -> str:
    """Save a network of several labels and of confidences between the extremes; returns its folder."""
    torch.manual_seed(0)
    model = models.PSPNet(models.Architecture("resnet18", len(CLASSES), bins=(1, 2), auxiliary=False, width=16)).eval()
    torch.nn.init.normal_(model.head.classifier.weight, std=0.1)
    names, colors = [entry.name for entry in CLASSES], [list(entry.color) for entry in CLASSES]
    models.save(folder, model, models.Metadata(names, colors, preprocessing={"long_side": None}))
    return str(folder)


def dataset_of(checkpoint: str, root: str, **options: object) -> DataConfig:
    """The dataset under `root` with the checkpoint's classes."""
    asked = EvalDataConfig.model_validate({"root": root, **options})
    return Checkpoint.load(checkpoint, None).data_config(checkpoint, asked)
