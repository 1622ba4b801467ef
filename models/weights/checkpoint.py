"""Checkpoint folders, which contain `model.safetensors` and `config.json`, on local paths."""

import hashlib
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.inference.network import convolution_names
from models.inference.predictor import Calibration
from models.pspnet import Architecture, PSPNet

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1
MAX_DEPTH = 50  # nesting of config.json; the known entries need five levels
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# Fields of Architecture that were added after the first model ids. They are left out of the id if they have their
# default, which is the behavior of all older models.
YOUNGER_FIELDS = ("dilate_second", "width")
# Entries of config.json that were added after the first version of the format, with their defaults.
YOUNGER_ENTRIES: dict[str, Any] = {"int8": {}, "temperature": 1.0, "has_trained_heads": True}


@dataclass
class Metadata:
    """Metadata of a model besides its weights.

    `mean` and `std` are of RGB in units of 0 to 255; `colors` are [r, g, b], one per class; `preprocessing`
    defines how an image becomes the network's input, for example {"long_side": 1024}. `int8` is empty, or the int8
    calibration and its accuracy: {"ranges": result of `activation_ranges`, "images": number of images used,
    "agreement": share of labeled pixels that get the same label as in float32, "miou": {"float32": ..., "int8": ...}}.
    Logits are divided by `temperature` to calibrate the confidences. `has_trained_heads` is False if only the
    backbone is of use, such as an ImageNet ResNet's.

    Raises ValueError, with the name of the field, if a field is out of range or fields disagree.
    """

    classes: list[str]
    colors: list[list[int]]
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    ignore_index: int = 255
    preprocessing: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    int8: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    has_trained_heads: bool = True

    def __post_init__(self) -> None:
        for name in ("preprocessing", "metrics", "int8"):
            self._require(name, isinstance(getattr(self, name), dict), "an object with named entries")
        self._check_classes()
        for name in ("mean", "std"):
            values = getattr(self, name)
            three = isinstance(values, (list, tuple)) and len(values) == 3 and all(map(_is_finite, values))
            self._require(name, three, "three finite numbers, for R, G and B in units of 0 to 255")
            setattr(self, name, [float(value) for value in values])
        self._require("std", min(self.std) > 0, "above zero")
        self._require("ignore_index", _is_int(self.ignore_index), "an integer")
        valid = _is_finite(self.temperature) and self.temperature > 0
        self._require("temperature", valid, "a finite number above zero")
        self.temperature = float(self.temperature)
        self._require("has_trained_heads", isinstance(self.has_trained_heads, bool), "true or false")
        long_side = self.preprocessing.get("long_side")
        if long_side is not None and not (_is_int(long_side) and long_side > 0):
            raise ValueError(
                f"Metadata: preprocessing.long_side is {long_side!r}; it must be a positive number of pixels, or "
                "null for the full size."
            )
        if self.int8:
            _require_calibration(self.int8)

    @property
    def calibration(self) -> Calibration:
        """Calibration for a `Predictor` of the model."""
        return Calibration(self.temperature, self.int8.get("ranges"))

    def _check_classes(self) -> None:
        for name in ("classes", "colors"):
            self._require(name, isinstance(getattr(self, name), (list, tuple)), "a list")
        self._require("classes", all(isinstance(name, str) for name in self.classes), "a list of names")
        self.classes = list(self.classes)
        if repeated := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise ValueError(f"Metadata: class names must differ; given more than once: {', '.join(repeated)}.")
        if len(self.colors) != len(self.classes):
            raise ValueError(
                f"Metadata: {len(self.classes)} classes but {len(self.colors)} colors; give one per class."
            )
        self._require("colors", all(map(_is_color, self.colors)), "[r, g, b] for each class, from 0 to 255")
        self.colors = [[int(value) for value in color] for color in self.colors]

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"Metadata: {name} is {_short(getattr(self, name))}; it must be {allowed}.")


def save(folder: str | Path, model: PSPNet, metadata: Metadata) -> None:
    """Write a checkpoint folder; each file is written atomically.

    Raises ValueError if a tensor (named in the message) is not float32 or not finite, or if the classes do not match
    the model.
    """
    folder = Path(folder)
    _require_matching_classes(model.architecture, metadata, "the metadata")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"the model: tensor {name} is {_dtype(tensor)}; call model.float() before saving.")
    _require_finite(tensors, "the model")
    folder.mkdir(parents=True, exist_ok=True)

    # safetensors rejects tensors that share memory; PSPNet has no tied weights.
    _replace(folder / WEIGHTS, lambda path: save_file(tensors, path))
    config = _to_config(model.architecture, metadata)
    text = json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    _replace(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def load(folder: str | Path, classes: Sequence[str] | None = None) -> tuple[PSPNet, Metadata]:
    """Load a checkpoint folder; return the model in evaluation mode on the CPU, and its metadata.

    `classes`, if given, are the class names that the caller expects, in order.

    Raises FileNotFoundError if a file is missing, and ValueError if a file is damaged, has another format or data
    type, or does not match the architecture or `classes`.
    """
    folder = Path(folder)
    architecture, metadata = _read_config(folder)
    if classes is not None:
        _require_classes(list(classes), metadata.classes, folder)
    tensors = _read_weights(folder)

    with torch.device("meta"):
        model = PSPNet(architecture)
    _require_fit(model.state_dict(), tensors, folder / WEIGHTS)
    _require_finite(tensors, str(folder / WEIGHTS))
    if metadata.int8:
        _require_ranges_of(model, metadata.int8["ranges"], folder / CONFIG)
    model.load_state_dict(tensors, assign=True)
    return model.eval(), metadata


def model_id(source: PSPNet | str | Path, metadata: Metadata | None = None) -> str:
    """Return 32 hexadecimal digits that identify the function a model computes.

    `source` is a checkpoint folder, or a model together with its metadata. The id depends on weights, architecture,
    normalization, preprocessing and temperature. It does not depend on class names, colors, metrics, code version,
    int8 calibration (the precision is chosen at prediction) or the mark of untrained heads. It is the same before and
    after `save`.
    """
    if isinstance(source, PSPNet):
        if metadata is None:
            raise ValueError("model_id needs the metadata of the model; pass both, or a checkpoint folder.")
        architecture, tensors = source.architecture, source.state_dict()
    else:
        architecture, metadata = _read_config(Path(source))
        tensors = _read_weights(Path(source))

    digest = hashlib.sha256()
    about: dict[str, Any] = {
        "architecture": _what_counts(architecture),
        "mean": metadata.mean,
        "std": metadata.std,
        "preprocessing": metadata.preprocessing,
    }
    if metadata.temperature != 1:  # added after the first model ids
        about["temperature"] = metadata.temperature
    digest.update(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _what_counts(architecture: Architecture) -> dict[str, Any]:
    values = architecture.to_dict()
    for about in fields(architecture):
        if about.name in YOUNGER_FIELDS and values[about.name] == about.default:
            del values[about.name]
    return values


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
        _require_plain(config)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy the checkpoint again.") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version!r}, but this code reads {FORMAT_VERSION}; use a checkpoint written "
            "by Sceneparse, or a matching version of Sceneparse."
        )
    for name, default in YOUNGER_ENTRIES.items():
        config.setdefault(name, default)
    try:
        for name in ("architecture", "id2label"):
            if not isinstance(config[name], dict):
                raise ValueError(f"{name} is {_short(config[name])}; it must be an object with named entries.")
        architecture = Architecture.from_dict(config["architecture"])
        id2label = config["id2label"]
        about = {entry.name: config[entry.name] for entry in fields(Metadata) if entry.name != "classes"}
        metadata = Metadata(classes=[id2label[str(index)] for index in range(len(id2label))], **about)
    except KeyError as error:
        raise ValueError(f"{path}: entry {error} is missing; copy the checkpoint again.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error} Correct the entry, or copy the checkpoint again.") from error
    _require_matching_classes(architecture, metadata, str(path))
    return architecture, metadata


def _require_plain(value: Any, depth: int = 0) -> None:
    """Raise ValueError for JSON that cannot be written again: lone surrogates, and very deep nesting."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode()
            _require_plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _require_plain(item, depth + 1)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = _require_file(folder, WEIGHTS)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); copy it again.") from error


def _replace(path: Path, write: Any) -> None:
    """Let `write` create a temporary file next to `path`, then atomically rename it to `path`."""
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
            f"{path} does not exist; a checkpoint is a folder with {WEIGHTS} and {CONFIG}; pass that folder."
        )
    return path


def _require_matching_classes(architecture: Architecture, metadata: Metadata, where: str) -> None:
    if len(metadata.classes) != architecture.num_classes:
        raise ValueError(
            f"{where}: {len(metadata.classes)} class names, but the architecture has num_classes "
            f"{architecture.num_classes}; give one name per class."
        )


def _require_classes(expected: list[str], found: list[str], folder: Path) -> None:
    if expected == found:
        return
    if len(expected) != len(found):
        difference = f"it has {len(found)}, expected {len(expected)}"
    else:
        index = next(i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1])
        difference = f"class {index} is {found[index]!r}, expected {expected[index]!r}"
    raise ValueError(
        f"{folder} was trained on other classes: {difference}. Use a checkpoint for these classes, or the "
        "classes of this checkpoint."
    )


def _require_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    missing, left_over = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    both = [(name, tensors[name], wanted) for name, wanted in expected.items() if name in tensors]
    shapes = [f"{name} {list(t.shape)} instead of {list(w.shape)}" for name, t, w in both if t.shape != w.shape]
    dtypes = [f"{name} {_dtype(t)} instead of {_dtype(w)}" for name, t, w in both if t.dtype != w.dtype]
    kinds = {"missing": missing, "left over": left_over, "of another shape": shapes, "of another type": dtypes}
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in kinds.items()
        if names
    ]
    if problems:
        raise ValueError(
            f"{path} does not contain the tensors of the architecture in {CONFIG}: {'; '.join(problems)}. "
            "Keep the two files of a checkpoint together, or import weights of other projects first."
        )


def _require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{where}: tensor {name} has values that are NaN or infinite, so training diverged; use an "
                "earlier checkpoint or a lower learning rate."
            )


def _require_calibration(int8: Mapping[str, Any]) -> None:
    """Raise ValueError unless the entries are those described in Metadata."""
    again = "calibrate the checkpoint again (jobs/calibrate.py)"
    try:
        numbers = {
            "images": int8["images"],
            "agreement": int8["agreement"],
            "miou.float32": int8["miou"]["float32"],
            "miou.int8": int8["miou"]["int8"],
            **{
                f"ranges.{convolution}.{tensor}[{end}]": values[end]
                for convolution, ranges in int8["ranges"].items()
                for tensor, values in ranges.items()
                for end in (0, 1)
            },
        }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"Metadata: int8 is damaged ({error}); {again}.") from error
    for name, value in numbers.items():
        if not _is_finite(value):
            raise ValueError(f"Metadata: int8.{name} is {_short(value)}; it must be a finite number; {again}.")


def _require_ranges_of(model: PSPNet, ranges: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Raise ValueError unless there are ranges for every convolution."""
    missing = [
        f"{name}.{tensor}"
        for name, adds_shortcut in convolution_names(model).items()
        for tensor in ("input", "output", *(["shortcut"] if adds_shortcut else []))
        if tensor not in ranges.get(name, {})
    ]
    if missing:
        raise ValueError(
            f"{path}: int8.ranges has no entry for {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; "
            "calibrate the checkpoint again (jobs/calibrate.py)."
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_color(color: Any) -> bool:
    return isinstance(color, (list, tuple)) and len(color) == 3 and all(_is_int(v) and 0 <= v <= 255 for v in color)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + " ..."


def _finite_or_none(value: Any) -> Any:
    """Return `value` with None for non-finite numbers, such as the IoU of a class that never occurs."""
    if isinstance(value, Mapping):
        return {str(key): _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
