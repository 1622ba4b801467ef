"""The paper's ablations as trainings: which there are, what each is told, and what is refused."""

from typing import Any

import pytest

from pipeline.ablate.grid import cases_of, protocol_of, training_of, trials_of
from pipeline.config.jobs import AblateConfig, TrainConfig
from pipeline.config.loading import load_settings
from pipeline.config.training import ProtocolConfig
from pipeline.errors import UserError

OPTIONS = [
    *("--output", "out", "--data.root", "photos", "--model.backbone", "resnet18"),
    *("--data.classes", '[{"name": "sky", "color": [0, 0, 0]}, {"name": "road", "color": [1, 1, 1]}]'),
]


def configured(*options: str) -> AblateConfig:
    return load_settings(AblateConfig, [*OPTIONS, *options], prog="jobs/ablate.py")


def complaint(*options: str) -> str:
    with pytest.raises(UserError) as caught:
        configured(*options)
    return str(caught.value)


def names(config: AblateConfig) -> list[str]:
    return [trial.name for trial in trials_of(config)]


# Which trainings there are


def test_pooling_has_the_papers_rows_and_one_bin_with_dimension_reduction() -> None:
    assert names(configured("--experiments", "pooling", "--seeds", "0")) == [
        "resnet18-none-aux0.4-seed0",
        "resnet18-b1-max-aux0.4-seed0",
        "resnet18-b1-average-aux0.4-seed0",
        "resnet18-b1236-max-aux0.4-seed0",
        "resnet18-b1236-average-aux0.4-seed0",
        "resnet18-b1-max-dr-aux0.4-seed0",
        "resnet18-b1-average-dr-aux0.4-seed0",
        "resnet18-b1236-max-dr-aux0.4-seed0",
        "resnet18-b1236-average-dr-aux0.4-seed0",
    ]


def test_one_kind_of_pooling_alone_leaves_the_other_out() -> None:
    assert names(configured("--experiments", "pooling", "--seeds", "0", "--poolings", "average")) == [
        "resnet18-none-aux0.4-seed0",
        "resnet18-b1-average-aux0.4-seed0",
        "resnet18-b1236-average-aux0.4-seed0",
        "resnet18-b1-average-dr-aux0.4-seed0",
        "resnet18-b1236-average-dr-aux0.4-seed0",
    ]


def test_auxiliary_is_on_the_network_without_pooling() -> None:
    assert names(configured("--experiments", "auxiliary", "--seeds", "0")) == [
        "resnet18-none-noaux-seed0",
        *(f"resnet18-none-aux{weight}-seed0" for weight in ("0.3", "0.4", "0.6", "0.9")),
    ]


def test_depth_and_scales_share_their_trainings() -> None:
    config = configured("--experiments", "depth,scales", "--seeds", "0", "--backbones", "resnet18,resnet34")
    assert names(config) == ["resnet18-b1236-average-dr-aux0.4-seed0", "resnet34-b1236-average-dr-aux0.4-seed0"]
    assert {trial.protocols for trial in trials_of(config)} == {("single-scale", "multi-scale")}


def test_a_setting_of_several_experiments_is_trained_once_with_each_seed() -> None:
    config = configured("--seeds", "0,5", "--backbones", "resnet18,resnet34")
    trials = trials_of(config)
    assert len(names(config)) == len(set(names(config))) == 2 * (9 + 4 + 1)
    baseline, whole = (
        [trial for trial in trials if trial.setting.name == name]
        for name in ("resnet18-none-aux0.4", "resnet18-b1236-average-dr-aux0.4")
    )
    assert [trial.seed for trial in baseline] == [0, 5]
    assert {trial.experiments for trial in baseline} == {("pooling", "auxiliary")}
    assert {trial.protocols for trial in baseline} == {("single-scale",)}
    assert {trial.experiments for trial in whole} == {("pooling", "depth", "scales")}


def test_a_recipe_without_auxiliary_head_keeps_to_that() -> None:
    config = configured("--experiments", "pooling", "--seeds", "0", "--no-model.auxiliary")
    assert all("-noaux-" in name for name in names(config))


def test_the_papers_numbers_stand_with_their_settings() -> None:
    config = configured("--model.backbone", "resnet50")
    pooling = {case.label: case.paper for case in cases_of("pooling", config)}
    assert pooling["ResNet50-Baseline"] == (37.23, 78.01)
    assert pooling["+ B1 + AVE"] == (40.07, 79.52)
    assert pooling["+ B1236 + MAX + DR"] == (40.87, 79.61)
    assert pooling["+ B1236 + AVE + DR"] == (41.68, 80.04)
    assert pooling["+ B1 + AVE + DR"] is None, "the paper has no such row"
    scales = {case.label: case.paper for case in cases_of("scales", config)}
    assert (scales["PSPNet(101) SS"], scales["PSPNet(269) MS"]) == ((41.96, 80.64), (44.94, 81.69))
    auxiliary = {case.label: case.paper for case in cases_of("auxiliary", config)}
    assert (auxiliary["ResNet50 without AL"], auxiliary["with AL (α = 0.9)"]) == ((35.82, 77.07), (36.99, 77.87))


# What each training is told


def training(config: AblateConfig, name: str) -> TrainConfig:
    (trial,) = [trial for trial in trials_of(config) if trial.name == name]
    return training_of(trial, config, f"out/runs/{name}")


@pytest.mark.parametrize(
    ("name", "bins", "pooling", "reduce", "auxiliary"),
    [
        ("resnet18-none-aux0.4-seed1", (), "average", True, True),
        ("resnet18-b1-max-aux0.4-seed1", (1,), "max", False, True),
        ("resnet18-b1236-average-dr-aux0.4-seed1", (1, 2, 3, 6), "average", True, True),
        ("resnet18-none-noaux-seed1", (), "average", True, False),
    ],
)
def test_a_training_is_the_recipe_with_its_setting_and_seed(
    name: str, bins: tuple[int, ...], pooling: str, reduce: bool, auxiliary: bool
) -> None:
    config = configured("--seeds", "1", "--optimization.epochs", "7", "--optimization.seed", "9")
    told = training(config, name)
    assert type(told) is TrainConfig
    assert told.output == f"out/runs/{name}"
    model = told.model
    assert (model.bins, model.pooling, model.reduce, model.auxiliary) == (bins, pooling, reduce, auxiliary)
    assert told.loss.auxiliary_weight == (0.4 if auxiliary else 0)
    assert (told.optimization.seed, told.optimization.epochs) == (1, 7)
    for section in ("data", "augment", "workers", "tracking"):
        assert getattr(told, section) == getattr(config, section)


def test_another_depth_starts_from_weights_of_its_own() -> None:
    config = configured("--experiments", "depth", "--seeds", "0", "--weights", "s3://weights/imagenet-{backbone}")
    told = training(config, "resnet152-b1236-average-dr-aux0.4-seed0")
    assert (told.model.backbone, told.weights) == ("resnet152", "s3://weights/imagenet-resnet152")


def test_one_scale_and_several_average_the_mirror_image_and_keep_the_recipes_mode() -> None:
    """As the authors' evaluation does for the paper's results of either kind."""
    config = configured("--validation.protocol.mode", "sliding", "--scales", "0.5,1")
    told = training(config, "resnet18-none-aux0.4-seed0")
    assert told.validation.protocol == ProtocolConfig(mode="sliding", scales=(1.0,), mirror=True)
    assert protocol_of("multi-scale", config) == ProtocolConfig(mode="sliding", scales=(0.5, 1.0), mirror=True)


# What is refused


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--experiments", "poling"], "experiments.0: 'poling' is not allowed: Input should be 'pooling', 'auxiliary'"),
        (["--seeds", "0,1,0"], "seeds lists 0 more than once"),
        (["--seeds=-1"], "seeds.0: -1 is not allowed: Input should be greater"),
        (["--auxiliary-weights", "0.4,0.4"], "auxiliary_weights lists 0.4 more than once"),
        (["--reductions", "perhaps"], "reductions.0: 'perhaps' is not allowed"),
        (["--poolings", "median"], "poolings.0: 'median' is not allowed"),
        (["--backbones", "resnet7"], "backbones.0: 'resnet7' is not allowed"),
        (["--trials-at-once", "0"], "trials_at_once: '0' is not allowed"),
        (["--weights", "s3://w/imagenet"], "weights s3://w/imagenet fits only one backbone, but the experiments"),
    ],
)
def test_a_wrong_grid_is_refused_by_name(options: list[str], expected: str) -> None:
    assert expected in complaint(*options)


def test_weights_of_one_backbone_serve_a_grid_of_that_backbone() -> None:
    options: dict[str, Any] = {
        "--experiments": "pooling,depth",
        "--backbones": "resnet18",
        "--weights": "s3://w/imagenet",
    }
    assert configured(*(text for option in options.items() for text in option)).weights == "s3://w/imagenet"
