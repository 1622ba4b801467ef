"""Effect on labels of the ways to shrink images: the size they are shrunk to, and how JPEGs are decoded before.

    python benchmarks/shrinking.py --long-side 193 \\
        --checkpoint build/ablation/runs/resnet18-b1236-average-dr-aux0.4-seed0/last

Sizes: built-in scenes of many shapes, shrunk to the exact shape, to that of `pipeline.images.codec.shrink`, or to the
exact shape padded with the mean color to a multiple of 32 or 64 pixels. Decoding: JPEGs of 6 to 12 times the size,
scaled by libjpeg to at least 2, 3 or 4 times the wanted size, versus averaging all pixels.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.decode import scaled
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.datasets.scenes import IGNORE_INDEX, scene
from pipeline.images.codec import decode_image, encode_image, shrink

Image = NDArray[np.uint8]


class Tally:
    """mIoU of each way, and the fraction of its labels that equal those of the first way."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._confusion: dict[str, NDArray[np.int64]] = {}
        self._equal: dict[str, list[float]] = {}

    def add(self, labels: dict[str, Image], truth_HW: Image) -> None:
        counted_HW, size = truth_HW != IGNORE_INDEX, self._num_classes
        first_HW = next(iter(labels.values()))
        for way, ids_HW in labels.items():
            pairs = truth_HW[counted_HW].astype(np.int64) * size + ids_HW[counted_HW]
            self._confusion.setdefault(way, np.zeros((size, size), np.int64))
            self._confusion[way] += np.bincount(pairs, minlength=size**2).reshape(size, size)
            self._equal.setdefault(way, []).append(float((ids_HW == first_HW).mean()))

    def show(self, title: str) -> None:
        print(f"\n{title}")
        for way, confusion_KK in self._confusion.items():
            hits = np.diag(confusion_KK)
            iou_K = hits / np.maximum(confusion_KK.sum(0) + confusion_KK.sum(1) - hits, 1)
            print(f"  {way:34} mIoU {iou_K.mean():.4f}   labels alike {np.mean(self._equal[way]):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--long-side", type=int, required=True, help="long side that the network sees, pixels")
    parser.add_argument("--scenes", type=int, default=150)
    options = parser.parse_args()
    checkpoint = Checkpoint.load(options.checkpoint, None)
    predictor = checkpoint.predictor("cpu", "float32")
    sizes(checkpoint, predictor, options.long_side, options.scenes)
    decoding(checkpoint, predictor, options.long_side, options.scenes // 2)


def sizes(checkpoint: Checkpoint, predictor: Any, long_side: int, num_scenes: int) -> None:
    rng, tally = np.random.default_rng(0), Tally(len(checkpoint.class_names))
    for index in range(num_scenes):
        height, width = (int(side) for side in rng.integers((100, 200), (300, 400)))
        image_HW3, truth_HW = scene(12345, index, height, width)
        scale = long_side / max(height, width)
        exact = round(height * scale), round(width * scale)

        def labels(small_HW3: Image, size: tuple[int, int] = (height, width)) -> Image:
            return predictor.predict(small_HW3[None], size).class_ids_NHW[0]

        exact_HW3 = resized(image_HW3, exact)
        found = {
            "exact shape": labels(exact_HW3),
            "pipeline.images.codec.shrink": labels(shrink(image_HW3, long_side)),
            "one column of pixels more": labels(resized(image_HW3, (exact[0], exact[1] + 1))),
        }
        for multiple in (32, 64):
            padded_HW3 = padded(exact_HW3, multiple, checkpoint.metadata.mean)
            whole = tuple(round(padded_HW3.shape[i] * (height, width)[i] / exact[i]) for i in (0, 1))
            found[f"padded to a multiple of {multiple}"] = labels(padded_HW3, whole)[:height, :width]
        tally.add(found, truth_HW)
    tally.show(f"{num_scenes} scenes of 100 to 300 x 200 to 400 pixels, shrunk to a long side of {long_side}")


def decoding(checkpoint: Checkpoint, predictor: Any, long_side: int, num_scenes: int) -> None:
    rng, tally = np.random.default_rng(0), Tally(len(checkpoint.class_names))
    for index in range(num_scenes):
        times = rng.uniform(6, 12)
        height, width = int(long_side / 2 * times), int(long_side * times)
        image_HW3, truth_HW = scene(777, index, height, width)
        content = encode_image(image_HW3)
        found = {"all pixels": shrink(decode_image(content), long_side)}
        for least in (4, 3, 2):
            found[f"at least {least} times the wanted size"] = shrink(scaled(content, least * long_side), long_side)
        found["all pixels of a JPEG of quality 90"] = shrink(decode_image(encode_image(image_HW3, 90)), long_side)
        size = (long_side, 2 * long_side)  # masks as large as the scenes would take too long
        labels = {way: predictor.predict(small_HW3[None], size).class_ids_NHW[0] for way, small_HW3 in found.items()}
        tally.add(labels, cv2.resize(truth_HW, size[::-1], interpolation=cv2.INTER_NEAREST))  # type: ignore[arg-type]
    tally.show(f"{num_scenes} scenes of 6 to 12 times a long side of {long_side}, as JPEGs of quality 95")


def resized(image_HW3: Image, size: tuple[int, int]) -> Image:
    return cv2.resize(image_HW3, size[::-1], interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def padded(image_HW3: Image, multiple: int, mean: list[float]) -> Image:
    height, width = (-(-side // multiple) * multiple for side in image_HW3.shape[:2])
    canvas_HW3 = np.empty((height, width, 3), np.uint8)
    canvas_HW3[:] = np.round(mean)
    canvas_HW3[: image_HW3.shape[0], : image_HW3.shape[1]] = image_HW3
    return canvas_HW3


if __name__ == "__main__":
    main()
