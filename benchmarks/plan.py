"""Predictions of --plan versus the run that follows: `python benchmarks/plan.py`.

The bucket has JPEGs of mixed sizes, drawn from a seed, and some files that are not images. Plan and run are separate
processes, each with its own Ray, one after the other on the same bucket.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import machine, pipeline

SHORT_SIDES, SHARES = (240, 360, 480, 720), (0.3, 0.4, 0.2, 0.1)
ASPECTS = (1.0, 4 / 3, 16 / 9)
BROKEN = 0.02  # fraction of files that are not images
MEASURES = ("seconds", "images_per_s", "output_bytes", "failed")


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)), flush=True)
        return
    report: dict[str, Any] = {
        **machine.about(),
        "options": {name: value for name, value in vars(options).items() if name not in ("json", "child", "root")},
        "rounds": [],
    }
    with pipeline.bucket(options) as root:
        options.root = root
        prepare(options)
        for number in range(options.rounds):
            found = {name: run_child(options, name, f"{root}/output-{number}") for name in CHILDREN}
            report["rounds"].append(found)
            for measure in MEASURES:
                predicted, real = found["plan"][measure], found["run"][measure]
                ratio = f"{predicted / real:.2f}" if real else "-"
                print(
                    f"round {number} {measure:12} predicted {predicted:14,.1f} real {real:14,.1f} ratio {ratio}",
                    flush=True,
                )
            if options.json:
                Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="number of images in the bucket")
    parser.add_argument("--plan-images", type=int, default=256, help="number of images in the sample")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--root", help="folder or URI to work in (default: a local S3 server)")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> None:
    """Write the images and a checkpoint with random weights."""
    import numpy as np

    from pipeline import storage
    from pipeline.datasets.scenes import scene
    from pipeline.images.codec import encode_image

    # Only the checkpoint, without photos.
    pipeline.prepare(argparse.Namespace(backbone=options.backbone, images=0), options.root)
    draw = np.random.default_rng(options.seed)

    def file(index: int) -> bytes:
        if draw.random() < BROKEN:
            return b"not an image"
        short = int(draw.choice(SHORT_SIDES, p=SHARES))
        long = int(short * draw.choice(ASPECTS))
        height, width = (short, long) if draw.random() < 0.7 else (long, short)
        return encode_image(scene(options.seed, index, height, width)[0])

    # No two images are equal, because Parquet would compress the masks of copies to almost nothing.
    with ThreadPoolExecutor(8) as pool:
        names = [f"{options.root}/photos/{index:06d}.jpg" for index in range(options.images)]
        list(pool.map(storage.write_bytes, names, map(file, range(options.images))))


def run_child(options: argparse.Namespace, name: str, output: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--root", options.root, "--output", output]
    command += ["--plan-images", str(options.plan_images), "--precision", options.precision, "--device", options.device]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print("".join(line + "\n" for line in child.stdout.splitlines()[:-1]), end="", flush=True)
    if child.returncode:
        raise SystemExit(f"{name} failed with exit code {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])


def config_of(options: argparse.Namespace) -> Any:
    from pipeline.config.jobs import SegmentConfig
    from pipeline.config.loading import load_settings

    command = ["--input", f"{options.root}/photos", "--output", options.output]
    command += ["--checkpoint", f"{options.root}/checkpoint", "--precision", options.precision]
    command += ["--plan-images", str(options.plan_images)] + ["--gpu"] * (options.device == "cuda")
    return load_settings(SegmentConfig, command, prog="benchmark")


def plan(options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.plan.run import make_plan
    from pipeline.plan.text import plan_lines

    planned = make_plan(config_of(options))
    print(*plan_lines(planned), sep="\n")
    forecast, tried = planned.forecasts[0], planned.plan.tried  # type: ignore[union-attr]  # there are images to label
    return {
        "seconds": forecast.seconds,
        "images_per_s": forecast.rate,
        "output_bytes": planned.plan.output_bytes,  # type: ignore[union-attr]
        "failed": planned.survey.images * (1 - tried.outcomes.get("ok", 0) / tried.images),
        "limit": forecast.limit,
        "costs": {stage: capacity.cost._asdict() for stage, capacity in forecast.capacities.items()},
        "sample": {"seconds": tried.seconds, "to_first": tried.seconds_to_first, "images_per_s": tried.rate},
        "stage_seconds": tried.stages.as_json(),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    from pipeline import storage
    from pipeline.plan.forecast import steady_rate
    from pipeline.segment.run import segment

    marks: list[tuple[float, int]] = []
    pipeline.note_progress(marks)
    summary = segment(config_of(options))
    files = [storage.find(f"{options.output}/{table}") for table in ("masks", "class_stats")]
    return {
        "seconds": summary.seconds,
        "images_per_s": steady_rate(marks),
        "output_bytes": sum(info["size"] for found in files for info in found.values()),
        "failed": sum(summary.outcomes.values()) - summary.outcomes.get("ok", 0),
        "to_first": summary.seconds_to_first,
        "stage_seconds": summary.stage_seconds.as_json(),
    }


CHILDREN = {"plan": plan, "run": run}


if __name__ == "__main__":
    main()
