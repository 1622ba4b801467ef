"""Training step of the paper's recipe. Needs only torch, on one device or under any torch.distributed launcher.

Shape suffixes: N batch, H W rows and columns, K classes, h w rows and columns at stride 8, P processes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.batch_norm import freeze, neighbours, synchronize, synchronized_processes
from models.inference.predictor import has_native_bfloat16
from models.pspnet import MIN_SIZE, PSPNet
from models.training.ema import moving_average
from models.training.losses import LossOptions, Objective

Precision = Literal["auto", "float32", "bfloat16", "float16"]
BatchNorm = Literal["synchronized", "plain", "frozen"]


@dataclass(frozen=True)
class StepOptions:
    """Options of a training step; the defaults are the paper's.

    Raises ValueError, with the name of the field, if a field is out of range.

    Args:
        batch_norm: "synchronized" shares statistics between processes, "plain" uses those of each process, "frozen"
            keeps the backbone's statistics, weights and biases and synchronizes the heads.
        batch_norm_processes: minimum number of processes that share synchronized statistics; None for all.
        precision: of the forward pass; "float16" uses a loss scaler, "auto" is bfloat16 if the device supports it
            natively, else float32.
        micro_batch: maximum number of images per forward pass; the gradients of the passes are accumulated.
        clip_norm: maximum global norm of the gradients.
        ema_decay: decay of a moving average of weights and statistics; None for no average.
        activation_checkpointing: recompute the backbone's activations in the backward pass.
        compile: compile the network with torch.compile.
    """

    loss: LossOptions = field(default_factory=LossOptions)
    batch_norm: BatchNorm = "synchronized"
    batch_norm_processes: int | None = None
    precision: Precision = "auto"
    micro_batch: int | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("batch_norm", BatchNorm), ("precision", Precision)):
            self._require(name, getattr(self, name) in get_args(kind), f"one of {', '.join(get_args(kind))}")
        at_least = self.batch_norm_processes
        self._require("batch_norm_processes", at_least is None or at_least >= 2, "2 or more, or none")
        self._require("micro_batch", self.micro_batch is None or self.micro_batch >= 1, "1 or more, or none")
        self._require("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or none")
        self._require("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1, or none")
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "StepOptions: compile and activation_checkpointing cannot be combined, since the compiler itself "
                "chooses what to recompute; remove one of them."
            )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"StepOptions: {name} is {getattr(self, name)!r}; it must be {allowed}.")


class StepResult(NamedTuple):
    """Losses and gradient norm of a step, as detached scalars.

    The losses are this process's shares and add up to those of the global batch. `main` is the total loss of the main
    head; `auxiliary` is the unweighted cross-entropy of the auxiliary head, None without it. `gradient_norm` is that of
    the global batch before clipping, None without `clip_norm`.
    """

    main: Tensor
    auxiliary: Tensor | None
    gradient_norm: Tensor | None


def sgd(
    model: PSPNet, learning_rate: float, head_rate_factor: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """Return SGD with `head_rate_factor` times the backbone's learning rate for new layers (pyramid, classifiers)."""
    groups = [
        {"params": list(model.backbone_parameters()), "rate_factor": 1.0},
        {"params": list(model.head_parameters()), "rate_factor": head_rate_factor},
    ]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)


def learning_rate_at(
    step: int, total_steps: int, learning_rate: float, power: float = 0.9, warmup_steps: int = 0
) -> float:
    """Return the learning rate of a step, counted from 0: `learning_rate * (1 - step / total_steps) ** power`.

    In the first `warmup_steps`, it is multiplied by a factor that rises linearly to 1.
    """
    warmth = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmth * learning_rate * (1 - step / total_steps) ** power


class TrainingStep:
    """Forward, loss, backward and update of one batch.

    Under torch.distributed, each process holds its own share of the global batch, with at least one image, and calls
    every step together with the others. The update equals that of one process with the whole batch, however the shares
    are split into micro-batches, except for BatchNorm's statistics, which are those of each micro-batch (of all
    processes together if synchronized).

    `network` is moved to `device`, gets the kind of BatchNorm in the options, and is wrapped in
    DistributedDataParallel if there are several processes. Its parameters stay the same objects, so `optimizer` (from
    `sgd`) can be created before or after.

    Args:
        mean, std: of RGB, 0 to 255.
    """

    def __init__(
        self,
        network: PSPNet,
        optimizer: torch.optim.Optimizer,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        options: StepOptions = StepOptions(),
    ) -> None:
        self.options = options
        self.optimizer = optimizer
        self.device = device
        a = network.architecture
        self.objective = Objective(options.loss, a.num_classes, a.align_corners)
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.network = self._prepared(network)
        # Before the layers refer to a process group, which cannot be copied.
        self._average = None if options.ema_decay is None else moving_average(network, options.ema_decay)
        self._model = self._distributed(network)

        self._autocast_to = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(options.precision)
        if options.precision == "auto" and has_native_bfloat16(device):
            self._autocast_to = torch.bfloat16
        self._scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
        dtype = next(network.parameters()).dtype
        self._mean_3 = torch.tensor(mean, dtype=dtype, device=device)
        self._std_3 = torch.tensor(std, dtype=dtype, device=device)

    @property
    def averaged(self) -> PSPNet:
        """Network to validate and save: the moving average if there is one, else the network itself."""
        if self._average is None:
            return self.network
        assert isinstance(self._average.module, PSPNet)
        return self._average.module

    def __call__(self, images_NHW3: Tensor, labels_NHW: Tensor, learning_rate: float) -> StepResult:
        """Take one step.

        Args:
            images_NHW3: uint8 RGB, this process's share, on any device.
            labels_NHW: class ids and ignore_index, any integer type. Leave them on the CPU, since checking them waits
                for their device.
            learning_rate: of the backbone at this step.

        Raises ValueError if shapes do not match, labels are not classes, or a BatchNorm would see a single value per
        channel.
        """
        if images_NHW3.shape != (*labels_NHW.shape, 3) or len(labels_NHW) == 0:
            raise ValueError(
                f"TrainingStep: images {tuple(images_NHW3.shape)} and labels {tuple(labels_NHW.shape)} must be "
                "(N, H, W, 3) and (N, H, W), with N of 1 or more."
            )
        self.network.train()
        self.objective.check(labels_NHW)
        # One core takes longer to count the pixels than a GPU.
        labels_NHW = labels_NHW.to(self.device, non_blocking=True)
        totals, shares = self._over_processes(self.objective.totals(labels_NHW), len(labels_NHW))
        self._require_statistics(shares)
        # Synchronized layers wait for each other, so all processes need the same number of passes.
        largest = len(labels_NHW) if self.options.batch_norm == "plain" else max(shares)
        micro_batches = self._micro_batches(images_NHW3, labels_NHW, self._num_passes(largest))
        self.optimizer.zero_grad(set_to_none=True)
        main, auxiliary = totals.new_zeros(()), None if self.network.auxiliary is None else totals.new_zeros(())
        for index, (images, labels) in enumerate(micro_batches, start=1):
            with self._accumulating(index < len(micro_batches)):
                share, auxiliary_share = self._pass(images, labels, totals)
            main += share
            if auxiliary is not None and auxiliary_share is not None:
                auxiliary += auxiliary_share
        return StepResult(main, auxiliary, self._update(learning_rate))

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which an identically built step continues exactly; the tensors are not copies."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`. Raises ValueError if it was saved with incompatible options."""
        for name, present in (("scaler", self._scaler.is_enabled()), ("average", self._average is not None)):
            if bool(state[name]) != present:
                raise ValueError(
                    f"TrainingStep: the state was saved {'without' if present else 'with'} {name}; continue with the "
                    "previous precision and ema_decay."
                )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    def _prepared(self, network: PSPNet) -> PSPNet:
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.backbone.activation_checkpointing = self.options.activation_checkpointing
        if self.options.batch_norm == "frozen":
            freeze(network.backbone)
        return network.train()

    def _distributed(self, network: PSPNet) -> nn.Module:
        if self.options.batch_norm != "plain":
            synchronize(network, neighbours(self.options.batch_norm_processes))
        model: nn.Module = network
        if self.world_size > 1:
            device_ids = [self.device] if self.device.type == "cuda" else None
            # Statistics of synchronized layers are the same everywhere, and a checkpoint has those of rank 0: there is
            # no need to broadcast them at every pass.
            model = _settled(
                DistributedDataParallel(
                    network, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
                )
            )
        if self.options.compile:
            network.compile()  # compiles in place, so that the parameter names do not change
        return model

    def _over_processes(self, totals: Tensor, num_images: int) -> tuple[Tensor, list[int]]:
        """Return the totals of the global batch and the number of images of each process.

        If the numbers of the other processes are not needed, only this process's number is returned, since reading
        them would wait for the device.
        """
        if self.world_size == 1:
            return totals, [num_images]
        mine = torch.cat([totals, totals.new_full((1,), num_images)])
        all_P3 = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(all_P3, mine)
        sums_P3 = torch.stack(all_P3)
        asked = self.options.micro_batch is not None or self.options.batch_norm == "plain"
        return sums_P3[:, :2].sum(0), [int(n) for n in sums_P3[:, 2].tolist()] if asked else [num_images]

    def _num_passes(self, num_images: int) -> int:
        return -(-num_images // (self.options.micro_batch or num_images))

    def _require_statistics(self, shares: list[int]) -> None:
        """Raise ValueError, in all processes at once, if a BatchNorm would see a single value per channel."""
        head = self.network.head
        bin_1 = [level[1] for bin_, level in zip(head.bins, head.levels, strict=True) if bin_ == 1 and head.reduce]  # type: ignore[index]
        if not any(layer.training and synchronized_processes(layer) == 1 for layer in bin_1):
            return
        for num_images in shares:
            if num_images // self._num_passes(num_images) == 1:
                raise ValueError(
                    f"TrainingStep: a process with {num_images} image(s) and micro_batch {self.options.micro_batch} "
                    "runs a forward pass on one image, which gives the BatchNorm of pyramid bin 1 a single value per "
                    "channel, so the variance is undefined. Give each process two images or more, or use a "
                    "micro_batch of 3 or more (of 2 with an even number of images), more processes with synchronized "
                    "batch_norm, or no bin 1."
                )

    def _micro_batches(self, images_NHW3: Tensor, labels_NHW: Tensor, num_passes: int) -> list[tuple[Tensor, Tensor]]:
        """Split this process's share as evenly as possible."""
        num_images = len(labels_NHW)
        if num_passes > num_images:
            # For example, for shares of 5 and 4 images, one image per pass, the smaller share repeats an image with all
            # labels ignored. It contributes to the synchronized statistics, but not to the loss.
            again = torch.arange(num_passes - num_images) % num_images
            ignored = torch.full_like(labels_NHW[again], self.objective.ignore_index)
            images_NHW3 = torch.cat([images_NHW3, images_NHW3[again]])
            labels_NHW = torch.cat([labels_NHW, ignored])
        return list(zip(images_NHW3.tensor_split(num_passes), labels_NHW.tensor_split(num_passes), strict=True))

    def _accumulating(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Return a context that defers the exchange of gradients to the last pass of the process."""
        if more_to_come and isinstance(self._model, DistributedDataParallel):
            return self._model.no_sync()
        return nullcontext()

    def _pass(self, images_NHW3: Tensor, labels_NHW: Tensor, totals: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run forward and backward on a micro-batch; return its shares of the main and the auxiliary loss."""
        images_NHW3 = images_NHW3.to(self.device, non_blocking=True)
        images_N3HW = ((images_NHW3 - self._mean_3) / self._std_3).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, self._autocast_to, enabled=self._autocast_to is not None):
            main_NKhw, auxiliary_NKhw = self._model(images_N3HW)
        loss = main = self.objective.main(main_NKhw, labels_NHW, totals)
        auxiliary = None
        if auxiliary_NKhw is not None:
            auxiliary = self.objective.cross_entropy(auxiliary_NKhw, labels_NHW, totals)
            loss = main + self.options.loss.auxiliary_weight * auxiliary
        # DistributedDataParallel divides gradients by the number of processes.
        self._scaler.scale(loss * self.world_size).backward()
        return main.detach(), None if auxiliary is None else auxiliary.detach()

    def _update(self, learning_rate: float) -> Tensor | None:
        """Update the weights; return the norm of the gradients if they are clipped.

        With float16, an update with overflowed gradients is skipped. Gradients are equal in all processes, so all skip.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_factor"]
        gradient_norm = None
        if self.options.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            gradient_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self.network)
        return gradient_norm


def _settled(model: DistributedDataParallel) -> DistributedDataParallel:
    """Run a backward pass with zero gradients, so that DistributedDataParallel rebuilds its buckets now.

    After the first backward pass, DistributedDataParallel reassigns gradients to buckets in the order of their arrival,
    and three or more processes then add them in another order. Doing so before the first step makes a run that resumes
    from a checkpoint compute the same bits as an uninterrupted run.
    """
    parameter = next(model.parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    cuda = [parameter.device] if parameter.is_cuda else []
    with torch.random.fork_rng(cuda):
        main, auxiliary = model(parameter.new_zeros(2, 3, MIN_SIZE, MIN_SIZE))
    (0 * main.sum() + (0 if auxiliary is None else 0 * auxiliary.sum())).backward()
    model.zero_grad(set_to_none=True)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return model
