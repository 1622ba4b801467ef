"""Cases for S3 Inventories: a manifest.json and one data file in CSV or Parquet.

`{md5}` in the manifest stands for the sum that the data file has.
"""

import gzip
import hashlib
import json
import random
import tempfile
from collections.abc import Sequence
from csv import QUOTE_ALL
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config.jobs import SegmentConfig
from pipeline.errors import UserError
from pipeline.inputs import list_images
from tests.fuzz import tables
from tests.fuzz.mutation import TEXTS, changed, damaged, joined, split
from tests.pipeline.input_samples import config

DATA = {"CSV": "data/0.csv.gz", "Parquet": "data/0.parquet"}
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
PARQUET = ("bucket", "key", "version_id", "is_latest", "is_delete_marker", "size", "last_modified_date", "e_tag")
DAY = "2024-05-01T00:00:00.000Z"
ROWS: list[list[Any]] = [
    ["photos", "a+b%20c.jpg", "v1", True, False, 7, DAY, "etag"],
    ["photos", "%C3%BC.jpg", "v2", False, False, 7, DAY, '"etag"'],
    ["photos", "gone", "v3", True, True, None, DAY, None],
    ["photos", "folder/", "v4", True, False, 0, DAY, "e"],
    ["secrets", "../x.jpg", "v5", True, False, 2**40, DAY, "e"],
]


def seeds() -> list[bytes]:
    """One of each format."""
    return [joined(_manifest(kind), _rows(kind)) for kind in DATA]


def mutated(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another manifest, other rows, columns of other types, or a damaged file."""
    manifest, data = split(content, 2)
    is_parquet = data.startswith(b"PAR1")
    way = rng.random()
    if way < 0.3:
        return joined(_other_manifest(manifest, rng), data)
    if way < 0.35:
        return joined(damaged(manifest, rng), data)
    if is_parquet and way < 0.75:
        names = [rng.choice(TEXTS) if rng.random() < 0.03 else name for name in PARQUET]
        return joined(manifest, tables.odd_parquet_file(names, rng))
    if is_parquet or way < 0.5:
        return joined(manifest, damaged(data, rng, [split(rng.choice(others), 2)[1]]))
    if way < 0.75:
        rows = changed([["photos", *row[1:]] for row in ROWS], rng)
        plain = tables.csv_file(rows if isinstance(rows, list) else [rows], QUOTE_ALL)
        return joined(manifest, gzip.compress(plain, mtime=0))
    return joined(manifest, tables.zipped_anew(data, lambda plain: damaged(plain, rng)))


def check(content: bytes) -> str:
    """List all images. Raises whatever is neither a row nor a UserError."""
    manifest, data = split(content, 2)
    for name in DATA.values():
        Path(_folder().name, name).write_bytes(data)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    Path(_settings().inventory[0]).write_bytes(manifest.replace(b"{md5}", md5.encode()))
    try:
        return tables.rows_of(list_images(_settings()))
    except UserError as error:
        return str(error)
    finally:
        tables.require_nothing_ran()


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    folder = tempfile.TemporaryDirectory(prefix="sceneparse-fuzz-")
    for name in ("data", "2024-05-01"):
        Path(folder.name, name).mkdir()
    return folder


@cache
def _settings() -> SegmentConfig:
    return config(inventory=f"{_folder().name}/2024-05-01/manifest.json", allow="s3://photos/")


def _manifest(kind: str) -> bytes:
    content = {
        "sourceBucket": "photos",
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "creationTimestamp": "1714521600000",
        "fileFormat": kind,
        "fileSchema": SCHEMA,
        "files": [{"key": f"daily/{DATA[kind]}", "size": 100, "MD5checksum": "{md5}"}],
    }
    return json.dumps(content).encode()


def _rows(kind: str) -> bytes:
    if kind == "Parquet":
        return tables.parquet_file(PARQUET, ROWS)
    texts = [[str(value).lower() if isinstance(value, bool) else value for value in row] for row in ROWS]
    return gzip.compress(tables.csv_file(texts, QUOTE_ALL), mtime=0)


def _other_manifest(manifest: bytes, rng: random.Random) -> bytes:
    way = rng.random()
    if way < 0.1:
        deep = rng.choice((10, 1000, 100_000))
        return manifest.replace(b'"100"', b"[" * deep + b"]" * deep, 1).replace(b"100", b"[" * deep, 1)
    if way < 0.2:
        name = rng.choice(("Key", "Bucket", "Size", "IsLatest", "ETag", "Key, Key", " ", "key", "\\u0000"))
        return manifest.replace(SCHEMA.encode(), ", ".join([*rng.sample(SCHEMA.split(", "), 3), name]).encode())
    try:
        content = json.loads(manifest)
        return json.dumps(changed(content, rng), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return damaged(manifest, rng)
