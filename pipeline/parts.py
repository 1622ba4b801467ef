"""Parts: pairs of Parquet files, one of masks and one of class statistics, that exist together or not at all.

The statistics are written first and the masks last: the masks file is the commit. What an output holds is what
its masks parts hold, and nothing else keeps books. Whoever calls what writes or deletes here holds the output's lease.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.done import Done
from pipeline.errors import UserError
from pipeline.id_set import IdSet, IdSum
from pipeline.lease import sequence_of
from pipeline.parquet_files import open_parquet, parquet_bytes
from pipeline.parquet_layout import write_options
from pipeline.tables import CLASS_STATS, MASKS

PART = re.compile(r"part-[^/]+-(?:[0-9a-f]{32}|[0-9a-f]{16})\.parquet")
EARLIER_PART = re.compile(r"part-[^/]+-[0-9a-f]{16}\.parquet")  # of versions that hashed less
READERS = 16  # parts whose ids are read at once; the reading is waiting
# What differs between two attempts at the same labels.
MEASURED = ("segmented_at", "seconds")
LARGEST_PART = 1_000_000_000  # bytes of masks, far more than sink.MOST_BYTES
COMMIT_WITHIN = b"sceneparse.commit_within_seconds"


def part_name(run_id: str, masks: pa.Table, kept: bool = False) -> str:
    """Name from the run, the images and what became of them: a hash of all columns but nested ones and times.

    A task that is tried again writes the same part over itself; where it comes to other labels (on another kind of
    GPU, or of an object that was replaced), a part of its own, so that no masks stand beside the statistics of others.

    Args:
        masks: rows of one run.
        kept: whether these are the rows that were left of another part.
    """
    rows = masks.sort_by("image_id")
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(rows.column_names):
        column = rows[name].combine_chunks()
        if not pa.types.is_nested(column.type) and name not in MEASURED:
            digest.update(name.encode())
            for values in _canonical(column):
                digest.update(values)
    return f"part-{run_id}-{'kept-' if kept else ''}{digest.hexdigest()}.parquet"


def _canonical(column: pa.Array) -> Iterator[bytes]:
    """A column's values as bytes, whatever their Arrow buffers look like."""
    yield pc.is_valid(column).to_numpy(zero_copy_only=False).tobytes()
    values = column.drop_null()
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type) or pa.types.is_fixed_size_binary(values.type):
        values = values.cast(pa.binary())
        yield pc.binary_length(values).to_numpy().tobytes()
        yield b"".join(values.to_pylist())
    else:
        yield values.to_numpy().tobytes()


def write_part(
    output: str, name: str, masks: pa.Table, class_stats: pa.Table, before_commit: Callable[[], None] = lambda: None
) -> int:
    """Write one part, its commit last; returns its bytes.

    Args:
        before_commit: called between the two files; what it raises leaves the part uncommitted.

    Raises: UserError.
    """
    content = parquet_bytes(masks, **write_options(masks))
    # Told to a run that finds these statistics without their masks.
    about = {**(class_stats.schema.metadata or {}), COMMIT_WITHIN: f"{storage.write_seconds(len(content)):.0f}"}
    num_bytes = write_table(storage.join(output, "class_stats", name), class_stats.replace_schema_metadata(about))
    before_commit()
    storage.write_bytes(storage.join(output, "masks", name), content)
    return num_bytes + len(content)


def remove_part(output: str, name: str) -> None:
    """Remove one part, its commit first."""
    storage.remove(storage.join(output, "masks", name))
    storage.remove(storage.join(output, "class_stats", name))


def write_table(uri: str, table: pa.Table) -> int:
    """Write one Parquet file, whole or not at all; returns its bytes. Raises UserError."""
    content = parquet_bytes(table, **write_options(table))
    storage.write_bytes(uri, content)
    return len(content)


def read_table(uri: str, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read one Parquet file, or only some of its columns.

    Args:
        schema: the columns that it may have; one that it lacks is of no concern here.

    Raises: UserError.
    """
    with storage.explained(uri), storage.open_file(uri) as file:
        try:
            parquet = open_parquet(file, pre_buffer=True)
            if schema is not None:
                _require_ours(uri, parquet.schema_arrow, schema)
            table = parquet.read(columns)
            return table.select(columns) if columns else table
        except pa.ArrowInvalid as error:
            raise UserError(f"{uri}: cannot be read as Parquet: {error}; remove it") from error


def _require_ours(uri: str, found: pa.Schema, schema: pa.Schema) -> None:
    for column in found:
        known = schema.field(column.name).type if column.name in schema.names else None
        if column.type != known:
            raise UserError(
                f"{uri}: has a column {column.name!r} of type {column.type}, "
                + (f"which is {known} in this program's tables" if known else "which this program's tables lack")
                + "; it was not written by it, or by another version: move it away"
            )


@dataclass
class Reconciled:
    """An output in order, and what was done to it."""

    done: Done
    mended: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # of the parts
    # How long parts that were not committed may still be, by tasks of a run that was taken over; seconds from now.
    in_doubt: float = 0.0


def reconcile(output: str, retry_errors: Sequence[str] = (), relabel_changed: bool = False) -> Reconciled:
    """Put in order what an interrupted run left, and find out which images are done.

    Half-written local files and statistics without masks are deleted. Masks without statistics (which no kill
    leaves behind, but a late write or a person may) are deleted too, so that their images are done again. Of an image
    that stands in two parts one row stays, as `remove_superseded` chooses. Interrupted at any point, it can simply be
    run again.

    Args:
        retry_errors, relabel_changed: which images do not count as done, as Done says.

    Raises: UserError.
    """
    found = Reconciled(Done(retry_errors, relabel_changed))
    masks, class_stats = (_names(output, table, found.mended) for table in ("masks", "class_stats"))
    for name in sorted(class_stats - masks):
        # A listing may lag behind: each file is asked for before its partner is deleted.
        if storage.exists(storage.join(output, "masks", name)):
            masks.add(name)
            continue
        uri = storage.join(output, "class_stats", name)
        found.in_doubt = max(found.in_doubt, _commit_within(uri))
        storage.remove(uri)
        found.mended.append(f"removed class_stats/{name}: an interrupted run had not committed it")
    for name in sorted(masks - class_stats):
        if storage.exists(storage.join(output, "class_stats", name)):
            class_stats.add(name)
            continue
        storage.remove(storage.join(output, "masks", name))
        found.mended.append(f"removed masks/{name}: its class_stats file is missing; its images are done again")

    found.names = masks & class_stats
    for _, rows in _read_parts(output, sorted(found.names), found.done.columns):
        if found.done.add(rows).false_count:
            found.mended += remove_superseded(output)
            found.names = _whole(output)
            found.done = read_done(output, retry_errors, relabel_changed)
            break
    return found


def read_done(output: str, retry_errors: Sequence[str] = (), relabel_changed: bool = False) -> Done:
    """The images that are done, as `reconcile` finds them, of an output that is left as it is. Raises UserError."""
    done = Done(retry_errors, relabel_changed)
    for _, rows in _read_parts(output, sorted(_whole(output)), done.columns):
        done.add(rows)
    return done


def differences(output: str, names: set[str]) -> list[str]:
    """How an output's parts differ from those that its run has found and committed. Raises UserError."""
    told = []
    for table in ("masks", "class_stats"):
        there = {*filter(PART.fullmatch, _files(output, table))}
        told += [f"{table}/{name} came from another run" for name in sorted(there - names)]
        told += [
            f"{table}/{name} is gone"
            for name in sorted(names - there)
            if not storage.exists(storage.join(output, table, name))
        ]
    return told


def stored_images(output: str, names: Iterable[str]) -> IdSum:
    """Count and sum of the images of parts, as storage has them. Raises UserError."""
    images = IdSum()
    for _, rows in _read_parts(output, sorted(names), ["image_id"]):
        images = images.plus(IdSum.of(rows["image_id"]))
    return images


def remove_superseded(output: str) -> list[str]:
    """Of every image that stands in several parts keep one row: of the last run, and labels before a failure.

    Returns what was done.

    A part that loses rows is written anew under another name before it goes: until then rows stand twice, never
    nowhere.
    """
    mended: list[str] = []
    rewritten: set[str] = set()
    superseded = _superseded(output, sorted(_names(output, "masks", mended)))
    for name, rows_of_part in superseded.items():
        masks = read_table(storage.join(output, "masks", name), schema=MASKS)
        if len(rows_of_part) == len(masks):
            continue
        is_kept = np.ones(len(masks), bool)
        is_kept[rows_of_part] = False
        masks = masks.filter(pa.array(is_kept))
        class_stats = read_table(storage.join(output, "class_stats", name), schema=CLASS_STATS)
        still_here = pc.is_in(class_stats["image_id"], value_set=masks["image_id"].combine_chunks())
        smaller = part_name(masks["run_id"][0].as_py(), masks, kept=True)
        write_part(output, smaller, masks, class_stats.filter(still_here))
        rewritten.add(smaller)
    for name, rows_of_part in superseded.items():
        # An interrupted mending may have made a part already that was just made again.
        if name not in rewritten:
            remove_part(output, name)
            mended.append(f"removed {len(rows_of_part)} rows from masks/{name}: newer ones have taken their place")
    return mended


def remove_strays(output: str, run_id: str, written: set[str]) -> list[str]:
    """Remove the parts that tasks of a finished run have written and none has returned. Returns their names.

    What was left of this run's parts by another one (`remove_superseded`) has a name of its own, and stays.
    """
    of_run = re.compile(rf"part-{re.escape(run_id)}-[0-9a-f]+\.parquet")
    found = {name for table in ("masks", "class_stats") for name in _files(output, table)}
    strays = sorted(name for name in found if of_run.fullmatch(name) and name not in written)
    for name in strays:
        remove_part(output, name)
    return strays


def _whole(output: str) -> set[str]:
    """Names of the parts that have both their files."""
    masks, class_stats = ({*filter(PART.fullmatch, _files(output, table))} for table in ("masks", "class_stats"))
    return masks & class_stats


def _commit_within(uri: str) -> float:
    """Seconds within which masks follow these statistics, if they do."""
    with storage.explained(uri), storage.open_file(uri) as file:
        try:
            return float((open_parquet(file).schema_arrow.metadata or {})[COMMIT_WITHIN])
        except (pa.ArrowInvalid, KeyError, ValueError):  # of an earlier version, or not ours
            return storage.write_seconds(LARGEST_PART)


def _names(output: str, table: str, mended: list[str]) -> set[str]:
    """Parts of a table; what else lies there is left alone, but half-written files."""
    names = set()
    for name in _files(output, table):
        if name.startswith(storage.PARTIAL):
            storage.remove(storage.join(output, table, name))
            mended.append(f"removed {table}/{name}: half written")
        elif PART.fullmatch(name):
            names.add(name)
    return names


def _files(output: str, table: str) -> list[str]:
    folder = storage.absolute(storage.join(output, table)) + "/"
    return [uri.removeprefix(folder) for uri in storage.find(folder)]


def _read_parts(output: str, names: list[str], columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Columns of masks by name of their part; a few parts ahead are in memory, however many there are."""
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[tuple[str, Future[pa.Table]]] = deque()
        for name in names:
            ahead.append((name, pool.submit(read_table, storage.join(output, "masks", name), columns, MASKS)))
            if len(ahead) > 2 * READERS:
                first, reading = ahead.popleft()
                yield first, reading.result()
        for name, reading in ahead:
            yield name, reading.result()


def _superseded(output: str, names: list[str]) -> dict[str, list[int]]:
    """By part, its rows whose image has a better one; of equally good ones the first stays."""
    images, twice = IdSet(), IdSet()
    for _, rows in _read_parts(output, names, ["image_id"]):
        twice.add(rows["image_id"].filter(pc.invert(images.add(rows["image_id"]))))
    del images
    if not len(twice):
        return {}
    rivals = []
    for number, (_, rows) in enumerate(_read_parts(output, names, ["image_id", "run_id", "status"])):
        rows = rows.append_column("row", pa.array(np.arange(len(rows))))
        rows = rows.filter(twice.contains(rows["image_id"]))
        rows = rows.append_column("part", pa.repeat(number, len(rows)))
        sequences = [sequence_of(run_id) for run_id in rows["run_id"].to_pylist()]
        rivals.append(rows.append_column("sequence", pa.array(sequences, pa.int64())))
    # One run has an image twice where a lost node's work was repeated: what failed then may have gone well before.
    # "ok" comes after "error".
    rows = pa.concat_tables(rivals)
    of_run = {"sequence": "descending", "run_id": "descending"}
    of_row = {"status": "descending", "part": "ascending", "row": "ascending"}
    order = {"image_id": "ascending", **of_run, **of_row}
    sorted_rivals = rows.sort_by(list(order.items()))
    image_ids = sorted_rivals["image_id"].combine_chunks()
    found: dict[str, list[int]] = {}
    is_older = pc.equal(image_ids[1:], image_ids[:-1])
    for row in (
        sorted_rivals.slice(1).filter(is_older).sort_by([("part", "ascending"), ("row", "ascending")]).to_pylist()
    ):
        found.setdefault(names[row["part"]], []).append(row["row"])
    return found
