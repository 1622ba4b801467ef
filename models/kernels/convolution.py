"""Convolutions for inference, with fused bias, shortcut and ReLU, and weights packed once.

Shape suffixes: N batch, C input and O output channels, H W rows and columns, S rows of a strip.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution:
    """`relu(conv(x) + bias + shortcut)` on any device, with torch's public operations.

    `relu` and the shortcut are optional. Rows are not padded with `pad_rows=False`, for callers that pass strips of
    rows together with the surrounding rows. The shortcut is overwritten.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.kernel_size = int(conv.kernel_size[0])
        self.stride = int(conv.stride[0])
        self.padding = int(conv.padding[0])
        self.dilation = int(conv.dilation[0])
        self.relu = relu
        self.in_scale = 1.0  # value of one unit of a quantized input
        self.dtype = dtype
        self._pack(conv.weight.detach(), conv.bias.detach(), device)  # type: ignore[union-attr]

    def _pack(self, weight_OCkk: Tensor, bias_O: Tensor, device: torch.device) -> None:
        weight_OCkk = weight_OCkk.to(device, self.dtype)
        self._weight_OCkk = weight_OCkk.clone(memory_format=torch.channels_last)
        self._bias_O = bias_O.to(device, self.dtype, copy=True)

    def __call__(self, x_NCHW: Tensor, shortcut_NOHW: Tensor | None = None, pad_rows: bool = True) -> Tensor:
        y_NOHW = F.conv2d(
            x_NCHW.to(self.dtype),
            self._weight_OCkk,
            self._bias_O,
            self.stride,
            self._padding(pad_rows),
            self.dilation,
        )
        if shortcut_NOHW is not None:
            y_NOHW += shortcut_NOHW
        return y_NOHW.relu_() if self.relu else y_NOHW

    def _padding(self, pad_rows: bool) -> list[int]:
        return [self.padding if pad_rows else 0, self.padding]


class OneDnnConvolution(Convolution):
    """Convolution with oneDNN's fused operations, which torch.compile also uses on CPUs; returns `out_dtype`."""

    def __init__(
        self,
        conv: nn.Conv2d,
        relu: bool,
        dtype: torch.dtype,
        device: torch.device,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(conv, relu, dtype, device)
        self.out_dtype = out_dtype or dtype

    def _pack(self, weight_OCkk: Tensor, bias_O: Tensor, device: torch.device) -> None:
        self._geometry = [self.stride] * 2, [self.dilation] * 2, 1
        # The copy lets a memory-mapped model file be closed.
        self._bias_O = bias_O.to(self.dtype, copy=True)
        self._pack_for([1, weight_OCkk.shape[1], 60, 60], weight_OCkk.to(self.dtype))

    def _pack_for(self, size_NCHW: list[int], weight_OCkk: Tensor) -> None:
        self._packed_for = size_NCHW
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight_OCkk, self._padding(True), *self._geometry, size_NCHW
        )

    def __call__(self, x_NCHW: Tensor, shortcut_NOHW: Tensor | None = None, pad_rows: bool = True) -> Tensor:
        size_NCHW = list(x_NCHW.shape)
        if self.kernel_size == 1 and self.dtype == torch.float32 and size_NCHW != self._packed_for:
            # oneDNN chooses this packing by the input size, and repacks at every call if it was packed for another.
            self._pack_for(size_NCHW, self._weight.to_dense())
        geometry = self._padding(pad_rows), *self._geometry
        x_NCHW = x_NCHW.to(self.dtype)
        if shortcut_NOHW is None:
            relu = "relu" if self.relu else "none"
            y_NOHW = torch.ops.mkldnn._convolution_pointwise(
                x_NCHW, self._weight, self._bias_O, *geometry, relu, [], ""
            )
            return y_NOHW.to(self.out_dtype)
        relu_or_none = "relu" if self.relu else None
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut_NOHW, x_NCHW, self._weight, self._bias_O, *geometry, "add", 1.0, relu_or_none, [], None
        )
