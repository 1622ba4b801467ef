"""Two ways to label a batch on a CPU: its images in parallel on one thread each, or the batch on all threads.

    python benchmarks/batches.py --backbone resnet50

Both run in turn in one process with the same packed weights. Results are medians over the rounds of the time per image.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

import models
from benchmarks import machine
from models.inference.interpolation import both_taps
from models.inference.masks import label_batch
from models.inference.preprocessing import NetworkInputs, padded_size


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    model = models.PSPNet(models.Architecture(options.backbone, options.classes, auxiliary=False)).eval()
    predictor = models.Predictor(model, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), precision=options.precision)
    report: dict[str, Any] = {
        **machine.about(),
        "threads": torch.get_num_threads(),
        "options": {name: value for name, value in vars(options).items() if name != "json"},
        "batches": [],
    }
    for size in options.sizes:
        height, width = map(int, size.split("x"))
        for count in options.batches:
            images_NHW3 = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
            ways: dict[str, Callable[[], object]] = {
                "side by side": lambda: predictor.predict(images_NHW3),  # noqa: B023
                "as one batch": lambda: as_one_batch(predictor, torch.from_numpy(images_NHW3)),  # noqa: B023
            }
            found = {way: statistics.median(seconds) / count for way, seconds in measured(ways, options.rounds).items()}
            report["batches"].append({"size": size, "images": count, **found})
            shown = ", ".join(f"{way} {1000 * seconds:.1f} ms" for way, seconds in found.items())
            print(f"{size} x {count}: {shown} an image, ratio {found['as one batch'] / found['side by side']:.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--sizes", nargs="+", default=["360x480"], help="image sizes as HEIGHTxWIDTH (360x480)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 3, 4, 7, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


def measured(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if number:  # the first round packs weights and fills caches
                seconds[way].append(time.perf_counter() - start)
    return seconds


@torch.inference_mode()
def as_one_batch(predictor: models.Predictor, images_NHW3: torch.Tensor) -> object:
    size, align_corners = (images_NHW3.shape[1], images_NHW3.shape[2]), predictor.architecture.align_corners
    padded = padded_size(size, align_corners)
    inputs = NetworkInputs(images_NHW3, padded, predictor.mean_3)
    logits_NhwK = predictor.network(inputs.rows(0, padded[0]))
    taps = both_taps(logits_NhwK.shape[1:3], size, padded, size, align_corners)
    return label_batch(logits_NhwK, *taps, with_confidence_map=False)


if __name__ == "__main__":
    main()
