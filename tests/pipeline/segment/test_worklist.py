"""The listing as it goes: every image once, a bounded way ahead, and its errors where the waves are taken."""

import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.errors import UserError
from pipeline.segment import worklist
from pipeline.segment.worklist import Worklist, blocks_of


def numbers(first: int, count: int) -> pa.Table:
    return pa.table({"n": pa.array(range(first, first + count), pa.int64())})


def nothing_done(table: pa.Table) -> pa.Array:
    return pa.array([False] * len(table))


def even_done(table: pa.Table) -> pa.Array:
    return pc.equal(pc.bit_wise_and(table["n"], 1), 0).combine_chunks()


def test_every_image_comes_once_and_in_order_without_those_done() -> None:
    tables = [numbers(first, 10) for first in range(0, 100, 10)]
    with Worklist(tables, even_done) as work:
        waves = list(work.waves())
    assert pa.concat_tables(waves)["n"].to_pylist() == list(range(1, 100, 2))
    assert (work.listed.images, work.listed.done_before, work.listed.todo, work.listed.ended) == (100, 50, 50, True)


def test_a_small_input_is_one_wave_even_if_its_listing_takes_a_moment() -> None:
    def slow() -> Iterator[pa.Table]:
        for first in range(3):
            time.sleep(0.1)
            yield numbers(first, 1)

    with Worklist(slow(), nothing_done) as work:
        assert [len(wave) for wave in work.waves()] == [3]


def test_a_long_listing_does_not_keep_the_first_images_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist, "FIRST_WAIT", 0.2)
    go_on = threading.Event()

    def endless_at_first() -> Iterator[pa.Table]:
        yield numbers(0, 5)
        go_on.wait(30)
        yield numbers(5, 5)

    with Worklist(endless_at_first(), nothing_done) as work:
        waves = work.waves()
        assert len(next(waves)) == 5
        assert not work.listed.ended
        go_on.set()
        assert [len(wave) for wave in waves] == [5]


def test_the_listing_is_at_most_a_wave_ahead_and_waves_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist, "MAX_WAVE", 100)
    monkeypatch.setattr(worklist, "MAX_TABLE", 10)
    asked = []

    def counted() -> Iterator[pa.Table]:
        for first in range(0, 1000, 10):
            asked.append(first)
            yield numbers(first, 10)

    with Worklist(counted(), nothing_done) as work:
        waves = work.waves()
        sizes = [len(next(waves))]
        time.sleep(0.5)
        assert len(asked) * 10 <= sizes[0] + 100 + 30
        sizes += [len(wave) for wave in waves]
    assert sum(sizes) == 1000
    assert max(sizes) <= 110


def test_an_error_of_the_listing_is_raised_where_the_waves_are_taken() -> None:
    def failing() -> Iterator[pa.Table]:
        yield numbers(0, 5)
        raise UserError("s3://bucket: access denied")

    with Worklist(failing(), nothing_done) as work, pytest.raises(UserError, match="access denied"):
        list(work.waves())


def test_nothing_to_do_is_no_wave() -> None:
    with Worklist([numbers(0, 4)], lambda table: pa.array([True] * len(table))) as work:
        assert list(work.waves()) == []
    assert (work.listed.images, work.listed.todo, work.listed.ended) == (4, 0, True)


def test_a_listing_that_nobody_takes_ends_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist, "MAX_WAVE", 20)
    monkeypatch.setattr(worklist, "MAX_TABLE", 10)
    before = threading.active_count()
    with Worklist((numbers(first, 10) for first in range(0, 10**9, 10)), nothing_done) as work:
        next(work.waves())
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000, 100_000])
def test_blocks_hold_every_image_once_and_are_neither_tiny_nor_huge(count: int) -> None:
    blocks = blocks_of(numbers(0, count), decode_tasks=4)
    assert pa.concat_tables(blocks)["n"].to_pylist() == list(range(count))
    assert all(16 <= len(block) <= 1024 for block in blocks[:-1])
    assert all(len(block) % 16 == 0 for block in blocks[:-1]), "batches would not be full"


def test_a_listing_that_finds_nothing_for_hours_does_not_keep_a_run_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worklist, "STOP_WAIT", 0.2)
    go_on = threading.Event()

    def few_of_many() -> Iterator[pa.Table]:
        yield numbers(0, 5)
        go_on.wait()  # all other names match no pattern
        yield numbers(5, 5)

    with Worklist(few_of_many(), nothing_done) as work:
        next(work.waves())
    assert work._thread.is_alive()
    go_on.set()
    work._thread.join()
