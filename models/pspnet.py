"""PSPNet: a dilated ResNet, pyramid pooling, and an auxiliary head during training.

Shape suffixes: N batch, C channels, H W rows and columns of the image, K classes, h w rows and columns at
stride 8.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.pyramid import Pooling, Pyramid, PyramidHead
from models.resnet import PUBLISHED_WIDTH, STAGE_BLOCKS, DilatedResNet, Stem

MIN_SIZE = 64
MAX_CLASSES = 65536
MAX_CHANNELS = 4096  # of the stem
MIN_WIDTH, MAX_WIDTH = 8, 512
MAX_LEVELS, MAX_BIN = 64, 256  # of the pyramid; a level has bin * bin cells
BACKBONES = tuple(f"resnet{depth}" for depth in STAGE_BLOCKS)


@dataclass(frozen=True)
class Architecture:
    """Settings that define the function of the network and the shapes of its parameters.

    `width` is the number of channels of the backbone's first stage, from which those of all other stages and of the
    heads follow. `stem_channels` applies only to the deep stem, `dilate_second` only to ResNet-18 and 34.

    Raises ValueError, with the name of the field, if a field is out of range.
    """

    backbone: str
    num_classes: int
    stem: Stem = "plain"
    stem_channels: tuple[int, int, int] = (64, 64, 128)
    contract_dilation: bool = False
    dilate_second: bool = True
    bins: tuple[int, ...] = (1, 2, 3, 6)
    pooling: Pooling = "average"
    reduce: bool = True
    auxiliary: bool = True
    dropout: float = 0.1
    align_corners: bool = True
    width: int = PUBLISHED_WIDTH

    def __post_init__(self) -> None:
        for name in ("stem_channels", "bins"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._require("backbone", self.backbone in BACKBONES, f"one of {', '.join(BACKBONES)}")
        self._require("num_classes", _is_int(self.num_classes, 2, MAX_CLASSES), f"2 to {MAX_CLASSES}")
        self._require("width", _is_int(self.width, MIN_WIDTH, MAX_WIDTH), f"{MIN_WIDTH} to {MAX_WIDTH}")
        self._require("stem", self.stem in ("plain", "deep"), "'plain' or 'deep'")
        self._require(
            "stem_channels",
            _are_positive(self.stem_channels, MAX_CHANNELS) and len(self.stem_channels) == 3,
            f"three numbers of channels, 1 to {MAX_CHANNELS}",
        )
        self._require(
            "bins",
            _are_positive(self.bins, MAX_BIN) and len(self.bins) <= MAX_LEVELS,
            f"a list of at most {MAX_LEVELS} integers from 1 to {MAX_BIN}, or an empty list",
        )
        self._require("pooling", self.pooling in ("average", "max"), "'average' or 'max'")
        self._require(
            "dropout",
            isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1,
            "at least 0 and below 1",
        )
        for name in ("contract_dilation", "dilate_second", "reduce", "auxiliary", "align_corners"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """Return the architecture from the result of `to_dict`. Raises ValueError for unknown or missing names."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"Architecture: unknown field {', '.join(unknown)}; known fields are "
                f"{', '.join(sorted(known))}. Correct the name or remove it."
            )
        if missing := sorted({"backbone", "num_classes"} - set(values)):
            raise ValueError(f"Architecture: {' and '.join(missing)} missing; both are required.")
        return cls(**values)

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"Architecture: {name} is {getattr(self, name)!r}; it must be {allowed}.")


class Logits(NamedTuple):
    """Output of PSPNet in training, both (N, K, h, w); `auxiliary` is None without an auxiliary head."""

    main: Tensor
    auxiliary: Tensor | None


class PSPNet(nn.Module):
    """Pyramid scene parsing network (Zhao et al. 2017, figure 3).

    Maps normalized RGB images (N, 3, H, W) to logits (N, K, h, w) at stride 8, `feature_size(H, W)`. In training it
    returns Logits, whose auxiliary part comes from res4. The caller upsamples the logits to the size and in the
    precision it needs.

    Raises ValueError if images are not (N, 3, H, W) with H and W of at least 64.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        depth = int(a.backbone.removeprefix("resnet"))
        self.backbone = DilatedResNet(depth, a.stem, a.stem_channels, a.contract_dilation, a.dilate_second, a.width)
        self.head = PyramidHead(
            self.backbone.res5_channels,
            a.num_classes,
            Pyramid(a.bins, a.pooling, a.reduce),
            a.dropout,
            a.align_corners,
        )
        # Without bins, PyramidHead is the 3x3, BatchNorm, ReLU, dropout, 1x1 of the paper's auxiliary branch.
        self.auxiliary: PyramidHead | None = None
        if a.auxiliary:
            channels = self.backbone.res4_channels
            self.auxiliary = PyramidHead(channels, a.num_classes, Pyramid(bins=()), a.dropout)

    def forward(self, images_N3HW: Tensor) -> Tensor | Logits:
        _require_images(images_N3HW)
        res4_NChw, res5_NChw = self.backbone(images_N3HW)
        logits_NKhw = self.head(res5_NChw)
        if not self.training:
            return logits_NKhw
        return Logits(logits_NKhw, None if self.auxiliary is None else self.auxiliary(res4_NChw))

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that ImageNet pretraining covers."""
        return self.backbone.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the new layers, which the paper's code trains at ten times the learning rate."""
        heads = [self.head] if self.auxiliary is None else [self.head, self.auxiliary]
        return chain.from_iterable(head.parameters() for head in heads)


def feature_size(height: int, width: int) -> tuple[int, int]:
    """Return (rows, columns) of the logits for an image of this size: an eighth, rounded up."""
    return -(-height // 8), -(-width // 8)


def _require_images(images_N3HW: Tensor) -> None:
    shape = tuple(images_N3HW.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"PSPNet expects images of shape (N, 3, H, W), not {shape}; pass normalized RGB.")
    if min(shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"PSPNet expects images of at least {MIN_SIZE} x {MIN_SIZE} pixels, not {shape[2]} x {shape[3]}; "
            "pad or enlarge them."
        )


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _are_positive(values: Any, high: int) -> bool:
    return isinstance(values, tuple) and all(_is_int(value, 1, high) for value in values)
