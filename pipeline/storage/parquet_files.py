"""Parquet files, whoever wrote them: the one place that reads and writes them with pyarrow.

A column's type may be an extension that a library registered in this process. The values of Ray Data's
`ray.data.arrow_pickled_object` are pickles, which run what they say when pyarrow turns them into objects; what Ray
Data's tensors say of themselves is one where RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA allows it, and it runs when
pyarrow makes the type, which is when it opens the file. Neither this project's files nor its inputs need such a type,
so a file with any is refused: by what its footer says, before pyarrow sees it.
"""

import base64
import binascii
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FileMetaData = pq.FileMetaData
ParquetFile = pq.ParquetFile

MAGIC = b"PAR1"
TAIL = 1 << 16  # bytes of the first reading, in which most footers lie
# Where a footer keeps the Arrow schema that a file was written with, which has the extension types. The key as it
# stands there, and what follows in Thrift's compact protocol: the header of the next field, which is a string.
ARROW_SCHEMA, NEXT_STRING = b"ARROW:schema", b"\x18"
EXTENSION_NAME = b"ARROW:extension:name"
CANONICAL = b"arrow."  # Arrow's own types, as UUID and JSON; they run nothing


class ExtensionTypeError(pa.ArrowInvalid):
    """A file has a column of an Arrow extension type."""


def open_parquet(source: Any, metadata: pq.FileMetaData | None = None, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file for reading.

    Args:
        source: an open file.
        metadata: what `read_metadata` has returned of it; none: it is read.
        options: of pyarrow.parquet.ParquetFile.

    Raises:
        pyarrow.ArrowInvalid: it is no Parquet file, or (ExtensionTypeError) a column's type is an extension or has
            one in it.
    """
    metadata = metadata or read_metadata(source)
    # UUID and JSON, which are types of Parquet's own, are read as the bytes and the text that they are.
    file = pq.ParquetFile(source, metadata=metadata, arrow_extensions_enabled=False, **options)
    require_plain(file.schema_arrow)
    return file


def read_metadata(source: Any) -> pq.FileMetaData:
    """Read the footer of a Parquet file. Raises as `open_parquet` does."""
    footer = _footer(source)
    if footer[-4:] != MAGIC:
        pq.read_metadata(source)
        raise pa.ArrowInvalid("is encrypted, or no Parquet file")
    for schema in _arrow_schemas(footer):
        for field in schema:
            for inner in _fields(field):
                name = (inner.metadata or {}).get(EXTENSION_NAME.lower())
                if name is not None and not name.startswith(CANONICAL):
                    raise _refusal(field.name, name.decode(errors="replace"), inner.type)
    return pq.read_metadata(io.BytesIO(MAGIC + footer))


def _footer(source: Any) -> bytes:
    """The end of a file, from where its footer begins if it is Parquet."""
    size = source.seek(0, io.SEEK_END)

    def end(length: int) -> bytes:
        source.seek(max(0, size - length))
        return source.read(min(length, size))

    tail = end(TAIL)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    return (end(length) if len(tail) < length <= size else tail)[-length:]


def _arrow_schemas(footer: bytes) -> Iterator[pa.Schema]:
    """The Arrow schemas in a footer, without a type made of what they say; one that cannot be found is refused."""
    start = 0
    while (start := footer.find(ARROW_SCHEMA, start)) >= 0:
        start += len(ARROW_SCHEMA)
        try:
            encoded = _next_string(footer, start)
            content = base64.b64decode(encoded, validate=True)
            yield pa.ipc.read_schema(pa.py_buffer(content.replace(EXTENSION_NAME, EXTENSION_NAME.lower())))
        except (IndexError, binascii.Error, pa.ArrowException, OSError, ValueError) as error:
            raise pa.ArrowInvalid(
                f"its Arrow schema cannot be read ({error}); write it anew, with store_schema=False in pyarrow"
            ) from None


def _next_string(footer: bytes, start: int) -> bytes:
    """The value that follows a key, in Thrift's compact protocol."""
    if footer[start : start + 1] != NEXT_STRING:
        raise ValueError("it stands in an unusual place")
    length, shift, place = 0, 0, start + 1
    while True:
        byte = footer[place]
        place += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return footer[place : place + length]


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """Return a table as a Parquet file, with options of pyarrow.parquet.write_table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def require_plain(schema: pa.Schema) -> None:
    """Raise ExtensionTypeError if a column has an extension type, or values that have one, at any depth."""
    for field in schema:
        for kind in (inner.type for inner in _fields(field)):
            if isinstance(kind, pa.BaseExtensionType):
                raise _refusal(field.name, kind.extension_name, kind.storage_type)


def _refusal(column: str, name: str, stored_as: pa.DataType) -> ExtensionTypeError:
    return ExtensionTypeError(
        f"column {column!r} has the extension type {name}, whose values could run code when they are read; write the "
        f"column as {stored_as}, or leave it out"
    )


def _fields(field: pa.Field) -> Iterator[pa.Field]:
    """A field and those of its values."""
    yield field
    kind = field.type
    if isinstance(kind, pa.DictionaryType):
        yield from _fields(pa.field("", kind.value_type))
    elif not isinstance(kind, pa.BaseExtensionType):
        for number in range(kind.num_fields):
            yield from _fields(kind.field(number))
