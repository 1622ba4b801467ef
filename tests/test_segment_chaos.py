"""Segmentation under chaos ends right. CHAOS_SEEDS=first-last plays others than the chosen seeds; `make chaos` does."""

import os
from collections.abc import Iterator

import pytest

from tests.chaos import Arena, arena, draw
from tests.swift import SwiftServer
from tests.test_segment_job import save_checkpoint

# Together they have every kind of fault.
CHOSEN = (1, 3, 6, 7, 8, 9, 10)


def seeds() -> list[int]:
    first, _, last = os.environ.get("CHAOS_SEEDS", "").partition("-")
    return list(range(int(first), int(last or first) + 1)) if first else list(CHOSEN)


@pytest.fixture(scope="module")
def chaos(swift: SwiftServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("chaos")
    save_checkpoint(folder / "checkpoint")
    with arena(swift.endpoint, folder / "checkpoint", folder) as ready:
        yield ready


def test_the_chosen_seeds_have_every_kind_of_fault() -> None:
    every = set().union(*(draw(seed).kinds for seed in range(50)))
    assert set().union(*(draw(seed).kinds for seed in CHOSEN)) == every


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", seeds())
def test_every_image_has_one_row_and_none_is_done_twice(chaos: Arena, seed: int) -> None:
    print(f"\n{chaos.play(draw(seed))}", flush=True)
