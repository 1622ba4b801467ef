"""An output broken in every way: each is found by its name, mended where that is possible, and nothing else is said."""

import errno
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.images.codec import encode_mask
from pipeline.output import parts
from pipeline.output.parquet import read_table, write_table
from pipeline.output.reconcile import reconcile
from pipeline.output.schema import (
    CLASS_STATS,
    CLASSES,
    LISTED,
    MASKS,
    PREDICTED,
    SCHEMA_VERSION,
    image_id,
    masks_and_class_stats,
    table,
)
from pipeline.verify import part_reader
from pipeline.verify.findings import FINDING_KINDS, SHOWN, OutputFinding, Tally
from pipeline.verify.mask_checks import regions
from pipeline.verify.part_checks import Reference, Statistics
from pipeline.verify.repair import repair
from pipeline.verify.verification import Verification
from tests.pipeline.samples import CLASS_IDS_HW, CLASS_NAMES, MADE_AT, encoded, segmented, write_classes, write_part

PALETTE = np.zeros((2, 3), np.uint8)
SCHEMAS = {"masks": MASKS, "class_stats": CLASS_STATS}


@dataclass
class Output:
    """Run 1 labelled a and b and failed at c; run 2 labelled d. `name` is the first part, which is to be broken."""

    folder: Path
    name: str
    other: str

    @property
    def uri(self) -> str:
        return f"file://{self.folder}"

    def path(self, table: str) -> Path:
        return self.folder / table / self.name

    def rows(self, table: str) -> list[dict[str, Any]]:
        return pq.read_table(self.path(table)).to_pylist()

    def write(self, table: str, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema or SCHEMAS[table]), self.path(table))

    def edit_run(self, **changes: Any) -> None:
        path = self.folder / "runs" / "run1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return make_output(tmp_path / "output")


def make_output(folder: Path) -> Output:
    write_classes(str(folder))
    name = write_part(str(folder), ["a", "b"], failures=["c"])
    other = write_part(str(folder), ["d"], run_id="run2")
    for run_id, images, done_before, outcomes in (("run1", 3, 0, {"ok": 2, "Empty": 1}), ("run2", 4, 3, {"ok": 1})):
        run = {"run_id": run_id, "model_id": "model1", "images": images, "done_before": done_before}
        run |= {"outcomes": outcomes, "finished_at": "2024-05-01T12:40:00+00:00"}
        storage.write_bytes(f"{folder}/runs/{run_id}.json", json.dumps(run).encode())
    return Output(folder, name, other)


def found(output: Output, deep: bool = False, listed: list[str] | None = None) -> list[OutputFinding]:
    return list(Verification(output.uri, deep, [listing(listed)] if listed else ()).findings())


def listing(uris: list[str]) -> pa.Table:
    return table([{"image_id": image_id(uri), "image_uri": uri} for uri in uris], LISTED)


def repaired(output: Output, deep: bool = False) -> list[str]:
    verification, tally = Verification(output.uri, deep), Tally()
    for finding in verification.findings():
        tally.add(finding)
    return list(repair(verification, tally))


# Ways to break it

Break = Callable[[Output], None]


def change(table: str, row: int, **changes: Any) -> Break:
    """Change columns of a row of the first part."""

    def apply(output: Output) -> None:
        rows = output.rows(table)
        rows[row] |= changes
        output.write(table, rows)

    return apply


def low_box(**changes: Any) -> Break:
    """Change the box of low confidence of the first image."""

    def apply(output: Output) -> None:
        (box,) = output.rows("masks")[0]["low_confidence_boxes"]
        change("masks", 0, low_confidence_boxes=[box | changes])(output)

    return apply


def remove(path: str) -> Break:
    return lambda output: (output.folder / path.format(name=output.name)).unlink()


def cut_off(table: str, share: float) -> Break:
    def apply(output: Output) -> None:
        content = output.path(table).read_bytes()
        output.path(table).write_bytes(content[: int(share * len(content))])

    return apply


def place(path: str, content: bytes = b"") -> Break:
    def apply(output: Output) -> None:
        (output.folder / path).parent.mkdir(exist_ok=True)
        (output.folder / path).write_bytes(content)

    return apply


def rename_part(output: Output) -> None:
    for part_of in SCHEMAS:
        output.path(part_of).rename(output.folder / part_of / f"part-run1-{32 * '0'}.parquet")


def empty_part(output: Output) -> None:
    for part_of in SCHEMAS:
        output.write(part_of, [])


def remove_part(output: Output) -> None:
    for part_of in SCHEMAS:
        output.path(part_of).unlink()


def twice_in_a_part(output: Output) -> None:
    rows = output.rows("masks")
    output.write("masks", [*rows, rows[2]])


def in_two_parts(output: Output) -> None:
    write_part(output.uri, ["b", "e"], run_id="run3", made_at=MADE_AT + timedelta(hours=1))


def other_version(table: str) -> Break:
    def apply(output: Output) -> None:
        schema = SCHEMAS[table].with_metadata({"sceneparse.schema_version": "0"})
        output.write(table, output.rows(table), schema)

    return apply


def without_column(table: str, column: str) -> Break:
    def apply(output: Output) -> None:
        pq.write_table(pq.read_table(output.path(table)).drop_columns([column]), output.path(table))

    return apply


def other_type(output: Output) -> None:
    masks = pq.read_table(output.path("masks"))
    place = masks.schema.get_field_index("width")
    pq.write_table(masks.set_column(place, "width", masks["width"].cast(pa.int64())), output.path("masks"))


def without_class_rows(number: int) -> Break:
    """Remove the first of the two classes of the first image, or both."""
    return lambda output: output.write("class_stats", output.rows("class_stats")[number:])


def without_class(output: Output) -> None:
    without_class_rows(1)(output)
    change("masks", 0, class_ids=[1])(output)


def class_row_twice(output: Output) -> None:
    rows = output.rows("class_stats")
    output.write("class_stats", [rows[0], *rows])


def stray_class_row(output: Output) -> None:
    rows = output.rows("class_stats")
    output.write("class_stats", [*rows, {**rows[0], "image_id": image_id("c"), "image_uri": "c"}])


def mask(content: bytes | None) -> Break:
    return change("masks", 1, mask={"bytes": content, "path": image_id("b").hex() + ".png"})


def classes(**columns: list[Any]) -> Break:
    def apply(output: Output) -> None:
        path = output.folder / "classes.parquet"
        old = pq.read_table(path)
        new = {**old.to_pydict(), **columns}
        pq.write_table(pa.table(new, schema=old.schema), path)

    return apply


def classes_without(column: str) -> Break:
    def apply(output: Output) -> None:
        path = output.folder / "classes.parquet"
        pq.write_table(pq.read_table(path).drop_columns([column]), path)

    return apply


def classes_metadata(metadata: dict[str, str]) -> Break:
    def apply(output: Output) -> None:
        path = output.folder / "classes.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)

    return apply


HOLED_HW = np.where(np.arange(8).reshape(2, 4) < 7, CLASS_IDS_HW, 255).astype(np.uint8)  # the last pixel has no data
PNG_OF_OTHER_IDS = encode_mask(CLASS_IDS_HW[::-1].copy(), PALETTE)  # the same counts elsewhere
LIGHT: list[tuple[str, str, Break]] = [
    ("half-written file", "masks", place("masks/.partial-x", b"PAR1")),
    ("half-written file", "class_stats", place("class_stats/.partial-x", b"PAR1")),
    ("half-written file", "runs", place("runs/.partial-x", b"{")),
    ("half-written file", "classes", place(".partial-x", b"PAR1")),
    ("statistics without masks", "", remove("masks/{name}")),
    ("masks without statistics", "", remove("class_stats/{name}")),
    ("not a part", "a table", place("masks/table.parquet", b"PAR1")),
    ("not a part", "a note", place("class_stats/notes.txt", b"mine")),
    ("not a part", "a folder", place("masks/part-1/part-run1-0123456789abcdef.parquet", b"PAR1")),
    ("unreadable part", "half of the masks", cut_off("masks", 0.5)),
    ("unreadable part", "masks all but the end", cut_off("masks", 0.999)),
    ("unreadable part", "half of the statistics", cut_off("class_stats", 0.5)),
    ("unreadable part", "no bytes", cut_off("masks", 0)),
    ("wrong columns", "version of masks", other_version("masks")),
    ("wrong columns", "version of class_stats", other_version("class_stats")),
    ("wrong columns", "missing", without_column("masks", "etag")),
    ("wrong columns", "missing in class_stats", without_column("class_stats", "x_min")),
    ("wrong columns", "type", other_type),
    ("wrong part name", "", rename_part),
    ("no classes.parquet", "", remove("classes.parquet")),
    ("wrong classes.parquet", "damaged", place("classes.parquet", b"PAR1 no more")),
    ("wrong classes.parquet", "ids with a gap", classes(class_id=[0, 2])),
    ("wrong classes.parquet", "no colours", classes_without("red")),
    ("wrong classes.parquet", "no model", classes_metadata({"sceneparse.schema_version": SCHEMA_VERSION})),
    ("several runs in a part", "masks", change("masks", 1, run_id="run9")),
    ("several runs in a part", "class_stats", change("class_stats", 1, run_id="run9")),
    ("another model", "masks", change("masks", 1, model_id="model2")),
    ("another model", "class_stats", change("class_stats", 1, model_id="model2")),
    ("image in two parts", "", in_two_parts),
    ("unknown status", "", change("masks", 2, status="failed")),
    ("error in an ok row", "", change("masks", 0, error_message="what?")),
    ("no mask", "null", change("masks", 0, mask=None)),
    ("no mask", "no bytes", mask(None)),
    ("no mask", "another name", change("masks", 0, mask={"bytes": b"x", "path": "x.png"})),
    ("no size", "null", change("masks", 0, width=None)),
    ("no size", "zero", change("masks", 0, height=0)),
    ("wrong confidence", "not a number", change("masks", 0, mean_entropy=float("nan"))),
    ("wrong confidence", "entropy of more classes", change("masks", 0, mean_entropy=0.8)),
    ("wrong confidence", "null", change("masks", 0, low_confidence_fraction=None)),
    ("wrong confidence", "of a class", change("class_stats", 0, mean_confidence=-0.5)),
    ("unknown error", "stage", change("masks", 2, error_stage=None)),
    ("unknown error", "message", change("masks", 2, error_message="")),
    ("labels in an error row", "classes", change("masks", 2, class_ids=[0])),
    ("labels in an error row", "boxes", change("masks", 2, low_confidence_boxes=[])),
    ("statistics without image", "a failed one", stray_class_row),
    ("wrong class name", "", change("class_stats", 0, class_name="roof")),
    ("wrong class_ids", "too few", change("masks", 0, class_ids=[0])),
    ("wrong class_ids", "not ascending", change("masks", 0, class_ids=[1, 0])),
    ("wrong class_ids", "twice", change("masks", 0, class_ids=[0, 1, 1])),
    ("wrong class_ids", "null", change("masks", 0, class_ids=None)),
    ("wrong pixel fraction", "", change("class_stats", 0, pixel_fraction=0.5)),
    ("wrong box", "of low confidence, outside", low_box(x_max=5)),
    ("wrong box", "of low confidence, inside out", low_box(y_min=1)),
    ("wrong box", "of low confidence, too many pixels for it", low_box(pixel_count=2)),
    ("wrong box", "of low confidence, more pixels than there are", low_box(x_max=4, pixel_count=2)),
    ("wrong box", "of low confidence, an edge is null", low_box(y_max=None)),
    ("wrong box", "of low confidence, null", change("masks", 0, low_confidence_boxes=None)),
    ("wrong box", "outside", change("class_stats", 1, x_max=5)),
    ("wrong box", "inside out", change("class_stats", 1, x_min=4, x_max=2)),
    ("wrong box", "too small", change("class_stats", 0, y_max=1)),
    ("wrong box", "null", change("class_stats", 0, x_min=None)),
    ("wrong centroid", "outside its box", change("class_stats", 1, centroid_x=1.0)),
    ("wrong centroid", "null", change("class_stats", 1, centroid_y=None)),
    ("wrong run file", "damaged", place("runs/run3.json", b"{")),
    ("wrong run file", "no counts", place("runs/run3.json", b'{"run_id": "run3"}')),
    ("wrong run file", "repair", place("repairs/x.json", b"{}")),
    ("wrong run file", "model", lambda output: output.edit_run(model_id="model2")),
    ("wrong counts", "too few", lambda output: output.edit_run(outcomes={"ok": 1, "Empty": 1})),
    ("wrong counts", "another kind", lambda output: output.edit_run(outcomes={"ok": 2, "Corrupt": 1})),
    ("wrong counts", "more than images", lambda output: output.edit_run(done_before=1)),
    ("lost images", "", remove_part),
]
# These cannot be without another one.
ALONG: list[tuple[str, str, Break, set[str]]] = [
    ("empty part", "", empty_part, {"lost images"}),
    ("image twice in a part", "", twice_in_a_part, set()),
    ("wrong confidence", "above 1", change("masks", 0, mean_confidence=1.5), set()),
    ("unknown error", "kind", change("masks", 2, error_type="Oops"), {"wrong counts"}),
    ("wrong image id", "of masks", change("masks", 2, image_uri="x"), set()),
    (
        "wrong image id",
        "of an ok row",
        change("masks", 0, image_uri="x"),
        {"statistics without image", "wrong class_ids", "wrong pixel count", "wrong box"},
    ),
    ("unknown class", "", change("class_stats", 1, class_id=7), {"wrong class_ids"}),
    ("wrong pixel count", "more", change("class_stats", 0, pixel_count=7), {"wrong pixel fraction"}),
    ("wrong pixel count", "none", without_class_rows(2), {"wrong class_ids", "wrong box"}),
    ("wrong pixel fraction", "fewer", change("class_stats", 1, pixel_count=1), {"wrong box"}),
    ("wrong pixel fraction", "no row", without_class_rows(1), {"wrong class_ids", "wrong box"}),
    ("wrong pixel fraction", "no row and no id", without_class, {"wrong box"}),
    ("wrong class_ids", "statistics twice", class_row_twice, {"wrong pixel count", "wrong pixel fraction"}),
    ("labels in an error row", "mask", change("masks", 2, mask={"bytes": b"x", "path": "x"}), {"no mask"}),
    ("wrong run file", "name", lambda output: output.edit_run(run_id="run7"), set()),
]
DEEP: list[tuple[str, str, Break]] = [
    ("undecodable mask", "no PNG", mask(encoded(CLASS_IDS_HW, "TIFF"))),
    ("undecodable mask", "cut off", mask(encode_mask(CLASS_IDS_HW, PALETTE)[:-30])),
    ("undecodable mask", "no bytes", mask(b"")),
    ("undecodable mask", "in colour", mask(encoded(np.zeros((2, 4, 3), np.uint8), "PNG"))),
    ("wrong mask size", "", mask(encode_mask(CLASS_IDS_HW.T.copy(), PALETTE))),
    ("unknown class in a mask", "", mask(encode_mask(np.full((2, 4), 2, np.uint8), PALETTE))),
    ("unknown class in a mask", "a counted pixel without data", mask(encode_mask(HOLED_HW, PALETTE))),
    ("mask and statistics differ", "counts", mask(encode_mask(1 - CLASS_IDS_HW, PALETTE))),
    ("mask and statistics differ", "box", change("class_stats", 1, x_min=1)),
    ("mask and statistics differ", "places", mask(PNG_OF_OTHER_IDS)),
    ("mask and statistics differ", "class", mask(encode_mask(np.zeros((2, 4), np.uint8), PALETTE))),
]
BROKEN = [
    *(pytest.param(kind, apply, set(), False, id=f"{kind} {way}".strip()) for kind, way, apply in LIGHT),
    *(pytest.param(kind, apply, also, False, id=f"{kind} {way}".strip()) for kind, way, apply, also in ALONG),
    *(pytest.param(kind, apply, set(), True, id=f"{kind} {way}".strip()) for kind, way, apply in DEEP),
]


@pytest.mark.parametrize("deep", [False, True])
def test_nothing_is_found_in_a_right_output(output: Output, deep: bool) -> None:
    assert found(output, deep) == []
    assert found(output, deep, listed=["a", "b", "c", "d"]) == []


def holed(output: Output, mask_HW: np.ndarray = HOLED_HW) -> Output:
    """Take the last pixel of the second image, which has one class at 6 pixels and one at 2, from the statistics."""
    change("masks", 1, low_confidence_fraction=1 / 7)(output)
    mask(encode_mask(mask_HW, PALETTE))(output)
    change("class_stats", 2, pixel_fraction=6 / 7)(output)
    change("class_stats", 3, pixel_count=1, pixel_fraction=1 / 7, x_max=3, centroid_x=2.0, centroid_y=1.0)(output)
    return output


def test_pixels_without_data_are_no_class_of_a_right_output(output: Output) -> None:
    (finding,) = found(holed(output), deep=True)
    assert finding.kind == "wrong part name", "which has a hash of the columns"


@pytest.mark.parametrize("num_of_class", [0, 2])
def test_a_mask_has_as_many_pixels_without_data_as_the_statistics_leave_out(output: Output, num_of_class: int) -> None:
    ids_HW = CLASS_IDS_HW.copy()
    ids_HW[1, 2 + num_of_class :] = 255
    (finding,) = found(holed(output, ids_HW), deep=True)
    assert finding.kind == "mask and statistics differ"
    assert f"class 1: {num_of_class} pixels in the mask, 1 in class_stats" in str(finding)


@pytest.mark.parametrize(("kind", "apply", "also", "deep"), BROKEN)
def test_each_breakage_is_found_by_its_name_and_mended(
    output: Output, kind: str, apply: Break, also: set[str], deep: bool
) -> None:
    apply(output)
    findings = found(output, deep)
    assert {finding.kind for finding in findings} == {kind, *also}
    if deep:
        assert found(output) == [], "without --deep no mask is read"
    if not all(finding.repairable for finding in findings):
        return
    repaired(output, deep)
    assert found(output, deep=True) == []
    reconciled = reconcile(output.uri)
    assert reconciled.repaired == []
    listed = table([{"image_id": image_id("d"), "image_uri": "d"}], LISTED)
    assert reconciled.completed.contains(listed).to_pylist() == [True], "a good part is gone"


def test_the_missing_row_of_a_pixel_is_found_among_many_classes() -> None:
    counts = [*(200 * [101]), 1]
    classes = [{"class_id": k, "pixel_count": n, "pixel_fraction": n / sum(counts)} for k, n in enumerate(counts)]
    image = segmented("a") | {"width": sum(counts), "height": 1, "classes": classes}
    masks, class_stats = masks_and_class_stats(table([image], PREDICTED), 201 * ["class"], "model1", "run1", MADE_AT)
    findings = Statistics("stats", class_stats.slice(0, 200), "masks", masks).check(Reference(None, None))
    assert "wrong pixel fraction" in {finding.kind for finding in findings}


def test_a_name_of_an_earlier_version_is_right(output: Output) -> None:
    for part_of in SCHEMAS:
        output.path(part_of).rename(output.folder / part_of / "part-run1-0123456789abcdef.parquet")
    assert found(output, deep=True) == []


def test_every_kind_is_tested() -> None:
    assert {param.values[0] for param in BROKEN} | {"no row"} == set(FINDING_KINDS)


# Telling


def test_an_image_of_the_input_without_a_row_is_named(output: Output) -> None:
    findings = found(output, listed=["a", "d", "new", "c"])
    assert [(finding.kind, finding.image) for finding in findings] == [("no row", "new")]


def test_a_finding_says_which_file_which_image_and_what(output: Output) -> None:
    change("class_stats", 3, x_max=5)(output)
    (finding,) = found(output)
    assert (finding.file, finding.image) == (f"class_stats/{output.name}", "b")
    assert "class 1: 2 pixels in columns 2 to 5, rows 1 to 2 in an image of 4 x 2" in str(finding)


def test_of_many_findings_the_first_are_told_and_all_are_counted(tmp_path: Path) -> None:
    write_classes(str(tmp_path))
    output = Output(tmp_path, write_part(str(tmp_path), [f"image {n}" for n in range(30)]), "")
    output.write("masks", [row | {"model_id": "x{}"} for row in output.rows("masks")])
    tally = Tally()
    for finding in found(output):
        tally.add(finding)
    assert tally.totals == {"another model": 30 + 60}
    lines = list(tally.lines())
    assert lines[0] == f"another model: 90; {FINDING_KINDS['another model'].remedy}"
    assert len(lines) == 1 + SHOWN + 1
    assert lines[1].endswith("image 0: belongs to model x{}, but classes.parquet to model1")
    assert lines[-1] == "  ... and 80 more"


def test_an_image_that_stands_twice_is_named_once_for_each_further_row(output: Output) -> None:
    in_two_parts(output)
    (finding,) = found(output)
    assert finding.image == "b"
    name = repaired(output)[0].split()[-1]
    assert name != output.name
    rows = [row for part in parts_of(output) for row in read_table(part).to_pylist()]
    assert {row["run_id"] for row in rows if row["image_uri"] == "b"} == {"run3"}


def parts_of(output: Output) -> list[str]:
    return list(storage.find(f"{output.uri}/masks"))


def test_an_output_without_any_image_yet_is_right(tmp_path: Path) -> None:
    write_classes(str(tmp_path))
    verification = Verification(str(tmp_path))
    assert list(verification.findings()) == []
    assert "0 part(s), 0 images" in verification.summary()


def test_the_summary_counts_images_and_parts(output: Output) -> None:
    verification = Verification(output.uri, deep=True)
    assert list(verification.findings()) == []
    assert verification.summary() == f"{output.uri}: 2 part(s), 4 images, 3 ok and 1 failed; every mask decoded"


# What is not ours, and what cannot be read


def test_a_place_that_is_no_output_is_refused(tmp_path: Path, output: Output) -> None:
    (tmp_path / "photos").mkdir()
    for place in ("nowhere", "photos"):
        with pytest.raises(UserError, match=f"{place}: no masks and no classes.parquet"):
            list(Verification(f"{tmp_path}/{place}").findings())
    classes_metadata({})(output)
    with pytest.raises(UserError, match=r"was not written by segment_bucket\.py"):
        found(output)


def test_an_output_of_another_schema_version_is_refused(output: Output) -> None:
    classes_metadata({"sceneparse.schema_version": "0"})(output)
    with pytest.raises(UserError, match=f"schema version 0, but this program uses {SCHEMA_VERSION}; verify it with"):
        found(output)


def test_a_storage_fault_is_not_taken_for_a_damaged_part(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else --repair would delete good parts."""
    reference = Reference("model1", CLASS_NAMES)
    assert part_reader.check_part(output.uri, output.name, reference, True).findings == []
    pread, reads = os.pread, itertools.count(1)

    def fails_later(handle: int, count: int, offset: int) -> bytes:
        if next(reads) > 3:
            raise OSError(errno.EIO, "Input/output error")
        return pread(handle, count, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fails_later)
        with pytest.raises(UserError, match=r"storage failed: .*Input/output error"):
            part_reader.check_part(output.uri, output.name, reference, True)
    output.path("class_stats").unlink()
    with pytest.raises(UserError, match=f"class_stats/{output.name}: not found"):
        part_reader.check_part(output.uri, output.name, reference, True)


# Repair


@pytest.mark.parametrize("num_notes", [0, SHOWN])
def test_what_no_run_wrote_keeps_repair_from_starting_where_it_looks_like_a_part(
    num_notes: int, output: Output
) -> None:
    for number in range(num_notes):  # as many as are listed
        place(f"masks/{number}.txt", b"mine")(output)
    place("masks/table.parquet", b"mine")(output)
    remove("class_stats/{name}")(output)
    before = tree(output)
    with pytest.raises(
        UserError, match=r"masks/table.parquet: not a part, but runs would treat it as one; move it away"
    ):
        repaired(output)
    assert tree(output) == before


def test_repair_leaves_other_files_alone(output: Output) -> None:
    for path in ("masks/notes.txt", "masks/_SUCCESS", "class_stats/.hidden", "mine.txt", "other/table.parquet"):
        place(path, b"mine")(output)
    mine = tree(output)
    remove("class_stats/{name}")(output)
    repaired(output)
    assert {path for path in mine - tree(output) if output.name not in path} == set()


def test_parts_that_all_differ_from_the_class_table_are_not_deleted(output: Output) -> None:
    """Someone has put a class table of another model there."""
    classes(class_name=["cat", "dog"])(output)
    before = tree(output)
    with pytest.raises(UserError, match=r"none of its 2 part\(s\) matches classes.parquet"):
        repaired(output)
    assert tree(output) == before


def test_a_repair_is_put_on_record(output: Output) -> None:
    change("class_stats", 0, pixel_count=7)(output)
    lines = repaired(output)
    assert lines[0] == f"deleted part {output.name}: wrong pixel count, wrong pixel fraction"
    record = json.loads(next((output.folder / "repairs").iterdir()).read_text())
    assert record["deleted"] == [output.name]
    assert record["images"] == 1
    assert datetime.now(UTC) - datetime.fromisoformat(record["repaired_at"]) < timedelta(minutes=5)


def test_images_that_are_lost_after_a_repair_are_found_again(output: Output) -> None:
    """A record of a repair does not excuse what goes later."""
    remove_part(output)
    repaired(output)
    assert found(output) == []
    write_part(output.uri, ["a", "b", "c"], run_id="run3")
    run = json.loads((output.folder / "runs" / "run1.json").read_text())
    run |= {"run_id": "run3", "outcomes": {"ok": 3}, "finished_at": datetime.now(UTC).isoformat()}
    place("runs/run3.json", json.dumps(run).encode())(output)
    assert found(output) == []
    for part_of in SCHEMAS:
        for path in (output.folder / part_of).glob("part-run3-*"):
            path.unlink()
    (finding,) = found(output)
    assert (finding.kind, finding.file) == ("lost images", "runs/run3.json")


def test_everything_at_once_is_mended_at_once(output: Output) -> None:
    in_two_parts(output)
    for path in ("masks/.partial-x", "class_stats/.partial-y"):
        place(path)(output)
    for n, part_of in enumerate(SCHEMAS):
        name = write_part(output.uri, [f"lonely {n}"], run_id="run4")
        (output.folder / part_of / name).unlink()
    cut_off("masks", 0.7)(output)
    kinds = {finding.kind for finding in found(output)}
    assert kinds == {
        *("half-written file", "statistics without masks", "masks without statistics", "unreadable part"),
    }
    repaired(output)
    assert found(output, deep=True) == []
    assert reconcile(output.uri).repaired == []


def tree(output: Output) -> set[str]:
    return {str(path.relative_to(output.folder)) for path in output.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_damaged_byte_is_a_finding_or_harmless_but_never_a_crash(tmp_path: Path, table: str) -> None:
    choose = random.Random(table)
    whole = make_output(tmp_path / "whole")
    content = whole.path(table).read_bytes()
    seen = set()
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(choose.randint(1, 3)):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        whole.path(table).write_bytes(damaged)
        seen |= {finding.kind for finding in found(whole, deep=True)}
    assert "unreadable part" in seen


# Masks


@pytest.mark.parametrize("most", [1, 3, 300])
def test_regions_are_those_that_counting_pixel_by_pixel_gives(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.verify.mask_checks.STRIP_PIXELS", 50)
    ids_HW = np.random.default_rng(most).integers(0, most, (23, 17)) ** 2
    by_id = regions(ids_HW)
    assert sorted(by_id) == np.unique(ids_HW).tolist()
    for k, region in by_id.items():
        y, x = np.nonzero(ids_HW == k)
        assert region.pixel_count == len(x)
        assert region.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert region.centroid == pytest.approx((x.mean(), y.mean()))


def test_masks_of_more_than_256_classes_are_checked_too(tmp_path: Path) -> None:
    rows = [{"class_id": k, "class_name": f"class {k}", "red": 0, "green": 0, "blue": 0} for k in range(1000)]
    output = make_output(tmp_path)
    schema = CLASSES.with_metadata({**CLASSES.metadata, "sceneparse.model_id": "model1"})
    write_table(f"{tmp_path}/classes.parquet", table(rows, schema))
    for part in (output.name, output.other):
        (tmp_path / "class_stats" / part).unlink()
    shutil.rmtree(tmp_path / "runs")
    for name in (output.name, output.other):
        masks = read_table(f"{tmp_path}/masks/{name}").to_pylist()
        ids_HW = np.where(CLASS_IDS_HW, 999, 300).astype(np.uint16)
        statistics = []
        for row in masks:
            if row["status"] == "ok":
                row["mask"]["bytes"] = encode_mask(ids_HW, PALETTE)
                row["class_ids"] = [300, 999]
                for k, region in regions(ids_HW).items():
                    box = dict(zip(("x_min", "y_min", "x_max", "y_max"), region.box, strict=True))
                    centroid = dict(zip(("centroid_x", "centroid_y"), region.centroid, strict=True))
                    count = {"pixel_count": region.pixel_count, "pixel_fraction": region.pixel_count / ids_HW.size}
                    stamp = {key: row[key] for key in ("image_id", "image_uri", "model_id", "run_id")}
                    about = {"class_id": k, "class_name": f"class {k}", "mean_confidence": 0.5}
                    statistics.append({**stamp, **about, **count, **box, **centroid})
        parts.write_part(str(tmp_path), name, table(masks, MASKS), table(statistics, CLASS_STATS))
    assert found(output, deep=True) == []
