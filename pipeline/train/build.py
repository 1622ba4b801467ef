"""Construction of the network, its optimizer and the training step from a configuration."""

from typing import Any

import torch

import models
from models.training.losses import LossOptions
from models.training.step import StepOptions, TrainingStep, sgd
from models.weights.checkpoint import IMAGENET_MEAN as MEAN
from models.weights.checkpoint import IMAGENET_STD as STD
from pipeline.checkpoints.pretrained import take_weights
from pipeline.config.data import DataConfig
from pipeline.config.jobs import TrainConfig
from pipeline.config.training import LossConfig, ModelConfig, OptimizationConfig
from pipeline.train.worker_group import TrainingAborted


def set_backend_options(device: torch.device, cpus: int) -> None:
    """Set the process-wide options of torch for training on a device."""
    if device.type == "cpu":
        torch.set_num_threads(cpus)
    else:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


def build_training_step(config: TrainConfig, data: DataConfig, device: torch.device, is_resumed: bool) -> TrainingStep:
    """Return the training step of a run's first step. Pretrained weights are not loaded for a run that is resumed.

    Raises: TrainingAborted if options do not fit together, UserError if the weights cannot be loaded.
    """
    recipe = config.optimization
    torch.manual_seed(recipe.seed)  # the same weights on every worker
    network: Any = models.PSPNet(architecture(config.model, data))
    if config.weights is not None and not is_resumed:
        take_weights(network, config.weights, data)
    optimizer = sgd(network, recipe.learning_rate, recipe.head_rate_factor, recipe.momentum, recipe.weight_decay)
    try:
        options = step_options(recipe, config.loss, data.ignore_index)
        return TrainingStep(network, optimizer, MEAN, STD, device, options)
    except ValueError as error:
        raise TrainingAborted(str(error)) from error


def architecture(model: ModelConfig, data: DataConfig) -> models.Architecture:
    """Return the architecture for a configuration."""
    return models.Architecture(num_classes=len(data.classes), **model.model_dump())


def step_options(recipe: OptimizationConfig, loss: LossConfig, ignore_index: int) -> StepOptions:
    """Return the options of the training step for a configuration."""
    return StepOptions(
        loss=LossOptions(**loss.model_dump(), ignore_index=ignore_index),
        batch_norm=recipe.batch_norm,
        batch_norm_processes=recipe.batch_norm_workers,
        precision=recipe.precision,
        micro_batch=recipe.micro_batch,
        clip_norm=recipe.clip_norm,
        ema_decay=recipe.ema_decay,
        activation_checkpointing=recipe.activation_checkpointing,
        compile=recipe.compile,
    )
