"""Cases for the readers of lists and manifests: text, CSV and Parquet, also gzipped.

The first line of a case is the name of its file.
"""

import gzip
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config.jobs import SegmentConfig
from pipeline.errors import UserError
from pipeline.inputs import list_images
from tests.fuzz import tables
from tests.fuzz.mutation import TEXTS, changed, damaged
from tests.pipeline.input_samples import config

NAMES = ("list.txt", "list.txt.gz", "m.csv", "m.csv.gz", "m.parquet")
COLUMNS = ("image_uri", "label", "n")
ROWS: list[list[Any]] = [
    ["a.jpg", "x", 1],
    ['b,\n"c".jpg', None, 2],
    ["file:///data/ü.jpg", "z", 3],
    ["", "", None],
    ["../d", "y", 4],
]


def seeds() -> list[bytes]:
    """One of each kind of file."""
    lines = b"\xef\xbb\xbf# photos\r\na.jpg\n\n./b c.jpg\nfile:///x/../y.jpg\ns3://bucket/c.jpg\n"
    csv = tables.csv_file([list(COLUMNS), *ROWS])
    parquet = tables.parquet_file(COLUMNS, ROWS)
    contents = (lines, gzip.compress(lines, mtime=0), csv, gzip.compress(csv, mtime=0), parquet)
    return [_case(name, content) for name, content in zip(NAMES, contents, strict=True)]


def mutated(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Other rows, columns of other types, or a damaged file."""
    name, file = _parts(content)
    way = rng.random()
    if name.endswith("parquet") and way < 0.5:
        names = [rng.choice((*COLUMNS, *TEXTS)) if rng.random() < 0.1 else column for column in COLUMNS]
        return _case(name, tables.odd_parquet_file(names, rng))
    if way < 0.15:
        rows = changed([list(COLUMNS), *ROWS], rng)
        plain = tables.csv_file(rows if isinstance(rows, list) else [rows])
        return _case(name, gzip.compress(plain, mtime=0) if name.endswith(".gz") else plain)
    if way < 0.2 and not name.endswith("parquet"):
        odd = str(rng.choice(TEXTS)) + str(rng.choice(TEXTS)) * rng.choice((1, 100))
        return _case(name, file + odd.encode("utf-8", "surrogatepass"))
    if way < 0.7 and name.endswith(".gz"):
        return _case(name, tables.zipped_anew(file, lambda plain: damaged(plain, rng)))
    return _case(name, damaged(file, rng, [_parts(other)[1] for other in rng.sample(others, 1)]))


def check(content: bytes) -> str:
    """List all images. Raises whatever is neither a row nor a UserError."""
    name, file = _parts(content)
    path = Path(_folder().name, name)
    path.write_bytes(file)
    try:
        return tables.rows_of(list_images(_settings(path, len(file) % 2 == 0)))
    except UserError as error:
        return str(error)
    finally:
        tables.require_nothing_ran()


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="sceneparse-fuzz-")


@cache
def _settings(path: Path, carry: bool) -> SegmentConfig:
    if path.name.startswith("list"):
        return config(list_file=str(path))
    return config(manifest=str(path), carry=COLUMNS[1:] if carry else ())


def _case(name: str, file: bytes) -> bytes:
    return name.encode() + b"\n" + file


def _parts(content: bytes) -> tuple[str, bytes]:
    """The name and content of a case's file."""
    name, _, file = content.partition(b"\n")
    found = name.decode(errors="replace")
    return found if found in NAMES else NAMES[0], file
