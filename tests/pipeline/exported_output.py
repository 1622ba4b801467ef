"""Outputs with masks of a test's own, and their export."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.export_masks import main
from pipeline import storage
from pipeline.export_masks.labelled_image import Classes, Labelled
from pipeline.images.codec import encode_image, encode_mask
from pipeline.output import parts
from pipeline.output.parquet import write_table
from pipeline.output.schema import CLASSES, PREDICTED, masks_and_class_stats, table
from tests.small_output import labelled

SIZE = (24, 32)
KEYS = ["2023/a.jpg", "2023/b.png", "2024/c 1.jpg"]
NAMES = ["sky", "grass", "tree", "person", "house", "road"]


def classes_of(names: list[str]) -> Classes:
    """Each class with a colour of its own."""
    ids_K = np.arange(len(names))
    return Classes(names, np.stack([ids_K * 7 % 256, ids_K // 256, 255 - ids_K % 256], axis=1).astype(np.uint8))


def write_output(
    folder: Path | str,
    masks: Mapping[str, NDArray[Any]],
    names: list[str] = NAMES,
    run_id: str = "run",
    model_id: str = "model",
) -> str:
    """Write (or add to) an output a part of images with these masks, and classes.parquet; returns the part's name."""
    classes = classes_of(names)
    rows = []
    for uri, ids_HW in masks.items():
        row = labelled(uri, ids_HW, 0.9)
        row["mask"]["bytes"] = encode_mask(ids_HW, classes.palette)
        rows.append(row)
    made = masks_and_class_stats(table(rows, PREDICTED), names, model_id, run_id, datetime.now(UTC))
    name = parts.part_name(run_id, made[0])
    parts.write_part(str(folder), name, *made)
    schema = CLASSES.with_metadata({**CLASSES.metadata, "sceneparse.model_id": model_id})
    entries = [
        {"class_id": k, "class_name": name, "red": red, "green": green, "blue": blue}
        for k, (name, (red, green, blue)) in enumerate(zip(names, classes.palette.tolist(), strict=True))
    ]
    write_table(f"{folder}/classes.parquet", table(entries, schema))
    return name


def image_of(
    ids_HW: NDArray[Any], name: str = "a", num_classes: int = len(NAMES), file: bytes | None = None
) -> Labelled:
    """Return an image with this mask in the form that a format takes."""
    palette = classes_of([str(k) for k in range(num_classes)]).palette
    return Labelled(f"s3://photos/{name}.jpg", name, encode_mask(ids_HW, palette), ids_HW.size, num_classes, file)


def blobs(height: int, width: int, num_classes: int, seed: int, grain: float = 1.0) -> NDArray[np.uint8]:
    """A mask of regions with holes, islands and lines; the finer the grain, the more of them."""
    import cv2

    noise_KHW = np.random.default_rng(seed).normal(size=(num_classes, height, width)).astype(np.float32)
    smooth = [cv2.GaussianBlur(noise_HW, (0, 0), grain) for noise_HW in noise_KHW] if grain else list(noise_KHW)
    return np.argmax(smooth, axis=0).astype(np.uint8)


class ThreeImages:
    """A folder (or bucket) of images, and an output of two parts with their masks."""

    def __init__(self, root: str) -> None:
        self.root, self.photos, self.labels = root, f"{root}/photos", f"{root}/labels"
        self.masks = {f"{self.photos}/{key}": blobs(*SIZE, len(NAMES), seed, 3) for seed, key in enumerate(KEYS)}
        for uri, ids_HW in self.masks.items():
            storage.write_bytes(uri, encode_image((ids_HW[..., None] * [40, 20, 10]).astype(np.uint8)))
        first, second, third = self.masks
        self.parts = [
            write_output(self.labels, {first: self.masks[first], second: self.masks[second]}),
            write_output(self.labels, {third: self.masks[third]}, run_id="run2"),
        ]

    def export(self, kind: str, *options: str, target: str = "", code: int = 0) -> str:
        target = target or f"{self.root}/{kind}"
        assert main([self.labels, "--to", target, "--format", kind, *options]) == code
        return target

    def mask(self, key: str) -> NDArray[Any]:
        return self.masks[f"{self.photos}/{key}"]


def tree(target: str) -> list[str]:
    """Files below the target but for its own notes."""
    base = storage.absolute(target) + "/"
    names = [uri.removeprefix(base) for uri in storage.find(target)]
    return [name for name in names if not name.startswith(".export/")]
