"""Images listed by an S3 Inventory: a manifest.json, and data files in CSV or Parquet."""

import hashlib
import json
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.inputs import table_files
from pipeline.inputs.uris import Names

COPIED = 1 << 22  # bytes per read
# Column names of CSV inventories, and those of Parquet inventories.
PARQUET_NAMES = {
    "Bucket": "bucket",
    "Key": "key",
    "Size": "size",
    "ETag": "e_tag",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
}


@dataclass(frozen=True)
class Inventory:
    """Content of a manifest.json."""

    uri: str
    bucket: str  # the bucket whose objects are listed
    file_format: str  # 'csv' or 'parquet'
    columns: list[str] | None  # of CSV files, which have no header
    files: list[tuple[str, str]]  # URI and hexadecimal MD5


def load(uri: str) -> Inventory:
    """Read a manifest.json.

    Raises: UserError if it is not the manifest.json of an S3 Inventory, if a data file is missing, or if the data
        format is not supported.
    """
    try:
        content = json.loads(storage.read_bytes(uri))
        kind = content["fileFormat"].lower()
        schema = content["fileSchema"]
        bucket = content["sourceBucket"].rpartition(":")[2]
        named = [(file["key"], file["MD5checksum"].lower()) for file in content["files"]]
        for text in (bucket, schema, kind, *chain.from_iterable(named)):
            if not text.encode():  # encode also raises if the value is not a string
                raise ValueError("a value is empty")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"inventory {uri}: not the manifest.json of an S3 Inventory ({type(error).__name__}: {error})"
        ) from error
    if kind not in ("csv", "parquet"):
        raise UserError(
            f"inventory {uri}: data format {content['fileFormat']} is not supported; set the inventory's output format "
            "to CSV or Apache Parquet"
        )
    columns = [name.strip() for name in schema.split(",")] if kind == "csv" else None
    if columns is not None and "Key" not in columns:
        raise UserError(f"inventory {uri}: fileSchema has no Key column, only {', '.join(columns)}")
    return Inventory(uri, bucket, kind, columns, [(_data_file(uri, key), md5) for key, md5 in named])


def read(inventory: Inventory) -> Iterator[Names]:
    """Yield the current objects: no delete markers, older versions or folder markers. Raises UserError."""
    for uri, md5 in inventory.files:
        with _checked_copy(inventory, uri, md5) as copy:
            try:
                yield from _read_file(inventory, uri, copy)
            except UserError as error:
                # Name the data file instead of its temporary copy.
                raise UserError(str(error).replace(copy, uri)) from error


def _read_file(inventory: Inventory, uri: str, copy: str) -> Iterator[Names]:
    present = inventory.columns or table_files.column_names(copy)
    names = {name: name if inventory.columns else PARQUET_NAMES[name] for name in PARQUET_NAMES}
    wanted = {name: column for name, column in names.items() if column in present}
    if "Key" not in wanted:
        raise UserError(f"inventory {uri}: no column {names['Key']}, only {', '.join(sorted(present))}")
    if repeated := [column for column in wanted.values() if present.count(column) > 1]:
        raise UserError(
            f"inventory {uri}: more than one column is named {repeated[0]}; its columns are {', '.join(present)}"
        )
    types = {wanted["Key"]: pa.binary()} | ({wanted["Size"]: pa.int64()} if "Size" in wanted else {})
    first = 1
    for batch in table_files.read(copy, list(wanted.values()), types, inventory.columns):
        columns = {name: _values(uri, name, column, batch.column(column)) for name, column in wanted.items()}
        columns["number"] = pa.array(range(first, first + batch.num_rows), pa.int64())
        first += batch.num_rows
        keys = columns["Key"]
        if inventory.file_format == "csv":
            keys = _url_decoded(keys)
        bucket = columns.get("Bucket", inventory.bucket.encode())
        columns["uri"] = pc.binary_join_element_wise(b"s3://", bucket, b"/", keys, b"")
        rows = pa.table(columns).filter(_is_current(columns, keys)).combine_chunks()
        column = {name: rows[name].combine_chunks() for name in rows.column_names}
        details = {}
        if "Size" in column:
            details["size_bytes"] = column["Size"]
        if "ETag" in column:
            details["etag"] = pc.utf8_trim(column["ETag"], '"')
        yield Names(column["uri"], column["number"], f"{uri}#row=", f"s3://{inventory.bucket}", details)


def _values(uri: str, name: str, column: str, values: pa.Array) -> pa.Array:
    """Cast a column to the type that it must have. Raises UserError."""
    try:
        if name == "Size":
            return values.cast(pa.int64())
        if pa.types.is_boolean(values.type) and name in ("IsLatest", "IsDeleteMarker"):
            return values
        content = values.cast(pa.binary())
        # Cast by way of binary, because strings in Parquet files may be invalid UTF-8.
        return content if name in ("Bucket", "Key") else content.cast(pa.string())
    except pa.ArrowException as error:
        raise UserError(
            f"inventory {uri}: column {column} of type {values.type} cannot be read as {name} ({error})"
        ) from error


def _is_current(columns: dict[str, pa.Array], keys: pa.Array) -> pa.BooleanArray:
    current = pa.repeat(True, len(keys))
    for name, wanted in (("IsLatest", True), ("IsDeleteMarker", False)):
        if name in columns:
            value = columns[name]
            if not pa.types.is_boolean(value.type):
                value = pc.equal(pc.utf8_lower(value), "true")
            current = pc.and_(current, pc.equal(pc.fill_null(value, wanted), wanted))
    if "Size" in columns:
        is_folder = pc.and_(pc.ends_with(keys, b"/"), pc.equal(pc.fill_null(columns["Size"], 0), 0))
        current = pc.and_(current, pc.invert(pc.fill_null(is_folder, False)))
    return current


def _url_decoded(keys: pa.Array) -> pa.Array:
    """URL-decode the keys of a CSV inventory: %41 is A, and + is a space."""
    encoded = pc.fill_null(pc.match_substring_regex(keys, "[%+]"), False)
    if not pc.any(encoded).as_py():
        return keys
    decoded = [_unquoted(key) for key in keys.filter(encoded).to_pylist()]
    return pc.replace_with_mask(keys, encoded, pa.array(decoded, pa.binary()))


def _unquoted(key: bytes) -> bytes:
    return unquote_plus(key.decode("latin-1"), "latin-1").encode("latin-1")


def _data_file(manifest: str, key: str) -> str:
    """Return the URI of a data file: in the manifest's bucket, or relative to a manifest copied with its data.

    Raises: UserError if it is in neither place.
    """
    folder = storage.absolute(manifest).rsplit("/", 2)[0]  # destination-prefix/source-bucket/config-ID
    beside = storage.join(folder, "data", posixpath.basename(key))
    places = [beside]
    if folder.startswith("s3://"):
        places = [storage.join(f"s3://{folder.split('/')[2]}", key.lstrip("/")), beside]
    for place in places:
        if ".." not in place.split("/") and storage.exists(place):
            return place
    raise UserError(f"inventory {manifest}: its data file {key} is missing (not at {' or '.join(places)})")


@contextmanager
def _checked_copy(inventory: Inventory, uri: str, md5: str) -> Iterator[str]:
    """Download a data file to a temporary path and check its MD5. Raises UserError."""
    ending = ".parquet" if inventory.file_format == "parquet" else ".csv.gz" if uri.endswith(".gz") else ".csv"
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        path = Path(folder, f"data{ending}")
        digest = hashlib.md5(usedforsecurity=False)
        with storage.explained(uri), storage.open_file(uri) as file, path.open("wb") as copy:
            while block := file.read(COPIED):
                digest.update(block)
                copy.write(block)
        if digest.hexdigest() != md5:
            raise UserError(
                f"inventory {inventory.uri}: {uri} has the MD5 {digest.hexdigest()}, but the manifest lists {md5}; "
                "the file is damaged or belongs to another day's inventory"
            )
        yield str(path)
