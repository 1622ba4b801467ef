"""A trained model as the pipeline holds it.

Imports torch only when a checkpoint is loaded, so that processes which merely decode or write do not pay for it.
"""

import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline import storage
from pipeline.config.data import DataConfig, EvalDataConfig
from pipeline.config.training import ProtocolConfig
from pipeline.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint and how images are prepared for it."""

    network: Any
    metadata: Any
    long_side: int | None
    model_id: str

    @classmethod
    def load(cls, uri: str, long_side: int | None, protocol: ProtocolConfig | None = None) -> "Checkpoint":
        """Load from a local or remote folder; `long_side` (pixels), if given, takes the place of the checkpoint's own.

        The model's id is that of how it labels images, which `protocol` has a part in.

        Raises: UserError for a folder that is missing, damaged or no checkpoint.
        """
        import models

        with storage.local_copy(uri) as folder:
            try:
                network, metadata = models.load(folder)
            except (ValueError, FileNotFoundError) as error:
                raise UserError(f"checkpoint {uri}: {error}") from error
            except OSError as error:
                raise UserError(
                    f"checkpoint {uri}: {error.filename or folder} cannot be read: {error.strerror or error}; check "
                    "the path and who may read it"
                ) from error
        if long_side is not None:
            # Another preprocessing makes other masks, so it counts as another model.
            metadata.preprocessing = {**metadata.preprocessing, "long_side": long_side}
        if protocol is not None and not protocol.is_plain:
            metadata.preprocessing = {**metadata.preprocessing, "protocol": protocol.model_dump(mode="json")}
        return cls(network, metadata, metadata.preprocessing.get("long_side"), models.model_id(network, metadata))

    @property
    def class_names(self) -> list[str]:
        return list(self.metadata.classes)

    @property
    def palette(self) -> NDArray[np.uint8]:
        return np.array(self.metadata.colors, np.uint8)

    def data_config(self, uri: str, asked: EvalDataConfig) -> DataConfig:
        """The dataset with the checkpoint's classes and, where the user says nothing else, its preparation of images.

        Raises: UserError where the two do not go together; `uri` is the checkpoint's.
        """
        of_model = {"ignore_index": self.metadata.ignore_index, "long_side": self.long_side}
        classes = [
            {"name": name, "color": color} for name, color in zip(self.class_names, self.metadata.colors, strict=True)
        ]
        try:
            return DataConfig.model_validate({**of_model, **asked.model_dump(exclude_none=True), "classes": classes})
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, item['loc'])) or 'data'}: {item['msg'].removeprefix('Value error, ')}"
                for item in error.errors()
            ]
            raise UserError(
                f"checkpoint {uri}: {'; '.join(problems)}; set --data.ignore-index or --data.long-side"
            ) from None

    def require_precision(self, uri: str, precision: str) -> None:
        """Raise UserError where the checkpoint, of this `uri`, is not calibrated for the precision."""
        if precision == "int8" and not self.metadata.int8:
            raise UserError(
                f"checkpoint {uri}: is not calibrated, which precision int8 needs; run python jobs/calibrate.py "
                f"--checkpoint {uri} --data.root URI --output URI, or leave out --precision"
            )

    def predictor(self, device: str, precision: Any) -> Any:
        """Return a `models.Predictor`; int8 only if the checkpoint is calibrated.

        Raises: UserError where this machine's processor does not compute in the precision.
        """
        from models import Predictor

        try:
            return Predictor(
                self.network,
                self.metadata.mean,
                self.metadata.std,
                device=device,
                precision=precision,
                activation_ranges=self.metadata.int8.get("ranges"),
                temperature=self.metadata.temperature,
            )
        except ValueError as error:
            raise UserError(f"precision {precision} on {platform.node()}: {error}") from error


def write_checkpoint(uri: str, network: Any, metadata: Any) -> None:
    """Write a checkpoint folder, local or remote; of a model that lies there, only what is said about it."""
    import models
    from models.weights.checkpoint import CONFIG, WEIGHTS

    present = holds_checkpoint(uri, models.model_id(network, metadata), metadata)
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        models.save(folder, network, metadata)
        # CONFIG last: what has it is a whole checkpoint.
        storage.copy_files(folder, uri, (CONFIG,) if present else (WEIGHTS, CONFIG))


def holds_checkpoint(uri: str, model_id: str, metadata: Any) -> bool:
    """Whether the folder holds this model, with these classes, already.

    Raises: UserError if it holds another checkpoint, or a part of one.
    """
    import models
    from models.weights.checkpoint import CONFIG, WEIGHTS

    found = [name for name in (WEIGHTS, CONFIG) if storage.exists(storage.join(uri, name))]
    if not found:
        return False
    way_out = "nothing was written; choose another folder, or delete this one first"
    if len(found) == 1:
        raise UserError(f"output {uri}: holds {found[0]} but no whole checkpoint; {way_out}")
    with storage.local_copy(uri) as folder:
        try:
            model, before = models.load(folder)
        except (ValueError, OSError) as error:
            raise UserError(f"output {uri}: holds a checkpoint that cannot be read ({error}); {way_out}") from error
    other_id = models.model_id(model, before)
    if other_id != model_id:
        raise UserError(f"output {uri}: holds another checkpoint, model id {other_id} not {model_id}; {way_out}")
    if (before.classes, before.colors) != (metadata.classes, metadata.colors):
        raise UserError(f"output {uri}: holds these weights with other class names or colours; {way_out}")
    return True


def code_version() -> str:
    """What a checkpoint tells of the code that made it; empty where that is not installed but a working directory."""
    try:
        return version("sceneparse")
    except PackageNotFoundError:
        return ""
