"""Stages that return constants, to measure the cost of a run without its images and its model."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.images.codec import encode_mask
from pipeline.output.schema import DECODED, PREDICTED

HEIGHT, WIDTH, CLASSES = 360, 480, 8


def decode(listed: pa.Table, progress_actor: Any = None, **_: Any) -> Iterator[pa.Table]:
    """Replace pipeline.segment.decode_stage.decode: read no file, and return no pixels."""
    yield with_constants(listed, {"width": WIDTH, "height": HEIGHT, "seconds": 0.0}, DECODED)


class NoModel:
    """Replacement of pipeline.segment.predict_stage.PredictStage that gives every image the same mask."""

    def __init__(self, progress_actor: Any, **_: Any) -> None:
        import numpy as np

        self._progress_actor = progress_actor
        mask_HW = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * CLASSES // (HEIGHT * WIDTH)
        colors = np.arange(3 * CLASSES, dtype=np.uint8).reshape(CLASSES, 3)
        entry = {"pixel_count": HEIGHT * WIDTH // CLASSES, "pixel_fraction": 1 / CLASSES, "mean_confidence": 0.5}
        self._same = {
            "mask": {"bytes": encode_mask(mask_HW.astype(np.uint8), colors), "path": "same.png"},
            "mean_confidence": 0.5,
            "mean_entropy": 1.0,
            "low_confidence_fraction": 0.5,
            "classes": [{"class_id": k, **entry} for k in range(CLASSES)],
        }

    def __call__(self, decoded: pa.Table) -> pa.Table:
        self._progress_actor.add.remote(ok=len(decoded))
        return with_constants(decoded, self._same, PREDICTED)


def with_constants(rows: pa.Table, same: dict[str, Any], schema: pa.Schema) -> pa.Table:
    columns = [
        rows[field.name] if field.name in rows.column_names and field.name not in same
        else pa.repeat(pa.scalar(same.get(field.name), field.type), len(rows))
        for field in schema
    ]  # fmt: skip
    return pa.table(columns, schema=schema)
