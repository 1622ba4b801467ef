"""Parts: pairs of Parquet files, one of masks and one of class statistics, that exist together or not at all.

The statistics are written first and the masks last: the masks file is the commit. What an output holds is what
its masks parts hold, and nothing else keeps books.
"""

import hashlib
import io
import posixpath
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError

READERS = 16  # parts whose ids are read at once; the reading is waiting


def part_name(run_id: str, image_ids: pa.Array | pa.ChunkedArray) -> str:
    """Name from the run and the images in it: a task that is tried again writes the same part over itself."""
    digest = hashlib.blake2b(b"".join(sorted(image_ids.to_pylist())), digest_size=8).hexdigest()
    return f"part-{run_id}-{digest}.parquet"


def write_part(output: str, name: str, masks: pa.Table, class_stats: pa.Table) -> None:
    """Write one part, its commit last. Raises UserError."""
    write_table(storage.join(output, "class_stats", name), class_stats)
    write_table(storage.join(output, "masks", name), masks)


def remove_part(output: str, name: str) -> None:
    """Remove one part, its commit first."""
    storage.remove(storage.join(output, "masks", name))
    storage.remove(storage.join(output, "class_stats", name))


def write_table(uri: str, table: pa.Table) -> None:
    """Write one Parquet file, whole or not at all. Raises UserError."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getvalue())


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or only some of its columns. Raises UserError."""
    filesystem, path = storage.open_filesystem(uri)
    with storage.explained(uri), filesystem.open(path, "rb") as file:
        try:
            return pq.read_table(file, columns=columns)
        except pa.ArrowInvalid as error:
            raise UserError(f"{uri}: cannot be read as Parquet: {error}; remove it") from error


@dataclass
class Reconciled:
    """What an output holds after it was put in order, and what had to be done for that."""

    image_ids: pa.Array
    num_ok: int = 0
    mended: list[str] = field(default_factory=list)


def reconcile(output: str) -> Reconciled:
    """Put in order what an interrupted run left, and return the images that are done.

    Half-written local files and statistics without masks are deleted. Masks without statistics (which no kill
    leaves behind, but a person may) are deleted too, so that their images are done again. Rows that stand in two
    parts are removed from the later one. Interrupted at any point, it can simply be run again.

    Raises: UserError.
    """
    result = Reconciled(pa.array([], pa.binary(16)))
    masks, class_stats = (_names(output, table, result) for table in ("masks", "class_stats"))
    for name in sorted(class_stats - masks):
        storage.remove(storage.join(output, "class_stats", name))
        result.mended.append(f"removed class_stats/{name}: an interrupted run had not committed it")
    for name in sorted(masks - class_stats):
        storage.remove(storage.join(output, "masks", name))
        result.mended.append(f"removed masks/{name}: its class_stats file is missing; its images are done again")

    parts = _read_parts(output, sorted(masks & class_stats))
    if parts and pc.count_distinct(pa.concat_tables(parts.values())["image_id"]).as_py() < sum(
        map(len, parts.values())
    ):
        parts = _without_repeated(output, parts, result)
    if parts:
        done = pa.concat_tables(parts.values())
        result.image_ids = done["image_id"].combine_chunks()
        result.num_ok = pc.sum(pc.equal(done["status"], "ok")).as_py()
    return result


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


def _names(output: str, table: str, result: Reconciled) -> set[str]:
    names = set()
    for uri in storage.find(storage.join(output, table)):
        name = posixpath.basename(uri)
        if name.startswith(storage.PARTIAL):
            storage.remove(uri)
            result.mended.append(f"removed {table}/{name}: half written")
        elif name.endswith(".parquet"):
            names.add(name)
    return names


def _read_parts(output: str, names: list[str]) -> dict[str, pa.Table]:
    with ThreadPoolExecutor(READERS) as pool:
        columns = ["image_id", "status"]
        tables = pool.map(lambda name: read_table(storage.join(output, "masks", name), columns), names)
        return dict(zip(names, tables, strict=True))


def _without_repeated(output: str, parts: dict[str, pa.Table], result: Reconciled) -> dict[str, pa.Table]:
    seen: set[bytes] = set()
    kept = {}
    rewritten: set[str] = set()
    for name, part in parts.items():
        if name in rewritten:
            continue  # an interrupted mending had made this part already, and it was just made again
        ids = part["image_id"].to_pylist()
        keep = pa.array([image_id not in seen for image_id in ids])
        seen.update(ids)
        kept[name] = part.filter(keep)
        if kept[name].num_rows == part.num_rows:
            continue
        if kept[name].num_rows:
            # The smaller part is complete before the larger one goes; until then rows stand twice, never nowhere.
            masks = read_table(storage.join(output, "masks", name)).filter(keep)
            class_stats = read_table(storage.join(output, "class_stats", name))
            still_here = pc.is_in(class_stats["image_id"], value_set=masks["image_id"].combine_chunks())
            new_name = part_name(masks["run_id"][0].as_py(), masks["image_id"])
            write_part(output, new_name, masks, class_stats.filter(still_here))
            rewritten.add(new_name)
        remove_part(output, name)
        result.mended.append(f"removed {part.num_rows - kept[name].num_rows} rows from masks/{name}: they stood twice")
    return kept
