"""Format yolo-seg: a text file per image with a line per region: class id, and polygon in relative coordinates."""

import numpy as np
import yaml

from pipeline.export_masks.labelled_image import Classes, Labelled, Made
from pipeline.export_masks.polygons import Points, polygons


def yolo(image: Labelled, split: str, min_area: int) -> Made:
    """Make the label file, and a copy of the image if it was fetched.

    Args:
        min_area: minimum size of a region, in pixels; smaller ones are skipped.
    """
    ids_HW = image.class_ids_HW
    height, width = ids_HW.shape
    lines = [
        f"{k} {_shares(points, width, height)}\n"
        for k in np.unique(ids_HW).tolist()
        for points in polygons((ids_HW == k).astype(np.uint8), min_area)
    ]
    files = {f"labels/{split}/{image.name}.txt": "".join(lines).encode()}
    if image.file is not None:
        files[f"images/{split}/{image.file_name}"] = image.file
    return Made(files)


def data_yaml(classes: Classes, split: str) -> bytes:
    """Return the file that YOLO training starts from, which is next to images/."""
    # Both keys are required. Users with another split for validation edit the file.
    about = {"train": f"images/{split}", "val": f"images/{split}", "names": dict(enumerate(classes.names))}
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True).encode()


def _shares(points: Points, width: int, height: int) -> str:
    """Format points as relative coordinates of pixel centers, which readers truncate to the same pixels again."""
    return " ".join(f"{(x + 0.5) / width:.7g} {(y + 0.5) / height:.7g}" for x, y in points.tolist())
