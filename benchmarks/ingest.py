"""Training crops per second of one core: the single affine warp beside the textbook chain, on the same draws.

    python benchmarks/ingest.py                     built-in scenes of 480 x 360 and 2048 x 1024
    python benchmarks/ingest.py --data FOLDER       images/train and annotations/train of FOLDER as well

First both are compared: the positions in the image that each crop's pixels come from, by cropping an image whose
colours are its coordinates, then labels and sharpness. Then both run on the same images with the same draws, in turn:
rates are medians over the rounds, speed-ups medians of each round's ratio to the chain on uint8. Blur comes last in
all of them; published training code works on float32 images, which is the second variant. Time is the thread's own, so
that other work on the machine disturbs it little.
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
    """Images of one size, as files and decoded."""

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
    """What to measure on: the folder's first images, and built-in scenes."""
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
    """A row for each variant: crops a second of one core, and the speed-up over the chain."""
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
    """How far the crops of both are from each other, over all draws; distances are in pixels of the crop.

    Only pixels that both take from inside the image, two pixels or more from its edge, have a distance.
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
    """From the chain's pixels to the warp's, crop pixels H x W x 2 (x, y), and which of them count."""
    rows, columns = np.indices(size, np.float32)
    coordinates_HW3 = np.dstack([columns, rows, rows])
    # Inside an image less its edges, where the chain's resizing repeats the outermost pixels.
    label_HW = np.full(size, IGNORE, np.uint8)
    label_HW[2:-2, 2:-2] = 0
    sharp = draw._replace(blurred=False)
    theirs_HW3, theirs_HW = textbook_augment.crop_of(coordinates_HW3, label_HW, sharp, crop, (0, 0, 0), IGNORE)
    matrix = affine(draw, (size[0], size[1]), crop)
    ours_HW3 = warped_image(coordinates_HW3, matrix, crop, (0, 0, 0))
    inside_HW = (theirs_HW != IGNORE) & (warped_label(label_HW, matrix, crop, IGNORE) != IGNORE)
    # A chain's pixel at the border of the rotated canvas is half fill.
    inside_HW = cv2.erode(inside_HW.astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
    return draw.scale * (ours_HW3 - theirs_HW3)[..., :2], inside_HW


def detail(image_HW3: NDArray[np.uint8], inside_HW: NDArray[np.bool_]) -> float:
    """Mean magnitude of the image's Laplacian: what interpolating twice loses."""
    laplacian_HW = cv2.Laplacian(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    return float(np.abs(laplacian_HW[inside_HW]).mean())


def size_of(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with images/train and annotations/train")
    parser.add_argument("--stride", type=int, default=11, help="take every so manieth image of the folder (11)")
    parser.add_argument(
        "--sizes", type=size_of, nargs="*", default=SCENE_SIZES, help="of scenes, as 360x480 (rows first)"
    )
    parser.add_argument("--crops", type=size_of, nargs="+", default=CROPS, help="as 473x473, rows first")
    parser.add_argument("--images", type=int, default=16, help="images, each cropped once a round (16)")
    parser.add_argument("--draws", type=int, default=64, help="crops that are compared, at least the images (64)")
    parser.add_argument("--rounds", type=int, default=7, help="times that each variant runs (7)")
    parser.add_argument("--consume", type=float, default=100, help="images/s that the GPUs take, to count cores (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--json", help="file to write the figures to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
