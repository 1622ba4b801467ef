"""Masks and statistics from logits at stride 8, in memory that does not grow with classes x pixels.

Logits are upsampled by the matrices of interpolation.py, which has the mathematics, and reduced to class ids and their
statistics by label_statistics.py. There are three implementations: on a CPU, the kernel in masks.c, one output pixel at
a time; without a C compiler, torch, strip by strip of output rows; on a GPU, the same strips, compiled by torch into
one kernel.

Shape suffixes: N batch, H W rows and columns of the output, K classes, h w rows and columns of the logits, S rows of
one strip.
"""

import ctypes
import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.inference.fallback import or_uncompiled
from models.inference.interpolation import Taps, TapTensors, mix
from models.inference.label_statistics import BatchStatistics, KernelStatistics, ValidRows, library, rows_of
from models.inference.prediction import Prediction, concatenate
from models.inference.preprocessing import ValidMaps

# On a CPU a strip should stay in the last-level cache; on a GPU it should fill the device.
STRIP_BYTES_CPU = 8 * 2**20
STRIP_BYTES_GPU = 512 * 2**20


def label_batch(
    logits_NhwK: Tensor,
    rows: Taps,
    columns: Taps,
    with_confidence_map: bool,
    valid: ValidMaps | None = None,
) -> Prediction:
    """Return the masks of a batch with their statistics.

    Args:
        logits_NhwK: contiguous float32 on any device.
        rows, columns: interpolation from h to H and from w to W, see `interpolation.both_taps`.
        valid: for each image, the pixels that enter its statistics, H x W; None: all.
    """
    valid = [None] * len(logits_NhwK) if valid is None else valid
    if logits_NhwK.device.type == "cpu":
        labeled = [
            label(logits_hwK, rows, columns, with_confidence_map, valid_HW)
            for logits_hwK, valid_HW in zip(logits_NhwK, valid, strict=True)
        ]
        return concatenate(labeled)
    valid_rows = rows_of(valid, (len(rows), len(columns)))
    return label_in_strips(logits_NhwK, rows, columns, with_confidence_map, valid_rows)


def label(
    logits_hwK: Tensor,
    rows: Taps,
    columns: Taps,
    with_confidence_map: bool,
    valid_HW: NDArray[np.bool_] | None = None,
) -> Prediction:
    """Return the mask of one image with its statistics, as a batch of one; otherwise as `label_batch`."""
    kernels = library() if logits_hwK.device.type == "cpu" else None
    valid = rows_of([valid_HW], (len(rows), len(columns)))
    if kernels is None:
        return label_in_strips(logits_hwK[None], rows, columns, with_confidence_map, valid)
    assert logits_hwK.dtype == torch.float32
    assert logits_hwK.is_contiguous()
    statistics = KernelStatistics((len(rows), len(columns)), logits_hwK.shape[-1], with_confidence_map, valid)
    statistics.fill(
        kernels.label_logits,
        logits_hwK.data_ptr(),
        logits_hwK.shape[1],
        ctypes.byref(rows.struct()),
        ctypes.byref(columns.struct()),
    )
    return statistics.prediction()


def label_in_strips(
    logits_NhwK: Tensor,
    rows: Taps,
    columns: Taps,
    with_confidence_map: bool,
    valid: ValidRows | None = None,
    max_strip_bytes: int | None = None,
) -> Prediction:
    """Return the masks of a batch with their statistics, computed by torch.

    `max_strip_bytes` limits the memory of upsampled logits that exist at a time, down to one output row; the default
    depends on the device.
    """
    num_images, _, _, num_classes = logits_NhwK.shape
    device = logits_NhwK.device
    default = STRIP_BYTES_CPU if device.type == "cpu" else STRIP_BYTES_GPU
    max_strip_bytes = default if max_strip_bytes is None else max_strip_bytes
    reduce_strip = _reduce_strip if device.type == "cpu" else _compiled_reduce_strip()
    size = len(rows), len(columns)
    statistics = BatchStatistics(num_images, size, num_classes, with_confidence_map, device, valid)
    # Two planes of K floats per pixel are alive at a time: both neighbors, then logits and exponentials.
    strip_rows = max(1, max_strip_bytes // (2 * 4 * num_images * len(columns) * num_classes))
    column_taps = columns.tensors(device)
    for start in range(0, len(rows), strip_rows):
        # The last strip overlaps the one before: torch would compile another kernel for a remainder of one row.
        start = max(0, min(start, len(rows) - strip_rows))
        strip = slice(start, start + strip_rows)
        statistics.put(strip, *reduce_strip(logits_NhwK, rows.part(strip).tensors(device), column_taps))
    return statistics.prediction()


def _reduce_strip(logits_NhwK: Tensor, rows: TapTensors, columns: TapTensors) -> tuple[Tensor, Tensor, Tensor]:
    """Return class ids, their probabilities and the entropies of a strip of output rows, each (N, S, W)."""
    return _reduce_classes(mix(mix(logits_NhwK, rows, dim=1), columns, dim=2))


def _reduce_classes(logits_NSWK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce logits to class ids, their probabilities and the entropies. Overwrites the logits."""
    top_NSW, ids_NSW = logits_NSWK.max(-1)
    logits_NSWK -= top_NSW[..., None]
    exponentials_NSWK = logits_NSWK.exp()
    total_NSW = exponentials_NSWK.sum(-1)
    mean_logit_NSW = exponentials_NSWK.mul_(logits_NSWK).sum(-1) / total_NSW
    return ids_NSW, total_NSW.reciprocal(), total_NSW.log() - mean_logit_NSW


@functools.cache
def _compiled_reduce_strip() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return `_reduce_strip` as one compiled kernel."""
    return or_uncompiled(torch.compile(_reduce_strip, dynamic=True), _reduce_strip)
