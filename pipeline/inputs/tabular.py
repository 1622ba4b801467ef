"""Parquet and CSV files of any size, read batch by batch, only the columns that are wanted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError

ROWS = 10_000  # of a batch, at the most
BUFFER = 1 << 22  # bytes of a column that are read ahead
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv"}


def file_format(uri: str) -> str | None:
    """'parquet' or 'csv' by the end of the name; None for any other."""
    return next((kind for ending, kind in FORMATS.items() if uri.lower().endswith(ending)), None)


def column_names(uri: str) -> list[str]:
    """The columns of a file. Raises UserError if it cannot be read."""
    with _explained(uri):
        if file_format(uri) == "parquet":
            with storage.open_file(uri) as file:
                return pq.read_schema(file).names
        with storage.open_stream(uri) as stream:
            return csv.open_csv(stream, parse_options=csv.ParseOptions(newlines_in_values=True)).schema.names


def read(
    uri: str, columns: Sequence[str], types: dict[str, pa.DataType], names: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of some columns.

    Args:
        types: of columns of a CSV file; any other is text.
        names: the columns of a CSV file without a header, in which empty quotes are no value either.
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
        # Without a buffer, whole columns of a row group would be in memory.
        file = pq.ParquetFile(source, buffer_size=BUFFER, pre_buffer=False)
        yield from file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False)


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


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Faults of storage and of the file's content as UserErrors that tell them apart."""
    kind = {"parquet": "Parquet", "csv": "CSV"}[file_format(uri) or "csv"]
    with storage.explained(uri):
        try:
            yield
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"{uri}: cannot be read as {kind}: {error}") from error
        except OSError as error:
            if error.errno is None and type(error) is OSError:  # Arrow's own, of what it read
                raise UserError(f"{uri}: cannot be read as {kind}: {error}") from error
            raise
