"""Repair of an output after an interrupted run, and the set of images that it holds.

Callers of functions that delete must hold the output's lease.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.output.completed import CompletedImages
from pipeline.output.id_set import IdSet, IdSum
from pipeline.output.lease import sequence_of
from pipeline.output.parquet import read_table
from pipeline.output.parts import COMMIT_WITHIN, PART, part_name, remove_part, write_part
from pipeline.output.schema import CLASS_STATS, MASKS
from pipeline.storage.parquet_files import open_parquet

READERS = 16  # parts read at once; reading is mostly waiting for storage
LARGEST_PART = 1_000_000_000  # bytes of masks; far more than the write stage puts in one part


@dataclass
class Reconciled:
    """State of an output after its repair."""

    completed: CompletedImages
    repaired: list[str] = field(default_factory=list)  # one line for each repair
    names: set[str] = field(default_factory=set)  # of the parts
    # Seconds from now within which tasks of a run that was taken over may still commit parts.
    in_doubt: float = 0.0


def reconcile(output: str, retry_errors: Sequence[str] = (), relabel_changed: bool = False) -> Reconciled:
    """Repair what an interrupted run left, and find the completed images.

    Deletes half-written local files and statistics without masks. Also deletes masks without statistics (which no kill
    leaves behind, but a late write or a person may), so that their images are labeled again. Of an image that is in
    two parts it keeps one row, as `remove_superseded` does. Idempotent: after an interruption, run it again.

    Args:
        retry_errors, relabel_changed: which images do not count as completed, as in CompletedImages.

    Raises: UserError.
    """
    found = Reconciled(CompletedImages(retry_errors, relabel_changed))
    files = {table: _files(output, table) for table in ("masks", "class_stats")}
    for table, of_table in files.items():
        found.repaired += _remove_half_written(output, table, of_table)
    masks, class_stats = _names(files["masks"]), _names(files["class_stats"])
    for name in sorted(class_stats - masks):
        # A listing may lag behind, so check for each file before its partner is deleted.
        if storage.exists(storage.join(output, "masks", name)):
            masks.add(name)
            continue
        uri = storage.join(output, "class_stats", name)
        found.in_doubt = max(found.in_doubt, _commit_within(uri))
        storage.remove(uri)
        found.repaired.append(f"removed class_stats/{name}: an interrupted run did not commit it")
    for name in sorted(masks - class_stats):
        if storage.exists(storage.join(output, "class_stats", name)):
            class_stats.add(name)
            continue
        storage.remove(storage.join(output, "masks", name))
        found.repaired.append(f"removed masks/{name}: its class_stats file is missing; its images are labeled again")

    found.names = masks & class_stats
    for _, rows in _read_parts(output, sorted(found.names), found.completed.columns):
        if found.completed.add(rows).false_count:
            found.repaired += remove_superseded(output)
            found.names = _whole(output)
            found.completed = read_completed(output, retry_errors, relabel_changed)
            break
    return found


def read_completed(output: str, retry_errors: Sequence[str] = (), relabel_changed: bool = False) -> CompletedImages:
    """Return the completed images, as `reconcile` does, but leave the output as it is. Raises: UserError."""
    done = CompletedImages(retry_errors, relabel_changed)
    for _, rows in _read_parts(output, sorted(_whole(output)), done.columns):
        done.add(rows)
    return done


def differences(output: str, names: set[str]) -> list[str]:
    """Describe how an output's parts differ from those that its run found and committed. Raises: UserError."""
    found = []
    for table in ("masks", "class_stats"):
        there = {*filter(PART.fullmatch, _files(output, table))}
        found += [f"{table}/{name} was written by another run" for name in sorted(there - names)]
        found += [
            f"{table}/{name} is missing"
            for name in sorted(names - there)
            if not storage.exists(storage.join(output, table, name))
        ]
    return found


def stored_images(output: str, names: Iterable[str]) -> IdSum:
    """Return the count and the sum of the image ids in parts, as read from storage. Raises: UserError."""
    images = IdSum()
    for _, rows in _read_parts(output, sorted(names), ["image_id"]):
        images = images.plus(IdSum.of(rows["image_id"]))
    return images


def remove_superseded(output: str) -> list[str]:
    """Keep one row of every image that is in several parts: of the last run, and within a run labels over a failure.

    A part that loses rows is rewritten under another name before it is removed: until then there are duplicate rows,
    but an image is never missing.

    Returns: one line for each repair.
    """
    files = _files(output, "masks")
    repaired = _remove_half_written(output, "masks", files)
    rewritten: set[str] = set()
    superseded = _superseded(output, sorted(_names(files)))
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
        # An interrupted repair may already have written the same part, which must stay.
        if name not in rewritten:
            remove_part(output, name)
            repaired.append(f"removed {len(rows_of_part)} rows from masks/{name}: newer rows replace them")
    return repaired


def remove_strays(output: str, run_id: str, written: set[str]) -> list[str]:
    """Remove orphan files: parts that tasks of a finished run wrote but did not return. Returns: their names.

    Rows of this run that `remove_superseded` moved to a part of their own, whose name has `kept-` in it, stay.
    """
    of_run = re.compile(rf"part-{re.escape(run_id)}-[0-9a-f]+\.parquet")
    found = {name for table in ("masks", "class_stats") for name in _files(output, table)}
    strays = sorted(name for name in found if of_run.fullmatch(name) and name not in written)
    for name in strays:
        remove_part(output, name)
    return strays


def _whole(output: str) -> set[str]:
    """Return the names of the parts that have both files."""
    masks, class_stats = ({*filter(PART.fullmatch, _files(output, table))} for table in ("masks", "class_stats"))
    return masks & class_stats


def _commit_within(uri: str) -> float:
    """Return the seconds within which the masks follow these statistics, if they follow at all."""
    with storage.explained(uri), storage.open_file(uri) as file:
        try:
            return float((open_parquet(file).schema_arrow.metadata or {})[COMMIT_WITHIN])
        except (pa.ArrowInvalid, KeyError, ValueError):  # written by an earlier version or another program
            return storage.write_seconds(LARGEST_PART)


def _names(files: list[str]) -> set[str]:
    """Return the names of parts among the files of a table."""
    return {name for name in files if PART.fullmatch(name)}


def _remove_half_written(output: str, table: str, files: list[str]) -> list[str]:
    """Delete the half-written files of a table, and return a line for each. All other files are left alone."""
    half_written = [name for name in files if name.startswith(storage.PARTIAL)]
    for name in half_written:
        storage.remove(storage.join(output, table, name))
    return [f"removed {table}/{name}: half-written file" for name in half_written]


def _files(output: str, table: str) -> list[str]:
    folder = storage.join(output, table) + "/"
    return [uri.removeprefix(folder) for uri in storage.find(folder)]


def _read_parts(output: str, names: list[str], columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the name and columns of masks of each part, reading only a few parts ahead to bound the memory."""
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
    """Return, by part, the rows whose image has a better row; of equally good rows the first one stays."""
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
    # One run may write an image twice if a lost node's work was repeated: an image that failed in the repetition may
    # have been labeled before. Descending order puts "ok" before "error".
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
