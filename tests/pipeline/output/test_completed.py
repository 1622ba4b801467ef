"""A run skips completed images, except those that it is to retry."""

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.output.completed import CompletedImages
from pipeline.output.errors import check_error_types
from pipeline.output.schema import LISTED, MASKS, image_id, table

ROWS = [
    {"image_id": image_id("good"), "status": "ok", "error_type": None, "etag": "1"},
    {"image_id": image_id("plain"), "status": "ok", "error_type": None, "etag": None},
    {"image_id": image_id("broken"), "status": "error", "error_type": "Corrupt", "etag": "2"},
    {"image_id": image_id("late"), "status": "error", "error_type": "Timeout", "etag": "3"},
]


def todo(etags: dict[str, str | None], retry_errors: tuple[str, ...] = (), relabel_changed: bool = False) -> set[str]:
    listed = table([{"image_id": image_id(uri), "image_uri": uri, "etag": etag} for uri, etag in etags.items()], LISTED)
    done = CompletedImages(retry_errors, relabel_changed)
    rows = table(ROWS, pa.schema([MASKS.field(name) for name in done.columns]))
    assert done.add(rows[:3]).to_pylist() == [True] * 3
    assert done.add(rows[2:]).to_pylist() == [False, True]
    return {uri for uri, held in zip(etags, done.contains(listed).to_pylist(), strict=True) if not held}


SAME = {"good": "1", "plain": None, "broken": "2", "late": "3", "new": "4"}


@pytest.mark.parametrize(
    ("retry_errors", "expected"),
    [
        ((), {"new"}),
        (("Timeout",), {"new", "late"}),
        (("Timeout", "Corrupt"), {"new", "late", "broken"}),
        (("all",), {"new", "late", "broken"}),
        (("NotFound",), {"new"}),
    ],
)
def test_failures_are_tried_again_by_their_kind(retry_errors: tuple[str, ...], expected: set[str]) -> None:
    assert todo(SAME, retry_errors) == expected


def test_a_changed_image_is_labelled_again_only_on_request() -> None:
    changed = SAME | {"good": "9", "broken": "8"}
    assert todo(changed) == {"new"}
    assert todo(changed, relabel_changed=True) == {"new", "good", "broken"}


def test_an_image_whose_version_is_unknown_counts_as_unchanged() -> None:
    assert todo({"good": None, "plain": None}, relabel_changed=True) == set()


def test_an_image_that_has_a_version_since_counts_as_changed() -> None:
    assert todo({"plain": "5"}, relabel_changed=True) == {"plain"}


def test_a_kind_that_there_is_not_is_refused_with_those_there_are() -> None:
    check_error_types("retry_errors", ["all", "Timeout"])
    with pytest.raises(UserError, match=r"retry_errors: unknown error type Timeuot; use all or some of .*Timeout"):
        check_error_types("retry_errors", ["Timeuot"])


@pytest.mark.parametrize("again", [((), True), (("all",), False)])
def test_an_empty_output_has_nothing_done(again: tuple[tuple[str, ...], bool]) -> None:
    listed = table([{"image_id": image_id("a"), "image_uri": "a"}], LISTED)
    assert CompletedImages(*again).contains(listed).to_pylist() == [False]


def test_an_image_with_a_newer_row_that_went_well_is_not_tried_again() -> None:
    """A run may have been stopped before it removed the older row."""
    done = CompletedImages(("all",))
    ok, failed = ({"image_id": image_id("a"), "status": status, "error_type": kind} for status, kind in OUTCOMES)
    for row in (failed, ok):
        done.add(table([row], pa.schema([MASKS.field(name) for name in done.columns])))
    assert done.contains(table([{"image_id": image_id("a"), "image_uri": "a"}], LISTED)).to_pylist() == [True]


OUTCOMES = [("ok", None), ("error", "Timeout")]


def test_images_whose_listing_has_no_version_to_compare_are_counted() -> None:
    done = CompletedImages(relabel_changed=True)
    done.add(table(ROWS, pa.schema([MASKS.field(name) for name in done.columns])))
    uris = ["good", "plain", "broken", "new"]
    listed = table([{"image_id": image_id(uri), "image_uri": uri, "etag": None} for uri in uris], LISTED)
    assert done.contains(listed).to_pylist() == [True, True, True, False]
    assert done.num_without_etag == 3
    done.contains(table([{"image_id": image_id("good"), "image_uri": "good", "etag": "1"}], LISTED))
    assert done.num_without_etag == 3
