"""Winograd's minimal filtering F(4 x 4, 3 x 3): a 3x3 convolution with a quarter of the multiplications.

An output tile of 4 x 4 pixels needs an input tile of 6 x 6. Tile and kernel are transformed to 36 points,
multiplied there (a matrix product over the channels for each point), and transformed back: y = A' [(G g G') *
(B' d B)] A, Lavin and Gray 2016. With dilation d, the pixels form d x d phases, each of which is an ordinary
convolution. winograd.c transforms the tiles, oneDNN computes the products.

Shape suffixes: N batch, C input and O output channels, H W rows and columns, T tiles of all images and phases,
including padding of the last group, A the shares of a tile's 36 points, B the points of a share, Q the 9 values of a
kernel, E kernels.
"""

import ctypes
import functools
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from models.kernels import compiled
from models.kernels.convolution import OneDnnConvolution

TILE = 4
POINTS = (TILE + 2) ** 2
SHARES = 4  # The points are multiplied in shares, since packing all weights at once would take twice the memory.
LANES = 16
# G, the transform of the kernel. B and A are written out in winograd.c.
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
# With fewer tiles there is little to gain. The tiles may compute up to MAX_WASTE times the pixels of the map, since the
# last ones extend beyond it.
MIN_TILES, MAX_WASTE = 64, 1.6
# Maximum number of tiles that are multiplied in a group. From 64 tiles on, oneDNN chooses among several packings of the
# weights by the exact number, and repacks at every call weights that were packed differently: for one number in three,
# that takes up to 30 times as long as the product. For fewer tiles the packing is always the same.
MAX_GROUP = 60
# With fewer channels, the transforms cost more than the multiplications that they save (measured).
MIN_CHANNELS = 128


class WinogradConvolution(OneDnnConvolution):
    """3x3 convolution that `is_suitable`, by Winograd's algorithm in float32 where it is faster, else directly.

    The transformed weights take four times the memory and are created when first needed. Strips of rows, used for
    images that exceed the memory, are convolved directly.
    """

    def _pack(self, weight_OCkk: Tensor, bias_O: Tensor, device: torch.device) -> None:
        super()._pack(weight_OCkk, bias_O, device)
        self._float_bias_O = bias_O.float()
        self._weights: list[Tensor] | None = None

    def __call__(self, x_NCHW: Tensor, shortcut_NOHW: Tensor | None = None, pad_rows: bool = True) -> Tensor:
        num_images, _, height, width = x_NCHW.shape
        tile_rows, tile_columns = (math.ceil(length / (self.dilation * TILE)) for length in (height, width))
        num_tiles = num_images * self.dilation**2 * tile_rows * tile_columns
        wasted = num_tiles * TILE**2 > MAX_WASTE * num_images * height * width
        if not pad_rows or wasted or num_tiles < MIN_TILES:
            return super().__call__(x_NCHW, shortcut_NOHW, pad_rows)
        grid = self.dilation, tile_rows, tile_columns
        return self._by_points(x_NCHW.float(), shortcut_NOHW, num_tiles, grid)

    def _by_points(
        self, x_NCHW: Tensor, shortcut_NOHW: Tensor | None, num_tiles: int, grid: tuple[int, int, int]
    ) -> Tensor:
        kernels = library()
        assert kernels is not None
        with _packing:
            if self._weights is None:
                self._weights = list(_packed(self._weight.to_dense()))
        x_NHWC = x_NCHW.permute(0, 2, 3, 1).contiguous()
        num_images, height, width, channels = x_NHWC.shape
        groups = math.ceil(num_tiles / MAX_GROUP)
        group_tiles = math.ceil(num_tiles / groups)
        points_TBC = _scratch.shares(groups * group_tiles, POINTS // SHARES, channels)
        in_grid = ctypes.byref(_Grid(num_images, height, width, channels, *grid))
        compiled.in_threads(kernels.winograd_input, in_grid, x_NHWC.data_ptr(), _pointers(points_TBC), count=num_tiles)
        products_TBO = [_product(*pair, group_tiles) for pair in zip(points_TBC, self._weights, strict=True)]
        out_channels = len(self._float_bias_O)
        if shortcut_NOHW is None:
            out_NHWO = torch.empty(num_images, height, width, out_channels)
        else:
            out_NHWO = shortcut_NOHW.float().permute(0, 2, 3, 1).contiguous()
        compiled.in_threads(
            kernels.winograd_output,
            ctypes.byref(_Grid(num_images, height, width, out_channels, *grid)),
            _pointers(products_TBO),
            self._float_bias_O.data_ptr(),
            None if shortcut_NOHW is None else out_NHWO.data_ptr(),
            self.relu,
            out_NHWO.data_ptr(),
            count=num_tiles,
        )
        return out_NHWO.permute(0, 3, 1, 2).to(self.out_dtype)


# Several threads may need the weights of a convolution for the first time at once.
_packing = threading.Lock()


class _Scratch(threading.local):
    """Memory for the points, reused between convolutions, since allocating it costs a tenth of the time."""

    def __init__(self) -> None:
        self._values = torch.empty(0)

    def shares(self, *shape: int) -> list[Tensor]:
        count = SHARES * math.prod(shape)
        if len(self._values) < count:
            self._values = torch.empty(count)
        return list(self._values[:count].view(SHARES, *shape))


_scratch = _Scratch()


def _product(points_TBC: Tensor, weight: Tensor, group_tiles: int) -> Tensor:
    """Return (T, B, O), computed as a grouped 1x1 convolution: a batched matrix product that needs no copies."""
    num_tiles, points, _ = points_TBC.shape
    x = points_TBC.view(-1, group_tiles, 1, points_TBC[0].numel()).permute(0, 3, 1, 2)
    y = torch.ops.mkldnn._convolution_pointwise(x, weight, None, *_PRODUCT, points, "none", [], "")
    return y.permute(0, 2, 3, 1).view(num_tiles, points, -1)


def _pointers(shares: list[Tensor]) -> Any:
    return (ctypes.c_void_p * len(shares))(*(share.data_ptr() for share in shares))


def _packed(weight_OC33: Tensor) -> Iterator[Tensor]:
    """Yield the kernels for each share of the points, transformed in float64 and packed for oneDNN in float32."""
    out_channels, channels = weight_OC33.shape[:2]
    points = POINTS // SHARES
    kernel = torch.tensor(_KERNEL, dtype=torch.float64)
    matrix_ABQ = torch.einsum("ai,bj->abij", kernel, kernel).reshape(SHARES, points, 9)
    weight_QE = weight_OC33.flatten(2).permute(2, 0, 1).reshape(9, -1)
    del weight_OC33
    for matrix_BQ in matrix_ABQ:
        weight_BE = torch.empty(points, weight_QE.shape[1])
        for some_BE, some_QE in zip(weight_BE.split(2**16, 1), weight_QE.split(2**16, 1), strict=True):
            some_BE.copy_(matrix_BQ @ some_QE.double())
        # oneDNN packs for the algorithm that it would choose for the given input size.
        yield torch.ops.mkldnn._reorder_convolution_weight(
            weight_BE.view(points * out_channels, channels, 1, 1),
            *_PRODUCT,
            points,
            [1, points * channels, MAX_GROUP, 1],
        )


# Padding, stride and dilation of the grouped 1x1 convolution.
_PRODUCT = ([0, 0], [1, 1], [1, 1])


class _Grid(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("images", "height", "width", "channels", "dilation", "tile_rows", "tile_columns")
    ]


def is_suitable(conv: nn.Conv2d) -> bool:
    """Return True if WinogradConvolution supports this convolution and is faster than oneDNN's direct one."""
    channels = conv.in_channels, conv.out_channels
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == conv.dilation
        and min(channels) >= MIN_CHANNELS
        and all(count % LANES == 0 for count in channels)
        and torch.backends.mkldnn.is_available()
        and library() is not None
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled winograd.c, or None if it cannot be compiled."""
    kernels = compiled.library("winograd")
    if kernels is not None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        kernels.winograd_input.argtypes = [*[pointer] * 3, count, count]
        kernels.winograd_output.argtypes = [*[pointer] * 4, count, pointer, count, count]
    return kernels
