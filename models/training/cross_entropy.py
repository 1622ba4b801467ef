"""Cross-entropy of logits upsampled to the size of the labels.

On a CPU, a kernel (cross_entropy.c) computes the loss and its gradient in one pass, pixel by pixel, without ever
storing the upsampled logits, which take a gigabyte for two of the paper's crops and 150 classes. On other devices and
in other precisions, torch computes it.

Shape suffixes: N batch, K classes, H W rows and columns of the labels, h w those of the logits, B rows of a band.
"""

import ctypes
import functools
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.inference.interpolation import Taps, cell_positions
from models.kernels import compiled

LANES = 16
# The output rows of an image are split into this many bands, so that sums do not depend on the number of threads.
BANDS = 16
# A score that never wins.
NEVER = -1e30


def upsampled_cross_entropy(logits_NKhw: Tensor, labels_NHW: Tensor, ignore_index: int, align_corners: bool) -> Tensor:
    """Return the sum of the cross-entropy over the labeled pixels, a scalar of at least float32.

    `logits_NKhw` are upsampled bilinearly; `labels_NHW` are class ids or `ignore_index`.

    Raises IndexError for other labels.
    """
    logits_NKhw = logits_NKhw.to(torch.promote_types(logits_NKhw.dtype, torch.float32))
    if logits_NKhw.device.type == "cpu" and logits_NKhw.dtype == torch.float32 and library() is not None:
        return _KernelLoss.apply(logits_NKhw, labels_NHW, ignore_index, align_corners)
    logits_NKHW = F.interpolate(logits_NKhw, size=labels_NHW.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(logits_NKHW, labels_NHW.long(), ignore_index=ignore_index, reduction="sum")


class _KernelLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NKhw: Tensor, labels_NHW: Tensor, ignore_index: int, align_corners: bool) -> Tensor:
        num_images, num_classes, height, width = logits_NKhw.shape
        padding = -num_classes % LANES
        logits_NhwK = F.pad(logits_NKhw.permute(0, 2, 3, 1), (0, padding), value=NEVER).contiguous()
        labels_NHW = labels_NHW.to(torch.int32).contiguous()
        rows, columns = (
            Taps.at(cell_positions(np.arange(size, dtype=np.float64), size, cells, align_corners), cells)
            for size, cells in zip(labels_NHW.shape[1:], (height, width), strict=True)
        )
        edges = np.linspace(0, len(rows), min(BANDS, len(rows)) + 1).astype(int)
        bands = [(n, int(a), int(b)) for n in range(num_images) for a, b in pairwise(edges)]
        losses = np.zeros(len(bands))
        gradients_BwK = [
            torch.zeros(int(rows.high[b - 1] - rows.low[a]) + 1, width, num_classes + padding) for _, a, b in bands
        ]
        kernels = library()
        assert kernels is not None

        def work(first: int, end: int) -> None:
            for index in range(first, end):
                n, a, b = bands[index]
                result = kernels.cross_entropy_rows(
                    logits_NhwK[n].data_ptr(),
                    width,
                    num_classes,
                    ctypes.byref(rows.struct()),
                    ctypes.byref(columns.struct()),
                    labels_NHW[n].data_ptr(),
                    len(columns),
                    ignore_index,
                    losses[index:].ctypes.data,
                    gradients_BwK[index].data_ptr(),
                    a,
                    b,
                )
                if result == 2:
                    raise IndexError(
                        f"cross-entropy: a label is neither one of {num_classes} classes nor the ignore_index "
                        f"{ignore_index}; the labels are {labels_NHW.unique().tolist()}."
                    )
                if result:
                    raise MemoryError("cross-entropy: not enough memory for a row of logits.")

        compiled.in_threads(work, count=len(bands))
        gradient_NhwK = torch.zeros_like(logits_NhwK)
        for (n, a, b), gradient_BwK in zip(bands, gradients_BwK, strict=True):
            gradient_NhwK[n, int(rows.low[a]) : int(rows.high[b - 1]) + 1] += gradient_BwK
        ctx.save_for_backward(gradient_NhwK[..., :num_classes].permute(0, 3, 1, 2))
        return torch.tensor(losses.sum(), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NKhw,) = ctx.saved_tensors
        return gradient_NKhw * grad, None, None, None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled cross_entropy.c, or None if it cannot be compiled."""
    kernels = compiled.library("cross_entropy")
    if kernels is not None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        image: list[Any] = [pointer, count, count, pointer, pointer, pointer, count, count]
        kernels.cross_entropy_rows.argtypes = [*image, pointer, pointer, count, count]
    return kernels
