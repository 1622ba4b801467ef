"""Small pictures of images with their truth and prediction, for TensorBoard and for reports."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.html.page import data_uri
from pipeline.images.codec import shrink

LONG_SIDE = 512  # pixels
GAP = 4  # pixels between the pictures of a strip
# Pixels without a class are striped in two grays, which cannot be confused with the flat color of a class.
STRIPE = 4  # pixels
GRAYS = np.array([[96, 96, 96], [144, 144, 144]], np.uint8)

Picture = NDArray[np.uint8]
VIEWS = ("image", "truth", "predicted")


def views(entry: dict[str, Any], palette: NDArray[np.uint8], long_side: int = LONG_SIDE) -> dict[str, Picture]:
    """Return pictures of a validation entry, all of one size, H x W x 3: 'image', 'truth' and 'predicted'."""
    image_HW3 = shrink(np.asarray(entry["image"], np.uint8), long_side)
    height, width = image_HW3.shape[:2]
    masks = {view: colored(resized(np.asarray(entry[view]), height, width), palette) for view in VIEWS[1:]}
    return {"image": image_HW3, **masks}


def strip(pictures: dict[str, Picture]) -> Picture:
    """Return image, truth and prediction side by side."""
    height = pictures["image"].shape[0]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    return np.concatenate([pictures["image"], gap, pictures["truth"], gap, pictures["predicted"]], axis=1)


def kept(entry: dict[str, Any], pictures: dict[str, Picture]) -> dict[str, Any]:
    """Return an entry for a JSON file, with its pictures as data URIs."""
    miou = entry.get("miou")
    return {
        "image_uri": entry["image_uri"],
        "miou": None if miou is None or miou != miou else float(miou),
        **{view: data_uri(pictures[view], quality=90) for view in VIEWS},
    }


def colored(class_ids_HW: NDArray[np.integer], palette: NDArray[np.uint8]) -> Picture:
    """Return a mask in its class colors, H x W x 3; ids beyond the palette are striped.

    Args:
        class_ids_HW: H x W class ids.
        palette: K x 3, the color of each class.
    """
    rows_H, columns_W = (np.arange(side) for side in class_ids_HW.shape)
    stripes_HW = (rows_H[:, None] + columns_W[None]) // STRIPE % 2
    is_class_HW = (class_ids_HW >= 0) & (class_ids_HW < len(palette))
    return np.where(is_class_HW[..., None], palette[np.where(is_class_HW, class_ids_HW, 0)], GRAYS[stripes_HW])


def resized(class_ids_HW: NDArray[np.integer], height: int, width: int) -> NDArray[np.integer]:
    """Resize a mask by taking the id nearest to the center of each new pixel."""
    old_height, old_width = class_ids_HW.shape
    rows_H = ((np.arange(height) + 0.5) * old_height / height).astype(int)
    columns_W = ((np.arange(width) + 0.5) * old_width / width).astype(int)
    return class_ids_HW[rows_H[:, None], columns_W[None]]
