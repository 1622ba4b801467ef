"""Format yolo-seg: a text file for each image, a line for each region: class id and polygon, in shares of the sides."""

import numpy as np
import yaml

from pipeline.export_masks.labelled_image import Classes, Labelled, Made
from pipeline.export_masks.polygons import Points, polygons


def yolo(image: Labelled, split: str, min_area: int) -> Made:
    """The polygons and, if it is there, the image.

    Args:
        min_area: smaller regions are left out, pixels.
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
    """The file that a training is started with; it lies beside images/."""
    # Both must be there; whoever has another split to validate on writes it in.
    about = {"train": f"images/{split}", "val": f"images/{split}", "names": dict(enumerate(classes.names))}
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True).encode()


def _shares(points: Points, width: int, height: int) -> str:
    """Centres of pixels: cut down to whole pixels again, as readers do, they are the same pixels."""
    return " ".join(f"{(x + 0.5) / width:.7g} {(y + 0.5) / height:.7g}" for x, y in points.tolist())
