"""CPU versions of the CUDA kernels of torch's SyncBatchNorm, by their formulas.

Shape suffixes: N batch, C channels, H W rows and columns, P processes.
"""

import torch
from torch import Tensor

import models.batch_norm


def pretend_kernels() -> None:
    """Let SyncBatchNorm2d find the kernels on CPU tensors, in the rest of this process."""
    models.batch_norm.has_fused_kernels = lambda _: True
    for kernel in (stats, gather_stats_with_counts, elemt, backward_reduce, backward_elemt):
        setattr(torch, f"batch_norm_{kernel.__name__}", kernel)


def wide(x_NCHW: Tensor) -> Tensor:
    return x_NCHW if x_NCHW.dtype == torch.float64 else x_NCHW.float()


def column(x_C: Tensor | None) -> Tensor | float:
    return 1.0 if x_C is None else x_C[:, None, None]


def stats(x_NCHW: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var_C, mean_C = torch.var_mean(wide(x_NCHW), (0, 2, 3), unbiased=False)
    return mean_C, (var_C + eps).rsqrt()


def gather_stats_with_counts(
    x_NCHW: Tensor,
    mean_PC: Tensor,
    inv_std_PC: Tensor,
    running_mean_C: Tensor | None,
    running_var_C: Tensor | None,
    momentum: float,
    eps: float,
    count_P: Tensor,
) -> tuple[Tensor, Tensor]:
    share_P1, count = (count_P / count_P.sum())[:, None], count_P.sum()
    mean_C = (share_P1 * mean_PC).sum(0)
    var_C = (share_P1 * (inv_std_PC**-2 - eps + (mean_PC - mean_C) ** 2)).sum(0)
    if running_mean_C is not None and running_var_C is not None:
        running_mean_C.lerp_(mean_C, momentum)
        running_var_C.lerp_(var_C * count / (count - 1), momentum)
    return mean_C, (var_C + eps).rsqrt()


def elemt(
    x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, mean_C: Tensor, inv_std_C: Tensor, eps: float
) -> Tensor:
    out_NCHW = (wide(x_NCHW) - column(mean_C)) * column(inv_std_C) * column(weight_C)
    return (out_NCHW if bias_C is None else out_NCHW + column(bias_C)).to(x_NCHW.dtype)


def backward_reduce(
    grad_NCHW: Tensor,
    x_NCHW: Tensor,
    mean_C: Tensor,
    inv_std_C: Tensor,
    weight_C: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    dy_C = wide(grad_NCHW).sum((0, 2, 3))
    centered_dy_C = (wide(grad_NCHW) * (wide(x_NCHW) - column(mean_C))).sum((0, 2, 3))
    return dy_C, centered_dy_C, centered_dy_C * inv_std_C if weight_g else None, dy_C if bias_g else None


def backward_elemt(
    grad_NCHW: Tensor,
    x_NCHW: Tensor,
    mean_C: Tensor,
    inv_std_C: Tensor,
    weight_C: Tensor | None,
    dy_C: Tensor,
    centered_dy_C: Tensor,
    count_P: Tensor,
) -> Tensor:
    assert count_P.dtype == torch.int32
    count = count_P.sum()
    through_statistics = (wide(x_NCHW) - column(mean_C)) * column(inv_std_C**2 * centered_dy_C / count)
    dx_NCHW = (wide(grad_NCHW) - column(dy_C / count) - through_statistics) * column(inv_std_C) * column(weight_C)
    return dx_NCHW.to(x_NCHW.dtype)
