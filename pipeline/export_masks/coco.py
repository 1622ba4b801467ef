"""Formats coco-panoptic and coco-rle (cocodataset.org). Category ids are class ids + 1."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.export_masks.labelled_image import Cannot, Classes, Labelled, Made
from pipeline.images.codec import encode_png

PANOPTIC = "panoptic"  # folder of the PNG files
MAX_SEGMENTS = 2**24 - 1
# Characters of a run-length string hold five bits each, starting at "0". The sixth bit means that more follow.
BITS, MORE, FIRST = 5, 32, 48


def panoptic(image: Labelled, things: frozenset[int]) -> Made:
    """Make a PNG of segment ids (red + 256 green + 65536 blue).

    Args:
        things: ids of classes with one segment per connected region; other classes have one segment per image.

    Raises: Cannot.
    """
    ids_HW = image.class_ids_HW
    segment_ids_HW = np.zeros(ids_HW.shape, np.int32)
    segments: list[dict[str, Any]] = []
    for k in image.class_ids:
        of_class_HW = (ids_HW == k).astype(np.uint8)
        if k in things:
            _, regions_HW, statistics, _ = cv2.connectedComponentsWithStats(of_class_HW, connectivity=8)
            found = [tuple(row) for row in statistics[1:].tolist()]
        else:
            regions_HW = of_class_HW
            found = [(*cv2.boundingRect(of_class_HW), int(np.count_nonzero(of_class_HW)))]
        inside_HW = of_class_HW.astype(bool)
        segment_ids_HW[inside_HW] = regions_HW[inside_HW].astype(np.int32) + len(segments)
        for x, y, width, height, area in found:
            box = [x, y, width, height]
            segments.append({"id": len(segments) + 1, "category_id": k + 1, "area": area, "bbox": box, "iscrowd": 0})
    if len(segments) > MAX_SEGMENTS:
        raise Cannot(f"it has {len(segments):,} segments, more than the {MAX_SEGMENTS:,} of a panoptic PNG")
    channels = [segment_ids_HW >> shift & 255 for shift in (0, 8, 16)]
    content = encode_png(np.stack(channels, axis=-1).astype(np.uint8))
    # Names in panoptic.json are relative to the folder panoptic/.
    record = {"image": _entry(image), "file_name": f"{image.name}.png", "segments_info": segments}
    return Made({f"{PANOPTIC}/{image.name}.png": content}, record)


def rle(image: Labelled) -> Made:
    """Make one annotation per class in the image, with its pixels as compressed run lengths."""
    height, width = image.class_ids_HW.shape
    annotations = []
    found = run_lengths(image.class_ids_HW)
    for k in image.class_ids:
        counts, area, box = found[k]
        mask = {"size": [height, width], "counts": compressed(counts)}
        annotations.append({"category_id": k + 1, "segmentation": mask, "area": area, "bbox": box, "iscrowd": 0})
    return Made({}, {"image": _entry(image), "annotations": annotations})


def run_lengths(ids_HW: NDArray[Any]) -> dict[int, tuple[NDArray[np.int64], int, list[int]]]:
    """Return class id -> (run lengths, area in pixels, box as [x, y, width, height]).

    Run lengths alternate between pixels without and with the class, in column-major order.
    """
    height = ids_HW.shape[0]
    ids_P = ids_HW.ravel(order="F")
    starts_R = np.concatenate([[0], np.flatnonzero(np.diff(ids_P)) + 1])
    ends_R = np.append(starts_R[1:], len(ids_P))
    ids_R = ids_P[starts_R]
    found = {}
    for k in np.unique(ids_R).tolist():
        starts, ends = starts_R[ids_R == k], ends_R[ids_R == k]
        edges = np.stack([starts, ends], axis=1).ravel()
        counts = np.diff(edges, prepend=0)
        if edges[-1] < len(ids_P):
            counts = np.append(counts, len(ids_P) - edges[-1])
        first, last = int(starts[0] // height), int((ends[-1] - 1) // height)
        # A run that crosses into the next column touches both the bottom and the top edge of the image.
        crosses = starts // height != (ends - 1) // height
        top = 0 if crosses.any() else int((starts % height).min())
        bottom = height - 1 if crosses.any() else int(((ends - 1) % height).max())
        found[k] = counts, int((ends - starts).sum()), [first, top, last - first + 1, bottom - top + 1]
    return found


def compressed(counts: NDArray[np.int64]) -> str:
    """Encode run lengths as COCO's string. From the fourth on, each is stored relative to the one two before it."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters = bytearray()
    for value in values.tolist():
        while True:
            digit, value = value & (MORE - 1), value >> BITS
            # The highest bit of the last digit is the sign.
            is_last = value == (-1 if digit & (MORE >> 1) else 0)
            characters.append(FIRST + (digit if is_last else digit | MORE))
            if is_last:
                break
    return characters.decode("ascii")


def categories(classes: Classes, things: frozenset[int] | None = None) -> list[dict[str, Any]]:
    """Return COCO's list of categories, with `isthing` and colors if `things` is given."""
    rows = []
    for k, name in enumerate(classes.names):
        row: dict[str, Any] = {"id": k + 1, "name": name, "supercategory": name}
        if things is not None:
            row |= {"isthing": int(k in things), "color": classes.palette[k].tolist()}
        rows.append(row)
    return rows


def _entry(image: Labelled) -> dict[str, Any]:
    """Return COCO's entry of an image, without its id."""
    height, width = image.class_ids_HW.shape
    return {"file_name": image.file_name, "coco_url": image.uri, "width": width, "height": height}
