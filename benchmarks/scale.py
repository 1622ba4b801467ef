"""Costs that grow with the number of images: runs without a model on manifests of millions of images.

    python benchmarks/scale.py                                        100,000 and 1 million images
    python benchmarks/scale.py --images 100000 1000000 10000000 --chart curve.png --json scale.json

Every image is listed, passes through the tasks and actors of Ray Data, and is written as a row with a mask and
statistics, but no file is downloaded and nothing is predicted (benchmarks/no_model.py). A second run finds nothing new.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import listing, machine, memory, pipeline
from benchmarks.processes import Sample, watch

BUCKET = "s3://bucket/photos/"


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(run(*options.child)))
        return
    report: dict[str, Any] = {**machine.about(), "rows_per_part": options.rows_per_part, "runs": []}
    curve: list[dict[str, Any]] = []
    for number in options.images:
        found, curve = measured(number, options.rows_per_part)
        report["runs"].append(found)
        print(found, flush=True)
        report["memory_of_last"] = [{name: round(value, 3) for name, value in held.items()} for held in curve]
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.chart:
        Path(options.chart).write_bytes(memory.chart(curve))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000], help="images in each manifest")
    parser.add_argument("--rows-per-part", type=int, default=4096)
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--chart", help="PNG file to plot the memory of the last run to")
    parser.add_argument("--child", nargs=3, metavar=("ROOT", "MANIFEST", "ROWS_PER_PART"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(number: int, rows_per_part: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the results of a run and the run after it, and the memory of the first run by images labeled."""
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        manifest = Path(folder, "manifest.parquet")
        listing.write_manifest(manifest, number, BUCKET)
        pipeline.prepare(argparse.Namespace(backbone="resnet18", images=0), folder)
        command = [sys.executable, __file__, "--child", folder, str(manifest), str(rows_per_part)]
        first, samples = watched(command)
        curve = [memory.point(sample, first["marks"]) for sample in samples]
        again, _ = watched(command)
        parts = [path.stat().st_size for path in Path(folder, "output", "masks").iterdir()]
        assert first["labelled"] == number
        assert again["labelled"] == 0
        shutil.rmtree(folder, ignore_errors=True)
    highest = {role: round(max(held[role] for held in curve), 2) for role in memory.ROLES}
    return {
        "images": number,
        "images_per_s": round(number / first["seconds"]),
        "seconds_to_first": first["seconds_to_first"],
        "parts": len(parts),
        "part_mb": round(sum(parts) / len(parts) / 1e6, 1),
        "highest_gib": highest,
        "driver_mib": first["driver_mib"],
        "nothing_new_seconds": again["seconds"],
        "nothing_new_driver_mib": again["driver_mib"],
    }, curve


def watched(command: list[str]) -> tuple[dict[str, Any], list[Sample]]:
    """Run a command. Return the JSON in the last line of its output, and samples of its processes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    samples: list[Sample] = []
    watcher = threading.Thread(target=watch, args=(process.pid, samples))
    watcher.start()
    printed, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command} failed with exit code {process.returncode}:\n{printed}")
    return json.loads(printed.splitlines()[-1]), samples


def run(root: str, manifest: str, rows_per_part: str) -> dict[str, Any]:
    from benchmarks import no_model
    from pipeline.config.jobs import SegmentConfig
    from pipeline.config.loading import load_settings
    from pipeline.segment import run as segmentation

    segmentation.decode, segmentation.PredictStage = no_model.decode, no_model.NoModel  # type: ignore[assignment, misc]
    marks: list[Any] = []
    pipeline.note_progress(marks)
    command = ["--manifest", manifest, "--allow", BUCKET, "--output", f"{root}/output"]
    command += ["--checkpoint", f"{root}/checkpoint", "--rows-per-part", rows_per_part]
    start = time.perf_counter()
    summary = segmentation.segment(load_settings(SegmentConfig, command, prog="benchmark"))
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "seconds_to_first": summary.seconds_to_first,
        "labelled": sum(summary.outcomes.values()),
        "driver_mib": listing.memory_mib(),
        "marks": marks,
    }


if __name__ == "__main__":
    main()
