"""Each worker and step gets the same images after a resume as without one."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.training import AugmentConfig
from pipeline.train.batches import BatchSchedule, epoch_order, share
from tests.pipeline.datasets.test_nodata import FILLED_HW3, HEIGHT, LABEL_HW, MEAN, VALID_HW, WIDTH, holed_dataset


@pytest.mark.parametrize("total", [0, 1, 2, 7, 8, 16, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shares_cover_everything_once_in_order_and_differ_by_one_at_most(total: int, world_size: int) -> None:
    things = list(range(total))
    shares = [things[share(total, rank, world_size)] for rank in range(world_size)]
    assert [thing for part in shares for thing in part] == things
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1


def test_no_worker_goes_empty_when_there_is_one_thing_for_each() -> None:
    for world_size in range(1, 12):
        for total in range(world_size, 40):
            sizes = [len(range(total)[share(total, rank, world_size)]) for rank in range(world_size)]
            assert min(sizes) >= 1


def test_an_epoch_visits_every_pair_once() -> None:
    assert sorted(epoch_order(100, seed=0, epoch=3).tolist()) == list(range(100))
    assert epoch_order(1, seed=0, epoch=0).tolist() == [0]


def test_an_epoch_has_the_same_order_whenever_it_is_asked_for() -> None:
    """A resumed run must not see one image twice in an epoch and another not at all."""
    np.testing.assert_array_equal(epoch_order(100, seed=4, epoch=2), epoch_order(100, seed=4, epoch=2))


def test_orders_differ_between_epochs_and_between_seeds() -> None:
    orders = [epoch_order(100, seed, epoch).tolist() for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 16, "(seed 0, epoch 1) is not (seed 1, epoch 0) either"


def test_every_pair_takes_every_place_in_time() -> None:
    firsts = {int(epoch_order(10, seed=0, epoch=epoch)[0]) for epoch in range(200)}
    assert firsts == set(range(10))


def test_a_crop_has_the_mean_color_and_no_label_where_its_image_has_no_data(tmp_path: Path) -> None:
    pair, data = holed_dataset(tmp_path)
    unchanged = AugmentConfig(crop=(HEIGHT, WIDTH), scale=(1, 1), rotation=0, mirror=0, blur=0)
    image_HW3, label_HW = BatchSchedule(1, 1, 0, data, unchanged, MEAN).load_crop(0, pair, 0)
    np.testing.assert_array_equal(image_HW3, FILLED_HW3)
    np.testing.assert_array_equal(label_HW, np.where(VALID_HW, LABEL_HW, 255))
