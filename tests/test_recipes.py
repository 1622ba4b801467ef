"""The files in configs/: complete, commented, and true to the sources that their names claim."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline.config.jobs import TrainConfig
from pipeline.config.loading import load_settings
from pipeline.config.training import LossConfig

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
NUM_CLASSES = {"ade20k": 150, "cityscapes": 19, "voc": 21, "camvid": 11}
DEPTHS = (50, 101)
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
        is_section = isinstance(value, dict) and name not in ("label_map", "sampling_factors")
        keys |= keys_in(value, f"{prefix}{name}.") if is_section else {prefix + name}
    return keys


def test_there_is_a_recipe_of_each_source_for_each_dataset_and_depth() -> None:
    sources = {
        f"{source}_{dataset}_r{depth}" for source in ("semseg", "mmseg") for dataset in SEMSEG for depth in DEPTHS
    }
    others = {"paper_cityscapes_r101", "camvid_pspnet18", "camvid_pspnet50", "scenes_pspnet18"}
    assert {*RECIPES} == sources | others


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
    pattern = r"(?:(?:semseg|mmseg|paper)_)?([a-z0-9]+)_(?:pspnet|r)(\d+)"
    dataset, backbone = re.fullmatch(pattern, name).groups()  # type: ignore[union-attr]
    assert config.model.backbone == f"resnet{backbone}"
    assert config.data.format == ("folder" if dataset == "scenes" else dataset)
    assert config.data.ignore_index == (11 if dataset == "camvid" else 255)
    assert dataset == "scenes" or len(config.data.classes) == NUM_CLASSES[dataset]


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


# Settings of hszhao/semseg: README.md (Train Parameters, Test Parameters), config/DATASET/DATASET_pspnet50.yaml, and
# util/transform.py (RandRotate and RandomGaussianBlur with probability 0.5). tool/test.py averages the mirror image
# (net_process, flip=True) and steps by 2/3 of a crop.
SEMSEG: dict[str, dict[str, Any]] = {
    "ade20k": {"crop": 473, "epochs": 100, "base_size": 512},
    "cityscapes": {"crop": 713, "epochs": 200, "base_size": 2048},
    "voc": {"crop": 473, "epochs": 50, "base_size": 512},
}
# Settings of open-mmlab/mmsegmentation: configs/pspnet/pspnet_r50-d8_*.py and the files in configs/_base_ that they
# name (models/pspnet_r50-d8.py, schedules/schedule_*.py, datasets/*.py).
MMSEG: dict[str, dict[str, Any]] = {
    "ade20k": {"steps": 160_000, "batch_size": 16, "crop": 512, "short_side": 512, "mode": "whole", "corners": False},
    "cityscapes": {
        "steps": 80_000,
        "batch_size": 8,
        "crop": 769,
        "short_side": 1025,
        "mode": "sliding",
        "corners": True,
    },
    "voc": {"steps": 40_000, "batch_size": 16, "crop": 512, "short_side": 512, "mode": "whole", "corners": False},
}


def assert_has(section: BaseModel, **expected: Any) -> None:
    assert {name: getattr(section, name) for name in expected} == expected


def assert_trains_as_in_the_paper(config: TrainConfig, crop: int) -> None:
    """Zhao et al. 2017, section 5.1, without length, rotation and blur. The stem is that of the released models."""
    pyramid = {"bins": (1, 2, 3, 6), "pooling": "average", "reduce": True, "auxiliary": True, "dropout": 0.1}
    stem = {"stem": "deep", "stem_channels": (64, 64, 128)}
    assert_has(config.model, **pyramid, **stem, contract_dilation=False, align_corners=True)
    assert_has(config.augment, crop=(crop, crop), scale=(0.5, 2.0), short_side=None, mirror=0.5, padding="mean")
    assert_has(config.augment, photometric=False, cat_max_ratio=1.0)
    assert config.loss == type(config.loss)()
    assert config.loss.auxiliary_weight == 0.4
    sgd = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "head_rate_factor": 10, "batch_size": 16}
    assert_has(config.optimization, **sgd, power=0.9, min_learning_rate=0.0, warmup_steps=0)
    assert_has(config.optimization, batch_norm="synchronized", clip_norm=None, ema_decay=None)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dataset", SEMSEG)
def test_semseg_recipes_have_the_settings_of_semseg(dataset: str, depth: int) -> None:
    config, source = load(f"semseg_{dataset}_r{depth}"), SEMSEG[dataset]
    assert_trains_as_in_the_paper(config, source["crop"])
    assert_has(config.augment, rotation=10, rotation_probability=0.5, blur=0.5)
    assert_has(config.optimization, epochs=source["epochs"], steps=None)
    crops = {"mode": "sliding", "crop": source["crop"], "base_size": source["base_size"], "short_side": None}
    assert_has(config.validation.protocol, **crops, scales=(1.0,), mirror=True)
    assert_has(config.workers, most=8, gpu=True)


def test_the_papers_recipe_for_cityscapes_is_longer_and_has_neither_rotation_nor_blur() -> None:
    """Zhao et al. 2017, section 5.1: 90,000 iterations; rotation and blur for ADE20K and VOC only."""
    config = load("paper_cityscapes_r101")
    assert_trains_as_in_the_paper(config, crop=713)
    assert_has(config.augment, rotation=0, rotation_probability=0.0, blur=0.0)
    assert_has(config.optimization, epochs=None, steps=90_000)
    assert config.validation.protocol == load("semseg_cityscapes_r101").validation.protocol


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dataset", MMSEG)
def test_mmseg_recipes_have_the_settings_of_mmsegmentation(dataset: str, depth: int) -> None:
    config, source = load(f"mmseg_{dataset}_r{depth}"), MMSEG[dataset]
    pyramid = {"bins": (1, 2, 3, 6), "pooling": "average", "reduce": True, "auxiliary": True, "dropout": 0.1}
    stem = {"stem": "deep", "stem_channels": (32, 32, 64)}  # ResNetV1c
    assert_has(config.model, **pyramid, **stem, contract_dilation=True, align_corners=source["corners"])
    size = {"crop": (source["crop"], source["crop"]), "scale": (0.5, 2.0), "short_side": source["short_side"]}
    assert_has(config.augment, **size, rotation=0, mirror=0.5, blur=0.0, padding="mean")
    assert_has(config.augment, photometric=True, cat_max_ratio=0.75)
    assert config.loss == LossConfig(auxiliary_weight=0.4, normalization="all")
    assert_has(config.optimization, epochs=None, steps=source["steps"], batch_size=source["batch_size"])
    sgd = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "head_rate_factor": 1}
    assert_has(config.optimization, **sgd, power=0.9, min_learning_rate=1e-4, warmup_steps=0)
    assert_has(config.optimization, batch_norm="synchronized", clip_norm=None, ema_decay=None)
    images = {"mode": source["mode"], "short_side": source["short_side"], "crop": source["crop"]}
    assert_has(config.validation.protocol, **images, scales=(1.0,), mirror=False)
    assert_has(config.workers, most=4, gpu=True)
