"""Parquet files of an output: how they are read and written. benchmarks/tables.py measures each choice."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.storage.parquet_files import open_parquet, parquet_bytes

# In memory. With larger row groups a reader of one mask fetches more bytes; with smaller ones a reader of a column of
# all images sends more requests.
ROW_GROUP_BYTES = 16 * 2**20
# In masks all values of these columns differ, so a dictionary would only take space.
WITHOUT_DICTIONARY = ("image_id", "image_uri", "etag", "mask.bytes", "mask.path")


def write_options(table: pa.Table, row_group_bytes: int = ROW_GROUP_BYTES) -> dict[str, Any]:
    """Return the options of pyarrow.parquet.write_table for masks, class_stats or classes."""
    columns = [path for field in table.schema for path in _columns(field.name, field.type)]
    is_masks = "mask.bytes" in columns
    return {
        "row_group_size": max(1, len(table) * row_group_bytes // max(1, table.nbytes)),
        "compression": "ZSTD",  # for masks, too, because the PNGs share their headers and palettes
        "use_dictionary": [path for path in columns if not (is_masks and path in WITHOUT_DICTIONARY)],
        "write_page_index": True,
    }


def _columns(path: str, kind: pa.DataType) -> Iterator[str]:
    """Yield the paths of the Parquet columns of an Arrow column."""
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _columns(f"{path}.{child.name}", child.type)
    elif pa.types.is_list(kind):
        yield from _columns(f"{path}.list.element", kind.value_type)
    else:
        yield path


def write_table(uri: str, table: pa.Table) -> int:
    """Write one Parquet file atomically and return its size in bytes. Raises: UserError."""
    content = parquet_bytes(table, **write_options(table))
    storage.write_bytes(uri, content)
    return len(content)


def read_table(uri: str, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read one Parquet file, or some of its columns.

    Args:
        schema: the columns that the file may have; it need not have all of them.

    Raises: UserError if the file cannot be read, or has other columns or types than `schema`.
    """
    with storage.explained(uri), storage.open_file(uri) as file:
        try:
            parquet = open_parquet(file, pre_buffer=True)
            if schema is not None:
                _require_ours(uri, parquet.schema_arrow, schema)
            table = parquet.read(columns)
            return table.select(columns) if columns else table
        except pa.ArrowInvalid as error:
            raise UserError(f"{uri}: cannot be read as Parquet: {error}; delete it") from error


def _require_ours(uri: str, found: pa.Schema, schema: pa.Schema) -> None:
    for column in found:
        known = schema.field(column.name).type if column.name in schema.names else None
        if column.type != known:
            raise UserError(
                f"{uri}: column {column.name!r} has the type {column.type}, but "
                + (f"this program writes it as {known}" if known else "this program's tables have no such column")
                + "; another program or another version wrote the file. Move it out of the output"
            )
