"""Segmentation under chaos ends right.

`make test` plays one scenario of every kind of fault and one of several writers, `make test-all` and `make chaos` those
of all seeds; CHAOS_SEEDS=first-last plays others.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests import chaos_writers
from tests.chaos import EVERY_KIND, Arena, arena, draw
from tests.requirements import SHM
from tests.swift import SwiftServer
from tests.test_segment_job import save_checkpoint

# The last three have more faults than others.
ALL = (*range(50), 85, 348, 581)
# Single courses of several writers are also in test_segment_exactly_once.py and tests/pipeline/output/test_lease.py.
CHOSEN_WRITERS = (0,)


def seeds(chosen: tuple[int, ...] = ()) -> list[Any]:
    first, _, last = os.environ.get("CHAOS_SEEDS", "").partition("-")
    if first:
        return list(range(int(first), int(last or first) + 1))
    others = [pytest.param(seed, marks=pytest.mark.exhaustive) for seed in ALL if seed not in chosen]
    return [*chosen, *others]


@pytest.fixture(scope="module")
def chaos(swift: SwiftServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    SHM.check()
    folder = tmp_path_factory.mktemp("chaos")
    save_checkpoint(folder / "checkpoint")
    with arena(swift.endpoint, folder / "checkpoint", folder) as ready:
        yield ready


def test_the_scenario_of_every_kind_of_fault_has_all_that_seeds_draw() -> None:
    assert set().union(*(draw(seed).kinds for seed in ALL)) == EVERY_KIND.kinds


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_scenario_of_every_kind_of_fault_ends_right(chaos: Arena) -> None:
    print(f"\n{chaos.play(EVERY_KIND)}", flush=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", seeds())
def test_every_image_has_one_row_and_none_is_done_twice(chaos: Arena, seed: int) -> None:
    print(f"\n{chaos.play(draw(seed))}", flush=True)


def test_the_seeds_have_every_course_of_writers() -> None:
    assert {chaos_writers.draw(seed).course for seed in ALL} == {*chaos_writers.COURSES}
    late = {draw.moment for draw in map(chaos_writers.draw, ALL) if draw.course == "late commit"}
    assert late == {*chaos_writers.MOMENTS}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", seeds(CHOSEN_WRITERS))
def test_of_several_writers_one_writes_at_a_time(chaos: Arena, seed: int) -> None:
    print(f"\n{chaos_writers.play(chaos, chaos_writers.draw(seed))}", flush=True)
