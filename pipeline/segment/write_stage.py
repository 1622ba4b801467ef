"""Binds parts to Ray Data: one write task makes one part, or several of masks that are large."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.block import Block
from ray.data.datasource import Datasink, WriteResult

from pipeline.output import parts
from pipeline.output.lease import Claim
from pipeline.output.schema import masks_and_class_stats
from pipeline.segment import prometheus
from pipeline.segment.stage_timing import Report

# A part's rows are chosen by the sizes of files, to make so many bytes. Those that come out larger are not cut for some
# bytes too many; but a part is in memory about four times while it is written, and a column of 2 GB could not be.
PART_BYTES, MAX_BYTES = 256_000_000, 384_000_000
# What is done of a part is lost when a run is killed: no more than this share of the images, or so many.
PARTS_OF_A_RUN, MIN_ROWS = 64, 256
# Where the images' sizes are not known; and what a mask takes as a share of its image file, roughly.
MAX_ROWS, MASK_SHARE = 32_768, 0.25


def rows_of_a_part(images: pa.Table) -> int:
    """How many of the LISTED images should make a part: near PART_BYTES where there are many."""
    size_bytes = pc.mean(images["size_bytes"]).as_py() or 0
    fill = int(PART_BYTES / (MASK_SHARE * size_bytes)) if size_bytes else MAX_ROWS
    return max(1, min(fill, MAX_ROWS, max(MIN_ROWS, len(images) // PARTS_OF_A_RUN)))


@dataclass(frozen=True)
class WrittenPart:
    """What a write task reports: its part, how many images in it ended how, and its time."""

    name: str
    outcomes: dict[str, int]  # 'ok' or a kind of failure -> images
    report: Report


class PartSink(Datasink[list[WrittenPart]]):
    """Writes tables.PREDICTED rows as parts of an output. After the run, `written` holds every part of it.

    A task raises LeaseLost where the claim holds no more.
    """

    def __init__(self, claim: Claim, class_names: list[str], model_id: str, run_id: str, rows_per_part: int) -> None:
        self._claim = claim
        self._class_names = class_names
        self._model_id = model_id
        self._run_id = run_id
        self._rows_per_part = rows_per_part
        self.written: list[WrittenPart] = []

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_part

    def write(self, blocks: Iterable[Block], ctx: object) -> list[WrittenPart]:
        return [self._write_part(pa.concat_tables(tables)) for tables in _of_bounded_size(blocks)]

    def on_write_complete(self, write_result: WriteResult[list[WrittenPart]]) -> None:
        self.written = [part for parts in write_result.write_returns for part in parts]

    def _write_part(self, predicted: pa.Table) -> WrittenPart:
        since = time.process_time()
        # A reader who looks for a name finds its place in the file by the ranges of names.
        predicted = predicted.sort_by("image_uri")
        with prometheus.timed("write", len(predicted)) as work:
            masks, class_stats = masks_and_class_stats(
                predicted, self._class_names, self._model_id, self._run_id, datetime.now(UTC)
            )
            name = parts.part_name(self._run_id, masks)
            work.bytes = parts.write_part(self._claim.output, name, masks, class_stats, self._claim.require)
        prometheus.count_processor("write", since)
        outcomes = Counter(kind or "ok" for kind in masks["error_type"].to_pylist())
        return WrittenPart(name, dict(outcomes), prometheus.report())


def _of_bounded_size(blocks: Iterable[Block]) -> Iterator[list[pa.Table]]:
    """Tables for a part each: all blocks, unless they exceed MAX_BYTES."""
    gathered: list[pa.Table] = []
    for block in blocks:
        if gathered and sum(table.nbytes for table in gathered) + block.nbytes > MAX_BYTES:
            yield gathered
            gathered = []
        if block.num_rows:
            gathered.append(block)
    if gathered:
        yield gathered
