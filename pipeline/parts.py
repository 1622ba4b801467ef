"""Parts: pairs of Parquet files, one of masks and one of class statistics, that exist together or not at all.

The statistics are written first and the masks last: the masks file is the commit. What an output holds is what
its masks parts hold, and nothing else keeps books.
"""

import hashlib
import posixpath
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.done import Done
from pipeline.errors import UserError
from pipeline.id_set import IdSet
from pipeline.parquet_files import open_parquet, parquet_bytes
from pipeline.parquet_layout import write_options

PART = re.compile(r"part-[^/]+-[0-9a-f]{16}\.parquet")
READERS = 16  # parts whose ids are read at once; the reading is waiting


def part_name(run_id: str, masks: pa.Table) -> str:
    """Name from the run, the images and what became of them.

    A task that is tried again writes the same part over itself; where it comes to other labels (on another kind of
    GPU, or of an object that was replaced), a part of its own, so that no masks stand beside the statistics of others.

    Args:
        masks: at least the columns image_id and mean_confidence, which hardly any two predictions share by chance.
    """
    rows = masks.select(["image_id", "mean_confidence"]).sort_by("image_id")
    digest = hashlib.blake2b(b"".join(rows["image_id"].to_pylist()), digest_size=8)
    digest.update(pc.fill_null(rows["mean_confidence"], -1.0).to_numpy().tobytes())
    return f"part-{run_id}-{digest.hexdigest()}.parquet"


def write_part(output: str, name: str, masks: pa.Table, class_stats: pa.Table) -> int:
    """Write one part, its commit last; returns its bytes. Raises UserError."""
    num_bytes = write_table(storage.join(output, "class_stats", name), class_stats)
    return num_bytes + write_table(storage.join(output, "masks", name), masks)


def remove_part(output: str, name: str) -> None:
    """Remove one part, its commit first."""
    storage.remove(storage.join(output, "masks", name))
    storage.remove(storage.join(output, "class_stats", name))


def write_table(uri: str, table: pa.Table) -> int:
    """Write one Parquet file, whole or not at all; returns its bytes. Raises UserError."""
    content = parquet_bytes(table, **write_options(table))
    storage.write_bytes(uri, content)
    return len(content)


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or only some of its columns. Raises UserError."""
    with storage.explained(uri), storage.open_file(uri) as file:
        try:
            table = open_parquet(file, pre_buffer=True).read(columns)
            return table.select(columns) if columns else table
        except pa.ArrowInvalid as error:
            raise UserError(f"{uri}: cannot be read as Parquet: {error}; remove it") from error


def reconcile(output: str, retry_errors: Sequence[str] = (), relabel_changed: bool = False) -> tuple[Done, list[str]]:
    """Put in order what an interrupted run left, and return the images that are done and what was mended.

    Half-written local files and statistics without masks are deleted. Masks without statistics (which no kill
    leaves behind, but a person may) are deleted too, so that their images are done again. Of an image that stands
    in two parts one row stays, as `remove_superseded` chooses. Interrupted at any point, it can simply be run again.

    Args:
        retry_errors, relabel_changed: which images do not count as done, as Done says.

    Raises: UserError.
    """
    mended: list[str] = []
    masks, class_stats = (_names(output, table, mended) for table in ("masks", "class_stats"))
    for name in sorted(class_stats - masks):
        if storage.exists(storage.join(output, "masks", name)):
            continue  # another run has committed it since
        storage.remove(storage.join(output, "class_stats", name))
        mended.append(f"removed class_stats/{name}: an interrupted run had not committed it")
    for name in sorted(masks - class_stats):
        storage.remove(storage.join(output, "masks", name))
        mended.append(f"removed masks/{name}: its class_stats file is missing; its images are done again")

    done = Done(retry_errors, relabel_changed)
    for _, rows in _read_parts(output, sorted(masks & class_stats), done.columns):
        if done.add(rows).false_count:
            mended += remove_superseded(output)
            return read_done(output, retry_errors, relabel_changed), mended
    return done, mended


def read_done(output: str, retry_errors: Sequence[str] = (), relabel_changed: bool = False) -> Done:
    """The images that are done, as `reconcile` returns them, of an output that is left as it is. Raises UserError."""
    masks, class_stats = ({*filter(PART.fullmatch, _files(output, table))} for table in ("masks", "class_stats"))
    done = Done(retry_errors, relabel_changed)
    for _, rows in _read_parts(output, sorted(masks & class_stats), done.columns):
        done.add(rows)
    return done


def remove_superseded(output: str) -> list[str]:
    """Of every image that stands in several parts keep one row: of the run with the newest, labels before a failure.

    Returns what was done.

    A part that loses rows is written anew under another name before it goes: until then rows stand twice, never
    nowhere.
    """
    mended: list[str] = []
    rewritten: set[str] = set()
    superseded = _superseded(output, sorted(_names(output, "masks", mended)))
    for name, rows_of_part in superseded.items():
        masks = read_table(storage.join(output, "masks", name))
        if len(rows_of_part) == len(masks):
            continue
        is_kept = np.ones(len(masks), bool)
        is_kept[rows_of_part] = False
        masks = masks.filter(pa.array(is_kept))
        class_stats = read_table(storage.join(output, "class_stats", name))
        still_here = pc.is_in(class_stats["image_id"], value_set=masks["image_id"].combine_chunks())
        smaller = part_name(masks["run_id"][0].as_py(), masks)
        write_part(output, smaller, masks, class_stats.filter(still_here))
        rewritten.add(smaller)
    for name, rows_of_part in superseded.items():
        # An interrupted mending may have made a part already that was just made again.
        if name not in rewritten:
            remove_part(output, name)
            mended.append(f"removed {len(rows_of_part)} rows from masks/{name}: newer ones have taken their place")
    return mended


def remove_strays(output: str, run_id: str, written: set[str]) -> list[str]:
    """Remove the parts of a finished run that no successful task returned. Returns their names."""
    run_parts = f"part-{run_id}-"
    found = {
        posixpath.basename(uri)
        for table in ("masks", "class_stats")
        for uri in storage.find(storage.join(output, table))
    }
    strays = sorted(name for name in found if name.startswith(run_parts) and name not in written)
    for name in strays:
        remove_part(output, name)
    return strays


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
            ahead.append((name, pool.submit(read_table, storage.join(output, "masks", name), columns)))
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
    for number, (_, rows) in enumerate(_read_parts(output, names, ["image_id", "run_id", "status", "segmented_at"])):
        rows = rows.append_column("part", pa.repeat(number, len(rows)))
        rows = rows.append_column("row", pa.array(np.arange(len(rows))))
        rivals.append(rows.filter(twice.contains(rows["image_id"])))
    # One run has an image twice where a lost node's work was repeated: what failed then may have gone well before.
    # "ok" comes after "error".
    rows = pa.concat_tables(rivals)
    last = rows.group_by(["image_id", "run_id"]).aggregate([("segmented_at", "max")])
    rows = rows.join(last, ["image_id", "run_id"])
    of_run = {"segmented_at_max": "descending", "run_id": "ascending"}
    of_row = {"status": "descending", "segmented_at": "descending", "part": "ascending", "row": "ascending"}
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
