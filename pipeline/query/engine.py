"""SQL queries with DuckDB on an output's tables, local or in a bucket."""

import json
import posixpath
import re
from typing import Any

import duckdb
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipeline import storage
from pipeline.config.bands import Rendering
from pipeline.errors import UserError
from pipeline.output.parquet import read_table
from pipeline.output.schema import SCHEMA_VERSION

VIEWS = {"masks": "masks/*.parquet", "class_stats": "class_stats/*.parquet", "classes": "classes.parquet"}
RUNS = pa.schema(
    [
        ("run_id", pa.string()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("model_id", pa.string()),
        ("images", pa.int64()),  # in the input
        ("done_before", pa.int64()),
        ("labelled", pa.int64()),  # in this run
        ("failed", pa.int64()),
        ("seconds", pa.float64()),
        ("seconds_to_first", pa.float64()),
        ("record", pa.string()),  # content of runs/RUN_ID.json
    ]
)


def connect(output: str) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with the views masks, class_stats, classes and runs of an output's current state.

    The view class_stats contains only committed parts, because a run writes a part's statistics before its masks.

    Raises: UserError if the output is missing, empty, or not a segmentation output.
    """
    connection = duckdb.connect()
    filesystem, _ = storage.open_filesystem(output, snapshot=True)
    if not isinstance(filesystem, LocalFileSystem):
        connection.register_filesystem(filesystem)
    committed: set[str] = set()  # names of parts; VIEWS lists the masks first
    for view, pattern in VIEWS.items():
        folder = storage.join(output, pattern.split("*")[0])
        names = {posixpath.basename(uri) for uri in storage.find(folder) if uri.endswith(".parquet")}
        if not names:
            raise UserError(f"output {output}: has no {pattern}; {_what_instead(output, view)}")
        source = files(output, pattern)
        if view == "masks":
            committed = names
        elif view == "class_stats" and (whole := sorted(names & committed)):
            source = f"[{', '.join(files(output, f'{view}/{name}') for name in whole)}]"
        try:
            connection.execute(f"CREATE VIEW {view} AS SELECT * FROM read_parquet({source}, hive_partitioning = false)")
        except duckdb.Error as error:
            raise UserError(
                f"output {output}: {pattern} cannot be read: {error}; run python jobs/verify.py {output}"
            ) from None
    connection.register("runs", read_runs(output))
    return connection


def files(output: str, pattern: str) -> str:
    """Return a SQL string literal with files of an output, for read_parquet. Escapes wildcards in `output`."""
    filesystem, path = storage.open_filesystem(output)
    place = path if isinstance(filesystem, LocalFileSystem) else output
    source = storage.join(re.sub(r"([*?[])", r"[\1]", place), pattern).replace("'", "''")
    return f"'{source}'"


def warnings(output: str) -> list[str]:
    """Return warnings for users of an output. Raises UserError if it is not a segmentation output."""
    metadata = read_table(storage.join(output, "classes.parquet")).schema.metadata or {}
    version = metadata.get(b"sceneparse.schema_version", b"").decode()
    if not version:
        raise UserError(f"output {output}: its classes.parquet was not written by segment_bucket.py; {RIGHT_OUTPUT}")
    found = []
    if version != SCHEMA_VERSION:
        found.append(
            f"output {output} has table schema version {version}, but this Sceneparse uses {SCHEMA_VERSION}: columns "
            "differ"
        )
    if not storage.find(storage.join(output, "runs")):
        found.append(f"output {output}: no run has finished yet; results cover the images labeled so far")
    return found


def run(
    connection: duckdb.DuckDBPyConnection, sql: str, values: dict[str, str] | None = None
) -> duckdb.DuckDBPyRelation | None:
    """Run one statement with values for its $names. Raises UserError with DuckDB's message."""
    try:
        relation = connection.sql(sql, params=values or None)
        if relation is not None:
            relation = relation.materialize()  # DuckDB is lazy: without this, errors occur when the result is shown
        return relation
    except duckdb.Error as error:
        raise UserError(f"SQL: {error}") from None


def read_runs(output: str) -> pa.Table:
    """Return the finished runs as a RUNS table. Raises UserError."""
    rows = []
    for uri in sorted(storage.find(storage.join(output, "runs"))):
        if not uri.endswith(".json"):
            continue
        text = storage.read_bytes(uri).decode("utf-8", "replace")
        try:
            record = json.loads(text)
            outcomes: dict[str, int] = record["outcomes"]
            row = {name: record.get(name) for name in RUNS.names}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{uri}: not a valid record of a run ({error!r}); run python jobs/verify.py to check the output"
            ) from None
        row |= {
            "labelled": outcomes.get("ok", 0),
            "failed": sum(outcomes.values()) - outcomes.get("ok", 0),
            "record": text,
        }
        rows.append(row)
    finished = pa.array([row.pop("finished_at") for row in rows], pa.string())
    table = pa.Table.from_pylist(rows, pa.schema([field for field in RUNS if field.name != "finished_at"]))
    return table.add_column(1, "finished_at", pa.compute.cast(finished, RUNS.field("finished_at").type)).cast(RUNS)


def last_configuration(output: str) -> dict[str, Any]:
    """Return the configuration of the last finished run, empty if there is none. Raises UserError."""
    runs = sorted(read_runs(output).to_pylist(), key=lambda run: run["run_id"])
    return (json.loads(runs[-1]["record"]).get("configuration") or {}) if runs else {}


def rendering_of(configuration: dict[str, Any]) -> Rendering:
    """Return the bands and the value range of a run's configuration; those of older runs have neither."""
    return Rendering.of(configuration.get("bands"), configuration.get("value_range"))


RIGHT_OUTPUT = "use the --output of a jobs/segment_bucket.py run"


def _what_instead(output: str, view: str) -> str:
    if view == "masks" and storage.exists(storage.join(output, "classes.parquet")):
        return "a run has started but not written a part yet; try again later"
    return RIGHT_OUTPUT
