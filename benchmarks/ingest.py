"""Training crops per second on one core: a single affine warp versus the textbook chain, with the same draws.

    python benchmarks/ingest.py                     built-in scenes of 480 x 360 and 2048 x 1024
    python benchmarks/ingest.py --data FOLDER       images/train and annotations/train of FOLDER as well

First compares the results: the image positions that the pixels of each crop come from, measured by cropping an image
whose colors are its coordinates, then labels and sharpness. Then all variants process the same images with the same
draws, in turn: rates are medians over the rounds, and speedups are medians of the ratio to the uint8 chain in each
round. All variants blur last. Published training code uses float32 images, which is the second variant. Times are CPU
times of the thread, so other work on the machine has little effect.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import machine, textbook_augment
from pipeline.config.training import AugmentConfig
from pipeline.datasets import scenes
from pipeline.images.codec import decode_image, decode_label, encode_image, encode_mask
from pipeline.train.augmentation import Draw, affine, crop_of, random_draw, warped_image, warped_label

FILL = (123.675, 116.28, 103.53)
IGNORE = 255
SCENE_SIZES = ((360, 480), (1024, 2048))
CROPS = ((241, 321), (473, 473), (713, 713))
CORES = (1, 8, 16, 32, 64)
BASELINE = "chain, uint8"


class Case(NamedTuple):
    """Images of one size, encoded and decoded."""

    name: str
    files: list[tuple[bytes, bytes]]
    decoded: list[tuple[NDArray[np.uint8], NDArray[np.int32]]]


def main() -> None:
    options = parse()
    cv2.setNumThreads(1)
    report: dict[str, Any] = {
        **machine.about(),
        "versions": {"python": sys.version.split()[0], "opencv": cv2.__version__, "numpy": np.__version__},
        "options": {key: value for key, value in vars(options).items() if key not in ("data", "json")},
        "agreement": [],
        "rows": [],
    }
    for case in cases(options):
        for crop in options.crops:
            print(f"\n{case.name} -> {crop[1]} x {crop[0]}")
            augment = AugmentConfig(crop=crop)
            draws = [random_draw(augment, np.random.default_rng([options.seed, i])) for i in range(options.draws)]
            found = {"images": case.name, "crop": list(crop)}
            compared = agreement(case, augment, draws)
            print(" · ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in compared.items()), flush=True)
            report["agreement"].append(found | compared)
            for decode in (False, True):
                for row in rates(case, augment, draws, decode, options.rounds):
                    row["feeds"] = {cores: cores * row["crops_per_s"] for cores in CORES}
                    row["cores_needed"] = math.ceil(options.consume / row["crops_per_s"])
                    report["rows"].append(found | {"decode": decode} | row)
                    print(
                        f"{row['variant']:16} {'with decoding' if decode else '':14} {row['crops_per_s']:8.1f} crops/s "
                        f"{row['speedup']:8.2f} x {row['cores_needed']:5} cores for {options.consume:g} images/s",
                        flush=True,
                    )
            if options.json:
                Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the images to measure with: a sample of the folder, and built-in scenes."""
    found = []
    if options.data:
        root = Path(options.data)
        images = sorted((root / "images/train").iterdir())[:: options.stride][: options.images]
        labels = {path.stem: path for path in (root / "annotations/train").iterdir()}
        found.append([(path.read_bytes(), labels[path.stem].read_bytes()) for path in images])
    palette = np.array([entry.color for entry in scenes.CLASSES], np.uint8)
    for height, width in options.sizes:
        made = (scenes.scene(0, index, height, width) for index in range(options.images))
        found.append([(encode_image(image_HW3), encode_mask(label_HW, palette)) for image_HW3, label_HW in made])
    results = []
    for number, files in enumerate(found):
        decoded = [(decode_image(image), decode_label(label)) for image, label in files]
        height, width = decoded[0][1].shape
        of = Path(options.data).resolve().name if options.data and number == 0 else "scenes"
        results.append(Case(f"{of} {width} x {height}", files, decoded))
    return results


def rates(case: Case, augment: AugmentConfig, draws: list[Draw], decode: bool, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each variant: crops per second on one core, and the speedup over the chain."""
    variants: dict[str, Callable[[Any, Any, Draw], Any]] = {
        BASELINE: partial(chain, augment, np.uint8),
        "chain, float32": partial(chain, augment, np.float32),
        "one warp": partial(one_warp, augment),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            begin = time.thread_time()
            for draw, (image, label), (image_HW3, label_HW) in zip(draws, case.files, case.decoded, strict=False):
                if decode:
                    image_HW3, label_HW = decode_image(image), decode_label(label)
                variant(image_HW3, label_HW, draw)
            if number > 0:  # the first round fills caches
                seconds[name].append(time.thread_time() - begin)
    rows = []
    for name, own in seconds.items():
        ratios = [base / mine for base, mine in zip(seconds[BASELINE], own, strict=True)]
        row = {"variant": name, "crops_per_s": len(case.files) / statistics.median(own)}
        rows.append(row | {"speedup": statistics.median(ratios), "speedups": [min(ratios), max(ratios)]})
    return rows


def chain(augment: AugmentConfig, type_: Any, image_HW3: NDArray[Any], label_HW: NDArray[Any], draw: Draw) -> Any:
    image_HW3, label_HW = image_HW3.astype(type_, copy=False), label_HW.astype(np.uint8)
    return textbook_augment.crop_of(image_HW3, label_HW, draw, augment.crop, FILL, IGNORE)


def one_warp(augment: AugmentConfig, image_HW3: NDArray[Any], label_HW: NDArray[Any], draw: Draw) -> Any:
    return crop_of(image_HW3, label_HW, draw, augment, FILL, IGNORE)


def agreement(case: Case, augment: AugmentConfig, draws: list[Draw]) -> dict[str, float]:
    """Return how far the crops of warp and chain differ, over all draws; distances are in pixels of the crop.

    Distances use only pixels that both take from inside the image, at least two pixels from its edge.
    """
    distances, offsets, labelled, same, sharpness = [], [], [], [], []
    for draw, (image_HW3, label_HW) in zip(draws, cycle(case.decoded), strict=False):
        place_HW2, inside_HW = displacement(label_HW.shape, draw, augment.crop)
        distances.append(np.hypot(*np.moveaxis(place_HW2[inside_HW], 1, 0)))
        offsets.append(place_HW2[inside_HW].mean(0))
        sharp = draw._replace(blurred=False)
        theirs_HW3, theirs_HW = chain(augment, np.uint8, image_HW3, label_HW, sharp)
        ours_HW3, ours_HW = one_warp(augment, image_HW3, label_HW, sharp)
        labelled.append([np.mean(theirs_HW != IGNORE), np.mean(ours_HW != IGNORE)])
        same.append(np.mean(theirs_HW[inside_HW] == ours_HW[inside_HW]))
        sharpness.append([detail(image, inside_HW) for image in (theirs_HW3, ours_HW3)])
    theirs, ours = np.mean(labelled, 0)
    return {
        "mean_distance": float(np.concatenate(distances).mean()),
        "largest_distance": float(np.concatenate(distances).max()),
        "mean_offset_x": float(np.mean(offsets, 0)[0]),
        "mean_offset_y": float(np.mean(offsets, 0)[1]),
        "labelled_chain": float(theirs),
        "labelled_warp": float(ours),
        "same_label": float(np.mean(same)),
        "detail_ratio": float(np.divide(*np.mean(sharpness, 0)[::-1])),
    }


def displacement(
    size: tuple[int, ...], draw: Draw, crop: tuple[int, int]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Return offsets from the chain's pixels to the warp's, (H, W, 2) in crop pixels x, y, and which of them count."""
    rows, columns = np.indices(size, np.float32)
    coordinates_HW3 = np.dstack([columns, rows, rows])
    # Exclude the edges of the image, where the chain's resizing repeats the outermost pixels.
    label_HW = np.full(size, IGNORE, np.uint8)
    label_HW[2:-2, 2:-2] = 0
    sharp = draw._replace(blurred=False)
    theirs_HW3, theirs_HW = textbook_augment.crop_of(coordinates_HW3, label_HW, sharp, crop, (0, 0, 0), IGNORE)
    matrix = affine(draw, (size[0], size[1]), crop)
    ours_HW3 = warped_image(coordinates_HW3, matrix, crop, (0, 0, 0))
    inside_HW = (theirs_HW != IGNORE) & (warped_label(label_HW, matrix, crop, IGNORE) != IGNORE)
    # In the chain, a pixel at the border of the rotated canvas is half fill color.
    inside_HW = cv2.erode(inside_HW.astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
    return draw.scale * (ours_HW3 - theirs_HW3)[..., :2], inside_HW


def detail(image_HW3: NDArray[np.uint8], inside_HW: NDArray[np.bool_]) -> float:
    """Return the mean magnitude of the Laplacian of the image, which interpolating twice reduces."""
    laplacian_HW = cv2.Laplacian(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    return float(np.abs(laplacian_HW[inside_HW]).mean())


def size_of(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with images/train and annotations/train")
    parser.add_argument("--stride", type=int, default=11, help="use every N-th image of the folder (11)")
    parser.add_argument(
        "--sizes", type=size_of, nargs="*", default=SCENE_SIZES, help="sizes of scenes as ROWSxCOLUMNS (360x480)"
    )
    parser.add_argument("--crops", type=size_of, nargs="+", default=CROPS, help="crop sizes as ROWSxCOLUMNS (473x473)")
    parser.add_argument("--images", type=int, default=16, help="number of images, each cropped once per round (16)")
    parser.add_argument("--draws", type=int, default=64, help="number of crops to compare, at least --images (64)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each variant (7)")
    parser.add_argument("--consume", type=float, default=100, help="images/s the GPUs consume, to count cores (100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (0)")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
