"""Parts: pairs of Parquet files, one of masks and one of class statistics, that exist together or not at all.

The statistics are written first and the masks last: the masks file is the commit. What an output holds is what
its masks parts hold, and nothing else keeps books.
"""

import hashlib
import io
import posixpath
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError
from pipeline.parquet_layout import write_options
from pipeline.tables import MASKS

PART = re.compile(r"part-[^/]+-[0-9a-f]{16}\.parquet")
READERS = 16  # parts whose ids are read at once; the reading is waiting


def part_name(run_id: str, image_ids: pa.Array | pa.ChunkedArray) -> str:
    """Name from the run and the images in it: a task that is tried again writes the same part over itself."""
    digest = hashlib.blake2b(b"".join(sorted(image_ids.to_pylist())), digest_size=8).hexdigest()
    return f"part-{run_id}-{digest}.parquet"


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
    content = parquet_bytes(table)
    storage.write_bytes(uri, content)
    return len(content)


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file of masks, class_stats or classes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **write_options(table))
    return buffer.getvalue()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or only some of its columns. Raises UserError."""
    with storage.explained(uri), storage.open_file(uri) as file:
        try:
            return pq.read_table(file, columns=columns)
        except pa.ArrowInvalid as error:
            raise UserError(f"{uri}: cannot be read as Parquet: {error}; remove it") from error


# What is read of every part before a run, so that it knows what is left to do.
DONE = pa.schema([MASKS.field(name) for name in ("image_id", "status", "error_type", "etag")])


@dataclass
class Reconciled:
    """What an output holds after it was put in order, and what had to be done for that."""

    done: pa.Table = field(default_factory=DONE.empty_table)  # of DONE, each image once
    mended: list[str] = field(default_factory=list)


def reconcile(output: str) -> Reconciled:
    """Put in order what an interrupted run left, and return the images that are done.

    Half-written local files and statistics without masks are deleted. Masks without statistics (which no kill
    leaves behind, but a person may) are deleted too, so that their images are done again. Of an image that stands
    in two parts the newest row stays. Interrupted at any point, it can simply be run again.

    Raises: UserError.
    """
    result = Reconciled()
    masks, class_stats = (_names(output, table, result) for table in ("masks", "class_stats"))
    for name in sorted(class_stats - masks):
        storage.remove(storage.join(output, "class_stats", name))
        result.mended.append(f"removed class_stats/{name}: an interrupted run had not committed it")
    for name in sorted(masks - class_stats):
        storage.remove(storage.join(output, "masks", name))
        result.mended.append(f"removed masks/{name}: its class_stats file is missing; its images are done again")

    found = _read_parts(output, sorted(masks & class_stats), DONE.names)
    if _stand_twice(found):
        result.mended += remove_superseded(output)
        found = _read_parts(output, sorted(_names(output, "masks", result)), DONE.names)
    if found:
        result.done = pa.concat_tables(found.values())
    return result


def remove_superseded(output: str) -> list[str]:
    """Of every image that stands in several parts keep the newest row alone; returns what was done.

    A part that loses rows is written anew under another name before it goes: until then rows stand twice, never
    nowhere.
    """
    names = sorted(_names(output, "masks", Reconciled()))
    keep = _newest(_read_parts(output, names, ["image_id", "segmented_at"]))
    mended: list[str] = []
    rewritten: set[str] = set()
    for name, kept in keep.items():
        num_kept = pc.sum(kept).as_py() or 0
        if num_kept in (0, len(kept)):
            continue
        masks = read_table(storage.join(output, "masks", name)).filter(kept)
        class_stats = read_table(storage.join(output, "class_stats", name))
        still_here = pc.is_in(class_stats["image_id"], value_set=masks["image_id"].combine_chunks())
        smaller = part_name(masks["run_id"][0].as_py(), masks["image_id"])
        write_part(output, smaller, masks, class_stats.filter(still_here))
        rewritten.add(smaller)
    for name, kept in keep.items():
        num_superseded = len(kept) - (pc.sum(kept).as_py() or 0)
        # An interrupted mending may have made a part already that was just made again.
        if num_superseded and name not in rewritten:
            remove_part(output, name)
            mended.append(f"removed {num_superseded} rows from masks/{name}: newer ones have taken their place")
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


def read_done(output: str) -> pa.Table:
    """The images that are done, as `reconcile` returns them, of an output that is left as it is. Raises UserError."""
    masks, class_stats = ({*filter(PART.fullmatch, _files(output, table))} for table in ("masks", "class_stats"))
    found = _read_parts(output, sorted(masks & class_stats), DONE.names)
    return pa.concat_tables([DONE.empty_table(), *found.values()])


def _names(output: str, table: str, result: Reconciled) -> set[str]:
    """Parts of a table; what else lies there is left alone, but half-written files."""
    names = set()
    for name in _files(output, table):
        if name.startswith(storage.PARTIAL):
            storage.remove(storage.join(output, table, name))
            result.mended.append(f"removed {table}/{name}: half written")
        elif PART.fullmatch(name):
            names.add(name)
    return names


def _files(output: str, table: str) -> list[str]:
    folder = storage.absolute(storage.join(output, table)) + "/"
    return [uri.removeprefix(folder) for uri in storage.find(folder)]


def _read_parts(output: str, names: list[str], columns: list[str]) -> dict[str, pa.Table]:
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda name: read_table(storage.join(output, "masks", name), columns), names)
        return dict(zip(names, tables, strict=True))


def _stand_twice(found: dict[str, pa.Table]) -> bool:
    if not found:
        return False
    image_ids = pa.concat_tables(found.values())["image_id"]
    return pc.count_distinct(image_ids).as_py() < len(image_ids)


def _newest(dated: dict[str, pa.Table]) -> dict[str, pa.Array]:
    """For each part, by row: whether no other row of the image is newer; of equally new ones the first stays."""
    rows = pa.concat_tables(dated.values())
    rows = rows.append_column("row", pa.array(np.arange(len(rows))))
    by_age = rows.sort_by([("image_id", "ascending"), ("segmented_at", "descending"), ("row", "ascending")])
    first_of_image = by_age.group_by("image_id", use_threads=False).aggregate([("row", "first")])["row_first"]
    kept = np.zeros(len(rows), bool)
    kept[first_of_image.to_numpy()] = True
    ends = np.cumsum([len(part) for part in dated.values()])
    return {
        name: pa.array(kept[end - len(part) : end])
        for (name, part), end in zip(dated.items(), ends.tolist(), strict=True)
    }
