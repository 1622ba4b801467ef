"""Batchwise reading of selected columns from Parquet and CSV files of any size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from pipeline import storage
from pipeline.errors import UserError
from pipeline.storage.parquet_files import FileMetaData, open_parquet, read_metadata

ROWS = 10_000  # maximum per batch
PIECE = 1 << 24  # bytes of text after which a batch is split
BUFFER = 1 << 22  # bytes of a column to read ahead
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv"}


def file_format(uri: str) -> str | None:
    """Return 'parquet' or 'csv' by the file extension; None for any other."""
    return next((kind for ending, kind in FORMATS.items() if uri.lower().endswith(ending)), None)


def column_names(uri: str) -> list[str]:
    """Return the column names of a file. Raises UserError if it cannot be read."""
    with _explained(uri):
        if file_format(uri) == "parquet":
            with storage.open_file(uri) as file:
                return open_parquet(file).schema_arrow.names
        with storage.open_stream(uri) as stream:
            check_not_utf16(uri, stream.read(2))
        with storage.open_stream(uri) as stream:
            return csv.open_csv(stream, parse_options=csv.ParseOptions(newlines_in_values=True)).schema.names


def read(
    uri: str, columns: Sequence[str], types: dict[str, pa.DataType], names: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield record batches of some columns.

    Args:
        types: column types of a CSV file; columns without one are read as text.
        names: all column names of a CSV file without a header. If given, quoted empty strings are null too.

    Raises: UserError if the file cannot be read.
    """
    read_file = _read_parquet if file_format(uri) == "parquet" else _read_csv
    with _explained(uri):
        for batch in read_file(uri, list(columns), types, names):
            for start in range(0, batch.num_rows, ROWS):
                yield batch.slice(start, ROWS)


def _read_parquet(
    uri: str, columns: list[str], types: dict[str, pa.DataType], names: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    with storage.open_file(uri) as source:
        metadata = read_metadata(source)
        # Without a buffer, pyarrow would hold whole columns of a row group in memory.
        file = open_parquet(
            source, metadata=metadata, read_dictionary=_texts(metadata, columns), buffer_size=BUFFER, pre_buffer=False
        )
        for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
            yield from _unfolded(batch)


def _texts(metadata: FileMetaData, columns: Sequence[str]) -> list[str]:
    """Return those of the columns that hold text or bytes."""
    leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    return [
        leaf.path
        for leaf in leaves
        if leaf.path in columns and leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL"
    ]


def _unfolded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Decode the dictionary columns of a batch, in pieces.

    The pieces bound memory: with dictionaries, a file of a few hundred bytes can have a megabyte of text in every row.
    """
    sizes = np.zeros(batch.num_rows, np.int64)
    folded = [column for column in batch.columns if pa.types.is_dictionary(column.type)]
    for column in folded:
        sizes += np.asarray(pc.fill_null(pc.binary_length(column.dictionary).take(column.indices), 0))
    pieces = sizes.cumsum() // PIECE
    for start, stop in pairwise([0, *(np.flatnonzero(np.diff(pieces)) + 1), batch.num_rows]):
        columns = [
            column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            for column in batch.slice(start, stop - start).columns
        ]
        yield pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _read_csv(
    uri: str, columns: list[str], types: dict[str, pa.DataType], names: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    with storage.open_stream(uri) as stream:
        yield from csv.open_csv(
            stream,
            csv.ReadOptions(column_names=names),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.string()) | types,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=names is not None,
            ),
        )


def check_not_utf16(uri: str, start: bytes) -> None:
    """Raise UserError if the first two bytes of a text file are a UTF-16 byte order mark, or a letter in UTF-16."""
    if len(start) == 2 and (start in (b"\xff\xfe", b"\xfe\xff") or start.count(0) == 1):
        raise UserError(f"{uri}: the file is encoded as UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn storage errors and errors in the file's content into different UserErrors."""
    kind = {"parquet": "Parquet", "csv": "CSV"}[file_format(uri) or "csv"]
    with storage.explained(uri):
        try:
            yield
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"{uri}: cannot be read as {kind}: {error}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{uri}: column names are not valid UTF-8 ({error}); save the file as UTF-8") from error
        except OSError as error:
            if error.errno is None and type(error) is OSError:  # raised by Arrow about the content
                raise UserError(f"{uri}: cannot be read as {kind}: {error}") from error
            raise
