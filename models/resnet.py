"""Dilated residual networks with output stride 8.

Shape suffixes: N batch, C channels, H W rows and columns of the respective tensor.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from models.activation_checkpointing import recomputed

Stem = Literal["plain", "deep"]

STAGE_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    269: (3, 30, 48, 8),
}
PUBLISHED_WIDTH = 64  # channels of the first stage
STAGE_WIDTHS = (1, 2, 4, 8)  # channels of a stage, in multiples of the first's
STAGE_STRIDES = (1, 2, 1, 1)
STAGE_DILATIONS = (1, 1, 2, 4)


def initialise(module: nn.Module) -> None:
    """Initialize the weights of every convolution as in He et al. 2015, by fan out."""
    for conv in module.modules():
        # Weights on the meta device will be loaded; initializing them would import half of torch's compiler.
        if isinstance(conv, nn.Conv2d) and not conv.weight.is_meta:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, figure 5 left), both dilated."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride, dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        shortcut_NCHW = x_NCHW if self.downsample is None else self.downsample(x_NCHW)
        y_NCHW = self.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn2(self.conv2(y_NCHW))
        return self.relu(y_NCHW + shortcut_NCHW)


class OnceDilatedBasicBlock(BasicBlock):
    """BasicBlock whose second convolution is not dilated, as in MMSegmentation."""

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__(in_channels, channels, stride, dilation)
        self.conv2 = _conv3x3(channels, channels)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2016, figure 5 right), with the stride in the 3x3."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = _conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride, dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv1x1(channels, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        shortcut_NCHW = x_NCHW if self.downsample is None else self.downsample(x_NCHW)
        y_NCHW = self.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.relu(self.bn2(self.conv2(y_NCHW)))
        y_NCHW = self.bn3(self.conv3(y_NCHW))
        return self.relu(y_NCHW + shortcut_NCHW)


class DilatedResNet(nn.Module):
    """ResNet whose last two stages use dilation instead of stride, so that features keep stride 8.

    `depth` is one of STAGE_BLOCKS; `width` is the number of channels of the first stage's 3x3 convolutions. With the
    plain stem (one 7x7) and the default width, the state dict has the names and shapes of torchvision's ResNets,
    without `fc`; the deep stem is three 3x3 convolutions with `stem_channels`. With `contract_dilation`, the first
    block of a dilated stage has half the stage's dilation, as in MMSegmentation and torchvision; otherwise every block
    has the stage's dilation, as in the paper's released code. With `dilate_second`, the second convolution of a basic
    block (depth 18 and 34) is dilated like the first.

    Source: PSPNet section 3.2; dilation after Yu and Koltun 2016.
    """

    def __init__(
        self,
        depth: int,
        stem: Stem = "plain",
        stem_channels: tuple[int, int, int] = (64, 64, 128),
        contract_dilation: bool = False,
        dilate_second: bool = True,
        width: int = PUBLISHED_WIDTH,
    ) -> None:
        super().__init__()
        if depth not in STAGE_BLOCKS:
            raise ValueError(f"ResNet depth {depth!r} is unknown; use one of {sorted(STAGE_BLOCKS)}.")
        if stem not in ("plain", "deep"):
            raise ValueError(f"ResNet stem {stem!r} is unknown; use 'plain' or 'deep'.")
        basic_block = BasicBlock if dilate_second else OnceDilatedBasicBlock
        block: type[BasicBlock | Bottleneck] = basic_block if depth < 50 else Bottleneck

        self.stem = stem
        if stem == "plain":
            in_channels = width
            self.conv1 = nn.Conv2d(3, in_channels, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(in_channels)
        else:
            first, second, in_channels = stem_channels
            self.conv1 = _conv3x3(3, first, stride=2)
            self.bn1 = nn.BatchNorm2d(first)
            self.conv2 = _conv3x3(first, second)
            self.bn2 = nn.BatchNorm2d(second)
            self.conv3 = _conv3x3(second, in_channels)
            self.bn3 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        stages = []
        for num_blocks, multiple, stride, dilation in zip(
            STAGE_BLOCKS[depth], STAGE_WIDTHS, STAGE_STRIDES, STAGE_DILATIONS, strict=True
        ):
            channels = multiple * width
            first_dilation = max(1, dilation // 2) if contract_dilation else dilation
            blocks = [block(in_channels, channels, stride, first_dilation)]
            in_channels = channels * block.expansion
            blocks += [block(in_channels, channels, 1, dilation) for _ in range(num_blocks - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.res4_channels = STAGE_WIDTHS[2] * width * block.expansion
        self.res5_channels = in_channels
        # In training, recompute each block's activations in the backward pass instead of storing them.
        self.activation_checkpointing = False

        initialise(self)

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return (res4_NCHW, res5_NCHW), the outputs of layer3 and layer4, each ceil(H / 8) x ceil(W / 8)."""
        x_NCHW = self.relu(self.bn1(self.conv1(images_N3HW)))
        if self.stem == "deep":
            x_NCHW = self.relu(self.bn2(self.conv2(x_NCHW)))
            x_NCHW = self.relu(self.bn3(self.conv3(x_NCHW)))
        x_NCHW = self.maxpool(x_NCHW)
        res4_NCHW = self._run(self.layer3, self._run(self.layer2, self._run(self.layer1, x_NCHW)))
        return res4_NCHW, self._run(self.layer4, res4_NCHW)

    def _run(self, stage: nn.Module, x_NCHW: Tensor) -> Tensor:
        if not (self.activation_checkpointing and self.training and torch.is_grad_enabled()):
            return stage(x_NCHW)
        for block in stage.children():
            x_NCHW = recomputed(block, x_NCHW)
        return x_NCHW
