"""SQL over an output's tables, local or in a bucket, by DuckDB."""

import re

import duckdb
from fsspec.implementations.local import LocalFileSystem

from pipeline import storage
from pipeline.errors import UserError

VIEWS = {"masks": "masks/*.parquet", "class_stats": "class_stats/*.parquet", "classes": "classes.parquet"}


def connect(output: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views masks, class_stats and classes over an output.

    Raises: UserError if the output is missing or empty.
    """
    connection = duckdb.connect()
    filesystem, path = storage.open_filesystem(output)
    if not isinstance(filesystem, LocalFileSystem):
        connection.register_filesystem(filesystem)
    for view, pattern in VIEWS.items():
        folder = storage.join(output, pattern.split("*")[0])
        if not any(uri.endswith(".parquet") for uri in storage.find(folder)):
            raise UserError(f"output {output}: has no {pattern}; give the --output of a jobs/segment_bucket.py run")
        place = path if isinstance(filesystem, LocalFileSystem) else output
        source = storage.join(re.sub(r"([*?[])", r"[\1]", place), pattern)
        quoted = source.replace("'", "''")
        connection.execute(f"CREATE VIEW {view} AS SELECT * FROM read_parquet('{quoted}', hive_partitioning = false)")
    return connection


def run(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation | None:
    """Run one statement. Raises UserError with DuckDB's own words."""
    try:
        relation = connection.sql(sql)
        if relation is not None:
            relation = relation.materialize()  # else DuckDB computes, and fails, when the result is shown
        return relation
    except duckdb.Error as error:
        raise UserError(f"SQL: {error}") from None
