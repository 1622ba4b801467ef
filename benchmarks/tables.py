"""Costs and savings of the layout of the Parquet files: `python benchmarks/tables.py`.

Writes a part of many images in several layouts and queries each with pyarrow and DuckDB, on a file system that counts
what they read. Masks are those of built-in scenes, each shifted by a different number of pixels so that all differ.
Images are in the order in which a run finishes them, block by block.
"""

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq

from benchmarks import machine
from benchmarks.counted_files import CountedFiles
from pipeline.datasets.scenes import CLASSES as SCENE_CLASSES
from pipeline.datasets.scenes import scene
from pipeline.images.codec import encode_mask
from pipeline.output.parquet import ROW_GROUP_BYTES, write_options
from pipeline.output.schema import PREDICTED, image_id, masks_and_class_stats, table

HEIGHT, WIDTH, SCENES, BLOCK = 360, 480, 64, 64
NAMES = [entry.name for entry in SCENE_CLASSES]
PALETTE = np.array([entry.color for entry in SCENE_CLASSES], np.uint8)


def main() -> None:
    options = parse()
    masks, class_stats = tables_of(options.rows)
    report: dict[str, Any] = {**machine.about(), "rows": options.rows, "layouts": {}}
    for name, layout in layouts().items():
        report["layouts"][name] = measured = measure(masks, class_stats, layout)
        print(f"{name}: {measured['mib']} MiB of which masks {measured['masks_mib']}, {measured['seconds']} s to write")
        for question, found in measured["questions"].items():
            print(f"    {question:44} {found['kib']:10,.0f} KiB {found['reads']:6} reads")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16_384, help="number of images in the part")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


def tables_of(rows: int) -> tuple[pa.Table, pa.Table]:
    """Return masks and class_stats of `rows` images, of which one in fifty failed."""
    labels = [scene(0, n, HEIGHT, WIDTH)[1] for n in range(SCENES)]
    labels = [np.where(label == 255, 0, label).astype(np.uint8) for label in labels]
    statistics = [class_rows(label) for label in labels]
    blocks = [range(start, min(rows, start + BLOCK)) for start in range(0, rows, BLOCK)]
    random.Random(0).shuffle(blocks)
    predicted = [
        labelled(n, labels[n % SCENES], statistics[n % SCENES]) if n % 50 else failed(n) for b in blocks for n in b
    ]
    return masks_and_class_stats(
        table(predicted, PREDICTED), NAMES, "0" * 32, "20260101T000000-abcdef", datetime.now(UTC)
    )


def identity(n: int) -> dict[str, Any]:
    uri = f"s3://photos/2025/{n // 1000:04}/IMG_{n:08}.jpg"
    etag = np.random.default_rng(n).bytes(16).hex()
    return {"image_id": image_id(uri), "image_uri": uri, "etag": etag, "size_bytes": 40_000 + n, "seconds": 0.1}


def failed(n: int) -> dict[str, Any]:
    message = "the file ends in the middle of the image; its last bytes are missing"
    return {**identity(n), "error_stage": "decode", "error_type": "Truncated", "error_message": message}


def labelled(n: int, label_HW: np.ndarray, classes: list[dict[str, Any]]) -> dict[str, Any]:
    confidences = np.random.default_rng(n).uniform(0.4, 1, 3 + len(classes)).tolist()
    measures = ("mean_confidence", "mean_entropy", "low_confidence_fraction")
    return {
        **identity(n),
        "width": WIDTH,
        "height": HEIGHT,
        "mask": {
            "bytes": encode_mask(np.roll(label_HW, (n // WIDTH, n % WIDTH), (0, 1)), PALETTE),
            "path": identity(n)["image_id"].hex() + ".png",
        },
        **dict(zip(measures, confidences, strict=False)),
        "low_confidence_boxes": [{"x_min": 0, "y_min": 0, "x_max": 15 + n % 400, "y_max": 15, "pixel_count": 200}],
        "classes": [{**row, "mean_confidence": c} for row, c in zip(classes, confidences[3:], strict=True)],
    }


def class_rows(label_HW: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for k in np.unique(label_HW).tolist():
        y, x = np.nonzero(label_HW == k)
        box = {"x_min": int(x.min()), "y_min": int(y.min()), "x_max": int(x.max()) + 1, "y_max": int(y.max()) + 1}
        centre = {"centroid_x": float(x.mean()), "centroid_y": float(y.mean())}
        rows.append({"class_id": k, "pixel_count": len(x), "pixel_fraction": len(x) / label_HW.size, **box, **centre})
    return rows


class Layout(NamedTuple):
    """Layout of a table: options of pyarrow.parquet.write_table, and whether its rows are first sorted by URI."""

    options: Callable[[pa.Table], dict[str, Any]]
    is_sorted: bool = True


def layouts() -> dict[str, Layout]:
    def ours(row_group_bytes: int = ROW_GROUP_BYTES, is_sorted: bool = True, **changes: Any) -> Layout:
        return Layout(lambda written: {**write_options(written, row_group_bytes), **changes}, is_sorted)

    blooms = {name: {"ndv": 1024, "fpp": 0.01} for name in ("image_id", "image_uri")}
    return {
        "pyarrow's defaults, zstd": Layout(lambda written: {"compression": "zstd"}, is_sorted=False),
        "ours": ours(),
        "ours, in the order of the run": ours(is_sorted=False),
        "ours, nothing compressed": ours(compression="NONE"),
        "ours, dictionaries everywhere": ours(use_dictionary=True),
        "ours, with Bloom filters": ours(bloom_filter_options=blooms),
        "ours, no page index": ours(write_page_index=False),
        **{f"ours, row groups of {mib} MiB": ours(mib * 2**20) for mib in (2, 64)},
    }


def measure(masks: pa.Table, class_stats: pa.Table, layout: Layout) -> dict[str, Any]:
    written, seconds = {}, 0.0
    for name, contents in (("masks", masks), ("class_stats", class_stats)):
        buffer = io.BytesIO()
        begin = time.process_time()
        ordered = contents.sort_by("image_uri") if layout.is_sorted else contents
        pq.write_table(ordered, buffer, **layout.options(ordered))
        seconds += time.process_time() - begin
        written[f"{name}/part.parquet"] = buffer.getvalue()
    metadata = pq.read_metadata(io.BytesIO(written["masks/part.parquet"]))
    sizes = [
        metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in range(metadata.num_columns)
    ]
    of_masks = sum(column.total_compressed_size for column in sizes if column.path_in_schema == "mask.bytes")
    files = CountedFiles(written)
    found = {}
    for question, ask in questions(files, masks["image_uri"][len(masks) // 2].as_py()).items():
        files.start()
        ask()
        found[question] = {"kib": round(files.bytes_read / 1024, 1), "reads": files.reads}
    return {
        "mib": round(sum(map(len, written.values())) / 2**20, 2),
        "masks_mib": round(of_masks / 2**20, 2),
        "seconds": round(seconds, 2),
        "row_groups": metadata.num_row_groups,
        "questions": found,
    }


def questions(files: CountedFiles, uri: str) -> dict[str, Callable[[], Any]]:
    system = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(files))

    def arrow(name: str, columns: list[str], where: Any = None) -> Callable[[], Any]:
        return lambda: ds.dataset(f"{name}/part.parquet", filesystem=system).to_table(columns, filter=where)

    def sql(statement: str) -> Callable[[], Any]:
        def ask() -> Any:
            connection = duckdb.connect()
            connection.register_filesystem(files)
            for name in ("masks", "class_stats"):
                source = f"read_parquet('counted://{name}/*.parquet')"
                connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}")
            return connection.execute(statement).fetchall()

        return ask

    key = image_id(uri)
    return {
        "mean confidence, pyarrow": arrow("masks", ["mean_confidence"]),
        "mean confidence, DuckDB": sql("SELECT avg(mean_confidence) FROM masks"),
        "area by class, pyarrow": arrow("class_stats", ["class_name", "pixel_count"]),
        "area by class, DuckDB": sql("SELECT class_name, sum(pixel_count) FROM class_stats GROUP BY 1"),
        "names of failed images, DuckDB": sql("SELECT image_uri, error_type FROM masks WHERE status = 'error'"),
        "one mask by id, pyarrow": arrow("masks", ["mask"], pc.field("image_id") == pa.scalar(key, pa.binary(16))),
        "one mask by id, DuckDB": sql(f"SELECT mask FROM masks WHERE image_id = from_hex('{key.hex()}')"),
        "one mask by URI, pyarrow": arrow("masks", ["mask"], pc.field("image_uri") == uri),
        "one mask by URI, DuckDB": sql(f"SELECT mask FROM masks WHERE image_uri = '{uri}'"),
        "classes of an image by URI, DuckDB": sql(f"SELECT class_name FROM class_stats WHERE image_uri = '{uri}'"),
    }


if __name__ == "__main__":
    main()
