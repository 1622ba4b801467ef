"""A small network, batches and steps for the tests of training."""

from typing import Any

import torch
from torch import Tensor

from models.batch_norm import freeze
from models.pspnet import Architecture, PSPNet
from models.training.step import StepOptions, TrainingStep, sgd

CPU = torch.device("cpu")
SMALL = Architecture("resnet18", 5, bins=(1, 2), dropout=0.0)


def small_network(dtype: torch.dtype = torch.float32, seed: int = 0) -> PSPNet:
    torch.manual_seed(seed)
    return PSPNet(SMALL).to(dtype).train()


def images_and_labels(num_images: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Of 65 x 65 pixels, a third of them ignored, and all of the first image where there are three or more."""
    torch.manual_seed(seed)
    labels = torch.randint(0, 5, (num_images, 65, 65))
    labels[torch.rand(labels.shape) < 0.3] = 255
    if num_images > 2:
        labels[0] = 255
    return torch.randint(0, 256, (num_images, 65, 65, 3), dtype=torch.uint8), labels


def make_step(
    network: PSPNet | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    frozen: bool = False,
    **options: Any,
) -> TrainingStep:
    """A step in float32 unless the options say otherwise; `frozen`: no BatchNorm depends on its batch."""
    network = network or small_network(dtype, seed)
    if frozen:
        freeze(network)
    optimizer = sgd(network, 0.01, 10, 0.9, 1e-4)
    options = {"precision": "float32", **options}
    return TrainingStep(network, optimizer, (120,) * 3, (60,) * 3, CPU, StepOptions(**options))
