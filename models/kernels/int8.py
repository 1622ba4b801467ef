"""8-bit convolutions for CPUs with oneDNN, at four times the float32 rate on AVX-512 with VNNI.

Weights have one scale per output channel, activations one per tensor, measured by running the network in float32 on
sample images. Activations between convolutions stay uint8; shortcuts are added inside the convolutions. The first
convolution, the levels of the pyramid and the classifier, a hundredth of the work, stay in float32.

Shape suffixes: N batch, C input and O output channels, H W rows and columns.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.kernels.convolution import Convolution

Ranges = Mapping[str, Sequence[float]]
"""Minimum and maximum of a convolution's "input", "output" and, if it has one, "shortcut"."""


class Int8Convolution(Convolution):
    """Convolution of uint8, or of float32 that it quantizes; returns uint8, or float32 if `float_output`."""

    def __init__(self, conv: nn.Conv2d, relu: bool, ranges: Ranges, float_output: bool) -> None:
        self._input = _Scale(ranges["input"])
        assert self._input[1] == 0, "padding is 0 in uint8 too: inputs come from a ReLU"
        self._output = None if float_output else _Scale(ranges["output"])
        self._shortcut = _Scale(ranges["shortcut"]) if "shortcut" in ranges else None
        super().__init__(conv, relu, torch.uint8, torch.device("cpu"))
        self.in_scale = self._input[0]

    def _pack(self, weight_OCkk: Tensor, bias_O: Tensor, device: torch.device) -> None:
        largest_O = weight_OCkk.abs().amax((1, 2, 3)).clamp(min=1e-12)
        self._weight_scale_O = (largest_O / 127).float()
        self._weight_zero_O = torch.zeros(len(bias_O), dtype=torch.int64)
        self._bias_O = bias_O.float()
        self._geometry = [self.stride] * 2, [self.dilation] * 2
        weight = (weight_OCkk / self._weight_scale_O[:, None, None, None]).round().to(torch.int8)
        stride, dilation = self._geometry
        self._weight = torch.ops.onednn.qconv_prepack(
            weight,
            self._weight_scale_O,
            *self._input,
            stride,
            self._padding(True),
            dilation,
            1,
            [1, weight.shape[1], 60, 60],
        )

    def __call__(self, x_NCHW: Tensor, shortcut_NOHW: Tensor | None = None, pad_rows: bool = True) -> Tensor:
        if x_NCHW.is_floating_point():
            x_NCHW = self._input.quantize(x_NCHW)
        weight = self._weight, self._weight_scale_O, self._weight_zero_O
        stride, dilation = self._geometry
        geometry = stride, self._padding(pad_rows), dilation, 1
        output = (1.0, 0, torch.float32) if self._output is None else (*self._output, torch.uint8)
        if shortcut_NOHW is None:
            relu = "relu" if self.relu else "none"
            return torch.ops.onednn.qconv2d_pointwise(
                x_NCHW, *self._input, *weight, self._bias_O, *geometry, *output, relu, [], ""
            )
        assert self._shortcut is not None
        if shortcut_NOHW.is_floating_point():
            shortcut_NOHW = self._shortcut.quantize(shortcut_NOHW)
        relu_or_none = "relu" if self.relu else None
        return torch.ops.onednn.qconv2d_pointwise.binary(
            x_NCHW,
            *self._input,
            *weight,
            shortcut_NOHW,
            self._bias_O,
            *geometry,
            *output,
            *self._shortcut,
            "sum",
            1.0,
            relu_or_none,
            [],
            "",
        )


class _Scale(tuple[float, int]):
    """(scale, zero point) that maps a range to uint8. Zero, the padding value, is exact."""

    def __new__(cls, values: Sequence[float]) -> "_Scale":
        low, high = min(values[0], 0.0), max(values[1], 1e-12)
        scale = (high - low) / 255
        return super().__new__(cls, (scale, round(-low / scale)))

    def quantize(self, x: Tensor) -> Tensor:
        # Adding a half before truncation rounds the values.
        return x.mul(1 / self[0]).add_(self[1] + 0.5).clamp_(0, 255).to(torch.uint8)
