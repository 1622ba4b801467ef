"""Selection of the fastest implementation of a convolution by device and precision."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import nn

from models.kernels import winograd
from models.kernels.convolution import Convolution, OneDnnConvolution
from models.kernels.int8 import Int8Convolution, Ranges
from models.kernels.winograd import WinogradConvolution

Precision = Literal["float32", "bfloat16", "float16", "int8", "auto"]
Maker = Callable[[str, nn.Conv2d, bool], Convolution]
"""Arguments: name of the convolution, the convolution (square, with bias), and True if a ReLU follows."""

FLOAT32 = torch.float32
DTYPES: Mapping[str, torch.dtype] = {"float32": FLOAT32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def maker(precision: Precision, device: torch.device, ranges: Mapping[str, Ranges] | None = None) -> Maker:
    """Return the factory of a network's convolutions for this precision ("auto" resolved) and device.

    `ranges`, for int8, come from `activation_ranges`. On a CPU, the first convolution and the classifier stay in
    float32: they have few channels on one side, so it costs little, and lower precision would blur colors and logits.
    """
    if precision == "int8":
        assert ranges is not None
        return _int8_maker(ranges, device)
    dtype = DTYPES[precision]
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda name, conv, relu: Convolution(conv, relu, dtype, device)

    def make(name: str, conv: nn.Conv2d, relu: bool) -> Convolution:
        # With many channels, Winograd's algorithm in float32 is faster than a direct convolution in bfloat16.
        if winograd.is_suitable(conv) and (dtype == FLOAT32 or min(conv.in_channels, conv.out_channels) >= 512):
            return WinogradConvolution(conv, relu, dtype, device, FLOAT32 if name == "head.conv" else dtype)
        if name == "head.classifier":
            return OneDnnConvolution(conv, relu, FLOAT32, device)
        if name == "stem.conv1":
            return OneDnnConvolution(conv, relu, FLOAT32, device, dtype)
        return OneDnnConvolution(conv, relu, dtype, device)

    return make


def _int8_maker(ranges: Mapping[str, Ranges], device: torch.device) -> Maker:
    make_float = maker("float32", device)

    def make(name: str, conv: nn.Conv2d, relu: bool) -> Convolution:
        if name in ("stem.conv1", "head.classifier"):
            return make_float(name, conv, relu)
        if name not in ranges:
            raise ValueError(f"int8: there is no activation range for {name}; calibrate this network's checkpoint.")
        # Max pooling and the sum with the pyramid levels, which follow these two, need float input.
        return Int8Convolution(conv, relu, ranges[name], float_output=name in ("stem.conv3", "head.conv"))

    return make
