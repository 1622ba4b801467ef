"""Format yolo-seg: a text file per image with a line per region: class id, and polygon in relative coordinates."""

import re

import numpy as np
import yaml

from pipeline.export_masks.labelled_image import Cannot, Classes, Labelled, Made
from pipeline.export_masks.polygons import Points, polygons
from pipeline.export_masks.target_names import split_ending
from pipeline.images.codec import encode_png
from pipeline.images.formats import ImageError, format_of

# Of the formats that are labeled, those that are copied, with the extensions that Ultralytics accepts for them
# (IMG_FORMATS of ultralytics/data/utils.py, version 8.4); a file with another extension gets the first one. The rest
# become PNG. It accepts AVIF and JPEG 2000 as well, but not each build of its decoder reads them.
EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}


def yolo(image: Labelled, split: str, min_area: int) -> Made:
    """Make the label file, and a copy of the image if it was fetched.

    Args:
        min_area: minimum size of a region, in pixels; smaller ones are skipped.

    Raises: Cannot.
    """
    ids_HW = image.class_ids_HW
    height, width = ids_HW.shape
    lines = [
        f"{k} {_shares(points, width, height)}\n"
        for k in image.class_ids
        for points in polygons((ids_HW == k).astype(np.uint8), min_area)
    ]
    name = _apart(f"{split}/{image.name}")
    files = {f"labels/{name}.txt": "".join(lines).encode()}
    if image.file is not None:
        ending, content = _readable(image, image.file)
        files[f"images/{name}{ending}"] = content
    return Made(files)


def data_yaml(classes: Classes, split: str) -> bytes:
    """Return the file that YOLO training starts from, which is next to images/."""
    # Both keys are required. Users with another split for validation edit the file.
    folder = f"images/{_apart(f'{split}/')}".rstrip("/")
    about = {"train": folder, "val": folder, "names": dict(enumerate(classes.names))}
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True).encode()


def _apart(name: str) -> str:
    """Append an underscore to each folder called `images`, or `images` with underscores: `a/images/b` -> `a/images_/b`.

    Ultralytics replaces the last folder called `images` of a path by `labels` to find an image's label file.
    """
    return re.sub(r"(^|/)(images_*)(?=/)", r"\1\2_", name)


def _readable(image: Labelled, file: bytes) -> tuple[str, bytes]:
    """Return extension and content for Ultralytics: of the same file, or of a PNG of its pixels. Raises Cannot."""
    try:
        format = format_of(file)
    except ImageError as error:
        raise Cannot(f"{error.kind}: {error.message}") from error
    if format not in EXTENSIONS:
        return ".png", encode_png(image.image_HW3)
    own, accepted = split_ending(image.uri)[1], EXTENSIONS[format]
    return (own if own.lower() in accepted else accepted[0]), file


def _shares(points: Points, width: int, height: int) -> str:
    """Format points as relative coordinates of pixel centers, which readers truncate to the same pixels again."""
    return " ".join(f"{(x + 0.5) / width:.7g} {(y + 0.5) / height:.7g}" for x, y in points.tolist())
