"""Binds parts to Ray Data: one write task makes one part."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
from ray.data.block import Block
from ray.data.datasource import Datasink, WriteResult

from pipeline import monitoring, parts
from pipeline.tables import masks_and_class_stats


@dataclass(frozen=True)
class WrittenPart:
    """What a write task reports: its part, and how many images ended how ('ok' or a kind of failure)."""

    name: str
    outcomes: dict[str, int]


class PartSink(Datasink[WrittenPart | None]):
    """Writes tables.PREDICTED rows as parts of an output. After the run, `written` holds every part of it."""

    def __init__(self, output: str, class_names: list[str], model_id: str, run_id: str, rows_per_part: int) -> None:
        self._output = output
        self._class_names = class_names
        self._model_id = model_id
        self._run_id = run_id
        self._rows_per_part = rows_per_part
        self.written: list[WrittenPart] = []

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_part

    def write(self, blocks: Iterable[Block], ctx: object) -> WrittenPart | None:
        predicted = pa.concat_tables([block for block in blocks if block.num_rows] or [pa.table({})])
        if not predicted.num_rows:
            return None
        masks, class_stats = masks_and_class_stats(
            predicted, self._class_names, self._model_id, self._run_id, datetime.now(UTC)
        )
        name = parts.part_name(self._run_id, masks["image_id"])
        with monitoring.timed("write"):
            parts.write_part(self._output, name, masks, class_stats)
        return WrittenPart(name, dict(Counter(kind or "ok" for kind in masks["error_type"].to_pylist())))

    def on_write_complete(self, write_result: WriteResult[WrittenPart | None]) -> None:
        self.written = [part for part in write_result.write_returns if part is not None]
