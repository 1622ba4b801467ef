"""Time until a run on a manifest of millions of rows labels its first images, and the memory of its driver by then.

    python benchmarks/first_image.py                              1 million rows
    python benchmarks/first_image.py --rows 1000000 10000000      1 and 10 million

Only the first images of the manifest exist. Each run is stopped once the first of them are labeled, while it is still
listing. The first wave, which Ray Data processes by then, is what was listed before it started.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import pyarrow.parquet as pq

from benchmarks import listing, machine, pipeline

THERE = 64  # images that exist


def main() -> None:
    options = parse()
    if options.child:
        run(*options.child)
        return
    report: dict[str, Any] = {**machine.about(), "runs": []}
    with pipeline.bucket(options) as root, tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        pipeline.prepare(argparse.Namespace(backbone="resnet18", images=0), root)
        for rows in options.rows:
            manifest = Path(folder, f"{rows}.parquet")
            listing.write_manifest(manifest, rows, f"{root}/photos/")
            put_first(manifest)
            report["runs"].append({"rows": rows, **until_first(root, manifest)})
            print(report["runs"][-1], flush=True)
            if options.json:
                Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="rows of the manifests")
    parser.add_argument("--root", help="folder or URI to work in (default: a local S3 server)")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--child", nargs=2, metavar=("ROOT", "MANIFEST"), help=argparse.SUPPRESS)
    return parser.parse_args()


def put_first(manifest: Path) -> None:
    from pipeline import storage
    from pipeline.datasets.scenes import scene
    from pipeline.images.codec import encode_image

    content = encode_image(scene(0, 0, pipeline.HEIGHT, pipeline.WIDTH)[0])
    (first,) = pq.ParquetFile(manifest).iter_batches(THERE, row_groups=[0], columns=["image_uri"]).__next__().columns
    for uri in first.to_pylist():
        storage.write_bytes(uri, content)


def until_first(root: str, manifest: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", root, str(manifest)]
    start = time.time()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    found = next(json.loads(line) for line in child.stdout if line.startswith("{"))
    child.send_signal(signal.SIGTERM)
    child.communicate()
    return {"seconds_to_first": round(found.pop("time") - start, 1), **found}


def run(root: str, manifest: str) -> None:
    from pipeline.config.jobs import SegmentConfig
    from pipeline.config.loading import load_settings
    from pipeline.segment.run import segment

    def tell(_: int) -> None:
        print(json.dumps({"time": time.time(), "driver_peak_mib": listing.memory_mib()}), flush=True)

    pipeline.on_progress(tell)
    command = ["--manifest", manifest, "--allow", root, "--output", f"{root}/{os.path.basename(manifest)}"]
    command += ["--checkpoint", f"{root}/checkpoint", "--max-error-rate", "1"]
    segment(load_settings(SegmentConfig, command, prog="benchmark"))


if __name__ == "__main__":
    main()
