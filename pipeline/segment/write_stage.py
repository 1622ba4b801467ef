"""Write stage: the Ray Data sink whose tasks write one part each, or several if the masks are large."""

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

# Target size of a part, for which its rows are estimated from file sizes, and the size above which it is split.
# Some excess is tolerated, but writing takes about four times a part's size in memory, and a column cannot exceed 2 GB.
PART_BYTES, MAX_BYTES = 256_000_000, 384_000_000
# A killed run loses its unfinished parts. So a part holds at most the larger of 1/PARTS_OF_A_RUN of the images and
# MIN_ROWS.
PARTS_OF_A_RUN, MIN_ROWS = 64, 256
# Maximum rows of a part, also used if file sizes are unknown; and a mask's approximate size relative to its image file.
MAX_ROWS, MASK_SHARE = 32_768, 0.25


def rows_of_a_part(images: pa.Table) -> int:
    """Return the number of rows per part for these LISTED images, so that a part of many has about PART_BYTES."""
    size_bytes = pc.mean(images["size_bytes"]).as_py() or 0
    fill = int(PART_BYTES / (MASK_SHARE * size_bytes)) if size_bytes else MAX_ROWS
    return max(1, min(fill, MAX_ROWS, max(MIN_ROWS, len(images) // PARTS_OF_A_RUN)))


@dataclass(frozen=True)
class WrittenPart:
    """Result of writing one part: its name, its outcomes and the process's times."""

    name: str
    outcomes: dict[str, int]  # 'ok' or error type -> images
    num_few_levels: int  # labeled images whose pixels have few different values
    num_with_nodata: int  # labeled images of which some pixels have no data
    report: Report


class PartSink(Datasink[list[WrittenPart]]):
    """Data sink that writes PREDICTED rows as parts of an output. After the run, `written` lists all of its parts.

    A write task raises LeaseLost if the claim is no longer valid.
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
        # Sorted, so that readers can skip row groups by their statistics when they look up a name.
        predicted = predicted.sort_by("image_uri")
        with prometheus.timed("write", len(predicted)) as work:
            masks, class_stats = masks_and_class_stats(
                predicted, self._class_names, self._model_id, self._run_id, datetime.now(UTC)
            )
            name = parts.part_name(self._run_id, masks)
            work.bytes = parts.write_part(self._claim.output, name, masks, class_stats, self._claim.require)
        prometheus.count_processor("write", since)
        outcomes = Counter(kind or "ok" for kind in masks["error_type"].to_pylist())
        num_few_levels = pc.sum(pc.and_(predicted["few_levels"], pc.is_null(predicted["error_type"]))).as_py() or 0
        num_with_nodata = pc.sum(predicted["has_nodata"]).as_py() or 0
        return WrittenPart(name, dict(outcomes), num_few_levels, num_with_nodata, prometheus.report())


def _of_bounded_size(blocks: Iterable[Block]) -> Iterator[list[pa.Table]]:
    """Yield the tables of each part: all blocks in one part, unless they exceed MAX_BYTES."""
    gathered: list[pa.Table] = []
    for block in blocks:
        if gathered and sum(table.nbytes for table in gathered) + block.nbytes > MAX_BYTES:
            yield gathered
            gathered = []
        if block.num_rows:
            gathered.append(block)
    if gathered:
        yield gathered
