"""Exponential moving average of a network during training."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from models.pspnet import PSPNet


def moving_average(network: PSPNet, decay: float) -> AveragedModel:
    """Return an exponential moving average of weights and BatchNorm statistics; `.module` is the averaged network.

    Each `update_parameters(network)` keeps the share `decay` of the average and takes the rest from the network; the
    first call copies the network. Counters (num_batches_tracked) are copied.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, _: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            torch._foreach_copy_(averaged, current)

    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    return average
