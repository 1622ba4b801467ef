"""Writing of the built-in scenes as a dataset in the `folder` layout."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline import storage
from pipeline.datasets.scenes import CLASSES, scene
from pipeline.images.codec import encode_image, encode_mask

PALETTE = np.array([entry.color for entry in CLASSES], np.uint8)
FIRST_VAL = 100_000  # index of the first validation scene; training scenes have smaller indices
WRITES = 8  # concurrent writes


@dataclass(frozen=True)
class SceneSet:
    """Scenes of a dataset: how many, what they are generated from, and their size in pixels."""

    num_train: int
    num_val: int
    seed: int
    height: int
    width: int
    cues_right: float  # share of the cues that indicate the right class, 0 to 1


def write_scenes(root: str, scenes: SceneSet) -> None:
    """Write scenes to ROOT/images/SPLIT/NNNNNN.jpg, and their annotations. Raises UserError."""

    def write(split: str, index: int) -> None:
        image_HW3, label_HW = scene(scenes.seed, index, scenes.height, scenes.width, scenes.cues_right)
        storage.write_bytes(f"{root}/images/{split}/{index:06d}.jpg", encode_image(image_HW3))
        storage.write_bytes(f"{root}/annotations/{split}/{index:06d}.png", encode_mask(label_HW, PALETTE))

    splits = ["train"] * scenes.num_train + ["val"] * scenes.num_val
    indices = [*range(scenes.num_train), *range(FIRST_VAL, FIRST_VAL + scenes.num_val)]
    with ThreadPoolExecutor(WRITES) as pool:
        list(pool.map(write, splits, indices))
