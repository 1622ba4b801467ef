"""Reading of published weights without executing anything that their files contain."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Keys under which training scripts save the state dict of a network.
CONTAINERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class WeightsFile:
    """Content of a weights file: tensors on the CPU, the file's "meta", and the keys of everything else."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    ignored: list[str]


class _Ignored:
    """Placeholder for an object that accompanies the weights; accepts any state and ignores it."""

    def __new__(cls, *_: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# Names that the training logs in MMSegmentation's checkpoints refer to. Each of them, including `getattr`, is replaced
# by the class above, so that none of them is imported or called.
_NUMPY = ("scalar", "_reconstruct")
_LOGS = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in _NUMPY),
    *("numpy.ndarray", "numpy.dtype", "builtins.getattr", "mmengine.logging.history_buffer.HistoryBuffer"),
)

_RESAVE = (
    "If you trust its origin, save only its tensors, on a machine with the packages that the file needs: "
    "state = torch.load(FILE, map_location='cpu', weights_only=False); "
    "torch.save(state.get('state_dict', state), 'tensors.pth'), with the key of its tensors if it is another. "
    "Then import tensors.pth with its class names."
)


def read_weights(path: str | Path) -> WeightsFile:
    """Return the content of a .safetensors file or of a file written by torch.save.

    The tensors are those under a key of CONTAINERS if the file has one. The metadata is empty if the file has no
    "meta". Pickles are read by torch's restricted unpickler, which builds only tensors and plain values.

    Raises FileNotFoundError, and ValueError if the file has another format, is damaged, contains code, or has state
    dicts under several keys of CONTAINERS.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; pass the weights file.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass a .pth, .pt or .safetensors file.")
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} contains a {type(content).__name__}, not a state dict; pass a state dict file.")
    found = [key for key in CONTAINERS if _has_tensors(content.get(key))]
    if len(found) > 1:
        raise ValueError(
            f"{path} contains several state dicts, {', '.join(found)}; save the one to import in a file of its own."
        )
    tensors: Mapping[Any, Any] = content[found[0]] if found else content
    if not tensors:
        raise ValueError(f"{path} contains no state dict; pass a state dict file.")
    foreign = [str(name) for name, value in tensors.items() if not (isinstance(name, str) and _is_plain(value))]
    if foreign:
        raise ValueError(
            f"{path} contains {listed(foreign)} that are not plain tensors; pass a state dict file, "
            f"or a file with a state dict under {' or '.join(map(repr, CONTAINERS))}."
        )
    meta = content.get("meta")
    return WeightsFile(
        tensors={name: tensor.detach() for name, tensor in tensors.items()},
        meta=dict(meta) if isinstance(meta, Mapping) else {},
        ignored=[str(key) for key in content if key not in (*found, "meta")] if found else [],
    )


def listed(names: list[str], shown: int = 5) -> str:
    """Return "2 (a, b)" for ["a", "b"]; of many names, only the first `shown`."""
    return f"{len(names)} ({', '.join(names[:shown])}{', ...' if len(names) > shown else ''})"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); download it again.") from error


def _read_pickle(path: Path) -> Any:
    _check_archive(path)
    with path.open("rb") as file:
        try:
            with torch.serialization.safe_globals([(_Ignored, name) for name in _LOGS]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they address the author of the file
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # arbitrary bytes can make the reader fail in any way
            found = re.search(r"GLOBAL (\S+)", str(error))
            if found:
                raise ValueError(
                    f"{path} contains code or objects that are not tensors ({found[1]}), and loading them could "
                    f"execute arbitrary code; nothing was loaded. {_RESAVE}"
                ) from error
            if "TorchScript" in str(error):
                raise ValueError(
                    f"{path} is a TorchScript program, not weights; save its state_dict() and pass that file."
                ) from error
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{path} is not a readable torch.save file ({reason}); it is damaged or has another format; "
                "download it again."
            ) from error


def _check_archive(path: Path) -> None:
    """Raise ValueError if an archive unpacks to more bytes than it has, since torch.save does not compress."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} is not a readable torch.save file ({error}); download it again.") from error
    size = path.stat().st_size
    if unpacked > size:
        raise ValueError(
            f"{path} has {size:,} bytes and unpacks to {unpacked:,}, but torch.save does not compress; nothing was "
            "loaded. If you trust its origin, load it and save it again with torch.save."
        )


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_complex())
        and value.device.type == "cpu"
    )
