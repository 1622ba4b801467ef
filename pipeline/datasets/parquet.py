"""Datasets in Parquet: a table of images and annotations, or the masks that segment_bucket.py wrote.

Bytes are loaded lazily: a pair only refers to their cells. Training reads rows in random order, and each access reads
a whole row group, so row groups should be small (docs/datasets.md).
"""

import functools
import glob
import itertools
import posixpath
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config.data import DataConfig
from pipeline.datasets.layouts import stamp, under
from pipeline.datasets.pairs import SHOWN, Cell, Listing, Pair, places_of
from pipeline.errors import UserError
from pipeline.storage.parquet_files import FileMetaData, ParquetFile, open_parquet
from pipeline.storage.patterns import folder_of, is_glob, select_matches
from pipeline.storage.places import Places

READERS = 16  # concurrent reads of footers and columns
CACHED_BYTES = 256_000_000  # of row groups, per process
# Types of columns, also as the values of a dictionary (a categorical).
TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BYTES = (
    *(pa.types.is_binary, pa.types.is_large_binary),
    *(pa.types.is_binary_view, pa.types.is_fixed_size_binary),
)
OWN = b"sceneparse.schema_version"  # metadata key of every table that segment_bucket.py writes


def list_tables(data: DataConfig, split: str) -> Listing:
    """List the rows of a table's files in name order. Of a segmentation's output, lists the images with status ok.

    Raises: UserError if the table cannot be read or a column is missing.
    """
    files = _table_files(data.root, split)
    listing = Listing()
    if not files:
        looked = "that matches this pattern" if is_glob(split) else "here or at this path with .parquet"
        listing.add("no images", under(data.root, split), f"found no Parquet file {looked}")
        return listing
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda file: _Table.open(file, files[file]), files))
    if OWN in (tables[0].schema.metadata or {}) and "image_uri" in tables[0].schema.names:
        _check_classes(_output_of(tables[0].uri), data)
        pairs_of = _own_pairs
    elif data.min_confidence is not None:
        raise UserError(
            f"{tables[0].uri}: was not written by segment_bucket.py, so it has no confidence values; "
            "remove data.min_confidence"
        )
    else:
        pairs_of = _plain_pairs
    with ThreadPoolExecutor(READERS) as pool:
        for part in pool.map(lambda table: pairs_of(table, data), tables):
            listing.pairs += part.pairs
            listing.findings += part.findings
    return listing


def read_cell(cell: Cell) -> bytes:
    """Return the bytes in a cell, or those of the file whose path the cell holds. Raises UserError."""
    value: Any = _row_groups.column(cell)[cell.row - _first_rows(cell.file)[cell.row_group]].as_py()
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if content is None and path:
        uri = _beside(cell.file, path)
        if refusal := cell.places.refusal(uri):
            raise UserError(f"{cell}: {uri} {refusal}")
        return storage.read_bytes(uri)
    if content is None:
        raise UserError(f"{cell}: the cell is null; it must hold the bytes of a file")
    return content


@dataclass(frozen=True)
class _Table:
    """Parquet file with its footer."""

    uri: str
    stamp: str
    schema: pa.Schema
    row_groups: list[int]  # number of rows of each

    @staticmethod
    def open(uri: str, details: dict[str, Any]) -> "_Table":
        with _opened(uri) as file:
            return _Table(uri, stamp(details), file.schema_arrow, _rows(file.metadata))

    def read(self, columns: list[str]) -> pa.Table:
        with _opened(self.uri) as file:
            return file.read(columns)

    def sources(self, column: str, places: Places) -> Sequence[str | Cell | None]:
        """Return a URI or cell for each row, None for nulls. Cells with paths may only refer to `places`.

        Raises: UserError if the column is missing or of an unsupported type.
        """
        if column not in self.schema.names:
            raise UserError(
                f"{self.uri}: column {column!r} is missing; set data.image_column and data.label_column to columns of "
                f"this table: {', '.join(self.schema.names)}"
            )
        kind = declared = self.schema.field(column).type
        if isinstance(kind, pa.DictionaryType):
            kind = kind.value_type
        if _is_of(kind, TEXT):
            return [uri and _beside(self.uri, uri) for uri in self.read([column])[column].to_pylist()]
        names = {kind.field(index).name for index in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
        if not (_is_of(kind, BYTES) or "bytes" in names):
            raise UserError(
                f"{self.uri}: column {column!r} has type {declared}; it must hold image files (binary, or "
                "struct<bytes, path>) or their URIs (string)"
            )
        groups = (group for group, rows in enumerate(self.row_groups) for _ in range(rows))
        return [Cell(self.uri, group, row, column, places) for row, group in enumerate(groups)]


def _is_of(kind: pa.DataType, kinds: tuple[Callable[[pa.DataType], bool], ...]) -> bool:
    return any(is_kind(kind) for is_kind in kinds)


def _table_files(root: str, split: str) -> dict[str, dict[str, Any]]:
    """Return the Parquet files of a table.

    These are one file, those of a folder or of a glob, or the masks of a segmentation's output.
    """
    place = storage.absolute(under(root, split))
    found = storage.find(place) or storage.find(f"{place}.parquet")
    if not found and is_glob(split):
        pattern = under(glob.escape(root), split)
        listed = storage.find(folder_of(pattern))
        found = {uri: listed[uri] for uri in select_matches(list(listed), pattern, "split")}
    tables = {uri: details for uri, details in found.items() if uri.endswith(".parquet")}
    return {uri: details for uri, details in tables.items() if uri.startswith(f"{place}/masks/")} or tables


def _plain_pairs(table: _Table, data: DataConfig) -> Listing:
    listing = Listing()
    places = places_of(data, table.uri)
    images, labels = table.sources(data.image_column or "image", places), table.sources(data.label_column, places)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        where = f"{table.uri}#row={row}"
        if image is None:
            listing.add("missing image", where, f"column {data.image_column or 'image'!r} is null")
        if label is None:
            listing.add("missing annotation", where, f"column {data.label_column!r} is null")
        if image is not None and label is not None and listing.check_places(places, where, image, label):
            listing.pairs.append(Pair(image, label, stamp=table.stamp))
    return listing


def _own_pairs(table: _Table, data: DataConfig) -> Listing:
    """List the pairs of one part of a segmentation's output.

    Skips failed images, and images in which no class reaches `min_confidence`.
    """
    ignored = _untrusted(table.uri, data.min_confidence) if data.min_confidence is not None else {}
    rows = table.read(["image_id", "status", "class_ids"]).to_pylist()
    places = places_of(data, table.uri)
    images, labels = table.sources(data.image_column or "image_uri", places), table.sources(data.label_column, places)
    listing = Listing()
    for number, (row, image, label) in enumerate(zip(rows, images, labels, strict=True)):
        untrusted = ignored.get(row["image_id"], ())
        if row["status"] != "ok" or set(row["class_ids"]) <= set(untrusted):
            continue
        assert image is not None, table.uri
        assert label is not None, table.uri
        if listing.check_places(places, f"{table.uri}#row={number}", image, label):
            listing.pairs.append(Pair(image, label, ignored=untrusted, stamp=table.stamp))
    return listing


def _untrusted(masks_part: str, min_confidence: float) -> dict[bytes, tuple[int, ...]]:
    """Return image_id -> classes whose mean confidence in that image is below the threshold (or null)."""
    uri = storage.join(_output_of(masks_part), "class_stats", posixpath.basename(masks_part))
    with _opened(uri) as file:
        statistics = file.read(["image_id", "class_id", "mean_confidence"])
    trusted = pc.fill_null(pc.greater_equal(statistics["mean_confidence"], min_confidence), False)
    found: dict[bytes, list[int]] = defaultdict(list)
    for row in statistics.filter(pc.invert(trusted)).to_pylist():
        found[row["image_id"]].append(row["class_id"])
    return {image_id: tuple(sorted(class_ids)) for image_id, class_ids in found.items()}


def _check_classes(output: str, data: DataConfig) -> None:
    """Raise UserError if the output's class ids differ from data.classes, except for ids that label_map maps."""
    uri = storage.join(output, "classes.parquet")
    if not storage.exists(uri):
        return
    with _opened(uri) as file:
        names = {row["class_id"]: row["class_name"] for row in file.read().to_pylist()}
    ours = dict(enumerate(entry.name for entry in data.classes))
    other = [
        f"{class_id} is {name!r} in the masks but {ours.get(class_id, 'no class')!r} in data.classes"
        for class_id, name in sorted(names.items())
        if class_id not in data.label_map and ours.get(class_id) != name
    ]
    if other:
        raise UserError(
            f"{uri}: the classes of the masks differ from data.classes: {'; '.join(other[:SHOWN])}"
            f"{' ...' if len(other) > SHOWN else ''}; set data.classes to the classes of the masks, or map these ids "
            "with data.label_map"
        )


def _output_of(part: str) -> str:
    return posixpath.dirname(posixpath.dirname(part))


def _beside(file: str, path: str) -> str:
    """Resolve a path from a Parquet file, which is absolute, a URI, or relative to the file's folder."""
    return storage.absolute(under(posixpath.dirname(file), path))


class _RowGroups:
    """LRU cache of row group columns, up to CACHED_BYTES. One instance per process."""

    def __init__(self) -> None:
        self._columns: OrderedDict[tuple[str, int, str], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def column(self, cell: Cell) -> pa.ChunkedArray:
        key = cell.file, cell.row_group, cell.column
        with self._lock:
            if key not in self._columns:
                with _opened(cell.file) as file:
                    self._columns[key] = file.read_row_group(cell.row_group, [cell.column])[cell.column]
            self._columns.move_to_end(key)
            while len(self._columns) > 1 and sum(kept.nbytes for kept in self._columns.values()) > CACHED_BYTES:
                self._columns.popitem(last=False)
            return self._columns[key]


_row_groups = _RowGroups()


@functools.lru_cache(maxsize=1024)
def _first_rows(uri: str) -> list[int]:
    """Return the number of the first row of each row group."""
    with _opened(uri) as file:
        return list(itertools.accumulate(_rows(file.metadata), initial=0))


def _rows(metadata: FileMetaData) -> list[int]:
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@contextmanager
def _opened(uri: str) -> Iterator[ParquetFile]:
    """Open a Parquet file. Raises UserError if opening it, or reading it in the block, fails."""
    with storage.explained(uri):
        try:
            with storage.open_file(uri) as file:
                yield open_parquet(file)
        except pa.ArrowInvalid as error:
            raise UserError(f"{uri}: cannot be read as Parquet: {error}") from None
