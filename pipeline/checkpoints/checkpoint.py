"""Trained model in the pipeline.

torch is imported only when a checkpoint is loaded, so that processes that only decode or write do not pay for it.
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
from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.config.data import DataConfig, EvalDataConfig
from pipeline.config.training import ProtocolConfig
from pipeline.errors import UserError

CONFIG = "config.json"  # of a checkpoint folder, beside the weights


def check_is_checkpoint(uri: str) -> None:
    """Raise UserError if the folder holds no checkpoint, without importing torch, which takes seconds."""
    if storage.exists(storage.join(uri, CONFIG)):
        return
    best = storage.join(uri, "best")
    if storage.exists(storage.join(best, CONFIG)):
        raise UserError(f"checkpoint {uri}: is the output of a training run; use its best checkpoint, {best}")
    raise UserError(
        f"checkpoint {uri}: {CONFIG} does not exist; use a folder that jobs/train.py or jobs/import_weights.py wrote"
    )


@dataclass(frozen=True)
class Checkpoint:
    """Loaded checkpoint with its image preprocessing."""

    network: Any
    metadata: Any
    long_side: int | None
    model_id: str

    @classmethod
    def load(
        cls,
        uri: str,
        long_side: int | None,
        protocol: ProtocolConfig | None = None,
        rendering: Rendering = AS_DECLARED,
        needs_heads: bool = True,
    ) -> "Checkpoint":
        """Load a checkpoint from a local or remote folder.

        `long_side` (pixels) and the options of `rendering` that are set override the checkpoint's. The model id
        identifies how images are labeled, so it depends on them and on `protocol`.

        Raises: UserError if the folder is missing, damaged or not a checkpoint, or, with `needs_heads`, if it holds a
        backbone whose heads are untrained.
        """
        check_is_checkpoint(uri)
        import models

        with storage.local_copy(uri) as folder:
            try:
                network, metadata = models.load(folder)
            except (ValueError, FileNotFoundError) as error:
                raise UserError(f"checkpoint {uri}: {error}") from error
            except OSError as error:
                raise UserError(
                    f"checkpoint {uri}: {error.filename or folder} cannot be read: {error.strerror or error}; check "
                    "the path and its read permissions"
                ) from error
        if needs_heads and not metadata.has_trained_heads:
            raise UserError(
                f"checkpoint {uri}: holds a backbone whose heads are untrained; train a network that starts from it "
                f"(jobs/train.py --weights {uri}), and use its best checkpoint"
            )
        if long_side is not None:
            # Different preprocessing produces different masks, so it counts as a different model.
            metadata.preprocessing = {**metadata.preprocessing, "long_side": long_side}
        metadata.preprocessing = {**metadata.preprocessing, **rendering.options}
        if protocol is not None and not protocol.is_plain:
            metadata.preprocessing = {**metadata.preprocessing, "protocol": protocol.model_dump(mode="json")}
        return cls(network, metadata, metadata.preprocessing.get("long_side"), models.model_id(network, metadata))

    @property
    def rendering(self) -> Rendering:
        """Bands and value range of TIFFs. Raises UserError if the checkpoint's options are not valid."""
        try:
            return Rendering.of(*(self.metadata.preprocessing.get(name) for name in ("bands", "value_range")))
        except (ValueError, AttributeError) as error:
            raise UserError(f"checkpoint: preprocessing in {CONFIG} is damaged: {error}") from None

    @property
    def class_names(self) -> list[str]:
        return list(self.metadata.classes)

    @property
    def palette(self) -> NDArray[np.uint8]:
        return np.array(self.metadata.colors, np.uint8)

    def data_config(self, uri: str, asked: EvalDataConfig) -> DataConfig:
        """Return the dataset with the checkpoint's classes and, unless the user overrides it, its preprocessing.

        `uri` is that of the checkpoint.

        Raises: UserError if the dataset does not fit the checkpoint.
        """
        of_model = {"ignore_index": self.metadata.ignore_index, "long_side": self.long_side, **self.rendering.options}
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
        """Raise UserError if the checkpoint at `uri` is not calibrated for the precision."""
        if precision == "int8" and not self.metadata.int8:
            raise UserError(
                f"checkpoint {uri}: is not calibrated, but precision int8 requires it; run python jobs/calibrate.py "
                f"--checkpoint {uri} --data.root URI --output URI, or remove --precision"
            )

    def predictor(self, device: str, precision: Any) -> Any:
        """Return a `models.Predictor`; int8 requires a calibrated checkpoint.

        Raises: UserError if this machine's processor does not support the precision.
        """
        from models import Predictor

        try:
            return Predictor(
                self.network,
                self.metadata.mean,
                self.metadata.std,
                device=device,
                precision=precision,
                calibration=self.metadata.calibration,
            )
        except ValueError as error:
            raise UserError(f"precision {precision} on {platform.node()}: {error}") from error


def write_checkpoint(uri: str, network: Any, metadata: Any) -> None:
    """Write a checkpoint folder, local or remote; if it holds this model already, write only the metadata."""
    import models
    from models.weights.checkpoint import CONFIG, WEIGHTS

    present = holds_checkpoint(uri, models.model_id(network, metadata), metadata)
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        models.save(folder, network, metadata)
        # CONFIG is last, so a folder with CONFIG is a complete checkpoint.
        storage.copy_files(folder, uri, (CONFIG,) if present else (WEIGHTS, CONFIG))


def holds_checkpoint(uri: str, model_id: str, metadata: Any) -> bool:
    """Return True if the folder already holds this model with these classes.

    Raises: UserError if it holds a different or an incomplete checkpoint.
    """
    import models
    from models.weights.checkpoint import CONFIG, WEIGHTS

    found = [name for name in (WEIGHTS, CONFIG) if storage.exists(storage.join(uri, name))]
    if not found:
        return False
    way_out = "nothing was written; choose another folder, or delete this one first"
    if len(found) == 1:
        raise UserError(f"output {uri}: holds {found[0]} but no complete checkpoint; {way_out}")
    with storage.local_copy(uri) as folder:
        try:
            model, before = models.load(folder)
        except (ValueError, OSError) as error:
            raise UserError(f"output {uri}: holds a checkpoint that cannot be read ({error}); {way_out}") from error
    other_id = models.model_id(model, before)
    if other_id != model_id:
        raise UserError(f"output {uri}: holds a different checkpoint, model id {other_id} not {model_id}; {way_out}")
    if (before.classes, before.colors) != (metadata.classes, metadata.colors):
        raise UserError(f"output {uri}: holds these weights with different class names or colors; {way_out}")
    return True


def code_version() -> str:
    """Return the code version to record in a checkpoint; empty if the package is not installed."""
    try:
        return version("sceneparse")
    except PackageNotFoundError:
        return ""
