"""Safe reading and writing of Parquet files, including untrusted ones. The only module that does so with pyarrow.

The type of a column can be an extension type that a library registered in this process. Values of Ray Data's
`ray.data.arrow_pickled_object` are pickles, which execute code when pyarrow converts them to objects. The metadata of
Ray Data's tensor types is a pickle too if RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA allows it, and executes when
pyarrow creates the type, which is when it opens the file. Neither this project's files nor its inputs need extension
types, so files that have any are rejected by their footer, before pyarrow opens them.
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
TAIL = 1 << 16  # bytes of the first read; most footers fit
# The footer stores the Arrow schema that the file was written with, which has the extension types. These are its key,
# and the byte that follows in Thrift's compact protocol: the header of the next field, a string.
ARROW_SCHEMA, NEXT_STRING = b"ARROW:schema", b"\x18"
EXTENSION_NAME = b"ARROW:extension:name"
CANONICAL = b"arrow."  # Arrow's own extension types, such as UUID and JSON, which execute no code


class ExtensionTypeError(pa.ArrowInvalid):
    """A file has a column with an Arrow extension type."""


def open_parquet(source: Any, metadata: pq.FileMetaData | None = None, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file for reading.

    Args:
        source: an open file.
        metadata: result of `read_metadata` for this file; read if None.
        options: for pyarrow.parquet.ParquetFile.

    Raises:
        pyarrow.ArrowInvalid: the file is not Parquet, or (ExtensionTypeError) a column has an extension type, possibly
            nested.
    """
    metadata = metadata or read_metadata(source)
    # Without Arrow extensions, Parquet's own UUID and JSON types are read as plain bytes and text.
    file = pq.ParquetFile(source, metadata=metadata, arrow_extensions_enabled=False, **options)
    require_plain(file.schema_arrow)
    return file


def read_metadata(source: Any) -> pq.FileMetaData:
    """Read the footer of a Parquet file. Raises like `open_parquet`."""
    footer = _footer(source)
    if footer[-4:] != MAGIC:
        pq.read_metadata(source)
        raise pa.ArrowInvalid("the file is encrypted, or is not a Parquet file")
    for schema in _arrow_schemas(footer):
        for field in schema:
            for inner in _fields(field):
                name = (inner.metadata or {}).get(EXTENSION_NAME.lower())
                if name is not None and not name.startswith(CANONICAL):
                    raise _refusal(field.name, name.decode(errors="replace"), inner.type)
    return pq.read_metadata(io.BytesIO(MAGIC + footer))


def _footer(source: Any) -> bytes:
    """Return the end of a file, starting at its footer if it is Parquet."""
    size = source.seek(0, io.SEEK_END)

    def end(length: int) -> bytes:
        source.seek(max(0, size - length))
        return source.read(min(length, size))

    tail = end(TAIL)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    return (end(length) if len(tail) < length <= size else tail)[-length:]


def _arrow_schemas(footer: bytes) -> Iterator[pa.Schema]:
    """Yield the Arrow schemas in a footer without creating their extension types.

    Raises: pyarrow.ArrowInvalid if a schema cannot be read.
    """
    start = 0
    while (start := footer.find(ARROW_SCHEMA, start)) >= 0:
        start += len(ARROW_SCHEMA)
        try:
            encoded = _next_string(footer, start)
            content = base64.b64decode(encoded, validate=True)
            yield pa.ipc.read_schema(pa.py_buffer(content.replace(EXTENSION_NAME, EXTENSION_NAME.lower())))
        except (IndexError, binascii.Error, pa.ArrowException, OSError, ValueError) as error:
            raise pa.ArrowInvalid(
                f"its Arrow schema cannot be read ({error}); write the file again with store_schema=False in pyarrow"
            ) from None


def _next_string(footer: bytes, start: int) -> bytes:
    """Return the string that follows a key in Thrift's compact protocol."""
    if footer[start : start + 1] != NEXT_STRING:
        raise ValueError("unexpected field after its key")
    length, shift, place = 0, 0, start + 1
    while True:
        byte = footer[place]
        place += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return footer[place : place + length]


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """Return the bytes of a Parquet file with a table, with options for pyarrow.parquet.write_table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def require_plain(schema: pa.Schema) -> None:
    """Raise ExtensionTypeError if a column has an extension type, at any depth of nesting."""
    for field in schema:
        for kind in (inner.type for inner in _fields(field)):
            if isinstance(kind, pa.BaseExtensionType):
                raise _refusal(field.name, kind.extension_name, kind.storage_type)


def _refusal(column: str, name: str, stored_as: pa.DataType) -> ExtensionTypeError:
    return ExtensionTypeError(
        f"column {column!r} has the extension type {name}, whose values could execute code when read; write the "
        f"column as {stored_as}, or drop it"
    )


def _fields(field: pa.Field) -> Iterator[pa.Field]:
    """Yield a field and all fields nested in it."""
    yield field
    kind = field.type
    if isinstance(kind, pa.DictionaryType):
        yield from _fields(pa.field("", kind.value_type))
    elif not isinstance(kind, pa.BaseExtensionType):
        for number in range(kind.num_fields):
            yield from _fields(kind.field(number))
