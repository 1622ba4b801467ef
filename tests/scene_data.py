"""Small training sets and photo buckets of built-in scenes, for tests of the jobs."""

import json

import numpy as np

from pipeline import storage
from pipeline.datasets.scenes import CLASSES, scene
from pipeline.images.codec import encode_image, encode_mask

SIZE = 65  # the smallest crop that the network takes with aligned corners
PALETTE = np.array([entry.color for entry in CLASSES], np.uint8)

# A run of the smallest network that is still a PSPNet, on two workers.
TRAIN_OPTIONS = [
    *("--data.classes", json.dumps([{"name": entry.name, "color": entry.color} for entry in CLASSES])),
    *("--model.backbone", "resnet18", "--model.width", "16"),
    *("--augment.crop", f"{SIZE},{SIZE}", "--augment.scale", "0.9,1.1"),
    *("--optimization.batch-size", "4", "--optimization.epochs", "2", "--optimization.log-every", "2"),
    *("--workers.count", "2"),
]


def write_training_set(root: str, num_train: int = 12, num_val: int = 4) -> None:
    """Scenes in the layout that jobs/train.py reads."""
    for split, first, count in (("train", 0, num_train), ("val", 1000, num_val)):
        for index in range(first, first + count):
            image_HW3, label_HW = scene(0, index, SIZE, SIZE)
            storage.write_bytes(f"{root}/images/{split}/{index:04d}.jpg", encode_image(image_HW3))
            storage.write_bytes(f"{root}/annotations/{split}/{index:04d}.png", encode_mask(label_HW, PALETTE))


def write_photos(prefix: str, count: int, first: int = 0) -> list[str]:
    """Portrait, landscape and square scenes; returns their URIs."""
    sizes = [(65, 97), (97, 65), (65, 65), (80, 64)]
    uris = []
    for index in range(first, first + count):
        image_HW3, _ = scene(1, index, *sizes[index % len(sizes)])
        uris.append(f"{prefix}/photo {index:04d}.jpg")
        storage.write_bytes(uris[-1], encode_image(image_HW3))
    return uris
