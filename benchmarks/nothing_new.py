"""Time and memory of a run that finds nothing new, by the number of completed rows.

    python benchmarks/nothing_new.py                              1 million rows
    python benchmarks/nothing_new.py --rows 1000000 10000000      1 and 10 million

The output is synthetic, with parts of a run's default size. What a run reads (ids, status and ETags) is realistic; the
masks, which it does not read, are a few bytes. The run is that of jobs/segment_bucket.py, in a separate process, on a
manifest of the same names in another order. --root s3://... uses a bucket instead of a disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import listing, machine, pipeline

IMAGE_BYTES = 100_000


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(run(options)))
        return
    report: dict[str, Any] = {**machine.about(), "place": "s3" if options.root else "disk", "runs": []}
    for rows in options.rows:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sceneparse-"))
            root = f"{options.root or folder}/{rows}"
            manifest = Path(folder, "manifest.parquet")
            listing.write_manifest(manifest, rows)
            parts = prepare(manifest, root)
            command = [sys.executable, __file__, "--child", root, str(manifest)]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            report["runs"].append({"rows": rows, "parts": parts, **json.loads(child.stdout.splitlines()[-1])})
        print(report["runs"][-1], flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="number of completed rows")
    parser.add_argument("--root", help="folder or URI for the output (default: a temporary folder on this disk)")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--child", nargs=2, metavar=("ROOT", "MANIFEST"), help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(manifest: Path, root: str) -> int:
    """Write a checkpoint and an output with every image of the manifest. Return the number of parts."""
    from pipeline.checkpoints.checkpoint import Checkpoint
    from pipeline.output.ownership import claim_output
    from pipeline.segment.worklist import MAX_WAVE
    from pipeline.segment.write_stage import rows_of_a_part

    pipeline.prepare(argparse.Namespace(backbone="resnet18", images=0), root)
    model = Checkpoint.load(f"{root}/checkpoint", None)
    claim_output(f"{root}/output", model)
    uris = pq.read_table(manifest, columns=["image_uri"])["image_uri"].combine_chunks()
    uris = uris.take(pa.array(np.random.default_rng(0).permutation(len(uris))))
    wave = pa.table({"size_bytes": pa.repeat(pa.scalar(IMAGE_BYTES, pa.int64()), min(len(uris), MAX_WAVE))})
    size = rows_of_a_part(wave)
    with ThreadPoolExecutor(4) as pool:
        starts = range(0, len(uris), size)
        written = pool.map(lambda start: write_part(f"{root}/output", uris.slice(start, size), model), starts)
        return len(list(written))


def write_part(output: str, uris: pa.StringArray, model: Any) -> None:
    from pipeline.output import parts
    from pipeline.output.schema import CLASS_STATS, MASKS, image_id, table

    ids = [image_id(uri) for uri in uris.to_pylist()]
    same = {
        "etag": "0123456789abcdef0123456789abcdef",
        "size_bytes": IMAGE_BYTES,
        "width": 480,
        "height": 360,
        "status": "ok",
        "mask": {"bytes": b"made up", "path": None},
        "class_ids": [0],
        "model_id": model.model_id,
        "run_id": "made-up",
        "segmented_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    columns = {field.name: pa.repeat(pa.scalar(same.get(field.name), field.type), len(ids)) for field in MASKS}
    masks = pa.table({**columns, "image_id": pa.array(ids, pa.binary(16)), "image_uri": uris}, schema=MASKS)
    parts.write_part(output, parts.part_name("made-up", masks), masks, table([], CLASS_STATS))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run on the output, and return the times and the memory."""
    from pipeline.config.jobs import SegmentConfig
    from pipeline.config.loading import load_settings
    from pipeline.segment import run as segmentation

    root, manifest = options.child
    before, start = listing.memory_mib(), time.perf_counter()
    reconcile, seconds = segmentation.reconcile, {}

    def timed(*arguments: Any) -> Any:
        since = time.perf_counter()
        found = reconcile(*arguments)
        seconds["reading_parts"] = time.perf_counter() - since
        return found

    segmentation.reconcile = timed
    command = ["--manifest", manifest, "--allow", "s3://bucket/", "--output", f"{root}/output"]
    config = load_settings(SegmentConfig, [*command, "--checkpoint", f"{root}/checkpoint"], prog="benchmark")
    summary = segmentation.segment(config)
    assert summary.listed.images > 0
    assert summary.listed.todo == 0
    seconds["in_all"] = time.perf_counter() - start
    return {
        **{f"seconds_{name}": round(value, 2) for name, value in seconds.items()},
        "memory_before_mib": before,
        "memory_peak_mib": listing.memory_mib(),
    }


if __name__ == "__main__":
    main()
