"""Value of the images that `next-to-label` picks, versus random ones: `python benchmarks/next_to_label.py`.

The pool resembles a bucket of video frames: built-in scenes, each seen in many overlapping frames. A PSPNet-18 is
trained on a few random frames and labels the pool. It is then retrained on these frames plus more frames, chosen at
random, by confidence alone, or by the named query. All three are trained in the same way, and tested on other scenes.
Does not need Ray.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import machine
from models import Architecture, Predictor, PSPNet
from models.training.step import TrainingStep, learning_rate_at, sgd
from pipeline.datasets.scenes import CLASSES as SCENE_CLASSES
from pipeline.datasets.scenes import IGNORE_INDEX, scene
from pipeline.images.codec import encode_mask
from pipeline.metrics.confusion import Metrics, confusion_matrix
from pipeline.output import parts
from pipeline.output.parquet import write_table
from pipeline.output.schema import CLASSES, PREDICTED, image_id, masks_and_class_stats, table
from pipeline.query import engine
from pipeline.query.named_queries import named_query
from pipeline.segment.prediction_rows import outcome

SIDE, TURN = 129, 76  # side of a frame; camera motion from the first to the last frame of a scene, pixels
NAMES = [entry.name for entry in SCENE_CLASSES]
PALETTE = np.array([entry.color for entry in SCENE_CLASSES], np.uint8)
MEAN, STD = (120.0,) * 3, (60.0,) * 3
WAYS = ("random", "least-confident", "next-to-label")


class Example(NamedTuple):
    image_HW3: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]


def main() -> None:
    options = parse()
    report: dict[str, Any] = {**machine.about(), "options": vars(options), "seeds": []}
    for seed in range(options.seeds):
        begin = time.perf_counter()
        found = compare(seed, options)
        report["seeds"].append(found)
        told = ", ".join(f"{way} {found[way]:.4f}" for way in ("before", *WAYS))
        print(f"seed {seed}: mIoU {told} ({time.perf_counter() - begin:.0f} s)", flush=True)
    for way in WAYS[1:]:
        gains = [found[way] - found["random"] for found in report["seeds"]]
        report[f"{way} over random"] = {"mean": statistics.mean(gains), "of_seeds": gains}
        better = sum(gain > 0 for gain in gains)
        print(f"{way} over random: {statistics.mean(gains):+.4f} on average, better in {better} of {len(gains)}")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of repetitions, each on other scenes")
    parser.add_argument("--scenes", type=int, default=60, help="number of scenes in the pool")
    parser.add_argument("--frames", type=int, default=20, help="number of frames of each scene")
    parser.add_argument("--first", type=int, default=16, help="number of frames in the first training")
    parser.add_argument("--more", type=int, default=32, help="number of frames to pick")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training, of 8 frames each")
    parser.add_argument("--test", type=int, default=200, help="number of scenes to test on")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


def compare(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the mIoU before, and after adding the frames that each way picks."""
    pool = [frame for index in range(options.scenes) for frame in frames(1000 + seed, index, options.frames)]
    test = [Example(*scene(2000 + seed, index, SIDE, SIDE)) for index in range(options.test)]
    chance = np.random.default_rng(seed)
    first = chance.permutation(len(pool))[: options.first].tolist()
    before = trained([pool[n] for n in first], seed, options.steps)
    result: dict[str, Any] = {"before": miou(before, test), "scenes_picked": {}}
    rest = [n for n in range(len(pool)) if n not in set(first)]
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as output:
        write_output(output, before, pool, rest)
        picks = {
            "random": chance.permutation(rest)[: options.more].tolist(),
            "least-confident": picked(output, "least-confident", options.more),
            "next-to-label": picked(output, "next-to-label", options.more),
        }
    for way in WAYS:
        assert len(set(picks[way])) == options.more
        result["scenes_picked"][way] = len({n // options.frames for n in picks[way]})
        result[way] = miou(trained([pool[n] for n in [*first, *picks[way]]], seed, options.steps), test)
    return result


def frames(seed: int, index: int, number: int) -> list[Example]:
    """Return frames of one scene, as seen by a camera that turns slightly."""
    image_HW3, label_HW = scene(seed, index, SIDE, SIDE + TURN)
    starts = np.linspace(0, TURN, number).astype(int).tolist()
    return [Example(image_HW3[:, x : x + SIDE], label_HW[:, x : x + SIDE]) for x in starts]


def trained(examples: list[Example], seed: int, steps: int) -> Predictor:
    """Train a network, always from the same initial weights, with mirroring."""
    torch.manual_seed(seed)
    network = PSPNet(Architecture("resnet18", len(NAMES)))
    step = TrainingStep(network, sgd(network, 0.01, 1, 0.9, 1e-4), MEAN, STD, torch.device("cpu"))
    chance = np.random.default_rng(seed)
    for number in range(steps):
        chosen = [examples[n] for n in chance.integers(0, len(examples), 8)]
        mirrored = [Example(*(part[:, ::-1] for part in e)) if chance.random() < 0.5 else e for e in chosen]
        images_NHW3 = torch.from_numpy(np.stack([example.image_HW3 for example in mirrored]))
        labels_NHW = torch.from_numpy(np.stack([example.label_HW for example in mirrored])).long()
        step(images_NHW3, labels_NHW, learning_rate_at(number, steps, 0.05))
    return Predictor(network.eval(), MEAN, STD, precision="auto")


def miou(predictor: Predictor, test: list[Example]) -> float:
    counts = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for start in range(0, len(test), 16):
        some = test[start : start + 16]
        ids_NHW = predictor.predict(np.stack([example.image_HW3 for example in some])).class_ids_NHW
        for example, ids_HW in zip(some, ids_NHW, strict=True):
            counts += confusion_matrix(example.label_HW, ids_HW, len(NAMES), IGNORE_INDEX)
    return Metrics.of(counts).miou


def write_output(output: str, predictor: Predictor, pool: list[Example], members: list[int]) -> None:
    """Write the output that a segmentation run would write for these frames."""
    rows = []
    for start in range(0, len(members), 16):
        some = members[start : start + 16]
        prediction = predictor.predict(np.stack([pool[n].image_HW3 for n in some]))
        for place, n in enumerate(some):
            uri = uri_of(n)
            mask = {"bytes": encode_mask(prediction.class_ids_NHW[place], PALETTE), "path": None}
            identity = {"image_id": image_id(uri), "image_uri": uri, "width": SIDE, "height": SIDE, "seconds": 0.0}
            rows.append({**identity, "mask": mask, **outcome(prediction, place)})
    made = masks_and_class_stats(table(rows, PREDICTED), NAMES, "model", "run", datetime.now(UTC))
    parts.write_part(output, parts.part_name("run", made[0]), *made)
    colors = [dict(zip(("red", "green", "blue"), entry.color, strict=True)) for entry in SCENE_CLASSES]
    classes = [{"class_id": k, "class_name": NAMES[k], **color} for k, color in enumerate(colors)]
    write_table(f"{output}/classes.parquet", table(classes, CLASSES))


def uri_of(n: int) -> str:
    return f"s3://video/{n:06}.jpg"


def picked(output: str, name: str, count: int) -> list[int]:
    named = named_query(name)
    relation = engine.run(engine.connect(output), named.sql, named.values([str(count)]))
    assert relation is not None
    return [int(row[0].removeprefix("s3://video/").removesuffix(".jpg")) for row in relation.fetchall()]


if __name__ == "__main__":
    main()
