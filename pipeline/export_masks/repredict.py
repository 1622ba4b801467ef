"""Repeated prediction of images, for the confidence of each pixel, which an output does not contain."""

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.predictor import use_threads, with_protocol
from pipeline.config.bands import Rendering
from pipeline.config.training import ProtocolConfig
from pipeline.errors import UserError
from pipeline.images.codec import Raster, shrink
from pipeline.query import engine


@dataclass(frozen=True)
class Relabel:
    """Callable that labels an image with the output's settings. Each process loads the model once."""

    checkpoint: str
    long_side: int | None
    protocol: ProtocolConfig
    precision: str
    rendering: Rendering

    def __call__(self, image: Raster) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        predictor, model = _predictor(self)
        small_1HW3 = shrink(image.filled(model.metadata.mean), model.long_side)[None]
        size = (image.pixels_HW3.shape[0], image.pixels_HW3.shape[1])
        found = predictor.predict(small_1HW3, size, with_confidence_map=True)
        return found.class_ids_NHW[0], found.confidence_NHW[0]


def relabel_as(output: str, model_id: str, checkpoint: str, precision: str | None) -> Relabel:
    """Return a Relabel with the settings of the output's last run. Raises UserError if the model is a different one."""
    latest = engine.last_configuration(output)
    try:
        protocol = ProtocolConfig.model_validate(latest.get("protocol") or {})
    except ValidationError as error:
        raise UserError(f"output {output}: the protocol of its last run is not supported: {error}") from None
    relabel = Relabel(
        checkpoint,
        latest.get("long_side"),
        protocol,
        precision or latest.get("precision") or "auto",
        engine.rendering_of(latest),
    )
    model = Checkpoint.load(checkpoint, relabel.long_side, protocol, relabel.rendering)
    if model.model_id != model_id:
        raise UserError(
            f"checkpoint {checkpoint}: model {model.model_id} differs from the output's model {model_id}, so its "
            "confidence does not apply; use the checkpoint that the images were labeled with"
        )
    model.require_precision(checkpoint, relabel.precision)
    return relabel


@functools.cache
def _predictor(relabel: Relabel) -> tuple[Any, Checkpoint]:
    """Return a predictor for whole images, and its checkpoint."""
    use_threads("cpu", os.cpu_count() or 1)
    model = Checkpoint.load(relabel.checkpoint, relabel.long_side, relabel.protocol, relabel.rendering)
    return with_protocol(model.predictor("cpu", relabel.precision), relabel.protocol), model
