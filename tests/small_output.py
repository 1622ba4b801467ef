"""An output of three images, written as a run writes it."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.datasets.scenes import CLASSES as SCENE_CLASSES
from pipeline.images.codec import encode_mask
from pipeline.output import parts
from pipeline.output.parquet import write_table
from pipeline.output.schema import CLASSES, PREDICTED, image_id, masks_and_class_stats, table

NAMES = [entry.name for entry in SCENE_CLASSES]
PALETTE = np.array([entry.color for entry in SCENE_CLASSES], np.uint8)


def write_small_output(folder: Path) -> None:
    """Two images of sky, water and boat, and one that could not be decoded."""
    ids_HW = np.full((4, 6), NAMES.index("sky"), np.uint8)
    ids_HW[2:] = NAMES.index("water")
    ids_HW[2, 1:3] = NAMES.index("boat")
    rows = [labelled("s3://photos/a.jpg", ids_HW, 0.9), labelled("s3://photos/b.jpg", ids_HW, 0.4)]
    failure = {"error_stage": "decode", "error_type": "Empty", "error_message": "the file has no bytes"}
    rows.append(
        {"image_id": image_id("s3://photos/c.jpg"), "image_uri": "s3://photos/c.jpg", "seconds": 0.1, **failure}
    )
    masks, class_stats = masks_and_class_stats(table(rows, PREDICTED), NAMES, "model", "run", datetime.now(UTC))
    parts.write_part(str(folder), parts.part_name("run", masks), masks, class_stats)
    classes = [
        {"class_id": k, "class_name": name, "red": red, "green": green, "blue": blue}
        for k, (name, (red, green, blue)) in enumerate(SCENE_CLASSES)
    ]
    schema = CLASSES.with_metadata({**CLASSES.metadata, "sceneparse.model_id": "model"})
    write_table(str(folder / "classes.parquet"), table(classes, schema))


def labelled(uri: str, ids_HW: np.ndarray, confidence: float) -> dict:
    """A tables.PREDICTED row of an image with this mask."""
    height, width = ids_HW.shape
    classes = []
    for k in np.unique(ids_HW):
        y, x = np.nonzero(ids_HW == k)
        classes.append(
            {
                "class_id": int(k),
                "pixel_count": len(x),
                "pixel_fraction": len(x) / ids_HW.size,
                "mean_confidence": confidence,
                **{"x_min": x.min(), "y_min": y.min(), "x_max": x.max() + 1, "y_max": y.max() + 1},
                **{"centroid_x": x.mean(), "centroid_y": y.mean()},
            }
        )
    return {
        "image_id": image_id(uri),
        "image_uri": uri,
        "width": width,
        "height": height,
        "seconds": 0.1,
        "mask": {"bytes": encode_mask(ids_HW, PALETTE), "path": f"{image_id(uri).hex()}.png"},
        **{"mean_confidence": confidence, "mean_entropy": 0.2, "low_confidence_fraction": 0.0},
        "low_confidence_boxes": [],
        "classes": classes,
    }
