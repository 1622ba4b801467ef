"""A trained model as the pipeline holds it.

Imports torch only when a checkpoint is loaded, so that processes which merely decode or write do not pay for it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint and how images are prepared for it."""

    network: Any
    metadata: Any
    long_side: int | None
    model_id: str

    @classmethod
    def load(cls, uri: str, long_side: int | None) -> "Checkpoint":
        """Load from a local or remote folder; `long_side` (pixels), if given, takes the place of the checkpoint's own.

        Raises: UserError for a folder that is missing, damaged or no checkpoint.
        """
        import models

        with storage.local_copy(uri) as folder:
            try:
                network, metadata = models.load(folder)
            except (ValueError, FileNotFoundError) as error:
                raise UserError(f"checkpoint {uri}: {error}") from error
        if long_side is not None:
            # Another preprocessing makes other masks, so it counts as another model.
            metadata.preprocessing = {**metadata.preprocessing, "long_side": long_side}
        return cls(network, metadata, metadata.preprocessing.get("long_side"), models.model_id(network, metadata))

    @property
    def class_names(self) -> list[str]:
        return list(self.metadata.classes)

    @property
    def palette(self) -> NDArray[np.uint8]:
        return np.array(self.metadata.colors, np.uint8)

    def predictor(self, device: str, precision: Any) -> Any:
        from models import Predictor

        return Predictor(self.network, self.metadata.mean, self.metadata.std, device=device, precision=precision)
