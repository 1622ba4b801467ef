"""Pyramid head for inference, which receives the rows of features as they are computed.

Shape suffixes: N batch, C channels of the features, O of the head, L of one level, H W rows and columns of the
features, S rows of a strip, B cells along one side of a level, R = sum of B over the levels, K classes.
"""

import copy
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch_norm import folded
from models.kernels.selection import Maker
from models.pyramid import PyramidHead, constant_interpolation_matrices, interpolated_levels

# Strips of this size stay in the CPU cache from the sum to the classifier.
STRIP_BYTES_CPU = 4 * 2**20


class InferenceHead:
    """Pyramid head in three steps: `convolve` the features, add the same rows to `pooling`, then `finish`."""

    def __init__(self, head: PyramidHead, make: Maker, device: torch.device, temperature: float = 1.0) -> None:
        fused = folded(head.conv, head.bn)
        feature_weight_OC33, *level_weights_OL33 = head.split(fused.weight)
        self.convolve = make("head.conv", _with_weight(fused, feature_weight_OC33), False)
        # Copies, so that the whole weight can be freed.
        self._level_weights_OL33 = [
            weight.to(device, torch.float32).clone(memory_format=torch.channels_last) for weight in level_weights_OL33
        ]
        self._levels = [_folded_level(level, device) for level in head.levels]
        self._classify = make("head.classifier", _divided(head.classifier, temperature), False)
        self._num_classes = head.classifier.out_channels
        self._bins, self._average = head.bins, head.average
        self._align_corners = head.align_corners

    def pooling(self, height: int, width: int) -> "RowPooling":
        return RowPooling(self._bins, self._average, height, width, self.convolve.in_scale)

    def finish(self, fused_NHWO: Tensor, pooling: "RowPooling") -> Tensor:
        """Return the logits (N, H, W, K), float32. `fused_NHWO`, the output of `convolve`, is overwritten."""
        num_images, height, width, head_channels = fused_NHWO.shape
        terms = self._level_terms(pooling, (height, width))
        strip = height
        if fused_NHWO.device.type == "cpu":
            strip = max(1, STRIP_BYTES_CPU // (4 * num_images * width * head_channels))
        # For one image in float32, the logits overwrite the rows that they are computed from, which are as large.
        shape = num_images, height, width, self._num_classes
        if num_images == 1 and fused_NHWO.dtype == torch.float32 and self._num_classes <= head_channels:
            logits_NHWK = fused_NHWO.view(-1)[: shape[1] * shape[2] * shape[3]].view(shape)
        else:
            logits_NHWK = torch.empty(shape, device=fused_NHWO.device)
        for start in range(0, height, strip):
            rows = slice(start, start + strip)
            sum_NSX = fused_NHWO[:, rows].float().flatten(2)
            if terms is not None:
                rows_HR, strips_NRX = terms
                sum_NSX = torch.baddbmm(sum_NSX, rows_HR[rows].expand(num_images, -1, -1), strips_NRX)
            active_NSWO = sum_NSX.relu_().view(num_images, -1, width, head_channels)
            logits_NHWK[:, rows] = self._classify(active_NSWO.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return logits_NHWK

    def _level_terms(self, pooling: "RowPooling", size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
        levels_NLBB = [
            pooled_NCBB if level is None else F.relu(level(pooled_NCBB))
            for level, pooled_NCBB in zip(self._levels, pooling.finish(), strict=True)
        ]
        if not levels_NLBB:
            return None
        rows_HR, columns_RWS = constant_interpolation_matrices(
            *size, self._bins, self._align_corners, torch.float32, levels_NLBB[0].device
        )
        return rows_HR, interpolated_levels(levels_NLBB, self._level_weights_OL33, columns_RWS)


class RowPooling:
    """Adaptive pooling of a feature map (H, W), in units of `scale`, to all levels, from its rows in order."""

    def __init__(self, bins: tuple[int, ...], average: bool, height: int, width: int, scale: float = 1.0) -> None:
        self._bins, self._average, self._scale = bins, average, scale
        self._size = height, width
        self._pooled_NBBC: list[Tensor] = []
        self._next_row = 0

    def add(self, features_NCSW: Tensor) -> None:
        """Add the next S rows."""
        if not self._bins:
            return
        features_NSWC = features_NCSW.permute(0, 2, 3, 1)
        start, stop = self._next_row, self._next_row + features_NSWC.shape[1]
        self._next_row = stop
        if not self._average:
            parts = [_largest(features_NSWC, bin_, self._size, start) for bin_ in self._bins]
            previous = self._pooled_NBBC or parts
            self._pooled_NBBC = [torch.maximum(a, b) for a, b in zip(previous, parts, strict=True)]
            return
        # Pooling along the columns for all levels at once leaves little work along the rows.
        columns_RW, rows_BS = averaging(self._bins, self._size, start, stop, features_NSWC.device)
        columns_NSRC = torch.matmul(columns_RW, features_NSWC.float())
        parts = [
            torch.matmul(matrix_BS, columns_NSBC.flatten(2)).unflatten(2, columns_NSBC.shape[2:])
            for matrix_BS, columns_NSBC in zip(rows_BS, columns_NSRC.split(list(self._bins), 2), strict=True)
        ]
        previous = self._pooled_NBBC or [torch.zeros_like(part) for part in parts]
        self._pooled_NBBC = [a + b for a, b in zip(previous, parts, strict=True)]

    def finish(self) -> list[Tensor]:
        """Return the pooled map of each level, (N, C, B, B) float32."""
        return [pooled_NBBC.permute(0, 3, 1, 2) * self._scale for pooled_NBBC in self._pooled_NBBC]


def _largest(features_NSWC: Tensor, bin_: int, size: tuple[int, int], start: int) -> Tensor:
    """Return the maxima of rows that begin at `start`, (N, B, B, C), -inf for cells that these rows do not touch."""
    columns_NSBC = torch.stack([features_NSWC[:, :, a:b].amax(2) for a, b in _cells(size[1], bin_)], 2).float()
    nothing_NBC = torch.full_like(columns_NSBC[:, 0], -torch.inf)
    rows = []
    for a, b in _cells(size[0], bin_):
        part_NSBC = columns_NSBC[:, max(a - start, 0) : max(b - start, 0)]
        rows.append(part_NSBC.amax(1) if part_NSBC.shape[1] else nothing_NBC)
    return torch.stack(rows, 1)


def averaging(
    bins: tuple[int, ...], size: tuple[int, int], start: int, stop: int, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """Return the weights of columns in the cells of all levels, (R, W), and of rows in those of each level, (B, S).

    `size` is that of the map; the rows are `start` to `stop`.
    """
    return _cached_averaging(bins, size, start, stop, device)


@lru_cache(maxsize=64)
def _cached_averaging(
    bins: tuple[int, ...], size: tuple[int, int], start: int, stop: int, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    def shares(cells: list[tuple[int, int]], start: int, stop: int) -> Tensor:
        rows = [[1 / (high - low) if low <= y < high else 0.0 for y in range(start, stop)] for low, high in cells]
        return torch.tensor(rows, device=device)

    every_column = [cell for bin_ in bins for cell in _cells(size[1], bin_)]
    return shares(every_column, 0, size[1]), [shares(_cells(size[0], bin_), start, stop) for bin_ in bins]


def _cells(length: int, bin_: int) -> list[tuple[int, int]]:
    """Return first and last + 1 of each cell, as adaptive pooling divides `length`."""
    return [(i * length // bin_, -(-(i + 1) * length // bin_)) for i in range(bin_)]


def _folded_level(level: nn.Module, device: torch.device) -> nn.Conv2d | None:
    """Return the folded convolution that reduces a level's channels, None without reduction."""
    if not isinstance(level, nn.Sequential):
        return None
    conv, batch_norm, _ = level
    assert isinstance(conv, nn.Conv2d)
    return folded(conv, batch_norm).to(device, torch.float32)


def _divided(conv: nn.Conv2d, divisor: float) -> nn.Conv2d:
    """Return a convolution whose outputs are divided by a number."""
    result = copy.copy(conv)
    result._parameters = {
        name: None if value is None else nn.Parameter(value.detach() / divisor, requires_grad=False)
        for name, value in conv._parameters.items()
    }
    return result


def _with_weight(conv: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    result = copy.copy(conv)
    result._parameters = {**conv._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    return result
