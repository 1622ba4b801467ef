"""Small things that several tests need: image files, and outputs made of real parts."""

import io
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import storage
from pipeline.images.codec import encode_mask
from pipeline.output import parts
from pipeline.output.parquet import write_table
from pipeline.output.schema import CLASSES, PREDICTED, image_id, masks_and_class_stats, table

CLASS_NAMES = ["sky", "road"]
CLASS_IDS_HW = np.array([[0, 0, 0, 0], [0, 0, 1, 1]], np.uint8)
HEIGHT, WIDTH = CLASS_IDS_HW.shape
MASK = encode_mask(CLASS_IDS_HW, np.array([[0, 0, 0], [255, 255, 255]], np.uint8))
MADE_AT = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)


def encoded(image: Image.Image | NDArray[Any], format: str, **options: Any) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def random_image(height: int = 12, width: int = 10, seed: int = 0) -> NDArray[np.uint8]:
    """H x W x 3 of noise, in which every wrong turn or swapped channel shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_file(path: Path, content: bytes) -> Path:
    """Write a file, and its folder before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def class_row(class_id: int) -> dict[str, Any]:
    """Statistics of one class in CLASS_IDS_HW."""
    y, x = np.nonzero(np.equal(CLASS_IDS_HW, class_id))
    return {
        "class_id": class_id,
        "pixel_count": len(x),
        "pixel_fraction": len(x) / (WIDTH * HEIGHT),
        "mean_confidence": 0.75,
        "x_min": int(x.min()),
        "y_min": int(y.min()),
        "x_max": int(x.max()) + 1,
        "y_max": int(y.max()) + 1,
        "centroid_x": float(x.mean()),
        "centroid_y": float(y.mean()),
    }


def segmented(uri: str) -> dict[str, Any]:
    """A tables.PREDICTED row of an image that went well."""
    return {
        "image_id": image_id(uri),
        "image_uri": uri,
        "etag": "0123abcd",
        "size_bytes": 1000,
        "width": WIDTH,
        "height": HEIGHT,
        "seconds": 0.25,
        "mask": {"bytes": MASK, "path": image_id(uri).hex() + ".png"},
        "mean_confidence": 0.75,
        "mean_entropy": 0.5,
        "low_confidence_fraction": 0.125,
        "low_confidence_boxes": [{"x_min": 2, "y_min": 0, "x_max": 3, "y_max": 1, "pixel_count": 1}],
        "classes": [class_row(class_id) for class_id in range(len(CLASS_NAMES))],
    }


def failed(uri: str) -> dict[str, Any]:
    """A tables.PREDICTED row of an image that could not be decoded."""
    return {
        "image_id": image_id(uri),
        "image_uri": uri,
        "size_bytes": 0,
        "error_stage": "decode",
        "error_type": "Empty",
        "error_message": "the file has no bytes",
        "seconds": 0.0,
    }


def write_part(
    output: str,
    uris: Iterable[str],
    run_id: str = "run1",
    failures: Iterable[str] = (),
    made_at: datetime = MADE_AT,
    kept: bool = False,
) -> str:
    """Write the part, or what was kept of it, in which `run_id` labelled `uris` and failed at `failures`.

    Returns its name.
    """
    predicted = table([*map(segmented, uris), *map(failed, failures)], PREDICTED)
    masks, class_stats = masks_and_class_stats(predicted, CLASS_NAMES, "model1", run_id, made_at)
    name = parts.part_name(run_id, masks, kept)
    parts.write_part(output, name, masks, class_stats)
    return name


def write_classes(output: str) -> None:
    """Write classes.parquet."""
    rows = [
        {"class_id": class_id, "class_name": name, "red": 10 * class_id, "green": 20, "blue": 30}
        for class_id, name in enumerate(CLASS_NAMES)
    ]
    schema = CLASSES.with_metadata({**CLASSES.metadata, "sceneparse.model_id": "model1"})
    write_table(storage.join(output, "classes.parquet"), table(rows, schema))
