"""Images that show a rare class are drawn more often."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.config.data import DataConfig
from pipeline.datasets import list_pairs
from pipeline.errors import UserError
from pipeline.evaluate.stages import listed_block
from pipeline.train.rare_classes import read_classes, repeated_pairs, repeats
from tests.pipeline.train.single_worker import worker_spec
from tests.scene_data import write_training_set


def data(root: str = "data", **changes: Any) -> DataConfig:
    return DataConfig(**{"root": root, "classes": ["sky", "road", "pole", "sign"]} | changes)


def test_an_image_is_listed_as_often_as_the_largest_factor_of_its_classes() -> None:
    factors = {"pole": 3, "sign": 5}
    shown = [[0, 1], [1, 2], [0, 2, 3], []]
    assert repeats(shown, data(sampling_factors=factors)) == [1, 3, 5, 1]


def test_a_factor_of_a_class_that_no_annotation_shows_is_an_error_by_name() -> None:
    with pytest.raises(UserError, match="sampling_factors: no training annotation shows 'pole', 'sign'; remove"):
        repeats([[0, 1], [1]], data(sampling_factors={"sign": 5, "pole": 2, "road": 2}))


@pytest.mark.parametrize(
    ("factors", "expected"),
    [({"poles": 2}, "'poles', which is no class; did you mean 'pole'?"), ({"pole": 0}, "greater than or equal to 1")],
)
def test_a_factor_that_cannot_be_is_refused(factors: dict[str, int], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected.replace("?", r"\?")):
        data(sampling_factors=factors)


def test_classes_are_those_of_the_annotations_and_not_ignored_ones(tmp_path: Path) -> None:
    write_training_set(str(tmp_path), num_train=3, num_val=1)
    config = data(str(tmp_path), classes=[f"class {k}" for k in range(12)], label_map={0: 255})
    pairs = list_pairs(config, "train")
    (table,) = read_classes(listed_block(7, pairs), config)
    assert table["number"].to_pylist() == [7, 8, 9]
    for class_ids in table["class_ids"].to_pylist():
        assert class_ids == sorted({*class_ids})
        assert class_ids
        assert {*class_ids} <= {*range(1, 12)}


def test_without_factors_no_annotation_is_read() -> None:
    pairs: list[Any] = ["first", "second"]
    assert repeated_pairs(pairs, data()) == pairs


def test_epochs_keep_their_length_and_visit_repeated_entries_more_often() -> None:
    """Of 8 images, the last one is listed four times."""
    schedule = replace(worker_spec().schedule, num_entries=11)
    assert schedule.steps_per_epoch == worker_spec().schedule.steps_per_epoch
    visits: Counter[int] = Counter()
    for epoch in range(300):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        visited = np.concatenate([schedule.indices(step) for step in steps])
        assert len({*visited.tolist()}) == 8
        visits.update(min(entry, 7) for entry in visited.tolist())
    others = np.mean([visits[image] for image in range(7)])
    assert visits[7] / others == pytest.approx(4, rel=0.15)
