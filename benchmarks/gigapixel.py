"""Time and predictor memory of jobs/segment_bucket.py for one gigapixel scene, labeled window by window.

    python benchmarks/gigapixel.py --side 8192                     67 megapixels
    python benchmarks/gigapixel.py --json benchmarks/results/gigapixel-cpu.json

The scene is a tiled TIFF on disk, composed of built-in scenes. The network is a PSPNet-18 of 19 classes with random
weights, which takes as long as a trained one. Its crops overlap by a third, so each pixel is predicted 2.25 times.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import machine, pipeline
from benchmarks.processes import Sample, watch
from pipeline.datasets.scenes import scene
from pipeline.output.parquet import read_table

TILE = 512
SCENES = 24


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        pipeline.prepare(argparse.Namespace(backbone="resnet18", images=0), folder)
        path = Path(folder) / "scenes" / "large.tif"
        path.parent.mkdir()
        write_scene(path, options.side)
        report: dict[str, Any] = {**machine.about(), "side": options.side, "file_bytes": path.stat().st_size}
        print(f"{options.side:,} x {options.side:,} pixels, {report['file_bytes'] / 1e6:,.0f} MB on disk", flush=True)
        report |= labelled(folder)
        report |= checked(Path(folder) / "labels", options.side)
    print(", ".join(f"{name} {value:,}" for name, value in report.items() if isinstance(value, int | float)))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32_768, help="side of the scene in pixels, a multiple of 512")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


def write_scene(path: Path, side: int) -> None:
    import tifffile

    tiles = [scene(0, index, TILE, TILE)[0] for index in range(SCENES)]
    chance = np.random.default_rng(0)

    def laid_out() -> Iterator[NDArray[np.uint8]]:
        for _ in range((side // TILE) ** 2):
            yield tiles[chance.integers(SCENES)]

    shape, tile = (side, side, 3), (TILE, TILE)
    options = {"photometric": "rgb", "compression": "zlib", "bigtiff": True, "maxworkers": os.cpu_count()}
    tifffile.imwrite(path, laid_out(), shape=shape, dtype=np.uint8, tile=tile, **options)


def labelled(folder: str) -> dict[str, Any]:
    """Run the job and measure its time and memory."""
    command = [sys.executable, "jobs/segment_bucket.py", "--input", f"{folder}/scenes", "--output", f"{folder}/labels"]
    command += ["--checkpoint", f"{folder}/checkpoint", "--protocol.mode", "sliding", "--protocol.base-size", "none"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    samples: list[Sample] = []
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=environment)
    watcher = threading.Thread(target=watch, args=(process.pid, samples))
    watcher.start()
    status = process.wait()
    watcher.join()
    if status:
        raise SystemExit(f"the job failed with exit code {status}")
    predictors = [held.gib for sample in samples for held in sample.processes.values() if "PredictStage" in held.name]
    return {
        "run_seconds": round(time.perf_counter() - begin, 1),
        "predictor_gib": round(max(predictors), 2),
        "all_processes_gib": round(max(sample.gib for sample in samples), 2),
    }


def checked(output: Path, side: int) -> dict[str, Any]:
    """Compare the mask with its statistics."""
    (row,) = rows(output / "masks")
    assert (row["status"], row["width"], row["height"]) == ("ok", side, side), row["error_message"]
    content = row["mask"]["bytes"]
    Image.MAX_IMAGE_PIXELS = None
    counts = Image.open(io.BytesIO(content)).histogram()
    assert {entry["class_id"]: entry["pixel_count"] for entry in rows(output / "class_stats")} == {
        k: count for k, count in enumerate(counts) if count
    }
    return {"scene_seconds": round(row["seconds"], 1), "mask_bytes": len(content)}


def rows(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("*.parquet")
    return read_table(str(path)).to_pylist()


if __name__ == "__main__":
    main()
