"""Which images a run leaves alone: done ones, but not those that it is asked to do again."""

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.failures import require_kinds
from pipeline.parts import DONE
from pipeline.segmentation import what_is_done
from pipeline.tables import LISTED, image_id, table

ROWS = [
    {"image_id": image_id("good"), "status": "ok", "error_type": None, "etag": "1"},
    {"image_id": image_id("plain"), "status": "ok", "error_type": None, "etag": None},
    {"image_id": image_id("broken"), "status": "error", "error_type": "Corrupt", "etag": "2"},
    {"image_id": image_id("late"), "status": "error", "error_type": "Timeout", "etag": "3"},
]


def todo(etags: dict[str, str | None], retry_errors: tuple[str, ...] = (), relabel_changed: bool = False) -> set[str]:
    listed = table([{"image_id": image_id(uri), "image_uri": uri, "etag": etag} for uri, etag in etags.items()], LISTED)
    is_done = what_is_done(table(ROWS, DONE), retry_errors, relabel_changed)(listed)
    return {uri for uri, done in zip(etags, is_done.to_pylist(), strict=True) if not done}


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
    require_kinds("retry_errors", ["all", "Timeout"])
    with pytest.raises(UserError, match=r"retry_errors: Timeuot is no kind of failure; use all, or some of .*Timeout"):
        require_kinds("retry_errors", ["Timeuot"])


def test_an_empty_output_has_nothing_done() -> None:
    listed = table([{"image_id": image_id("a"), "image_uri": "a"}], LISTED)
    assert what_is_done(DONE.empty_table(), (), True)(listed).to_pylist() == [False]
    assert isinstance(what_is_done(DONE.empty_table(), ("all",), False)(listed), pa.Array | pa.ChunkedArray)
