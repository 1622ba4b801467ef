"""Pyramid pooling head that evaluates the convolution over the concatenated levels level by level.

The published PSPNet upsamples every pyramid level to the size of the features, concatenates, and convolves 3x3:

    def fuse(features_NCHW, levels_NLBB):
        size = features_NCHW.shape[2:]
        upsampled = [F.interpolate(p, size, mode="bilinear", align_corners=align_corners) for p in levels_NLBB]
        return F.conv2d(torch.cat([features_NCHW, *upsampled], dim=1), conv.weight, padding=1)

That convolution is linear and an upsampled level is U p V' with a tiny p, so this head convolves only the features
and adds, for every level with cells p and kernel slice w,

    out[y, x] += sum over taps (dy, dx) and cells (i, j) of  U[y+dy, i] V[x+dx, j] (w[:, :, dy, dx] p[:, i, j])

where U and V have zero rows outside the map (the zero padding). This is the same function of the same
parameters.

Shape suffixes: N batch, C input channels, H W rows and columns of the features, K classes, L channels of one
level, O channels of the head, B cells along one side of a level. R counts the rows (level, dy, i) of all
levels together, 3 * sum(bins), and S the columns (dx, j) of the widest level, 3 * max(bins).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch_norm import synchronized_processes
from models.resnet import initialise

Pooling = Literal["average", "max"]


def _tap_matrix(size: int, bin_: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """Return (size, 3, bin): each cell's weight at pixel y + tap - 1, zero outside the map."""
    cells = torch.eye(bin_, dtype=dtype)[None, :, :, None]
    weights = F.interpolate(cells, (size, 1), mode="bilinear", align_corners=align_corners)[0, :, :, 0].T
    return F.pad(weights, (0, 0, 1, 1)).unfold(0, 3, 1).transpose(1, 2)


def _build_matrices(
    height: int,
    width: int,
    bins: tuple[int, ...],
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return the y-interpolation of all levels, (H, R), and the x-interpolation of every row, (R, W, S)."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    num_columns = 3 * max(bins)
    # A tensor created in inference mode cannot be saved for a later backward pass, and the cache outlives the mode.
    with torch.inference_mode(False), torch.no_grad():
        rows = [_tap_matrix(height, bin_, align_corners, exact).flatten(1) for bin_ in bins]
        columns = [_tap_matrix(width, bin_, align_corners, exact).flatten(1) for bin_ in bins]
        columns = [F.pad(c, (0, num_columns - c.shape[1])).expand(c.shape[1], -1, -1) for c in columns]
        return torch.cat(rows, 1).to(device, dtype), torch.cat(columns).to(device, dtype)


_cached_matrices = lru_cache(maxsize=64)(_build_matrices)


def interpolation_matrices(*key: Any) -> tuple[Tensor, Tensor]:
    """Return `_build_matrices` of the same arguments, cached."""
    # Under a compiler, sizes may be symbolic and tensors fake; neither may be cached.
    return _build_matrices(*key) if torch.compiler.is_compiling() else _cached_matrices(*key)


def constant_interpolation_matrices(*key: Any) -> tuple[Tensor, Tensor]:
    """Return the same for a graph compiled for one size; its caller marks the result as a constant of the graph."""
    return _cached_matrices(*key)


@dataclass(frozen=True)
class Pyramid:
    """Levels of the pyramid; the default is the paper's.

    `bins` are the cells along one side of each level; an empty tuple gives a plain dilated FCN head. With `reduce`,
    each level is reduced to C // len(bins) channels by 1x1 convolution, BatchNorm and ReLU; without it, a level is the
    pooled map.
    """

    bins: tuple[int, ...] = (1, 2, 3, 6)
    pooling: Pooling = "average"
    reduce: bool = True


class PyramidHead(nn.Module):
    """Pyramid pooling, the fusing 3x3 convolution and the classifier (PSPNet section 3.2).

    Maps features (N, C, H, W) with any H, W >= 1 to logits (N, K, H, W). `conv.weight` has the published shape,
    (C // 4, C + len(bins) * L, 3, 3): features first, then the levels in the order of the pyramid's bins.

    Raises ValueError in training if a level's BatchNorm sees a single value per channel.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        pyramid: Pyramid = Pyramid(),
        dropout: float = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.bins = pyramid.bins
        self.reduce = pyramid.reduce
        self.align_corners = align_corners
        self.average = pyramid.pooling == "average"
        head_channels = in_channels // 4
        self.level_channels = in_channels // max(1, len(self.bins)) if self.reduce else in_channels

        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, self.level_channels, 1, bias=False),
                nn.BatchNorm2d(self.level_channels),
                nn.ReLU(inplace=True),
            )
            if self.reduce
            else nn.Identity()
            for _ in self.bins
        )
        fused_channels = in_channels + len(self.bins) * self.level_channels
        # This layer only holds the parameters; `_fuse` evaluates it.
        self.conv = nn.Conv2d(fused_channels, head_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(head_channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)

        initialise(self)
        if not self.classifier.weight.is_meta:
            nn.init.normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, features_NCHW: Tensor) -> Tensor:
        fused_NOHW = self._fuse(features_NCHW, self._pool_levels(features_NCHW))
        return self.classifier(self.dropout(self.relu(self.bn(fused_NOHW))))

    def split(self, weight_OC33: Tensor) -> tuple[Tensor, ...]:
        """Split a kernel like that of `conv` into the slice for the features and the slice for each level."""
        # The backward pass of one split is one concatenation; slices per level would give five zero-filled weights.
        return weight_OC33.split([self.in_channels] + [self.level_channels] * len(self.bins), dim=1)

    def _pool_levels(self, features_NCHW: Tensor) -> list[Tensor]:
        pool = F.adaptive_avg_pool2d if self.average else F.adaptive_max_pool2d
        levels_NLBB = []
        for bin_, level in zip(self.bins, self.levels, strict=True):
            if self.reduce:
                self._require_statistics(features_NCHW.shape[0], bin_, level[1])  # type: ignore[index]
            levels_NLBB.append(level(pool(features_NCHW, bin_)))
        return levels_NLBB

    def _fuse(self, features_NCHW: Tensor, levels_NLBB: list[Tensor]) -> Tensor:
        """Return the output of `conv` on the features concatenated with the upsampled levels, (N, O, H, W)."""
        features_NCHW = features_NCHW.contiguous(memory_format=torch.channels_last)
        feature_weight_OC33, *level_weights_OL33 = self.split(self.conv.weight)
        fused_NOHW = F.conv2d(features_NCHW, feature_weight_OC33, self.conv.bias, padding=1)
        if not levels_NLBB:
            return fused_NOHW

        num_images, head_channels, height, width = fused_NOHW.shape
        rows_HR, columns_RWS = interpolation_matrices(
            height, width, self.bins, self.align_corners, fused_NOHW.dtype, fused_NOHW.device
        )
        strips_NRX = interpolated_levels(levels_NLBB, level_weights_OL33, columns_RWS)
        fused_NHX = torch.baddbmm(
            fused_NOHW.permute(0, 2, 3, 1).reshape(num_images, height, width * head_channels),
            rows_HR.expand(num_images, -1, -1),
            strips_NRX,
        )
        return fused_NHX.view(num_images, height, width, head_channels).permute(0, 3, 1, 2)

    def _require_statistics(self, num_images: int, bin_: int, batch_norm: nn.Module) -> None:
        normalises = isinstance(batch_norm, nn.modules.batchnorm._BatchNorm) and batch_norm.training
        if normalises and num_images * bin_ * bin_ * synchronized_processes(batch_norm) == 1:
            raise ValueError(
                f"Pyramid bin {bin_}: its BatchNorm sees a single value per channel in a training "
                "batch of one image, so the variance is undefined. Train with two or more images per "
                "worker, with more workers and synchronized BatchNorm, or without bin 1."
            )


def interpolated_levels(levels_NLBB: Sequence[Tensor], weights_OL33: Sequence[Tensor], columns_RWS: Tensor) -> Tensor:
    """Return (N, R, W * O); multiplied by rows_HR, it is the convolution of all upsampled levels of every image.

    `weights_OL33` are the levels' slices of the kernel; rows_HR and `columns_RWS` are the interpolation matrices.
    """
    num_columns = columns_RWS.shape[-1]
    taps_NRSO = torch.cat(
        [_tap_products(p, w, num_columns) for p, w in zip(levels_NLBB, weights_OL33, strict=True)], dim=1
    )
    return torch.matmul(columns_RWS, taps_NRSO).flatten(2)


def _tap_products(level_NLBB: Tensor, weight_OL33: Tensor, num_columns: int) -> Tensor:
    """Return w p of every tap and cell, (N, 3B, S, O): rows (dy, i), columns (dx, j) zero-padded to S."""
    num_images, level_channels, bin_, _ = level_NLBB.shape
    head_channels = weight_OL33.shape[0]
    cells_ML = level_NLBB.permute(0, 2, 3, 1).reshape(-1, level_channels)
    weight_TL = weight_OL33.permute(0, 2, 3, 1).reshape(-1, level_channels)  # a view of channels_last weights
    products = (cells_ML @ weight_TL.T).view(num_images, bin_, bin_, head_channels, 3, 3)
    taps = products.permute(0, 4, 1, 5, 2, 3).reshape(num_images, 3 * bin_, 3 * bin_, head_channels)
    return F.pad(taps, (0, 0, 0, num_columns - 3 * bin_))
