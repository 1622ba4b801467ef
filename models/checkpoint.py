"""Checkpoint folders: `model.safetensors` and `config.json` on a local path."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.pspnet import Architecture, PSPNet

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass
class Metadata:
    """What a model's weights do not say about it.

    `mean` and `std` are of RGB in units of 0 to 255; `colors` are [r, g, b], one per class; `preprocessing`
    says how an image becomes the network's input, for example {"long_side": 1024}. Raises ValueError where
    these disagree.
    """

    classes: list[str]
    colors: list[list[int]]
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    ignore_index: int = 255
    preprocessing: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""

    def __post_init__(self) -> None:
        self.classes = [str(name) for name in self.classes]
        self.colors = [[int(value) for value in color] for color in self.colors]
        self.mean = [float(value) for value in self.mean]
        self.std = [float(value) for value in self.std]
        if len(self.colors) != len(self.classes):
            raise ValueError(
                f"Metadata: {len(self.classes)} classes but {len(self.colors)} colors; give one per class."
            )
        if any(len(color) != 3 or min(color) < 0 or max(color) > 255 for color in self.colors):
            raise ValueError("Metadata: colors must be [r, g, b] with values from 0 to 255.")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ValueError(
                f"Metadata: mean {self.mean} and std {self.std} must be three numbers each, for R, G and B "
                "in units of 0 to 255, std above zero."
            )


def save(folder: str | Path, model: PSPNet, metadata: Metadata) -> None:
    """Write a checkpoint folder, each file whole or not at all.

    Raises ValueError for weights that are not finite, naming the tensor, or when classes and model disagree.
    """
    folder = Path(folder)
    _require_matching_classes(model.architecture, metadata, "the metadata")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _require_finite(tensors, "the model")
    folder.mkdir(parents=True, exist_ok=True)

    # safetensors refuses tensors that share memory; tied weights do not occur in PSPNet.
    _replace(folder / WEIGHTS, lambda path: save_file(tensors, path))
    config = _to_config(model.architecture, metadata)
    text = json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    _replace(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def load(folder: str | Path, classes: Sequence[str] | None = None) -> tuple[PSPNet, Metadata]:
    """Read a checkpoint folder; return the model in evaluation mode on the CPU, and its metadata.

    `classes`, where given, are the names the caller expects, in order. Raises FileNotFoundError for a missing
    file and ValueError for one that is damaged, of another format, or does not fit the architecture or
    `classes`.
    """
    folder = Path(folder)
    architecture, metadata = _read_config(folder)
    if classes is not None:
        _require_classes(list(classes), metadata.classes, folder)
    tensors = _read_weights(folder)

    with torch.device("meta"):
        model = PSPNet(architecture)
    _require_fit({name: t.shape for name, t in model.state_dict().items()}, tensors, folder / WEIGHTS)
    _require_finite(tensors, str(folder / WEIGHTS))
    model.load_state_dict(tensors, assign=True)
    return model.eval(), metadata


def model_id(source: PSPNet | str | Path, metadata: Metadata | None = None) -> str:
    """Return 32 hexadecimal digits that stand for what a model computes.

    `source` is a checkpoint folder, or a model along with its metadata. Weights, architecture, normalisation
    and preprocessing count; class names, colors, metrics and code version do not. The same before and after
    `save`.
    """
    if isinstance(source, PSPNet):
        if metadata is None:
            raise ValueError("model_id of a model needs its metadata; pass both, or a checkpoint folder.")
        architecture, tensors = source.architecture, source.state_dict()
    else:
        architecture, metadata = _read_config(Path(source))
        tensors = _read_weights(Path(source))

    digest = hashlib.sha256()
    about = {
        "architecture": architecture.to_dict(),
        "mean": metadata.mean,
        "std": metadata.std,
        "preprocessing": metadata.preprocessing,
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _to_config(architecture: Architecture, metadata: Metadata) -> dict[str, Any]:
    about = asdict(metadata)
    return {
        "format_version": FORMAT_VERSION,
        "architecture": architecture.to_dict(),
        "id2label": {str(index): name for index, name in enumerate(about.pop("classes"))},
        **about,
        "metrics": _finite_or_none(metadata.metrics),
    }


def _read_config(folder: Path) -> tuple[Architecture, Metadata]:
    path = _require_file(folder, CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy the checkpoint again.") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version!r}, this code reads {FORMAT_VERSION}; use a checkpoint that "
            "Sceneparse wrote, or a matching version of it."
        )
    try:
        architecture = Architecture.from_dict(config["architecture"])
        id2label = config["id2label"]
        about = {name: config[name] for name in Metadata.__dataclass_fields__ if name != "classes"}
        metadata = Metadata(classes=[id2label[str(index)] for index in range(len(id2label))], **about)
    except KeyError as error:
        raise ValueError(f"{path} lacks the entry {error}; copy the checkpoint again.") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    _require_matching_classes(architecture, metadata, str(path))
    return architecture, metadata


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = _require_file(folder, WEIGHTS)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); copy it again.") from error


def _replace(path: Path, write: Any) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _require_file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; a checkpoint is a folder with {WEIGHTS} and {CONFIG}, pass that folder."
        )
    return path


def _require_matching_classes(architecture: Architecture, metadata: Metadata, where: str) -> None:
    if len(metadata.classes) != architecture.num_classes:
        raise ValueError(
            f"{where}: {len(metadata.classes)} class names, but the architecture has num_classes "
            f"{architecture.num_classes}; name every class once."
        )


def _require_classes(expected: list[str], found: list[str], folder: Path) -> None:
    if expected == found:
        return
    if len(expected) != len(found):
        difference = f"it has {len(found)}, {len(expected)} are expected"
    else:
        index = next(i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1])
        difference = f"class {index} is {found[index]!r}, {expected[index]!r} is expected"
    raise ValueError(
        f"{folder} was trained on other classes: {difference}. Use a checkpoint of these classes, or the "
        "classes of this checkpoint."
    )


def _require_fit(expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], path: Path) -> None:
    missing, left_over = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("left over", left_over), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(
            f"{path} does not hold the tensors of the architecture in {CONFIG}: {'; '.join(problems)}. "
            "Keep the two files of one checkpoint together, or import a foreign one first."
        )


def _require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{where}: tensor {name} has values that are NaN or infinite; training diverged, use an "
                "earlier checkpoint or a lower learning rate."
            )


def _finite_or_none(value: Any) -> Any:
    """Return `value` with null for what JSON cannot say, such as the IoU of a class that never occurs."""
    if isinstance(value, Mapping):
        return {str(key): _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
