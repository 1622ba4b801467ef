"""Time and memory of listing a manifest of millions of rows, and of the set that detects duplicate images.

    python benchmarks/listing.py                              1 million rows
    python benchmarks/listing.py --rows 1000000 10000000      as in docs/inputs.md

Each case runs in a separate process, on a manifest of unique names. Because a manifest may name an image twice, every
name is looked up in the set of ids. CPU seconds are those of all threads of the process. The rates of the set use the
CPU time of its one thread, so other work on the machine has little effect. Memory is the peak of the process, and its
value before the listing started: Python with this package and pyarrow.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from benchmarks import machine

SCHEMA = pa.schema([("image_uri", pa.string()), ("label", pa.string()), ("height", pa.int32())])
WRITTEN = 100_000  # rows written at a time
ASKED = 10_000  # ids added or looked up at a time


def main() -> None:
    options = parse()
    if options.case:
        print(json.dumps(list_manifest(options.case) if options.case != "id_set" else use_id_set(options.rows[0])))
        return
    report: dict[str, Any] = {
        **machine.about(),
        "versions": {"python": sys.version.split()[0], "pyarrow": pa.__version__, "numpy": np.__version__},
        "listing": [],
        "id_set": [],
    }
    for rows in options.rows:
        for kind in ("parquet", "csv"):
            with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
                path = Path(folder, f"manifest.{kind}")
                write_manifest(path, rows)
                found = {"rows": rows, "format": kind, "file_mib": round(path.stat().st_size / 2**20, 1)}
                report["listing"].append(found | in_own_process("--case", str(path)))
            print(report["listing"][-1], flush=True)
        report["id_set"].append({"ids": rows} | in_own_process("--case", "id_set", "--rows", str(rows)))
        print(report["id_set"][-1], flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="number of rows of each manifest")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # the case that a child process runs
    return parser.parse_args()


def write_manifest(path: Path, rows: int, prefix: str = "s3://bucket/photos/") -> None:
    """Write a manifest of unique names in no particular order, with two columns to carry."""
    writer: Any = pq.ParquetWriter if path.suffix == ".parquet" else csv.CSVWriter
    with writer(str(path), SCHEMA) as file:
        for start in range(0, rows, WRITTEN):
            numbers = np.arange(start, min(start + WRITTEN, rows))
            folders = pa.array(numbers // 10_000).cast(pa.string())
            names = pa.array(numbers * 2654435761 % 2**32).cast(pa.string())
            uris = pc.binary_join_element_wise(prefix, folders, "/", names, ".jpg", "")
            labels = pa.array(["street", "harbour", "field", None]).take(pa.array(numbers % 4))
            file.write_table(pa.table([uris, labels, pa.array(numbers % 4000, pa.int32())], schema=SCHEMA))


def in_own_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def list_manifest(path: str) -> dict[str, Any]:
    """List a whole manifest as a run does, without keeping the tables."""
    from pipeline.config.jobs import SegmentConfig
    from pipeline.inputs import list_images

    config = SegmentConfig(
        manifest=(path,), allow=("s3://bucket",), carry=("label", "height"), output="/nowhere", checkpoint="none"
    )
    before, start, cpu = memory_mib(), time.perf_counter(), time.process_time()
    first: float | None = None
    rows = 0
    for table in list_images(config):
        first = first or time.perf_counter() - start
        rows += len(table)
    seconds = time.perf_counter() - start
    return {
        "listed": rows,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "rows_per_s": round(rows / seconds),
        "seconds_to_first_table": round(first or 0, 3),
        "memory_before_mib": before,
        "memory_peak_mib": memory_mib(),
    }


def use_id_set(count: int) -> dict[str, Any]:
    """Add ids, then look up as many ids that are in the set and as many that are not."""
    from pipeline.output.id_set import IdSet

    before, ids = memory_mib(), IdSet()
    seconds = {}
    for what, seed, expected in (("add", 0, ASKED), ("find", 0, ASKED), ("miss", 1, 0)):
        taken = 0.0
        for batch in range(-(-count // ASKED)):
            some = random_ids(seed, batch)
            start = time.thread_time()
            found = ids.add(some) if what == "add" else ids.contains(some)
            taken += time.thread_time() - start
            assert found.true_count == expected
        seconds[what] = taken
    return {
        "bytes_per_id": round(ids.nbytes / len(ids), 2),
        "memory_before_mib": before,
        "memory_peak_mib": memory_mib(),
        **{f"{what}_per_s": round(len(ids) / taken) for what, taken in seconds.items()},
    }


def random_ids(seed: int, batch: int) -> pa.FixedSizeBinaryArray:
    content = np.random.default_rng([seed, batch]).bytes(16 * ASKED)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), ASKED, [None, pa.py_buffer(content)])


def memory_mib() -> int:
    """Return the peak memory of this process so far, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
