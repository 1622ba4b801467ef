"""Parquet files, whoever wrote them: the one place that reads and writes them with pyarrow.

A column's type may be an extension that a library registered in this process. The values of Ray Data's
`ray.data.arrow_pickled_object` are pickles, which run what they say when pyarrow turns them into objects. Neither
this project's files nor its inputs need such a type, so a file with any is refused before a value is read.
"""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FileMetaData = pq.FileMetaData
ParquetFile = pq.ParquetFile
read_metadata = pq.read_metadata


class ExtensionTypeError(pa.ArrowInvalid):
    """A file has a column of an Arrow extension type."""


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file for reading.

    Args:
        source: an open file.
        options: of pyarrow.parquet.ParquetFile.

    Raises:
        pyarrow.ArrowInvalid: it is no Parquet file, or (ExtensionTypeError) a column's type is an extension or has
            one in it.
    """
    # UUID and JSON, which are types of Parquet's own, are read as the bytes and the text that they are.
    file = pq.ParquetFile(source, arrow_extensions_enabled=False, **options)
    require_plain(file.schema_arrow)
    return file


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """Return a table as a Parquet file, with options of pyarrow.parquet.write_table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def require_plain(schema: pa.Schema) -> None:
    """Raise ExtensionTypeError if a column has an extension type, or values that have one, at any depth."""
    for field in schema:
        for kind in _kinds(field.type):
            if isinstance(kind, pa.BaseExtensionType):
                raise ExtensionTypeError(
                    f"column {field.name!r} has the extension type {kind.extension_name}, whose values could run code "
                    f"when they are read; write the column as {kind.storage_type}, or leave it out"
                )


def _kinds(kind: pa.DataType) -> Iterator[pa.DataType]:
    """A type and those of its values."""
    yield kind
    if isinstance(kind, pa.DictionaryType):
        yield from _kinds(kind.value_type)
    elif not isinstance(kind, pa.BaseExtensionType):
        for number in range(kind.num_fields):
            yield from _kinds(kind.field(number).type)
