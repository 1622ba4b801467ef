"""The sink's write task: one part of ordinary masks, several of large ones, every row in exactly one."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.output.lease import Claim, LeaseLost, hold
from pipeline.output.schema import PREDICTED, table
from pipeline.segment import write_stage
from pipeline.segment.write_stage import PartSink, rows_of_a_part
from tests.output_checks import check_invariants
from tests.pipeline.samples import CLASS_NAMES, failed, segmented


def blocks(count: int) -> list[pa.Table]:
    tables = [table([segmented(f"file:///{n}.jpg")], PREDICTED) for n in range(count)]
    return [*tables, table([failed("file:///bad.jpg")], PREDICTED), PREDICTED.empty_table()]


@pytest.mark.parametrize(("part_bytes", "parts"), [(256_000_000, 1), (1, 6), (2 * 800, None)])
def test_every_row_is_in_one_part_however_large_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int, parts: int | None
) -> None:
    monkeypatch.setattr(write_stage, "MAX_BYTES", part_bytes)
    with hold(tmp_path.as_uri()) as lease:
        written = PartSink(lease.claim, CLASS_NAMES, "model1", lease.run_id, 1024).write(blocks(5), None)
    assert parts is None or len(written) == parts
    assert len({part.name for part in written}) == len(written)
    assert sum(sum(part.outcomes.values()) for part in written) == 6
    check_invariants(tmp_path.as_uri(), [*(f"file:///{n}.jpg" for n in range(5)), "file:///bad.jpg"])


def test_labeled_images_of_few_levels_are_counted(tmp_path: Path) -> None:
    rows = [segmented(f"file:///{n}.jpg") | {"few_levels": few} for n, few in enumerate((True, False, None, True))]
    rows.append(failed("file:///bad.jpg") | {"few_levels": True})
    with hold(tmp_path.as_uri()) as lease:
        sink = PartSink(lease.claim, CLASS_NAMES, "model1", lease.run_id, 1024)
        (written,) = sink.write([table(rows, PREDICTED)], None)
    assert written.num_few_levels == 2


def test_labeled_images_of_which_pixels_have_no_data_are_counted(tmp_path: Path) -> None:
    rows = [segmented(f"file:///{n}.jpg") | {"has_nodata": has} for n, has in enumerate((False, True, True))]
    with hold(tmp_path.as_uri()) as lease:
        sink = PartSink(lease.claim, CLASS_NAMES, "model1", lease.run_id, 1024)
        (written,) = sink.write([table([*rows, failed("file:///bad.jpg")], PREDICTED)], None)
    assert written.num_with_nodata == 2


def test_a_task_without_rows_writes_nothing(tmp_path: Path) -> None:
    claim = Claim(str(tmp_path), 1, "nobody's")
    assert PartSink(claim, CLASS_NAMES, "model1", "run1", 1024).write([PREDICTED.empty_table()], None) == []
    assert not list(tmp_path.iterdir())


def test_a_task_whose_run_has_lost_the_output_commits_nothing(tmp_path: Path) -> None:
    with hold(tmp_path.as_uri()) as lease:
        pass
    with hold(tmp_path.as_uri()) as following, pytest.raises(LeaseLost, match=f"taken over by run {following.run_id}"):
        PartSink(lease.claim, CLASS_NAMES, "model1", lease.run_id, 1024).write(blocks(2), None)
    assert not list(tmp_path.glob("masks/*"))


@pytest.mark.parametrize(
    ("images", "size_bytes", "rows"),
    [
        (100, 50_000, 256),  # a killed run loses no more than so many, or a 64th
        (64_000, 50_000, 1000),
        (1_000_000, 50_000, 15_625),
        (1_000_000, 100_000, 10_240),  # masks of about 25 kB fill 256 MB
        (1_000_000, None, 15_625),
        (10_000_000, None, 32_768),
        (1000, 50_000_000, 20),  # scenes
        (1000, 10_000_000_000, 1),
    ],
)
def test_parts_are_large_in_a_large_run_and_never_much_of_it(images: int, size_bytes: int | None, rows: int) -> None:
    sizes = pa.repeat(pa.scalar(size_bytes, pa.int64()), images)
    assert rows_of_a_part(pa.table({"size_bytes": sizes})) == rows
