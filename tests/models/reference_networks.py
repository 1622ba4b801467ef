"""The two published PSPNets in their textbook form: every level upsampled, concatenated, convolved.

Slow and plain on purpose, and independent of `models`: modules carry the published names, so that the state dicts
are those of published checkpoints. Returns (main, auxiliary) logits at stride 8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BINS = (1, 2, 3, 6)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


def deep_stem(first: int, second: int, third: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, first, 2), (first, second, 1), (second, third, 1)):
        layers += [conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
    return layers


class Block(nn.Module):
    """Residual block: two 3x3, of which the first is dilated, or 1x1, dilated 3x3, 1x1."""

    def __init__(self, inputs: int, channels: int, stride: int, dilation: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        if bottleneck:
            self.conv1 = conv(inputs, channels, 1)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = conv(channels, channels, 3, stride, dilation)
            self.bn2 = nn.BatchNorm2d(channels)
            self.conv3 = conv(channels, outputs, 1)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            self.conv1 = conv(inputs, channels, 3, stride, dilation)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = conv(channels, channels, 3)
            self.bn2 = nn.BatchNorm2d(channels)
        self.bottleneck = bottleneck
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


def add_stages(module: nn.Module, depth: int, inputs: int, contracted: bool) -> int:
    """Give `module` layer1 to layer4 at stride 8; return the channels of the last."""
    bottleneck = depth >= 50
    for stage, num_blocks in enumerate(BLOCKS[depth]):
        channels, stride, dilation = 64 << stage, (1, 2, 1, 1)[stage], (1, 1, 2, 4)[stage]
        blocks = []
        for index in range(num_blocks):
            first_of_dilated = index == 0 and dilation > 1
            rate = dilation // 2 if contracted and first_of_dilated else dilation
            blocks.append(Block(inputs, channels, stride if index == 0 else 1, rate, bottleneck))
            inputs = 4 * channels if bottleneck else channels
        setattr(module, f"layer{stage + 1}", nn.Sequential(*blocks))
    return inputs


class Semseg(nn.Module):
    """hszhao/semseg's PSPNet: deep stem, aligned corners, every block of a dilated stage dilated alike."""

    def __init__(self, depth: int, num_classes: int, bins: tuple[int, ...] = BINS) -> None:
        super().__init__()
        self.layer0 = nn.Sequential(*deep_stem(64, 64, 128), nn.MaxPool2d(3, 2, 1))
        channels = add_stages(self, depth, 128, contracted=False)
        level = channels // len(bins)
        self.ppm = nn.Module()
        self.ppm.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), conv(channels, level, 1), nn.BatchNorm2d(level), nn.ReLU())
            for b in bins
        )
        self.cls = self._head(channels + len(bins) * level, channels // 4, num_classes)
        self.aux = self._head(channels // 2, channels // 8, num_classes)

    @staticmethod
    def _head(inputs: int, channels: int, num_classes: int) -> nn.Sequential:
        norm = nn.BatchNorm2d(channels)
        return nn.Sequential(
            conv(inputs, channels, 3), norm, nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        res4 = self.layer3(self.layer2(self.layer1(self.layer0(images))))
        res5 = self.layer4(res4)
        return self.cls(concatenated(res5, self.ppm.features, align_corners=True)), self.aux(res4)


class ConvModule(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, kernel)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MMSeg(nn.Module):
    """MMSegmentation's PSPNet of output stride 8, its first block of a dilated stage at half the dilation."""

    def __init__(
        self,
        depth: int,
        num_classes: int,
        bins: tuple[int, ...] = BINS,
        has_deep_stem: bool = True,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.backbone = nn.Module()
        if has_deep_stem:
            self.backbone.stem = nn.Sequential(*deep_stem(32, 32, 64))
        else:
            self.backbone.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
            self.backbone.bn1 = nn.BatchNorm2d(64)
        channels = add_stages(self.backbone, depth, 64, contracted=True)
        head = channels // 4
        self.decode_head = nn.Module()
        self.decode_head.conv_seg = nn.Conv2d(head, num_classes, 1)
        self.decode_head.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), ConvModule(channels, head, 1)) for b in bins
        )
        self.decode_head.bottleneck = ConvModule(channels + len(bins) * head, head, 3)
        self.auxiliary_head = nn.Module()
        self.auxiliary_head.conv_seg = nn.Conv2d(channels // 8, num_classes, 1)
        self.auxiliary_head.convs = nn.Sequential(ConvModule(channels // 2, channels // 8, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        backbone, head, auxiliary = self.backbone, self.decode_head, self.auxiliary_head
        x = backbone.stem(images) if hasattr(backbone, "stem") else F.relu(backbone.bn1(backbone.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1)
        res4 = backbone.layer3(backbone.layer2(backbone.layer1(x)))
        features = concatenated(backbone.layer4(res4), head.psp_modules, self.align_corners)
        return head.conv_seg(head.bottleneck(features)), auxiliary.conv_seg(auxiliary.convs(res4))


def concatenated(features: Tensor, levels: nn.ModuleList, align_corners: bool) -> Tensor:
    size = features.shape[2:]
    pooled = [F.interpolate(level(features), size, mode="bilinear", align_corners=align_corners) for level in levels]
    return torch.cat([features, *pooled], dim=1)
