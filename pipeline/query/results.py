"""Output of query results, for terminals and as files."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

import duckdb

from pipeline import storage
from pipeline.console import log

Format = Literal["table", "csv", "json", "parquet"]


def show(relation: duckdb.DuckDBPyRelation) -> None:
    """Print a table, truncated to the size of the terminal; if stdout is not a terminal, print all of it."""
    if sys.stdout.isatty():
        size = shutil.get_terminal_size()
        relation.show(max_width=size.columns, max_rows=max(20, size.lines - 8), null_value="")
    else:
        relation.show(max_width=100_000, max_rows=2**31 - 1, max_col_width=100_000, null_value="")


def encoded(connection: duckdb.DuckDBPyConnection, relation: duckdb.DuckDBPyRelation, kind: Format) -> bytes:
    """Return the result as CSV with a header and nested values as text, as a JSON list of objects, or as Parquet."""
    options = {
        "csv": "FORMAT csv, HEADER",
        "json": "FORMAT json, ARRAY true",
        "parquet": "FORMAT parquet, COMPRESSION zstd",
    }
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        path = Path(folder, "result")
        connection.register("result_to_write", relation)
        connection.execute(f"COPY result_to_write TO '{path}' ({options[kind]})")
        return path.read_bytes()


def write(
    connection: duckdb.DuckDBPyConnection, relation: duckdb.DuckDBPyRelation, kind: Format, target: str | None
) -> None:
    """Print the result, or write it to a file or URI and report that. Raises UserError."""
    if kind == "table":
        show(relation)
        return
    content = encoded(connection, relation, kind)
    if target is not None:
        storage.write_bytes(target, content)
        log(f"{len(relation):,} {'row' if len(relation) == 1 else 'rows'} written to {target}")
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
