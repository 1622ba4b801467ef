"""Outputs with real images, written as a run writes them, and their reports."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.datasets.scenes import IGNORE_INDEX, scene
from pipeline.images.codec import encode_image
from pipeline.output import parts
from pipeline.output.parquet import write_table
from pipeline.output.schema import CLASSES, PREDICTED, image_id, masks_and_class_stats, table
from pipeline.report.run import Report, build_report
from tests.small_output import NAMES, PALETTE, labelled

RUN = "20260102T030405-abcdef"


def write_output(
    folder: Path, rows: list[dict[str, Any]], names: Sequence[str] = NAMES, palette_K3: np.ndarray = PALETTE
) -> None:
    """An output of PREDICTED rows in one part, with its classes and the record of its run."""
    add_part(folder, rows, names)
    classes = [
        {"class_id": k, "class_name": name, "red": red, "green": green, "blue": blue}
        for k, (name, (red, green, blue)) in enumerate(zip(names, palette_K3.tolist(), strict=True))
    ]
    schema = CLASSES.with_metadata({**CLASSES.metadata, "sceneparse.model_id": "model"})
    write_table(str(folder / "classes.parquet"), table(classes, schema))
    labelled_rows = [row for row in rows if "error_type" not in row]
    record = {
        "run_id": RUN,
        "finished_at": "2026-01-02T03:14:05+00:00",
        "model_id": "model",
        "configuration": {"checkpoint": "s3://models/scenes/best"},
        "images": len(rows),
        "done_before": 0,
        "outcomes": {"ok": len(labelled_rows), "Empty": len(rows) - len(labelled_rows)},
        "seconds": 20.0,
        "seconds_to_first": 8.5,
        "stage_seconds": {
            stage: {"seconds": seconds, "cpu_seconds": seconds, "images": len(rows), "bytes": 0}
            for stage, seconds in {"download": 2.0, "decode": 1.0, "predict": 9.0, "encode": 0.5, "write": 0.2}.items()
        },
    }
    storage.write_bytes(f"{folder}/runs/{RUN}.json", json.dumps(record).encode())


def add_part(folder: Path, rows: list[dict[str, Any]], names: Sequence[str] = NAMES) -> str:
    """One part more; returns its name."""
    masks, class_stats = masks_and_class_stats(table(rows, PREDICTED), list(names), "model", RUN, datetime.now(UTC))
    name = parts.part_name(RUN, masks)
    parts.write_part(str(folder), name, masks, class_stats)
    return name


def failed(uri: str) -> dict[str, Any]:
    """A PREDICTED row of an empty file."""
    return {
        "image_id": image_id(uri),
        "image_uri": uri,
        "seconds": 0.1,
        **{"error_stage": "decode", "error_type": "Empty", "error_message": "the file has no bytes"},
    }


def scene_photo(folder: Path, name: str, index: int, confidence: float, size: tuple[int, int] = (129, 193)) -> dict:
    """A scene as a file FOLDER/NAME, and its PREDICTED row with the truth for a mask."""
    image_HW3, ids_HW = scene(0, index, *size)
    content = encode_image(image_HW3)
    storage.write_bytes(str(folder / name), content)
    row = labelled((folder / name).as_uri(), np.where(ids_HW == IGNORE_INDEX, 0, ids_HW).astype(np.uint8), confidence)
    return row | {"size_bytes": len(content)}


def build(output: Path | str, pictures: int = 60, max_bytes: int = 20_000_000, max_parts: int = 500) -> Report:
    """The report of an output, in it."""
    return build_report(str(output), None, pictures, max_bytes, max_parts)
