"""Memory of each process of a run, by the number of images labeled so far: `python benchmarks/memory.py`."""

import argparse
import bisect
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import machine, pipeline
from benchmarks.processes import Sample

ROLES = ("driver", "predictor", "tasks that decode and write", "Ray itself", "object store")


def main() -> None:
    options = parse()
    with pipeline.bucket(options) as root:
        pipeline.prepare(options, root)
        run = pipeline.measured(options, root, "ours", 0)
    curve = [point(sample, run.marks) for sample in run.samples]
    curve = [held for held in curve if held["images"]]  # processes come and go during the start
    highest = dict.fromkeys(ROLES, 0.0)
    shown = [count for count in (500, 1000, 2000, 3000, 4000, 5000) if count < options.images] + [options.images]
    peaks = []
    for held in curve:
        highest = {role: max(highest[role], held[role]) for role in ROLES}
        if shown and (held["images"] >= shown[0] or held is curve[-1]):
            peaks.append({"images": shown.pop(0), **{role: round(gib, 3) for role, gib in highest.items()}})
            print(f"highest GiB up to {peaks[-1]['images']:5} images: {peaks[-1]}", flush=True)
    if options.json:
        report = {**machine.about(), "images": options.images, "highest_gib": peaks}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.chart:
        Path(options.chart).write_bytes(chart(curve))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="number of 480 x 360 JPEGs in the bucket")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--root", help="folder or URI to work in (default: a local S3 server)")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--chart", help="PNG file to plot the memory to")
    return parser.parse_args()


def point(sample: Sample, marks: list[list[float]]) -> dict[str, float]:
    """Return the number of images labeled at the time of a sample, and the GiB of each role."""
    before = bisect.bisect_right(marks, sample.time, key=lambda mark: mark[0])
    held: dict[str, float] = {"images": marks[before - 1][1] if before else 0, **dict.fromkeys(ROLES, 0.0)}
    for number, process in enumerate(sample.processes.values()):
        if number == 0:
            held["driver"] += process.gib
        elif "MapWorker" in process.name:
            held["predictor"] += process.gib
        elif "decode" in process.name or "Write" in process.name or "IDLE" in process.name:
            held["tasks that decode and write"] += process.gib
        else:
            held["Ray itself"] += process.gib
        if process.name == "raylet":
            held["object store"] = process.shared_gib
    return held


def chart(curve: list[dict[str, Any]]) -> bytes:
    from pipeline.html import charts

    drawn = charts.figure(7.0, 3.2)
    with charts.style():
        axes = drawn.add_subplot()
        for role in ROLES:
            axes.plot([held["images"] for held in curve], [held[role] for held in curve], label=role)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="images labeled", ylabel="GiB", ylim=(0, None), title="Memory of a run's processes")
        drawn.legend(ncols=3, loc="outside lower center")
    return charts.png(drawn)


if __name__ == "__main__":
    main()
