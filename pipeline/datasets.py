"""A training set: which image belongs to which annotation, and one pair as arrays."""

import posixpath
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.data_config import DataConfig
from pipeline.errors import UserError
from pipeline.images import ImageError, decode_image, decode_label

SHOWN = 5  # names in an error message


@dataclass(frozen=True)
class Pair:
    """An image and its annotation."""

    image_uri: str
    label_uri: str


def list_pairs(data: DataConfig, split: str) -> list[Pair]:
    """Pairs of ROOT/images/SPLIT and ROOT/annotations/SPLIT, matched by path without extension, in name order.

    Raises: UserError if there is no image, or an image has no annotation or two.
    """
    images = _by_stem(storage.join(data.root, "images", split))
    labels = _by_stem(storage.join(data.root, "annotations", split))
    if not images:
        raise UserError(f"data.root {data.root}: no images in images/{split}; check the folder and the split's name")
    lonely = [uri for stem, uri in images.items() if stem not in labels]
    if lonely:
        raise UserError(
            f"data.root {data.root}: {len(lonely)} of {len(images)} images in images/{split} have no annotation of the "
            f"same name in annotations/{split}: {_some(lonely)}; add the annotations or remove the images"
        )
    return [Pair(uri, labels[stem]) for stem, uri in images.items()]


def load_image(pair: Pair) -> NDArray[np.uint8]:
    """Download and decode a pair's image, H x W x 3 uint8 RGB. Raises UserError naming the file."""
    try:
        return decode_image(storage.read_bytes(pair.image_uri))
    except ImageError as error:
        raise UserError(f"image {pair.image_uri}: {error}; repair or remove it and its annotation") from None


def load_pair(pair: Pair, data: DataConfig) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Download and decode one pair, with `label_map` applied.

    Returns: image H x W x 3 uint8 RGB and label H x W int32 of class ids and ignore_index.
    Raises: UserError naming the file: unreadable, of another size than its image, or with an id outside the classes.
    """
    image_HW3 = load_image(pair)
    try:
        label_HW = decode_label(storage.read_bytes(pair.label_uri))
    except ImageError as error:
        raise UserError(f"annotation {pair.label_uri}: {error}") from None
    if label_HW.shape != image_HW3.shape[:2]:
        raise UserError(
            f"annotation {pair.label_uri} is {_size(label_HW)} pixels but its image {pair.image_uri} is "
            f"{_size(image_HW3)}; they must be of one size"
        )
    return image_HW3, _class_ids(label_HW, pair, data)


def _class_ids(label_HW: NDArray[np.int32], pair: Pair, data: DataConfig) -> NDArray[np.int32]:
    num_classes = len(data.classes)
    # A table for every id would take gigabytes for a 32-bit file that is no label map.
    small = label_HW.min() >= 0 and label_HW.max() < 2**16
    raw_ids = np.flatnonzero(np.bincount(label_HW.ravel())) if small else np.unique(label_HW)
    mapped = [data.label_map.get(int(raw), int(raw)) for raw in raw_ids]
    wrong = [
        int(raw)
        for raw, target in zip(raw_ids, mapped, strict=True)
        if not (0 <= target < num_classes or target == data.ignore_index)
    ]
    if wrong:
        raise UserError(
            f"annotation {pair.label_uri}: label id(s) {', '.join(map(str, wrong[:SHOWN]))} are outside the "
            f"{num_classes} classes (0 to {num_classes - 1}) and not the ignore_index {data.ignore_index}; add the "
            f"classes to data.classes, or map the ids with data.label_map (such as {wrong[0]}: {data.ignore_index})"
        )
    if not small:
        return np.array(mapped, np.int32)[np.searchsorted(raw_ids, label_HW)]
    lookup = np.zeros(raw_ids[-1] + 1, np.int32)
    lookup[raw_ids] = mapped
    return lookup[label_HW]


def _by_stem(folder: str) -> dict[str, str]:
    base = storage.absolute(folder).rstrip("/") + "/"
    found: dict[str, str] = {}
    for uri in storage.find(folder):
        name = uri.removeprefix(base)
        if posixpath.basename(name).startswith(".") or name.endswith("/"):
            continue
        stem = posixpath.splitext(name)[0]
        if stem in found:
            raise UserError(f"{uri} and {found[stem]} differ in extension alone; keep one of them")
        found[stem] = uri
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def _size(array: NDArray[np.generic]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
