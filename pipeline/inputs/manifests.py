"""Images named by a table in Parquet or CSV, of one or more files."""

import posixpath
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.inputs import table_files
from pipeline.inputs.carried_columns import carried
from pipeline.inputs.uris import Names, folder_above
from pipeline.storage.patterns import folder_of, is_glob, select_matches


def files_of(uri: str) -> list[str]:
    """Return the files of a manifest: one file, all files of a folder, or all matches of a glob.

    Skips hidden files such as _SUCCESS.

    Raises: UserError if there are no files, or if the format of one is unknown.
    """
    folder = storage.absolute(folder_of(uri))
    files = [file.uri for page in storage.listed(folder) for file in page]
    if is_glob(uri):
        files = select_matches(files, uri, "--manifest")
    if files != [folder]:
        files = [file for file in files if not _is_hidden(file[len(folder) :])]
    if not files:
        raise UserError(f"manifest {uri}: no files found; check the path or pattern")
    for file in files:
        if table_files.file_format(file) is None:
            endings = ", ".join(table_files.FORMATS)
            raise UserError(f"manifest {file}: unknown format; the file name must end in one of {endings}")
    return files


def is_one_file(uri: str, files: Sequence[str]) -> bool:
    return list(files) == [storage.absolute(uri)]


def require_columns(file: str, columns: Sequence[str], uri_column: str) -> None:
    """Raise UserError if a column is missing from a file of a manifest, or occurs twice."""
    found = table_files.column_names(file)
    for column in columns:
        if column not in found:
            option = "--uri-column" if column == uri_column else "--carry"
            raise UserError(
                f"manifest {file}: no column {column!r} ({option}); its columns are {', '.join(map(repr, found))}"
            )
        if found.count(column) > 1:
            raise UserError(f"manifest {file}: more than one column is named {column!r}; rename all but one of them")


def read(files: Sequence[str], uri_column: str, carry: Sequence[str]) -> Iterator[Names]:
    """Yield the names in a manifest's files, with the columns to carry. Raises UserError."""
    columns = list(dict.fromkeys([uri_column, *carry]))
    for file in files:
        require_columns(file, columns, uri_column)
        first = 1
        # Read names as binary, so that a name in invalid UTF-8 affects only its own row.
        for batch in table_files.read(file, columns, {uri_column: pa.binary()}):
            numbers = pa.array(range(first, first + batch.num_rows), pa.int64())
            first += batch.num_rows
            details = {"carried": carried({name: batch.column(name) for name in carry})} if carry else {}
            yield Names(
                _names(batch.column(uri_column), file, uri_column), numbers, f"{file}#row=", folder_above(file), details
            )


def _names(column: pa.Array, file: str, uri_column: str) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.binary())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.string()).cast(pa.binary())
    convertible = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(is_kind(kind) for is_kind in convertible):
        return column.cast(pa.binary())
    raise UserError(f"manifest {file}: column {uri_column!r} has type {kind}, not text; set --uri-column to another")


def _is_hidden(path: str) -> bool:
    return any(name.startswith(("_", ".")) for name in posixpath.normpath(path).split("/"))
