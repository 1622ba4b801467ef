"""The sink's write task: one part of ordinary masks, several of large ones, every row in exactly one."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import sink
from pipeline.sink import PartSink
from pipeline.tables import PREDICTED, table
from tests.output_checks import check_invariants
from tests.pipeline.samples import CLASS_NAMES, failed, segmented


def blocks(count: int) -> list[pa.Table]:
    tables = [table([segmented(f"file:///{n}.jpg")], PREDICTED) for n in range(count)]
    return [*tables, table([failed("file:///bad.jpg")], PREDICTED), PREDICTED.empty_table()]


@pytest.mark.parametrize(("part_bytes", "parts"), [(256_000_000, 1), (1, 6), (2 * 800, None)])
def test_every_row_is_in_one_part_however_large_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int, parts: int | None
) -> None:
    monkeypatch.setattr(sink, "PART_BYTES", part_bytes)
    written = PartSink(str(tmp_path), CLASS_NAMES, "model1", "run1", 1024).write(blocks(5), None)
    assert parts is None or len(written) == parts
    assert len({part.name for part in written}) == len(written)
    assert sum(sum(part.outcomes.values()) for part in written) == 6
    check_invariants(str(tmp_path), [*(f"file:///{n}.jpg" for n in range(5)), "file:///bad.jpg"])


def test_a_task_without_rows_writes_nothing(tmp_path: Path) -> None:
    assert PartSink(str(tmp_path), CLASS_NAMES, "model1", "run1", 1024).write([PREDICTED.empty_table()], None) == []
    assert not list(tmp_path.iterdir())
