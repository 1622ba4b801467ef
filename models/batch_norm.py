"""Synchronizing BatchNorm over processes, freezing it, and folding it into convolutions for inference.

Shape suffixes: N batch, C channels, H W rows and columns, P processes.
"""

import copy
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

Layer = TypeVar("Layer", bound=nn.BatchNorm2d)


def synchronize(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Make every BatchNorm2d a SyncBatchNorm2d, with the statistics of all processes; return the model.

    The state dict stays the same. Call this before wrapping the model in DistributedDataParallel. With a single
    process, or without torch.distributed, nothing changes. Frozen layers stay frozen.
    """
    if _world_size(process_group) == 1:
        return model

    def synchronized(layer: nn.BatchNorm2d) -> nn.Module:
        synced = _as(SyncBatchNorm2d, layer)
        synced.process_group = process_group
        return synced

    return _replace(model, synchronized)


def neighbours(at_least: int | None) -> Any:
    """Return the process group of at least `at_least` processes with which this one shares statistics; None for all.

    Groups have consecutive ranks, which are mostly on one machine, and sizes as even as possible. Every process must
    call this. The collective that each layer waits for runs within a group, so it takes no longer with more groups.
    """
    world_size = _world_size(None)
    if at_least is None or world_size < 2 * at_least:
        return None
    count = world_size // at_least
    starts = [world_size * k // count for k in range(count + 1)]
    group, _ = dist.new_subgroups_by_enumeration([[*range(*bounds)] for bounds in pairwise(starts)])
    return group


def freeze(model: nn.Module) -> nn.Module:
    """Freeze every BatchNorm2d (running statistics, weight and bias); return the model, with the same state dict.

    Call this before `synchronize` and before wrapping the model in DistributedDataParallel.
    """

    def frozen(layer: nn.BatchNorm2d) -> nn.Module:
        return _as(FrozenBatchNorm2d, layer).requires_grad_(False).eval()

    return _replace(model, frozen)


def synchronized_processes(batch_norm: nn.Module) -> int:
    """Return the number of processes that share this layer's training statistics."""
    if isinstance(batch_norm, SyncBatchNorm2d):
        return _world_size(batch_norm.process_group)
    return 1


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that stays in evaluation mode."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of the batches of all processes together.

    Batch sizes may differ between processes, but no batch is empty. Forward and backward take one collective each. The
    gradients of weight and bias are local: DistributedDataParallel averages them over processes, so the loss of unequal
    batches must be sum * world size / global count. In evaluation mode it is a plain BatchNorm2d.

    Unlike torch's SyncBatchNorm, it runs on CPUs, and on a GPU the host never waits for the device.
    """

    process_group: Any = None

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training or _world_size(self.process_group) == 1:
            return super().forward(input)
        if has_fused_kernels(input):
            input = _dense(input)
            return _FusedNormalisation.apply(input, self.weight, self.bias, self._fused_statistics(input))
        out_NCHW, mean_C, var_C, count = _SynchronizedNormalisation.apply(
            input, self.weight, self.bias, self.eps, self.process_group
        )
        if self.track_running_stats:
            momentum = self._count_batch()
            assert self.running_mean is not None
            assert self.running_var is not None
            with torch.no_grad():
                self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_((var_C * (count / (count - 1))).to(self.running_var.dtype), momentum)
        return out_NCHW

    def _count_batch(self) -> float:
        """Count a batch; return its share of the running statistics."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum

    @torch.no_grad()
    def _fused_statistics(self, x_NCHW: Tensor) -> "_FusedStatistics":
        """Return the statistics over all processes, and update the running ones."""
        momentum = self._count_batch() if self.track_running_stats else 0.0
        num_channels = x_NCHW.shape[1]
        mean_C, inv_std_C = torch.batch_norm_stats(x_NCHW, self.eps)
        count_1 = mean_C.new_full((1,), x_NCHW.numel() // num_channels)
        all_PX = _all_gather(torch.cat([mean_C, inv_std_C, count_1]), self.process_group)
        mean_PC, inv_std_PC, count_P1 = all_PX.split([num_channels, num_channels, 1], dim=1)
        count_P = count_P1.flatten()
        mean_C, inv_std_C = torch.batch_norm_gather_stats_with_counts(
            x_NCHW, mean_PC, inv_std_PC, self.running_mean, self.running_var, momentum, self.eps, count_P
        )
        return _FusedStatistics(mean_C, inv_std_C, count_P.to(torch.int32), self.eps, self.process_group)


def has_fused_kernels(x_NCHW: Tensor) -> bool:
    """Return True if torch has the kernels of its SyncBatchNorm for this tensor."""
    return x_NCHW.is_cuda


class _FusedStatistics(NamedTuple):
    mean_C: Tensor
    inv_std_C: Tensor
    count_P: Tensor  # values per channel of each process, int32
    eps: float
    process_group: Any


class _FusedNormalisation(torch.autograd.Function):
    """Normalization by the kernels of torch's SyncBatchNorm, which read and write the features as rarely as possible.

    torch's own function drops the processes without images by a mask, and waits for the device to read it.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, statistics: _FusedStatistics
    ) -> Tensor:
        mean_C, inv_std_C, count_P, eps, ctx.process_group = statistics
        ctx.save_for_backward(x_NCHW, weight_C, mean_C, inv_std_C, count_P)
        return torch.batch_norm_elemt(x_NCHW, weight_C, bias_C, mean_C, inv_std_C, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_NCHW, weight_C, mean_C, inv_std_C, count_P = ctx.saved_tensors
        grad_NCHW = _dense(grad_NCHW)
        dy_C, centered_dy_C, dweight_C, dbias_C = torch.batch_norm_backward_reduce(
            grad_NCHW, x_NCHW, mean_C, inv_std_C, weight_C, True, weight_C is not None, weight_C is not None
        )
        sums_2C = torch.stack([dy_C, centered_dy_C])
        dist.all_reduce(sums_2C, group=ctx.process_group)
        dy_C, centered_dy_C = sums_2C
        dx_NCHW = torch.batch_norm_backward_elemt(
            grad_NCHW, x_NCHW, mean_C, inv_std_C, weight_C, dy_C, centered_dy_C, count_P
        )
        return dx_NCHW, dweight_C, dbias_C, None


def _dense(x_NCHW: Tensor) -> Tensor:
    """Return the tensor in one of the two layouts of the fused kernels."""
    return x_NCHW if x_NCHW.is_contiguous(memory_format=torch.channels_last) else x_NCHW.contiguous()


class _SynchronizedNormalisation(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias; mean (C,) and var (C,) over all processes, in float64."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        eps: float,
        process_group: Any,
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        dtype = torch.float64 if x_NCHW.dtype == torch.float64 else torch.float32
        num_channels = x_NCHW.shape[1]
        # With running statistics, the fused kernel reduces bfloat16 input in float32.
        local_mean_C, local_var_C = torch.batch_norm_update_stats(
            x_NCHW,
            x_NCHW.new_zeros(num_channels, dtype=dtype),
            x_NCHW.new_ones(num_channels, dtype=dtype),
            0.0,
        )
        local = torch.cat(
            [
                torch.tensor([x_NCHW.numel() / num_channels], dtype=torch.float64),
                local_mean_C.double(),
                local_var_C.double(),
            ]
        )
        mean_C, var_C, count = _combine(_all_gather(local, process_group))
        stats = mean_C.to(dtype), var_C.to(dtype)

        ctx.save_for_backward(x_NCHW, weight_C, *stats)
        ctx.eps, ctx.count, ctx.process_group = eps, count, process_group
        ctx.mark_non_differentiable(mean_C, var_C)
        out_NCHW = F.batch_norm(x_NCHW, *stats, weight_C, bias_C, training=False, eps=eps)
        return out_NCHW, mean_C, var_C, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NCHW: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x_NCHW, weight_C, mean_C, var_C = ctx.saved_tensors
        # The backward pass of evaluation mode treats the statistics as constants: dy * weight / std, and both sums.
        dx_NCHW, dweight_C, dbias_C = torch.ops.aten.native_batch_norm_backward(
            grad_NCHW, x_NCHW, weight_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
        )
        sums_2C = torch.stack([dweight_C, dbias_C]).double()
        dist.all_reduce(sums_2C, group=ctx.process_group)

        # Gradient through the statistics: -weight / std * (mean(dy) + xhat * mean(dy * xhat)).
        xhat_dy_C, dy_C = sums_2C / ctx.count
        inv_std_C = (var_C.double() + ctx.eps).rsqrt()
        scale_C = inv_std_C if weight_C is None else weight_C.double() * inv_std_C
        slope_C = -scale_C * inv_std_C * xhat_dy_C
        offset_C = -scale_C * dy_C - slope_C * mean_C.double()
        # The fused kernel computes slope * x + offset on bfloat16 input with float32 constants; addcmul_ would first
        # copy everything to float32.
        zero_C, one_C = torch.zeros_like(mean_C), torch.ones_like(mean_C)
        slope_C, offset_C = slope_C.to(mean_C.dtype), offset_C.to(mean_C.dtype)
        dx_NCHW += F.batch_norm(x_NCHW, zero_C, one_C, slope_C, offset_C, training=False, eps=0.0)
        if weight_C is None:
            return dx_NCHW, None, None, None, None
        return dx_NCHW, dweight_C, dbias_C, None, None


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold each BatchNorm2d into the convolution before it, in place, and return the model.

    Pairs are siblings: convX with bnX (including the head's fused convolution), or neighbors in a Sequential.
    The BatchNorm becomes nn.Identity, the convolution gets a bias, and neither has gradients any more.

    Raises ValueError if a BatchNorm is in training mode, because its statistics are not constant then.
    """
    for parent_name, parent in list(model.named_modules()):
        for (conv_name, conv), (bn_name, bn) in pairwise(list(parent.named_children())):
            if not isinstance(conv, nn.Conv2d) or not isinstance(bn, _BatchNorm):
                continue
            if not isinstance(parent, nn.Sequential) and re.sub("^conv", "bn", conv_name) != bn_name:
                continue
            if bn.training:
                name = f"{parent_name}.{bn_name}".lstrip(".")
                raise ValueError(f"{name} is in training mode and cannot be folded; call model.eval() first.")
            if bn.running_mean is not None:
                setattr(parent, conv_name, folded(conv, bn))
                setattr(parent, bn_name, nn.Identity())
    return model


@torch.no_grad()
def folded(conv: nn.Conv2d, batch_norm: nn.Module) -> nn.Conv2d:
    """Return a convolution with bias that equals `batch_norm(conv(x))` in evaluation mode, without gradients."""
    assert isinstance(batch_norm, _BatchNorm)
    assert batch_norm.running_mean is not None
    assert batch_norm.running_var is not None
    scale = (batch_norm.running_var.double() + batch_norm.eps).rsqrt()
    shift = -batch_norm.running_mean.double() if conv.bias is None else conv.bias.double() - batch_norm.running_mean
    if batch_norm.affine:
        scale = scale * batch_norm.weight.double()
    shift = shift * scale
    if batch_norm.affine:
        shift = shift + batch_norm.bias.double()
    # Only the factor is computed in float64: converting the largest weight would noticeably increase memory.
    weight = conv.weight * scale.to(conv.weight.dtype)[:, None, None, None]

    result = copy.copy(conv)
    result._parameters = {
        name: nn.Parameter(value.to(conv.weight.dtype), requires_grad=False)
        for name, value in (("weight", weight), ("bias", shift))
    }
    return result


def _replace(module: nn.Module, make: Callable[[nn.BatchNorm2d], nn.Module]) -> nn.Module:
    """Replace each plain BatchNorm2d with the result of `make`."""
    if type(module) is nn.BatchNorm2d:
        return make(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, make))
    return module


def _as(kind: type[Layer], layer: nn.BatchNorm2d) -> Layer:
    """Return a layer of another class with the same parameters, buffers and hooks, so that optimizers stay valid."""
    other = kind.__new__(kind)
    other.__dict__ = layer.__dict__.copy()
    return other


def _world_size(process_group: Any) -> int:
    return dist.get_world_size(process_group) if dist.is_available() and dist.is_initialized() else 1


def _all_gather(local: Tensor, process_group: Any) -> Tensor:
    """Return the vectors (X,) of all processes, (P, X)."""
    num_processes = _world_size(process_group)
    gathered = local.new_empty(num_processes * len(local))
    dist.all_gather_single(gathered, local, group=process_group)
    return gathered.view(num_processes, -1)


def _combine(gathered: Tensor) -> tuple[Tensor, Tensor, float]:
    """Combine the means, biased variances and counts of several batches (Chan et al. 1979)."""
    count_P1, stats = gathered[:, :1], gathered[:, 1:]
    mean_PC, var_PC = stats.chunk(2, dim=1)
    count = count_P1.sum()
    mean_C = (count_P1 * mean_PC).sum(0) / count
    var_C = (count_P1 * (var_PC + (mean_PC - mean_C) ** 2)).sum(0) / count
    return mean_C, var_C, count.item()
