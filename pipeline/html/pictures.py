"""Pictures of predictions beside the truth, small enough to keep: for TensorBoard and for the report."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.html.page import data_uri
from pipeline.images.codec import shrink

LONG_SIDE = 512  # pixels
GAP = 4  # pixels between the pictures of a strip
# What has no class is striped in two grays, which no class's flat colour looks like.
STRIPE = 4  # pixels
GRAYS = np.array([[96, 96, 96], [144, 144, 144]], np.uint8)

Picture = NDArray[np.uint8]
VIEWS = ("image", "truth", "predicted")


def views(entry: dict[str, Any], palette: NDArray[np.uint8], long_side: int = LONG_SIDE) -> dict[str, Picture]:
    """A validation record's entry as pictures of one size, H x W x 3: 'image', 'truth' and 'predicted'."""
    image_HW3 = shrink(np.asarray(entry["image"], np.uint8), long_side)
    height, width = image_HW3.shape[:2]
    masks = {view: colored(resized(np.asarray(entry[view]), height, width), palette) for view in VIEWS[1:]}
    return {"image": image_HW3, **masks}


def strip(pictures: dict[str, Picture]) -> Picture:
    """Image, truth and prediction side by side."""
    height = pictures["image"].shape[0]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    return np.concatenate([pictures["image"], gap, pictures["truth"], gap, pictures["predicted"]], axis=1)


def kept(entry: dict[str, Any], pictures: dict[str, Picture]) -> dict[str, Any]:
    """An entry with its pictures as data URIs, as it stands in a JSON file."""
    miou = entry.get("miou")
    return {
        "image_uri": entry["image_uri"],
        "miou": None if miou is None or miou != miou else float(miou),
        **{view: data_uri(pictures[view], quality=90) for view in VIEWS},
    }


def colored(class_ids_HW: NDArray[np.integer], palette: NDArray[np.uint8]) -> Picture:
    """A mask in its classes' colours, H x W x 3; ids beyond the palette are striped.

    Args:
        class_ids_HW: H x W class ids.
        palette: K x 3, the colour of each class.
    """
    rows_H, columns_W = (np.arange(side) for side in class_ids_HW.shape)
    stripes_HW = (rows_H[:, None] + columns_W[None]) // STRIPE % 2
    is_class_HW = (class_ids_HW >= 0) & (class_ids_HW < len(palette))
    return np.where(is_class_HW[..., None], palette[np.where(is_class_HW, class_ids_HW, 0)], GRAYS[stripes_HW])


def resized(class_ids_HW: NDArray[np.integer], height: int, width: int) -> NDArray[np.integer]:
    """A mask of another size: the id nearest to each new pixel's centre."""
    old_height, old_width = class_ids_HW.shape
    rows_H = ((np.arange(height) + 0.5) * old_height / height).astype(int)
    columns_W = ((np.arange(width) + 0.5) * old_width / width).astype(int)
    return class_ids_HW[rows_H[:, None], columns_W[None]]
