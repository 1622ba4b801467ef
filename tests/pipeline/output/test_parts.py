"""Parts: whole or not there, each image once, whatever was interrupted and wherever."""

import re
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.output import parts
from pipeline.output.parquet import read_table, write_table
from pipeline.output.reconcile import (
    LARGEST_PART,
    READERS,
    differences,
    read_completed,
    reconcile,
    remove_strays,
    stored_images,
)
from pipeline.output.schema import (
    CLASS_STATS,
    CLASSES,
    LISTED,
    MASKS,
    PREDICTED,
    image_id,
    masks_and_class_stats,
    table,
)
from pipeline.storage.parquet_files import parquet_bytes
from tests.output_checks import check_invariants, read
from tests.pipeline.samples import CLASS_NAMES, MADE_AT, failed, segmented, write_part

Break = Callable[[str], set[str]]
WITH_BOUND = {**CLASS_STATS.metadata, parts.COMMIT_WITHIN: b"60"}  # seconds, of masks of a few bytes


class Killed(Exception):
    """Stands for a SIGKILL: nothing in the code under test may catch it."""


@pytest.fixture
def output(tmp_path: Path) -> str:
    return f"file://{tmp_path}/output"


def kill_after(operations: int, patch: pytest.MonkeyPatch) -> None:
    """Let this many further writes and removals happen in truth, and end the caller right after the last."""
    left = operations

    def counted(operation: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            nonlocal left
            operation(*arguments)
            left -= 1
            if left == 0:
                raise Killed

        return run

    patch.setattr(storage, "write_bytes", counted(storage.write_bytes))
    patch.setattr(storage, "remove", counted(storage.remove))


def files(output: str) -> set[str]:
    """Every file of an output, relative to it."""
    base = storage.absolute(output) + "/"
    return {uri.removeprefix(base) for uri in storage.find(output)}


def both(name: str) -> set[str]:
    return {f"masks/{name}", f"class_stats/{name}"}


class Reconciled(NamedTuple):
    image_ids: set[bytes]  # of all rows
    repaired: list[str]


def reconciled(output: str) -> Reconciled:
    """Reconcile, and check that what is reported is what lies there."""
    found = reconcile(output)
    uris = [
        uri
        for part in storage.find(storage.join(output, "masks"))
        for uri in read_table(part, ["image_uri"])["image_uri"].to_pylist()
    ]
    rows = check_invariants(output, uris)
    assert len(rows) == len(uris), "an image stands twice"
    listed = table([*rows.values(), {"image_id": image_id("another"), "image_uri": "another"}], LISTED)
    assert found.completed.contains(listed).to_pylist() == [True] * len(rows) + [False]
    assert len(found.completed) == len(rows)
    assert differences(output, found.names) == []
    assert stored_images(output, found.names).num_ids == len(rows)
    return Reconciled({row["image_id"] for row in rows.values()}, found.repaired)


# Writing


OTHER: dict[str, Any] = {
    "image_id": image_id("c"),
    "image_uri": "c",
    "etag": "4567abcd",
    "size_bytes": 1001,
    "width": 6,
    "height": None,
    "status": "error",
    "error_stage": "predict",
    "error_type": "Crashed",
    "error_message": "",
    "mean_confidence": float(np.nextafter(np.float32(0.75), np.float32(1))),
    "mean_entropy": None,
    "low_confidence_fraction": 0.25,
    "model_id": "model2",
    "run_id": "run2",
}


def masks_of(*uris: str, run_id: str = "run1", made_at: datetime = MADE_AT) -> pa.Table:
    rows = [segmented(uri) | {"etag": None} if uri == "b" else segmented(uri) for uri in uris]
    return masks_and_class_stats(table(rows, PREDICTED), CLASS_NAMES, "model1", run_id, made_at)[0]


def test_a_part_is_named_by_its_run_and_its_images_in_any_order() -> None:
    masks = masks_of("a", "b", "c")
    name = parts.part_name("run1", masks)
    assert re.fullmatch("part-run1-[0-9a-f]{32}.parquet", name)
    assert parts.PART.fullmatch(name)
    assert parts.part_name("run1", pa.concat_tables([masks[2:], masks[:2]])) == name
    assert parts.part_name("run2", masks) != name
    assert parts.part_name("run1", masks[:2]) != name
    assert parts.part_name("run1", masks, kept=True) == name.replace("run1-", "run1-kept-")
    assert parts.part_name("run1", masks_of("a", "b", "c", made_at=MADE_AT + timedelta(seconds=1))) == name


@pytest.mark.parametrize("column", OTHER)
def test_a_part_is_named_by_everything_that_its_rows_say(column: str) -> None:
    masks = masks_of("a", "b")
    place = masks.column_names.index(column)
    values = [*masks[column].to_pylist()[:1], OTHER[column]]
    changed = masks.set_column(place, masks.schema.field(column), pa.array(values, masks.schema.field(column).type))
    assert parts.part_name("run1", changed) != parts.part_name("run1", masks)


def test_the_names_cover_every_column_but_lists_and_times() -> None:
    nested = {column.name for column in MASKS if pa.types.is_nested(column.type)}
    assert {*OTHER} == {*MASKS.names} - nested - {"segmented_at", "seconds"}


def test_an_empty_text_and_none_have_different_names() -> None:
    names = set()
    for etag in ("", None):
        row = segmented("a") | {"etag": etag}
        names.add(parts.part_name("run1", masks_and_class_stats(table([row], PREDICTED), CLASS_NAMES, "m", "r", 0)[0]))
    assert len(names) == 2


def test_a_task_that_comes_to_other_labels_writes_a_part_of_its_own(output: str) -> None:
    """It may die between its two files: masks would stand beside the statistics of others."""
    before = write_part(output, ["a", "b"])
    statistics = storage.read_bytes(f"{output}/class_stats/{before}")
    write_part(output, ["a"], failures=["b"])
    assert storage.read_bytes(f"{output}/class_stats/{before}") == statistics
    reconciled(output)
    assert {row["status"] for row in check_invariants(output, ["a", "b"]).values()} == {"ok"}


def test_a_task_that_is_tried_again_writes_over_its_part(output: str) -> None:
    first = write_part(output, ["a", "b"], failures=["c"])
    second = write_part(output, ["a", "b"], failures=["c"])
    assert first == second
    assert files(output) == both(first)
    check_invariants(output, ["a", "b", "c"])


def test_what_is_written_is_read_with_its_schema(output: str) -> None:
    name = write_part(output, ["a"], failures=["b"])
    masks, class_stats = (read_table(f"{output}/{table}/{name}") for table in ("masks", "class_stats"))
    assert masks.schema.equals(MASKS)
    assert masks.schema.metadata == MASKS.metadata
    assert class_stats.schema.equals(CLASS_STATS.with_metadata(WITH_BOUND), check_metadata=True)
    assert read_table(f"{output}/masks/{name}", ["status"]).to_pylist() == [{"status": "ok"}, {"status": "error"}]


def test_a_part_of_failures_alone_has_an_empty_statistics_file(output: str) -> None:
    name = write_part(output, [], failures=["a"])
    class_stats = read_table(f"{output}/class_stats/{name}")
    assert class_stats.num_rows == 0
    assert class_stats.schema.equals(CLASS_STATS.with_metadata(WITH_BOUND), check_metadata=True)


def test_masks_that_cannot_be_written_leave_statistics_without_a_commit(tmp_path: Path, output: str) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "masks").write_bytes(b"a file where a folder belongs")
    with pytest.raises(UserError, match="masks/part-run1-"):
        write_part(output, ["a"])
    assert len(files(output) - {"masks"}) == 1
    assert next(iter(files(output) - {"masks"})).startswith("class_stats/part-run1-")


def test_statistics_that_cannot_be_written_keep_the_masks_from_being_written(tmp_path: Path, output: str) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "class_stats").write_bytes(b"a file where a folder belongs")
    with pytest.raises(UserError, match="class_stats/part-run1-"):
        write_part(output, ["a"])
    assert files(output) == {"class_stats"}


def test_a_part_is_removed_with_its_commit_first(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_part(output, ["a"])
    with monkeypatch.context() as patch:
        kill_after(1, patch)
        with pytest.raises(Killed):
            parts.remove_part(output, name)
    assert files(output) == {f"class_stats/{name}"}
    parts.remove_part(output, name)
    assert files(output) == set()


def test_reading_a_missing_table_names_it(output: str) -> None:
    with pytest.raises(UserError, match=r"output/classes\.parquet: not found"):
        read_table(f"{output}/classes.parquet")


def test_reading_a_file_that_is_no_table_names_it(output: str) -> None:
    storage.write_bytes(f"{output}/classes.parquet", b"not Parquet")
    with pytest.raises(UserError, match=r"output/classes\.parquet"):
        read_table(f"{output}/classes.parquet")


def test_a_table_is_replaced_by_writing_it_again(output: str) -> None:
    uri = f"{output}/classes.parquet"
    for schema in (CLASS_STATS, CLASSES):
        write_table(uri, schema.empty_table())
    assert read_table(uri).schema.equals(CLASSES, check_metadata=True)


# Putting in order: each state that a kill can leave, as (what breaks the output) -> the images that must be there


def nothing_wrong(output: str) -> set[str]:
    write_part(output, ["a", "b"], failures=["c"])
    write_part(output, ["d"], run_id="run2")
    return {"a", "b", "c", "d"}


def statistics_without_masks(output: str) -> set[str]:
    write_part(output, ["a"])
    storage.remove(f"{output}/masks/{write_part(output, ['b'])}")
    return {"a"}


def masks_without_statistics(output: str) -> set[str]:
    write_part(output, ["a"])
    storage.remove(f"{output}/class_stats/{write_part(output, ['b'])}")
    return {"a"}


def half_written_files(output: str) -> set[str]:
    write_part(output, ["a"])
    storage.write_bytes(f"{output}/masks/.partial-abc", b"PAR1 half")
    storage.write_bytes(f"{output}/class_stats/.partial-def", b"")
    return {"a"}


def the_same_images_in_two_runs(output: str) -> set[str]:
    write_part(output, ["a", "b"], failures=["c"])
    write_part(output, ["a", "b"], failures=["c"], run_id="run2")
    return {"a", "b", "c"}


def one_part_inside_another(output: str) -> set[str]:
    write_part(output, ["a", "b", "c"])
    write_part(output, ["b"], run_id="run2")
    return {"a", "b", "c"}


def some_images_in_two_parts(output: str) -> set[str]:
    write_part(output, ["a", "b"], failures=["c"])
    write_part(output, ["b", "d", "e"], failures=["c", "f"], run_id="run2")
    return {"a", "b", "c", "d", "e", "f"}


def a_chain_of_overlapping_parts(output: str) -> set[str]:
    for number, uris in enumerate((["a", "b"], ["b", "c"], ["c", "d"], ["d", "a"])):
        write_part(output, uris, run_id=f"run{number}")
    return {"a", "b", "c", "d"}


def everything_at_once(output: str) -> set[str]:
    statistics_without_masks(output)
    masks_without_statistics(output)
    half_written_files(output)
    some_images_in_two_parts(output)
    return {"a", "b", "c", "d", "e", "f"}


BROKEN = [
    statistics_without_masks,
    masks_without_statistics,
    half_written_files,
    the_same_images_in_two_runs,
    one_part_inside_another,
    some_images_in_two_parts,
    a_chain_of_overlapping_parts,
    everything_at_once,
]


def test_an_output_that_does_not_exist_yet_holds_nothing(output: str) -> None:
    found = reconcile(output)
    assert (len(found.completed), found.repaired, found.names, found.in_doubt) == (0, [], set(), 0)


def test_an_output_in_order_is_left_as_it_is(output: str) -> None:
    uris = nothing_wrong(output)
    before = {uri: storage.read_bytes(uri) for uri in storage.find(output)}
    result = reconciled(output)
    assert result.image_ids == {image_id(uri) for uri in uris}
    assert result.repaired == []
    assert {uri: storage.read_bytes(uri) for uri in storage.find(output)} == before


@pytest.mark.parametrize("broken", BROKEN)
def test_each_broken_state_is_put_in_order_once(broken: Break, output: str) -> None:
    uris = broken(output)
    result = reconciled(output)
    assert result.image_ids == {image_id(uri) for uri in uris}
    assert result.repaired
    assert reconciled(output).repaired == []


@pytest.mark.parametrize("broken", BROKEN)
def test_mending_that_is_killed_after_any_step_can_be_run_again(
    broken: Break, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = broken(f"{tmp_path.as_uri()}/broken")
    kills = 0
    while True:
        shutil.copytree(tmp_path / "broken", tmp_path / f"copy{kills}")
        output = (tmp_path / f"copy{kills}").as_uri()
        try:
            with monkeypatch.context() as patch:
                kill_after(kills + 1, patch)
                reconcile(output)
            break
        except Killed:
            kills += 1
        result = reconciled(output)
        assert result.image_ids == {image_id(uri) for uri in uris}, f"killed after step {kills}"
        assert reconciled(output).repaired == []
    assert kills > 0


@pytest.mark.parametrize("image", ["c", "d", "e", "f", "g", "h"])
def test_rows_that_an_earlier_mending_has_moved_stay_in_their_new_part(image: str, output: str) -> None:
    """The state after a kill between the smaller part's commit and the larger part's removal.

    Names are hashes: over several images the smaller part comes before the larger one and after it.
    """
    write_part(output, ["a", "b"])
    write_part(output, ["b", image], run_id="run2")
    write_part(output, [image], run_id="run2")
    result = reconciled(output)
    assert result.image_ids == {image_id(uri) for uri in ("a", "b", image)}


def test_what_was_mended_is_told_with_the_file_and_the_reason(output: str) -> None:
    unfinished, incomplete = write_part(output, ["a"]), write_part(output, ["b"])
    storage.remove(f"{output}/masks/{unfinished}")
    storage.remove(f"{output}/class_stats/{incomplete}")
    storage.write_bytes(f"{output}/masks/.partial-abc", b"")
    write_part(output, ["c", "d"])
    twice = write_part(output, ["c", "d", "e"], run_id="run0")
    lines = "\n".join(reconcile(output).repaired)
    assert "removed masks/.partial-abc: half-written file" in lines
    assert f"removed class_stats/{unfinished}: an interrupted run did not commit it" in lines
    assert f"removed masks/{incomplete}: its class_stats file is missing; its images are labeled again" in lines
    assert f"removed 2 rows from masks/{twice}: newer rows replace them" in lines


def test_files_that_are_no_parts_are_left_alone(output: str) -> None:
    name = write_part(output, ["a"])
    theirs = ["masks/notes.txt", "masks/table.parquet", f"masks/copies/{name}", "class_stats/part-of-mine.parquet"]
    for file in theirs:
        storage.write_bytes(f"{output}/{file}", b"mine")
    assert len(reconcile(output).completed) == 1
    assert [storage.read_bytes(f"{output}/{file}") for file in theirs] == [b"mine"] * 4


def test_the_part_of_the_last_run_keeps_its_rows_untouched(output: str) -> None:
    write_part(output, ["a", "b"])
    last = write_part(output, ["b", "c"], run_id="run2")
    before = storage.read_bytes(f"{output}/masks/{last}")
    reconcile(output)
    assert storage.read_bytes(f"{output}/masks/{last}") == before


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("20261130T090000-r9", "20261130T085500-r10"),  # whose clock is five minutes behind
        ("20261130T090000-abc123", "20261129T090000-r1"),  # the first of this version
        ("20261129T090000-abc123", "20261130T090000-000000"),
    ],
)
@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_the_row_of_the_last_run_takes_the_place_of_others_whatever_clocks_say(
    earlier: str, later: str, seconds: int, output: str
) -> None:
    old = write_part(output, ["a"], failures=["b", "c"], run_id=earlier)
    new = write_part(output, ["b"], failures=["c"], run_id=later, made_at=MADE_AT + timedelta(seconds=seconds))
    result = reconciled(output)
    assert result.repaired == [f"removed 2 rows from masks/{old}: newer rows replace them"]
    by_uri = {row["image_uri"]: row["status"] for row in read(output, "masks").to_pylist()}
    assert by_uri == {"a": "ok", "b": "ok", "c": "error"}
    assert f"masks/{new}" in files(output)
    assert f"masks/{old}" not in files(output)
    (kept,) = [name for name in files(output) if name.startswith("masks/") and "-kept-" in name]
    assert kept.startswith(f"masks/part-{earlier}-kept-")


@pytest.mark.parametrize("seconds", [-1, 0, 1])
def test_of_one_run_labels_stay_and_not_a_later_failure(output: str, seconds: int) -> None:
    """A lost node's work was repeated, and the storage failed in the meantime."""
    write_part(output, ["a", "b"], run_id="run1")
    write_part(output, ["c"], failures=["b"], run_id="run1", made_at=MADE_AT + timedelta(seconds=seconds))
    assert reconciled(output).image_ids == {image_id(uri) for uri in "abc"}
    assert {row["status"] for row in check_invariants(output, ["a", "b", "c"]).values()} == {"ok"}


@pytest.mark.parametrize("table", ["masks", "class_stats"])
def test_a_file_that_a_listing_lacks_is_asked_for_before_its_partner_goes(
    table: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may lag behind."""
    name = write_part(output, ["a"])
    whole = storage.find

    def lagging(uri: str) -> dict[str, dict[str, Any]]:
        return {} if uri.rstrip("/").endswith(f"/{table}") else whole(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "find", lagging)
        found = reconcile(output)
        assert differences(output, {name}) == []
    assert found.names == {name}
    assert len(found.completed) == 1
    assert files(output) == both(name)
    check_invariants(output, ["a"])


def test_statistics_without_masks_tell_how_long_these_may_still_come(output: str) -> None:
    name = write_part(output, ["a"])
    size = len(storage.read_bytes(f"{output}/masks/{name}"))
    storage.remove(f"{output}/masks/{name}")
    assert reconcile(output).in_doubt == round(storage.write_seconds(size))
    assert reconcile(output).in_doubt == 0
    # Of an earlier version, which does not tell.
    storage.write_bytes(f"{output}/class_stats/{name}", parquet_bytes(CLASS_STATS.empty_table()))
    assert reconcile(output).in_doubt == storage.write_seconds(LARGEST_PART)


def test_a_part_is_not_committed_where_the_run_may_not(output: str) -> None:
    masks = masks_of("a")

    def refuse() -> None:
        assert [uri.split("/")[-2] for uri in storage.find(output)] == ["class_stats"]
        raise UserError("not any more")

    with pytest.raises(UserError, match="not any more"):
        parts.write_part(output, parts.part_name("run1", masks), masks, CLASS_STATS.empty_table(), refuse)
    assert [uri.split("/")[-2] for uri in storage.find(output)] == ["class_stats"]


def test_what_came_and_what_is_gone_is_told(output: str) -> None:
    kept, gone, half = (write_part(output, [uri]) for uri in "abc")
    came = write_part(output, ["d"], run_id="run2")
    names = {kept, gone, half}
    parts.remove_part(output, gone)
    storage.remove(f"{output}/class_stats/{half}")
    assert differences(output, names) == [
        f"masks/{came} was written by another run",
        f"masks/{gone} is missing",
        f"class_stats/{came} was written by another run",
        *(f"class_stats/{name} is missing" for name in sorted([gone, half])),
    ]


def other_type(masks: pa.Table) -> pa.Table:
    return masks.set_column(3, "size_bytes", masks["size_bytes"].cast(pa.int32()))


def more_columns(masks: pa.Table) -> pa.Table:
    return masks.append_column("more", pa.array(["x"] * len(masks)))


@pytest.mark.parametrize("change", [other_type, more_columns])
def test_masks_with_columns_or_types_that_are_not_ours_are_refused(
    change: Callable[[pa.Table], pa.Table], output: str
) -> None:
    name = write_part(output, ["a"])
    uri = f"{output}/masks/{name}"
    write_table(uri, change(read_table(uri)))
    with pytest.raises(UserError, match=f"{name}: column .*; another program or another version wrote the file"):
        reconcile(output)
    # Columns that an earlier version did not have are none of a reader's concern.
    write_table(uri, masks_of("a").drop_columns(["carried"]))
    assert len(reconcile(output).completed) == 1


def test_an_image_that_failed_in_one_run_and_went_well_in_another_has_one_row(output: str) -> None:
    write_part(output, ["a"], failures=["b"])
    write_part(output, ["b", "c"], failures=["a"], run_id="run2")
    assert reconciled(output).image_ids == {image_id(uri) for uri in "abc"}
    assert (
        failed("b")["error_type"] in read_table(next(iter(storage.find(f"{output}/masks"))))["error_type"].to_pylist()
    )


@pytest.mark.slow
def test_a_bucket_is_put_in_order_like_a_disk(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = f"{bucket}/output"
    statistics_without_masks(output)
    masks_without_statistics(output)
    write_part(output, ["b", "g"], run_id="run0")  # which is rewritten, whatever the names of the others are
    uris = {"g", *some_images_in_two_parts(output)}
    with monkeypatch.context() as patch:
        kill_after(3, patch)  # in the middle of rewriting the part
        with pytest.raises(Killed):
            reconcile(output)
    assert reconciled(output).image_ids == {image_id(uri) for uri in uris}
    assert reconciled(output).repaired == []


def test_more_parts_than_are_read_at_once_are_all_counted(output: str) -> None:
    uris = [f"{n:03}" for n in range(3 * READERS)]
    for uri in uris:
        write_part(output, [uri])
    assert len(read_completed(output)) == len(uris)
    old = write_part(output, ["000", "far"], run_id="run0")
    result = reconciled(output)
    assert result.repaired == [f"removed 1 rows from masks/{old}: newer rows replace them"]
    assert result.image_ids == {image_id(uri) for uri in [*uris, "far"]}


def test_a_missing_bucket_is_an_error_and_no_empty_output(bucket: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        reconcile("s3://no-such-store/output")


# Strays


@pytest.mark.parametrize("kind", ["local", "swift"])
def test_only_parts_of_this_run_that_no_task_returned_are_strays(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = f"{tmp_path.as_uri()}/output" if kind == "local" else f"{request.getfixturevalue('bucket')}/output"
    kept, stray, half = (write_part(output, [uri], run_id="run1") for uri in "abc")
    others = [write_part(output, ["d"], run_id="run10"), write_part(output, ["e"], run_id="run1", kept=True)]
    storage.remove(f"{output}/masks/{half}")
    assert remove_strays(output, "run1", {kept}) == sorted([stray, half])
    assert files(output) == both(kept) | both(others[0]) | both(others[1])
    assert remove_strays(output, "run1", {kept}) == []


def test_an_output_without_a_part_has_no_strays(output: str) -> None:
    assert remove_strays(output, "run1", set()) == []
