"""One training step of the paper's recipe. Needs torch alone, on one device or under any torch.distributed launcher.

Shape suffixes: N batch, H W rows and columns, K classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.loss import upsampled_cross_entropy
from models.predictor import has_native_bfloat16
from models.pspnet import PSPNet

Precision = Literal["float32", "bfloat16", "auto"]


def sgd(model: PSPNet, learning_rate: float, head_rate_factor: float, momentum: float, weight_decay: float):
    """SGD whose new layers (pyramid, classifiers) learn `head_rate_factor` times as fast as the backbone."""
    groups = [
        {"params": list(model.backbone_parameters()), "rate_factor": 1.0},
        {"params": list(model.head_parameters()), "rate_factor": head_rate_factor},
    ]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)


def poly_rate(step: int, total_steps: int, learning_rate: float, power: float) -> float:
    """Learning rate of a step, counted from 0: `learning_rate * (1 - step / total_steps) ** power`."""
    return learning_rate * (1 - step / total_steps) ** power


class TrainingStep:
    """Forward, loss, backward and update of one batch.

    Under torch.distributed each process holds its own share of the global batch, of any size, and `model` is wrapped
    in DistributedDataParallel; the update then equals that of one process with the whole batch, since each share's
    loss is its sum over the global number of labelled pixels, times the world size by which DDP divides.

    Args:
        model: PSPNet or its DDP wrapper, in training mode.
        optimizer: from `sgd`.
        mean, std: of RGB, 0 to 255.
        precision: "bfloat16" runs the forward pass under autocast; "auto" does where the device computes in it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        ignore_index: int,
        auxiliary_weight: float,
        precision: Precision = "auto",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device = device
        self.ignore_index = ignore_index
        self.auxiliary_weight = auxiliary_weight
        self.autocast = precision == "bfloat16" or (precision == "auto" and has_native_bfloat16(device))
        network = model.module if isinstance(model, DistributedDataParallel) else model
        assert isinstance(network, PSPNet)
        self._align_corners = network.architecture.align_corners
        dtype = next(network.parameters()).dtype
        self._mean_3 = torch.tensor(mean, dtype=dtype, device=device)
        self._std_3 = torch.tensor(std, dtype=dtype, device=device)

    def count_labelled(self, labels_NHW: Tensor) -> Tensor:
        """Pixels that are not ignored, as a scalar tensor; sum it over all processes for `__call__`."""
        return (labels_NHW != self.ignore_index).sum()

    def __call__(self, images_NHW3: Tensor, labels_NHW: Tensor, labelled: Tensor, learning_rate: float) -> Tensor:
        """Take one step.

        Args:
            images_NHW3: uint8 RGB.
            labels_NHW: class ids and ignore_index, any integer type.
            labelled: `count_labelled` summed over all processes.
            learning_rate: of the backbone at this step.

        Returns: this process's share of the global mean main loss, detached; the shares add up to it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_factor"]
        images_N3HW = ((images_NHW3 - self._mean_3) / self._std_3).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            main_NKhw, auxiliary_NKhw = self.model(images_N3HW)
        # A batch without any labelled pixel has no loss, and must not divide by nothing.
        share = 1 / labelled.clamp(min=1)
        main = self._sum_of_losses(main_NKhw, labels_NHW) * share
        loss = main
        if auxiliary_NKhw is not None:
            loss = main + self.auxiliary_weight * self._sum_of_losses(auxiliary_NKhw, labels_NHW) * share
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.optimizer.zero_grad(set_to_none=True)
        (loss * world_size).backward()
        self.optimizer.step()
        return main.detach()

    def _sum_of_losses(self, logits_NKhw: Tensor, labels_NHW: Tensor) -> Tensor:
        return upsampled_cross_entropy(logits_NKhw, labels_NHW, self.ignore_index, self._align_corners)
