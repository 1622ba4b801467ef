"""Import of published weights into PSPNet: hszhao/semseg, MMSegmentation, and ImageNet ResNets as backbones.

The kind of a file is detected by the names of its tensors; depth, stem, classes and pyramid levels follow from names
and shapes. Settings that neither shows (the grid of upsampling, dilation) follow the convention of each kind, or the
metadata of an MMSegmentation checkpoint.

Sources: github.com/hszhao/semseg model/pspnet.py; github.com/open-mmlab/mmsegmentation backbones/resnet.py and
decode_heads/psp_head.py; torchvision.models.resnet; timm.models.resnet.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.pspnet import Architecture, PSPNet
from models.resnet import PUBLISHED_WIDTH, STAGE_BLOCKS
from models.weights import mmseg_config
from models.weights.checkpoint import Metadata
from models.weights.safe_loading import WeightsFile, listed, read_weights
from models.weights.unwrapping import unwrap

Shapes = Mapping[str, torch.Size]


class WeightLayout(NamedTuple):
    """Layout of one kind of published weights.

    A file has this layout if every prefix in `signature` occurs among its names. `prefixes` maps its names to ours,
    with {i} for the index of a pyramid level; `function` has fields of Architecture that no tensor shows; names that
    start with `dropped` are ignored.
    """

    name: str
    signature: tuple[str, ...]
    prefixes: dict[str, str]
    function: dict[str, Any]
    dropped: str | None = None

    @property
    def has_heads(self) -> bool:
        return any(ours.startswith("head.") for ours in self.prefixes.values())


def _deep_stem(start: str, last: str | None = None) -> dict[str, str]:
    """Return the prefixes of a stem whose layers, ReLUs included, are numbered behind `start`, with our prefixes.

    `last` is the prefix of its last batch norm if that is outside of the stem.
    """
    theirs = [*(f"{start}{number}." for number in (0, 1, 3, 4, 6)), last or f"{start}7."]
    ours = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    return {their: f"backbone.{our}." for their, our in zip(theirs, ours, strict=True)}


_MMSEG_HEADS = {
    "decode_head.psp_modules.{i}.1.conv.": "head.levels.{i}.0.",
    "decode_head.psp_modules.{i}.1.bn.": "head.levels.{i}.1.",
    "decode_head.bottleneck.conv.": "head.conv.",
    "decode_head.bottleneck.bn.": "head.bn.",
    "decode_head.conv_seg.": "head.classifier.",
    "auxiliary_head.convs.0.conv.": "auxiliary.conv.",
    "auxiliary_head.convs.0.bn.": "auxiliary.bn.",
    "auxiliary_head.conv_seg.": "auxiliary.classifier.",
}
_MMSEG_FUNCTION = {"contract_dilation": True, "dilate_second": False, "align_corners": False}

WEIGHT_LAYOUTS = (
    WeightLayout(
        "hszhao/semseg PSPNet",
        signature=("layer0.", "cls."),
        prefixes={
            **_deep_stem("layer0."),
            "layer": "backbone.layer",
            "ppm.features.{i}.1.": "head.levels.{i}.0.",
            "ppm.features.{i}.2.": "head.levels.{i}.1.",
            "cls.0.": "head.conv.",
            "cls.1.": "head.bn.",
            "cls.4.": "head.classifier.",
            "aux.0.": "auxiliary.conv.",
            "aux.1.": "auxiliary.bn.",
            "aux.4.": "auxiliary.classifier.",
        },
        function={"contract_dilation": False, "align_corners": True},
    ),
    WeightLayout(
        "MMSegmentation PSPNet, deep stem",
        signature=("backbone.stem.", "decode_head.psp_modules."),
        prefixes={
            **_deep_stem("backbone.stem."),
            "backbone.layer": "backbone.layer",
            **_MMSEG_HEADS,
        },
        function=_MMSEG_FUNCTION,
    ),
    WeightLayout(
        "MMSegmentation PSPNet",
        signature=("backbone.conv1.", "decode_head.psp_modules."),
        prefixes={
            "backbone.conv1.": "backbone.conv1.",
            "backbone.bn1.": "backbone.bn1.",
            "backbone.layer": "backbone.layer",
            **_MMSEG_HEADS,
        },
        function=_MMSEG_FUNCTION,
    ),
    WeightLayout(
        "ImageNet ResNet of MMSegmentation, deep stem",
        signature=("stem.", "layer1."),
        prefixes={**_deep_stem("stem."), "layer": "backbone.layer"},
        function={},
        dropped="fc.",
    ),
    WeightLayout(
        "ImageNet ResNet of timm, deep stem",
        signature=("conv1.0.", "layer1."),
        prefixes={**_deep_stem("conv1.", last="bn1."), "layer": "backbone.layer"},
        function={},
        dropped="fc.",
    ),
    WeightLayout(
        "ImageNet ResNet",
        signature=("conv1.", "layer1."),
        prefixes={"conv": "backbone.conv", "bn": "backbone.bn", "layer": "backbone.layer"},
        function={},
        dropped="fc.",
    ),
)


class Imported(NamedTuple):
    """Imported network in evaluation mode on the CPU, its metadata, and the name of the kind of weights.

    `notes` are assumptions to report to the user.
    """

    model: PSPNet
    metadata: Metadata
    kind: str
    notes: list[str]


def import_weights(
    path: str | Path,
    classes: Sequence[str] | None = None,
    bins: Sequence[int] | None = None,
    align_corners: bool | None = None,
    ema: bool = False,
) -> Imported:
    """Import a published PSPNet, or a ResNet as the backbone of a PSPNet with new heads (seed 0).

    `path` is a file written by torch.save or safetensors. `classes` are the class names in order; the default is the
    names in the file, or class_0, class_1, ...; a ResNet requires them. `bins` are the pyramid levels in cells per
    side, by default those in the file, or (1, 2, 3, 6) for four levels. `align_corners`, if given, overrides the
    convention of the kind. `ema` imports the moving averages that MMSegmentation 0.x saves beside the parameters.

    Raises FileNotFoundError, and ValueError if the file cannot be read, contains code, is of an unknown kind, or has
    tensors that do not fit: different names or shapes, or values that are not finite.
    """
    file = read_weights(path)
    try:
        return _import(file, classes, bins, align_corners, ema)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _import(
    file: WeightsFile,
    classes: Sequence[str] | None,
    bins: Sequence[int] | None,
    align_corners: bool | None,
    ema: bool,
) -> Imported:
    unwrapped = unwrap(file.tensors, ema)
    kind = _recognise(unwrapped.tensors)
    about = mmseg_config.describe(file.meta)
    unused = [name for name in unwrapped.tensors if kind.dropped and name.startswith(kind.dropped)]
    ours, unknown = _renamed({name: t for name, t in unwrapped.tensors.items() if name not in unused}, kind)
    function = kind.function | {name: value for name, value in about.function.items() if value is not None}
    if bins is not None:
        function["bins"] = tuple(bins)
    if align_corners is not None:
        function["align_corners"] = align_corners
    architecture = _architecture({name: tensor.shape for name, tensor in ours.items()}, kind, function, classes)

    names = list(classes) if classes is not None else about.classes
    names = names or [f"class_{index}" for index in range(architecture.num_classes)]
    if len(names) != architecture.num_classes:
        raise ValueError(
            f"{len(names)} class names {'given' if classes is not None else 'in the file'}, but the classifier has "
            f"{architecture.num_classes} classes; give one name per class."
        )
    colors = about.colors if about.colors and len(about.colors) == len(names) else palette(len(names))
    metadata = Metadata(names, colors, **about.normalisation, has_trained_heads=kind.has_heads)

    notes = []
    if not kind.has_heads:
        notes.append("the heads are new and untrained: train them before labeling anything")
    elif not about.function and kind.name.startswith("MMSegmentation"):
        notes.append(
            "the file has no configuration; assuming D8 (output stride 8), align_corners "
            f"{str(architecture.align_corners).lower()}"
        )
    if dropped := unwrapped.dropped + unused:
        notes.append(f"dropped {listed(dropped)}")
    if unwrapped.has_averages and not ema:
        notes.append("the file also has moving averages of the parameters (ema_*); import it with ema to use these")
    if file.ignored:
        notes.append(f"ignored beside the weights: {', '.join(file.ignored)}")
    return Imported(_build(architecture, ours, unknown, kind), metadata, kind.name, notes)


def palette(num_classes: int) -> list[list[int]]:
    """Return a distinct [r, g, b] for each class; the first ones are far apart.

    The bits of the class number plus one are assigned round-robin to the top bits of red, green and blue, as in the
    palette of PASCAL VOC without its black.
    """
    return [
        [sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        for index in range(1, num_classes + 1)
    ]


def _recognise(names: Iterable[str]) -> WeightLayout:
    names = list(names)
    for kind in WEIGHT_LAYOUTS:
        if all(any(name.startswith(start) for name in names) for start in kind.signature):
            return kind
    known = [f"{kind.name} (with {' and '.join(f'{start}*' for start in kind.signature)})" for kind in WEIGHT_LAYOUTS]
    raise ValueError(
        f"unknown kind of weights, with tensors {listed(names)}. Known kinds are {', '.join(known)}. "
        "Sceneparse checkpoint folders need no import."
    )


def _renamed(tensors: Mapping[str, Tensor], kind: WeightLayout) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under our names, and the names without counterpart."""
    ours, unknown = {}, []
    for name, tensor in tensors.items():
        renamed = _replace_prefix(name, kind.prefixes.items())
        if renamed is None:
            unknown.append(name)
        else:
            ours[renamed] = tensor
    return ours, unknown


def _replace_prefix(name: str, prefixes: Iterable[tuple[str, str]]) -> str | None:
    for old, new in prefixes:
        match = re.match(re.escape(old).replace(r"\{i\}", r"(?P<i>\d+)"), name)
        if match:
            return new.format(**match.groupdict()) + name[match.end() :]
    return None


def _published(name: str, kind: WeightLayout) -> str:
    """Return the published name of one of our tensors."""
    return _replace_prefix(name, ((ours, theirs) for theirs, ours in kind.prefixes.items())) or name


def _architecture(
    shapes: Shapes, kind: WeightLayout, function: Mapping[str, Any], classes: Sequence[str] | None
) -> Architecture:
    """Return the architecture for these shapes, given under our names."""

    def shape(name: str) -> torch.Size:
        if name not in shapes:
            raise ValueError(
                f"{_published(name, kind)} is missing; the file is incomplete or belongs to another network."
            )
        return shapes[name]

    num_blocks = tuple(len(_numbers(shapes, rf"backbone\.layer{stage}\.(\d+)\.")) for stage in (1, 2, 3, 4))
    bottleneck = "backbone.layer1.0.conv3.weight" in shapes
    depths = [depth for depth, blocks in STAGE_BLOCKS.items() if blocks == num_blocks and (depth >= 50) == bottleneck]
    if not depths:
        raise ValueError(
            f"{num_blocks} {'bottleneck' if bottleneck else 'basic'} blocks do not match a ResNet of depth "
            f"{', '.join(map(str, STAGE_BLOCKS))}."
        )
    width = shape("backbone.layer1.0.conv2.weight")
    if width != (PUBLISHED_WIDTH, PUBLISHED_WIDTH, 3, 3):
        raise ValueError(
            f"{_published('backbone.layer1.0.conv2.weight', kind)} has shape {list(width)}, like a ResNeXt, Wide "
            "ResNet or other variant; only plain ResNets (64 channels in the first stage) can be imported."
        )
    if any(re.match(r"backbone\.layer\d\.0\.downsample\.2\.", name) for name in shapes):
        raise ValueError(
            f"{_published('backbone.layer2.0.downsample.2.', kind)}* belongs to shortcuts with average pooling, as in "
            "ResNet-D, which compute another function; use weights without it, such as resnet50_v1c."
        )
    stem: dict[str, Any] = {"stem": "plain"}
    if "backbone.conv2.weight" in shapes:
        channels = [shape(f"backbone.conv{index}.weight")[0] for index in (1, 2, 3)]
        stem = {"stem": "deep", "stem_channels": tuple(channels)}

    head: dict[str, Any] = {}
    if kind.has_heads:
        head["num_classes"] = shape("head.classifier.weight")[0]
        head["auxiliary"] = any(name.startswith("auxiliary.") for name in shapes)
        num_levels = len(_numbers(shapes, r"head\.levels\.(\d+)\."))
        head["bins"] = function.get("bins", {0: (), 4: (1, 2, 3, 6)}.get(num_levels))
        if head["bins"] is None or len(head["bins"]) != num_levels:
            raise ValueError(
                f"the pyramid has {num_levels} levels, but bins are {head['bins'] or 'not given'}; give the cells per "
                "side of each level, for example bins 1,2,4."
            )
    else:
        if not classes:
            raise ValueError("these are weights of a backbone, without classes; give the names of your classes.")
        head["num_classes"] = len(classes)
    return Architecture(**{"backbone": f"resnet{depths[0]}", **function, **stem, **head})


def _numbers(names: Iterable[str], pattern: str) -> set[str]:
    return {match[1] for name in names if (match := re.match(pattern, name))}


def _build(architecture: Architecture, tensors: dict[str, Tensor], unknown: list[str], kind: WeightLayout) -> PSPNet:
    """Return the network with these tensors; raise ValueError unless they match it exactly."""
    with torch.device("meta"):
        model = PSPNet(architecture)
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if kind.has_heads or name.startswith("backbone.")
    }
    # Files written by torch before 0.4.1 have no such counters.
    counters = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    tensors = counters | tensors

    problems = {
        "missing": [_published(name, kind) for name in expected if name not in tensors],
        "left over": unknown + [_published(name, kind) for name in tensors if name not in expected],
        "of another shape": [
            f"{_published(name, kind)} {list(tensors[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    found = [f"{listed(names)} {problem}" for problem, names in problems.items() if names]
    if found:
        raise ValueError(
            f"recognized as {kind.name} with {architecture.backbone}, but its tensors do not fit: {'; '.join(found)}."
        )

    # Copies, since the tensors in a file may share memory.
    state = {
        name: tensors[name].to(wanted.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, wanted in expected.items()
    }
    # The minimum and maximum show non-finite values in one pass and without a copy.
    unusable = [_published(name, kind) for name, t in state.items() if not torch.stack(t.aminmax()).isfinite().all()]
    if unusable:
        raise ValueError(
            f"{listed(unusable)} with NaN or infinite values; download the file again, or use another file."
        )
    if not kind.has_heads:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state = PSPNet(architecture).state_dict() | state
    model.load_state_dict(state, assign=True)
    return model.eval()
