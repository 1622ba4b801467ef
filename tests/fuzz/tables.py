"""CSV and Parquet files of any columns, which the cases of manifests and inventories share."""

import csv
import datetime
import gzip
import io
import random
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.schema import LISTED
from tests.pipeline.pickled_columns import pickled, tensors

PLANTED = Path(tempfile.gettempdir(), "sceneparse-fuzz-planted")  # the same in each process, as cases are
MIDDAY = datetime.datetime(2024, 5, 1, 12)
BAD_TEXT = pa.array([b"a.jpg", b"\xff\xfe", b"a\0b", None])
# Columns of four rows.
COLUMNS: tuple[pa.Array, ...] = (
    pa.array(["a.jpg", "file:///data/b.jpg", "", None]),
    pa.array(["true", "false", "TRUE", None]),
    pa.array(["\0", "../../x", "s3://", "a" * 9000]),
    pa.array(["a.jpg"] * 4).dictionary_encode(),
    pa.array([b"a.jpg", b"\xff", b"s3://b/c", None]),
    pa.array(["a.jpg", "b", "", None], pa.large_string()),
    pa.array([b"a.jpg", b"b", b"", None], pa.large_binary()),
    pa.array(["a.jpg", "b", "", None], pa.string_view()),
    pa.array([b"a.jpg", b"b", b"", None], pa.binary_view()),
    pa.array([b"abc", b"def", b"\0\0\0", None], pa.binary(3)),
    pa.Array.from_buffers(pa.string(), 4, BAD_TEXT.buffers()),
    pa.array([None] * 4),
    pa.array([None] * 4, pa.string()),
    pa.array([None] * 4).dictionary_encode(),
    pa.array([True, False, True, None]),
    *(pa.array([0, 1, 100, None], kind) for kind in (pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64())),
    pa.array([2**64 - 1, 2**63, 0, None], pa.uint64()),
    pa.array([-1, -(2**63), 2**63 - 1, None]),
    pa.array([float("nan"), float("inf"), 1e300, None]),
    pa.array([1.5, 0.0, -1.0, None], pa.float16()),
    pa.array([Decimal("1.10"), Decimal("-99999.99"), Decimal("0.00"), None]),
    pa.array([datetime.date(1, 1, 1), datetime.date(9999, 12, 31), datetime.date(2024, 5, 1), None]),
    pa.array([MIDDAY] * 4, pa.timestamp("ns", "Europe/Berlin")),
    pa.array([2**62, -(2**62), 0, None], pa.timestamp("us")),
    pa.array([0, 1, 2**62, None], pa.timestamp("s", "Nowhere/Land")),
    pa.array([MIDDAY.time()] * 4, pa.time64("us")),
    pa.array([0, 1, 2, None], pa.duration("s")),
    pa.array([[1, None], [], None, [2]]),
    pa.array([[["a"]], [], None, [["b"]]]),
    pa.array([{"a": 1}, {"a": None}, None, {"a": 2}]),
    pa.array([[("k", b"\xff")], [], None, [("k", b"")]], pa.map_(pa.string(), pa.binary())),
    pa.array([[MIDDAY], [MIDDAY], None, []]),
    pa.array([{"t": 2**62}, {"t": -(2**62)}, None, {"t": 0}], pa.struct([("t", pa.timestamp("us"))])),
    pa.array([[2**62], None, [], [0]], pa.list_(pa.duration("s"))),
    pickled(PLANTED, 4),
    pa.StructArray.from_arrays([pickled(PLANTED, 4)], ["x"]),
)


def csv_file(rows: Sequence[Any], quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    """Rows as CSV; what is no list is a row of itself."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=quoting, lineterminator="\n")  # type: ignore[arg-type]
    for row in rows:
        with suppress(csv.Error, ValueError):  # of numbers too long for Python to print
            writer.writerow(row if isinstance(row, list) else [row])
    return buffer.getvalue().encode("utf-8", "surrogatepass")


def parquet_file(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows as Parquet."""
    return _written(pa.table([pa.array(column) for column in zip(*rows, strict=True)], list(names)))


def odd_parquet_file(names: Sequence[str], rng: random.Random) -> bytes:
    """Columns of these names, of the types that they should have or others, perhaps twice or in no row at all."""
    twice = list(names) + ([rng.choice(names)] if rng.random() < 0.1 else [])
    columns = [rng.choice(COLUMNS[:3] if rng.random() < 0.4 else COLUMNS) for _ in twice]
    table = pa.Table.from_arrays(columns, twice).slice(0, rng.choice((4, 4, 4, 1, 0)))
    if rng.random() < 0.05:  # a type that says a pickle of itself
        about = tensors(PLANTED, rng.choice(("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "pandas.period")))
        table = table.slice(0, 1) if len(table) else table
        table = table.append_column(about.schema.field(0), about.column(0).slice(0, len(table)))
    options: dict[str, Any] = {"compression": rng.choice(("snappy", "zstd", "none", "gzip"))}
    options["use_dictionary"] = rng.random() < 0.5
    options["store_schema"] = rng.random() < 0.7
    options["data_page_version"] = rng.choice(("1.0", "2.0"))
    try:
        return _written(table, **options)
    except (pa.ArrowException, UnicodeEncodeError, OSError, ValueError):  # what Parquet has no type for
        return _written(table.select([]))


def zipped_anew(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A gzip file with something else in it."""
    with suppress(OSError, EOFError, zlib.error):
        return gzip.compress(change(gzip.decompress(content)), mtime=0)
    return change(content)


def require_nothing_ran() -> None:
    """Assert that no case has run the command that some have in them."""
    assert not PLANTED.exists(), f"a pickle of the case made {PLANTED}"


def rows_of(found: Iterator[pa.Table]) -> str:
    """Return a listing in short form. Assert that it is complete, and that its names are text."""
    kinds: set[str | None] = set()
    for table in found:
        assert table.schema.equals(LISTED, check_metadata=True)
        table.validate(full=True)
        assert table["image_uri"].null_count == 0
        kinds |= {*table["error_type"].to_pylist()}
        table.to_pylist()
    return f"listed: {sorted(map(str, kinds))}"


def _written(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()
