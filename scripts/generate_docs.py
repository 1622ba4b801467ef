"""Generator of the documentation of tables and error types from the code: `python -m scripts.generate_docs`.

Writes the lists in docs/tables.md and docs/troubleshooting.md, each between two marks, and the statements in sql/.
"""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from pipeline.output.errors import ERROR_TYPES
from pipeline.output.schema import CLASS_STATS, CLASSES, MASKS
from pipeline.query.engine import VIEWS

ROOT = Path(__file__).parent.parent
TABLES = {"masks": MASKS, "class_stats": CLASS_STATS, "classes": CLASSES}


def column_list(schema: pa.Schema) -> str:
    """Return a Markdown table of the columns."""
    rows = [f"| `{field.name}` | `{field.type}` | {_nulls(field)} | {_description(field)} |" for field in schema]
    return "\n".join(["| column | type | null | |", "|-|-|-|-|", *rows])


def duckdb_sql() -> str:
    views = [
        f"CREATE OR REPLACE VIEW {name} AS\n"
        f"  FROM read_parquet(getvariable('output') || '/{place}', hive_partitioning = false);"
        for name, place in VIEWS.items()
    ]
    head = "-- DuckDB: views of an output. s3:// needs the httpfs extension, and CREATE SECRET for the credentials."
    return _file(head, "SET VARIABLE output = 'OUTPUT';", *views)


def spark_sql() -> str:
    tables = [
        f"CREATE TABLE {name} (\n{_columns(schema)}\n)\nUSING parquet\nLOCATION 'OUTPUT/{place}';"
        for (name, schema), place in zip(TABLES.items(), ("masks", "class_stats", "classes.parquet"), strict=True)
    ]
    head = "-- Spark: external tables on an output. OUTPUT is a folder or s3a://BUCKET/PREFIX."
    return _file(head, *tables)


def athena_sql() -> str:
    end = "STORED AS PARQUET\nLOCATION"
    tables = [
        f"CREATE EXTERNAL TABLE {name} (\n{_columns(schema)}\n)\n{end} 'OUTPUT/{name}/';"
        for name, schema in TABLES.items()
        if name != "classes"
    ]
    view = (
        "-- An Athena table is a folder, but classes.parquet is a file: this view has the classes that occur, without\n"
        "-- their colors.\n"
        "CREATE OR REPLACE VIEW classes AS\nSELECT class_id, arbitrary(class_name) AS class_name FROM class_stats "
        "GROUP BY class_id;"
    )
    head = "-- Athena: external tables on an output. Run one statement at a time. OUTPUT is s3://BUCKET/PREFIX."
    return _file(head, *tables, view)


def _file(*pieces: str) -> str:
    return "\n\n".join(pieces) + "\n"


STATEMENTS: dict[str, Callable[[], str]] = {"duckdb": duckdb_sql, "spark": spark_sql, "athena": athena_sql}


def documents() -> dict[Path, str]:
    """Return the up-to-date content of all generated files."""
    tables, troubleshooting = ROOT / "docs" / "tables.md", ROOT / "docs" / "troubleshooting.md"
    text = tables.read_text()
    for name, schema in TABLES.items():
        text = filled_in(text, f"columns of {name}", column_list(schema))
    return {
        tables: text,
        troubleshooting: filled_in(troubleshooting.read_text(), "kinds of failures", failure_list()),
        **{ROOT / "sql" / f"{name}.sql": make() for name, make in STATEMENTS.items()},
    }


def failure_list() -> str:
    """Return a Markdown table of the error types."""
    return "\n".join(
        ["| `error_type` | |", "|-|-|", *(f"| `{kind}` | {meaning} |" for kind, meaning in ERROR_TYPES.items())]
    )


def filled_in(text: str, name: str, content: str) -> str:
    """Return the text with the content between a mark and the next end mark replaced."""
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}{content}\n{rest[rest.index(end) :]}"


def _columns(schema: pa.Schema) -> str:
    """Return the columns of a CREATE TABLE; comments have no quotes and semicolons, at which some tools split."""
    comments = (_description(field).replace("'", "").replace(";", ",") for field in schema)
    return ",\n".join(
        f"  {field.name} {_spark_type(field.type)} COMMENT '{text}'"
        for field, text in zip(schema, comments, strict=True)
    )


def _spark_type(kind: pa.DataType) -> str:
    """Return the name of a type in Hive DDL, which Spark and Athena share."""
    if pa.types.is_struct(kind):
        return f"STRUCT<{', '.join(f'{child.name}: {_spark_type(child.type)}' for child in kind)}>"
    if pa.types.is_list(kind):
        return f"ARRAY<{_spark_type(kind.value_type)}>"
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP"
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "BINARY"
    return {"string": "STRING", "int32": "INT", "int64": "BIGINT", "float": "FLOAT", "double": "DOUBLE"}[str(kind)]


def _description(field: pa.Field) -> str:
    return field.metadata[b"description"].decode()


def _nulls(field: pa.Field) -> str:
    return "yes" if field.nullable else "no"


def main() -> None:
    for path, text in documents().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
