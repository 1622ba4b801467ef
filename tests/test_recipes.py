"""The files in configs/: complete, commented, and true to the paper where they say so."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline.config.jobs import TrainConfig
from pipeline.config.loading import load_settings

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
PAPERS = {
    "ade20k": {"classes": 150, "crop": (473, 473), "epochs": 100, "base_size": 512},
    "cityscapes": {"classes": 19, "crop": (713, 713), "epochs": 200, "base_size": 2048},
    "voc": {"classes": 21, "crop": (473, 473), "epochs": 50, "base_size": 512},
}
# Given on the command line.
LEFT_OUT = {"config", "verbose", "output", "data.root"}
# Whose classes come with the format.
SHIPPED = {"ade20k", "cityscapes", "voc", "coco_stuff", "camvid"}


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("SCENEPARSE_"):
            monkeypatch.delenv(name)


def load(name: str, *options: str) -> TrainConfig:
    path = str(CONFIGS / f"{name}.yaml")
    return load_settings(TrainConfig, ["--config", path, "--output", "out", "--data.root", "here", *options], "train")


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Every key of a configuration, with dots: data.root."""
    keys = set()
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= keys_of(kind, f"{prefix}{name}.")
        else:
            keys.add(prefix + name)
    return keys


def keys_in(values: dict[str, Any], prefix: str = "") -> set[str]:
    keys = set()
    for name, value in values.items():
        is_section = isinstance(value, dict) and name != "label_map"
        keys |= keys_in(value, f"{prefix}{name}.") if is_section else {prefix + name}
    return keys


def test_there_is_a_recipe_for_each_dataset_and_depth() -> None:
    papers = {f"{dataset}_pspnet{depth}" for dataset in PAPERS for depth in (50, 101)}
    assert papers | {"camvid_pspnet18", "camvid_pspnet50", "scenes_pspnet18"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_stands_in_the_file_and_nothing_else(name: str) -> None:
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    left_out = LEFT_OUT | ({"data.classes"} if values["data"]["format"] in SHIPPED else set())
    assert keys_in(values) == keys_of(TrainConfig) - left_out


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_has_a_comment(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    keys = [line for line in lines if re.match(r" *\w+: *\S", line)]
    assert len(keys) >= 60
    assert not [line for line in keys if not re.search(r"\S +# \S", line)]
    assert not [line for line in lines if len(line) > 120]


@pytest.mark.parametrize("name", RECIPES)
def test_the_file_loads_and_means_what_it_says(name: str) -> None:
    config = load(name)
    dataset, backbone = re.fullmatch(r"([a-z0-9]+)_pspnet(\d+)", name).groups()  # type: ignore[union-attr]
    assert config.model.backbone == f"resnet{backbone}"
    assert config.data.format == ("folder" if dataset == "scenes" else dataset)
    assert config.data.ignore_index == (11 if dataset == "camvid" else 255)
    if dataset in PAPERS or dataset == "camvid":
        assert len(config.data.classes) == PAPERS.get(dataset, {"classes": 11})["classes"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_format_s_own_splits_are_named(name: str) -> None:
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    if values["data"]["format"] == "voc":
        assert values["data"]["train_split"] == "train_aug"  # VOC with SBD's annotations, as the paper trains on
        return
    del values["data"]["train_split"], values["data"]["val_split"], values["data"]["ignore_index"]
    values["data"]["root"] = "here"
    by_format, written = TrainConfig(**values, output="out").data, load(name).data
    assert (written.train_split, written.val_split, written.ignore_index) == (
        by_format.train_split,
        by_format.val_split,
        by_format.ignore_index,
    )


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("dataset", PAPERS)
def test_the_papers_numbers_hold(dataset: str, depth: int) -> None:
    """Zhao et al. 2017, section 5.1, and the published recipes of hszhao/semseg."""
    config, published = load(f"{dataset}_pspnet{depth}"), PAPERS[dataset]
    recipe, augment, model, protocol = config.optimization, config.augment, config.model, config.validation.protocol
    assert (recipe.learning_rate, recipe.power, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 0.9, 1e-4)
    assert (recipe.batch_size, recipe.epochs, recipe.head_rate_factor) == (16, published["epochs"], 10)
    assert (recipe.batch_norm, recipe.warmup_steps, recipe.clip_norm, recipe.ema_decay) == (
        "synchronized",
        0,
        None,
        None,
    )
    assert (augment.crop, augment.scale, augment.rotation) == (published["crop"], (0.5, 2.0), 10)
    assert (augment.mirror, augment.blur, augment.padding) == (0.5, 0.5, "mean")
    assert (model.stem, model.stem_channels, model.contract_dilation) == ("deep", (64, 64, 128), False)
    assert (model.bins, model.pooling, model.reduce, model.align_corners) == ((1, 2, 3, 6), "average", True, True)
    assert (model.auxiliary, config.loss.auxiliary_weight, model.dropout) == (True, 0.4, 0.1)
    assert config.loss.model_dump() == type(config.loss)().model_dump()
    assert (protocol.mode, protocol.crop, protocol.base_size) == (
        "sliding",
        published["crop"][0],
        published["base_size"],
    )
    assert (config.workers.most, config.workers.gpu) == (8, True)
