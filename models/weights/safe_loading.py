"""Reading of published weights without executing anything that their files contain."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


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
    "torch.save(state.get('state_dict', state), 'tensors.pth'). Then import tensors.pth with its class names."
)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a .safetensors file or of a file written by torch.save.

    The tensors are those of "state_dict" if the file has it, on the CPU, without DataParallel's prefix `module.`. The
    metadata is the file's "meta", or empty. Pickles are read by torch's restricted unpickler, which builds only
    tensors and plain values.

    Raises FileNotFoundError, and ValueError if the file has another format, is damaged, or contains code.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; pass the weights file.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass a .pth, .pt or .safetensors file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} contains a {type(content).__name__}, not a state dict; pass a state dict file.")
    tensors, meta = content.get("state_dict", content), content.get("meta")
    if not isinstance(tensors, Mapping) or not tensors:
        raise ValueError(f"{path} contains no state dict; pass a state dict file.")
    foreign = [str(name) for name, value in tensors.items() if not (isinstance(name, str) and _is_plain(value))]
    if foreign:
        raise ValueError(
            f"{path} contains {listed(foreign)} that are not plain tensors; pass a state dict file, "
            "or a file with a state dict under 'state_dict'."
        )
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    named = {name.removeprefix(prefix): tensor.detach() for name, tensor in tensors.items()}
    return named, dict(meta) if isinstance(meta, Mapping) else {}


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


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_complex())
        and value.device.type == "cpu"
    )
