"""How the tables of an output are read and written; benchmarks/tables.py shows what each choice costs and saves."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.storage.parquet_files import open_parquet, parquet_bytes

# In memory. What a reader may fetch to have one mask; but each is asked for every column that is wanted of all images.
ROW_GROUP_BYTES = 16 * 2**20
# In masks all their values differ, so a dictionary of them only takes room.
WITHOUT_DICTIONARY = ("image_id", "image_uri", "etag", "mask.bytes", "mask.path")


def write_options(table: pa.Table, row_group_bytes: int = ROW_GROUP_BYTES) -> dict[str, Any]:
    """Options of pyarrow.parquet.write_table for masks, class_stats or classes."""
    columns = [path for field in table.schema for path in _columns(field.name, field.type)]
    is_masks = "mask.bytes" in columns
    return {
        "row_group_size": max(1, len(table) * row_group_bytes // max(1, table.nbytes)),
        "compression": "ZSTD",  # of masks, too: their headers and palettes are the same
        "use_dictionary": [path for path in columns if not (is_masks and path in WITHOUT_DICTIONARY)],
        "write_page_index": True,
    }


def _columns(path: str, kind: pa.DataType) -> Iterator[str]:
    """Paths of the Parquet columns of an Arrow column."""
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _columns(f"{path}.{child.name}", child.type)
    elif pa.types.is_list(kind):
        yield from _columns(f"{path}.list.element", kind.value_type)
    else:
        yield path


def write_table(uri: str, table: pa.Table) -> int:
    """Write one Parquet file, whole or not at all; returns its bytes. Raises UserError."""
    content = parquet_bytes(table, **write_options(table))
    storage.write_bytes(uri, content)
    return len(content)


def read_table(uri: str, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read one Parquet file, or only some of its columns.

    Args:
        schema: the columns that it may have; one that it lacks is of no concern here.

    Raises: UserError.
    """
    with storage.explained(uri), storage.open_file(uri) as file:
        try:
            parquet = open_parquet(file, pre_buffer=True)
            if schema is not None:
                _require_ours(uri, parquet.schema_arrow, schema)
            table = parquet.read(columns)
            return table.select(columns) if columns else table
        except pa.ArrowInvalid as error:
            raise UserError(f"{uri}: cannot be read as Parquet: {error}; remove it") from error


def _require_ours(uri: str, found: pa.Schema, schema: pa.Schema) -> None:
    for column in found:
        known = schema.field(column.name).type if column.name in schema.names else None
        if column.type != known:
            raise UserError(
                f"{uri}: has a column {column.name!r} of type {column.type}, "
                + (f"which is {known} in this program's tables" if known else "which this program's tables lack")
                + "; it was not written by it, or by another version: move it away"
            )
