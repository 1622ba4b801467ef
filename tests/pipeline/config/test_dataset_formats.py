"""The known datasets: their tables are whole, and a configuration is filled in from them."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.data import DataConfig, EvalDataConfig
from pipeline.config.dataset_formats import FORMATS, classes_of, coding, distinct_colors
from pipeline.config.jobs import TrainConfig, ValidateDatasetConfig
from pipeline.config.loading import load_settings
from pipeline.errors import UserError

TWO_CLASSES = [{"name": "a", "color": [0, 0, 0]}, {"name": "b", "color": [1, 1, 1]}]


def data_config(**values: Any) -> DataConfig:
    return DataConfig.model_validate({"root": "data", **values})


# The tables


@pytest.mark.parametrize(
    ("table", "count"), [("ade20k", 150), ("cityscapes", 19), ("voc", 21), ("coco_stuff", 171), ("camvid", 11)]
)
def test_every_table_has_all_classes_once(table: str, count: int) -> None:
    known = classes_of(table)
    assert [entry.class_id for entry in known] == list(range(count))
    assert len({entry.name for entry in known}) == count
    assert len({entry.label_id for entry in known}) == count
    assert all(0 <= channel <= 255 for entry in known for channel in entry.color)
    assert all(entry.name == entry.name.strip() for entry in known)


@pytest.mark.parametrize(
    ("table", "class_id", "label_id", "name", "color"),
    [
        ("ade20k", 0, 1, "wall", (120, 120, 120)),
        ("ade20k", 12, 13, "person", (150, 5, 61)),
        ("ade20k", 126, 127, "animal", (255, 0, 122)),
        ("ade20k", 149, 150, "flag", (92, 0, 255)),
        ("cityscapes", 0, 7, "road", (128, 64, 128)),
        ("cityscapes", 13, 26, "car", (0, 0, 142)),
        ("cityscapes", 16, 31, "train", (0, 80, 100)),
        ("cityscapes", 18, 33, "bicycle", (119, 11, 32)),
        ("voc", 0, 0, "background", (0, 0, 0)),
        ("voc", 15, 15, "person", (192, 128, 128)),
        ("voc", 20, 20, "tvmonitor", (0, 64, 128)),
        ("coco_stuff", 11, 12, "stop sign", (0, 0, 224)),
        ("coco_stuff", 79, 89, "toothbrush", (192, 160, 0)),
        ("coco_stuff", 80, 91, "banner", (0, 192, 0)),
        ("coco_stuff", 170, 181, "wood", (64, 64, 0)),
        ("camvid", 4, 4, "pavement", (60, 40, 222)),
        ("camvid", 10, 10, "bicyclist", (0, 128, 192)),
    ],
)
def test_classes_stand_at_their_ids(
    table: str, class_id: int, label_id: int, name: str, color: tuple[int, int, int]
) -> None:
    known = classes_of(table)[class_id]
    assert (known.label_id, known.name, known.color) == (label_id, name, color)


def test_void_ids_count_nowhere_and_other_ids_are_unknown() -> None:
    assert [coding("ade20k").class_ids.get(raw, "unknown") for raw in (0, 1, 150, 151)] == [None, 0, 149, "unknown"]
    of_cityscapes = coding("cityscapes").class_ids
    assert [of_cityscapes.get(raw, "unknown") for raw in (-1, 0, 7, 9, 33, 34)] == [
        "unknown",
        None,
        0,
        None,
        18,
        "unknown",
    ]
    assert sum(class_id is not None for class_id in of_cityscapes.values()) == 19
    gaps = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert set(range(182)) - set(coding("coco_stuff").class_ids) == gaps, "street sign, hat ... have no pixels"
    assert coding("voc").class_ids[255] is None
    assert coding("camvid").class_ids[11] is None


def test_all_32_camvid_colours_have_a_class_of_the_11_or_are_void() -> None:
    names = {known.label_id: known.name for known in classes_of("camvid")} | {11: "void"}
    classes = {color: names[label_id] for color, label_id in coding("camvid").colors.items()}
    assert len(classes) == 33, "and the pavement of the 11-class palette"
    assert classes[0, 0, 192] == classes[60, 40, 222] == classes[128, 128, 192] == "pavement"  # sidewalk, shoulder
    assert classes[192, 128, 192] == classes[64, 128, 192] == "car"  # truck or bus, SUV
    assert classes[192, 0, 192] == "bicyclist"  # motorcycle
    assert classes[192, 128, 64] == "pedestrian"  # child
    assert [color for color, name in classes.items() if name == "void"] == [(0, 0, 0)]


def test_a_colour_of_two_classes_stands_for_neither() -> None:
    assert distinct_colors([(1, 1, 1), (2, 2, 2), (1, 1, 1), (3, 3, 3)]) == {(2, 2, 2): 1, (3, 3, 3): 3}
    assert (140, 140, 140) not in coding("ade20k").colors, "road and skyscraper share it"


# What a configuration gets from them


@pytest.mark.parametrize("name", [name for name, known in FORMATS.items() if known.table])
def test_a_known_format_needs_nothing_but_its_root(name: str) -> None:
    data = data_config(format=name)
    known = FORMATS[name]
    assert [entry.name for entry in data.classes] == [entry.name for entry in classes_of(known.table or "")]
    assert (data.train_split, data.val_split, data.ignore_index) == (
        known.train_split,
        known.val_split,
        known.ignore_index,
    )


def test_what_is_given_beats_the_format() -> None:
    data = data_config(format="ade20k", train_split="tiny", ignore_index=300, classes=TWO_CLASSES)
    assert (data.train_split, data.val_split, data.ignore_index, len(data.classes)) == ("tiny", "validation", 300, 2)


@pytest.mark.parametrize("name", [name for name, known in FORMATS.items() if not known.table])
def test_where_nothing_says_the_classes_they_are_asked_for(name: str) -> None:
    with pytest.raises(ValidationError, match=r"classes\s+Field required"):
        data_config(format=name)
    data = data_config(format=name, classes=TWO_CLASSES)
    assert (data.train_split, data.val_split, data.ignore_index) == ("train", "val", 255)


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    for wrong in ("pascal", ["voc"], 3):
        with pytest.raises(ValidationError, match="'folder', 'ade20k', 'cityscapes'"):
            data_config(format=wrong, classes=TWO_CLASSES)


@pytest.mark.parametrize("key", [{"min_confidence": 0.5}, {"image_column": "picture"}, {"label_column": "label"}])
def test_keys_of_tables_are_refused_elsewhere(key: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(key))} works only with format parquet"):
        data_config(format="voc", **key)


def test_calibration_takes_splits_from_the_format_and_the_rest_from_the_checkpoint() -> None:
    data = EvalDataConfig.model_validate({"root": "data", "format": "coco_stuff"})
    assert (data.train_split, data.val_split, data.ignore_index) == ("train2017", "val2017", None)


def test_the_command_line_may_name_the_format() -> None:
    options = ["--output", "run", "--data.root", "data", "--data.format", "cityscapes", "--data.val-split", "tiny"]
    config = load_settings(TrainConfig, options, prog="jobs/train.py")
    assert (len(config.data.classes), config.data.train_split, config.data.val_split) == (19, "train", "tiny")


def test_a_training_recipe_serves_for_validation_but_its_data_section_is_held_to_the_keys(tmp_path: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {format: voc, root: data}\nmodel: {backbone: resnet18}\noptimization: {epochs: 3}\n")
    config = load_settings(ValidateDatasetConfig, ["--config", str(recipe)], prog="jobs/validate_dataset.py")
    assert len(config.data.classes) == 21
    recipe.write_text("data: {format: voc, root: data, clases: []}\n")
    with pytest.raises(UserError, match=r"data\.clases: no such key"):
        load_settings(ValidateDatasetConfig, ["--config", str(recipe)], prog="jobs/validate_dataset.py")
