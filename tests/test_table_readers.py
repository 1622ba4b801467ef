"""The tables as other programs read them: each joins masks, class_stats and classes and finds the same."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from benchmarks.counted_files import CountedFiles
from pipeline.images.codec import encode_mask
from pipeline.output.parquet import write_options
from pipeline.output.schema import MASKS, PREDICTED, masks_and_class_stats, table
from tests.pipeline.samples import CLASS_IDS_HW, CLASS_NAMES, MADE_AT, failed, segmented, write_classes, write_part
from tests.requirements import JAVA

SQL = Path(__file__).parent.parent / "sql"
# Image, class, its colour's red, and its share of the image.
JOINED = [(uri, name, red, share) for uri in "abc" for name, red, share in (("road", 10, 0.25), ("sky", 0, 0.75))]
JOIN = """
SELECT masks.image_uri, classes.class_name, {red}, class_stats.pixel_fraction
FROM masks JOIN class_stats ON masks.image_id = class_stats.image_id
JOIN classes ON class_stats.class_id = classes.class_id
WHERE masks.status = 'ok' ORDER BY 1, 2
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images labelled by two runs, and a failure."""
    folder = tmp_path_factory.mktemp("output")
    write_classes(str(folder))
    write_part(str(folder), ["a", "b"], failures=["broken"])
    write_part(str(folder), ["c"], run_id="run2")
    return folder


def test_pyarrow(output: Path) -> None:
    masks = ds.dataset(output / "masks").to_table(["image_id", "image_uri"], filter=pc.field("status") == "ok")
    class_stats = ds.dataset(output / "class_stats").to_table(["image_id", "class_id", "pixel_fraction"])
    classes = ds.dataset(output / "classes.parquet").to_table()
    joined = masks.join(class_stats, "image_id").join(classes, "class_id").sort_by("class_name").sort_by("image_uri")
    columns = ("image_uri", "class_name", "red", "pixel_fraction")
    assert list(zip(*(joined[name].to_pylist() for name in columns), strict=True)) == JOINED


def test_pandas(output: Path) -> None:
    masks = pd.read_parquet(output / "masks", columns=["image_id", "image_uri", "status"])
    class_stats = pd.read_parquet(output / "class_stats", columns=["image_id", "class_id", "pixel_fraction"])
    joined = masks[masks.status == "ok"].merge(class_stats).merge(pd.read_parquet(output / "classes.parquet"))
    found = joined.sort_values(["image_uri", "class_name"])[["image_uri", "class_name", "red", "pixel_fraction"]]
    assert [tuple(row) for row in found.itertuples(index=False)] == JOINED


def test_duckdb_with_the_statements_in_sql(output: Path) -> None:
    connection = duckdb.connect()
    connection.execute((SQL / "duckdb.sql").read_text().replace("OUTPUT", str(output)))
    assert connection.execute(JOIN.format(red="red")).fetchall() == JOINED


def test_polars(output: Path) -> None:
    import polars as pl

    masks = pl.scan_parquet(output / "masks" / "*.parquet").filter(pl.col("status") == "ok")
    class_stats = pl.scan_parquet(output / "class_stats" / "*.parquet").select("image_id", "class_id", "pixel_fraction")
    classes = pl.scan_parquet(output / "classes.parquet")
    joined = masks.join(class_stats, on="image_id").join(classes, on="class_id").sort("image_uri", "class_name")
    assert joined.select("image_uri", "class_name", "red", "pixel_fraction").collect().rows() == JOINED


@pytest.mark.slow
def test_hugging_face_datasets_shows_masks_as_images(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    def load(table: str) -> datasets.Dataset:
        files = str(output / table)
        return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))

    masks = load("masks/*.parquet")
    assert isinstance(masks.features["mask"], datasets.Image)
    labelled = masks.filter(lambda row: row["status"] == "ok").sort("image_uri")
    assert [np.asarray(row["mask"]).tolist() for row in labelled] == [CLASS_IDS_HW.tolist()] * 3
    classes = {row["class_id"]: row for row in load("classes.parquet")}
    of_image: dict[bytes, list[tuple[str, int, float]]] = {}
    for row in load("class_stats/*.parquet"):
        known = classes[row["class_id"]]
        entry = (known["class_name"], known["red"], row["pixel_fraction"])
        of_image.setdefault(row["image_id"], []).append(entry)
    assert [(row["image_uri"], *entry) for row in labelled for entry in sorted(of_image[row["image_id"]])] == JOINED


@pytest.mark.slow
@JAVA.mark
def test_spark_with_the_statements_in_sql(output: Path, tmp_path: Path) -> None:
    """In a process of its own, since Spark leaves threads and a Java machine behind."""
    statements = [text.strip() for text in (SQL / "spark.sql").read_text().replace("OUTPUT", str(output)).split(";")]
    script = tmp_path / "ask.py"
    script.write_text(
        "import json\nfrom pyspark.sql import SparkSession\n"
        f"session = SparkSession.builder.master('local[1]').config('spark.sql.warehouse.dir', {str(tmp_path)!r})\n"
        "session = session.config('spark.ui.enabled', 'false').getOrCreate()\n"
        f"for statement in {[text for text in statements if text]!r}:\n    session.sql(statement)\n"
        f"print('found', json.dumps([list(row) for row in session.sql({JOIN.format(red='red')!r}).collect()]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = [line.removeprefix("found ") for line in done.stdout.splitlines() if line.startswith("found ")]
    assert [tuple(row) for row in json.loads(found)] == JOINED


# What is read


@pytest.fixture(scope="module")
def large() -> CountedFiles:
    """A part of which the masks are nearly all."""
    noise = np.random.default_rng(0).integers(0, 2, (2000, 64, 64), dtype=np.uint8)
    rows = []
    for n, ids_HW in enumerate(noise):
        row = segmented(f"s3://photos/{n:05}.jpg") if n % 10 else failed(f"s3://photos/{n:05}.jpg")
        if n % 10:
            row["mask"] = {"bytes": encode_mask(ids_HW, np.zeros((2, 3), np.uint8)), "path": "x.png"}
        rows.append(row)
    masks, class_stats = masks_and_class_stats(table(rows, PREDICTED), CLASS_NAMES, "model1", "run1", MADE_AT)
    written = {}
    for name, contents in (("masks", masks), ("class_stats", class_stats)):
        buffer = io.BytesIO()
        pq.write_table(contents, buffer, **write_options(contents, row_group_bytes=2**19))  # as in a larger part
        written[f"{name}/part.parquet"] = buffer.getvalue()
    return CountedFiles(written)


def ask_pyarrow(files: CountedFiles, columns: list[str]) -> int:
    system = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(files))
    return len(ds.dataset("masks/part.parquet", filesystem=system).to_table(columns))


def ask_duckdb(files: CountedFiles, columns: list[str]) -> int:
    connection = duckdb.connect()
    connection.register_filesystem(files)
    wanted = ", ".join(columns)
    return len(connection.execute(f"SELECT {wanted} FROM read_parquet('counted://masks/*.parquet')").fetchall())


STATISTICS = [name for name in MASKS.names if name != "mask"]


@pytest.mark.parametrize("ask", [ask_pyarrow, ask_duckdb])
@pytest.mark.parametrize("columns", [["status", "mean_confidence"], STATISTICS], ids=["two columns", "all but masks"])
def test_a_scan_of_statistics_reads_no_masks(large: CountedFiles, ask: Callable, columns: list[str]) -> None:
    everything = sum(large.info(name)["size"] for name in ("masks/part.parquet",))
    large.start()
    assert ask(large, columns) == 2000
    without_masks = large.bytes_read
    assert 0 < without_masks < everything / 4, (without_masks, everything)
    large.start()
    assert ask(large, [*columns, "mask"]) == 2000
    assert large.bytes_read > without_masks + everything / 2


def test_one_mask_is_found_without_reading_the_others(large: CountedFiles) -> None:
    connection = duckdb.connect()
    connection.register_filesystem(large)
    large.start()
    sql = "SELECT mask.bytes FROM read_parquet('counted://masks/*.parquet') WHERE image_uri = 's3://photos/00777.jpg'"
    assert len(connection.execute(sql).fetchall()) == 1
    assert large.bytes_read < large.info("masks/part.parquet")["size"] / 2
