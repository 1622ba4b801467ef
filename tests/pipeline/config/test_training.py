"""Sections of the training configuration: how keys depend on each other, and what is saved."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.training import OptimizationConfig, ProtocolConfig


def test_a_run_has_a_hundred_epochs_unless_epochs_or_steps_say_otherwise() -> None:
    found = [
        OptimizationConfig(**values) for values in ({}, {"epochs": 3}, {"steps": 50}, {"epochs": None, "steps": 9})
    ]
    assert [(recipe.epochs, recipe.steps) for recipe in found] == [(100, None), (3, None), (None, 50), (None, 9)]
    assert [recipe.total_steps(num_images=40) for recipe in found] == [200, 6, 50, 9], "batches of 16; the rest is left"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"epochs": 3, "steps": 1200}, "epochs is 3 and steps is 1,200, but only one of them can set the length"),
        ({"epochs": None}, "neither epochs nor steps is set"),
        ({"min_learning_rate": 0.02}, "min_learning_rate 0.02 is above learning_rate 0.01"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        OptimizationConfig(**values)


def test_an_unset_short_side_is_not_part_of_a_protocol_so_that_ids_of_earlier_models_stay() -> None:
    assert ProtocolConfig(mode="sliding", mirror=True).model_dump(mode="json") == {
        "mode": "sliding",
        "scales": [1.0],
        "mirror": True,
        "crop": 473,
        "base_size": 512,
    }


def test_a_short_side_is_saved_read_and_makes_a_protocol_of_its_own() -> None:
    protocol = ProtocolConfig(short_side=512)
    assert ProtocolConfig.model_validate(protocol.model_dump(mode="json")) == protocol
    assert not protocol.is_plain
