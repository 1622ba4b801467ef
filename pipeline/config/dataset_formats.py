"""Known datasets: their classes, their splits, and the ids and colors of their annotations.

The class tables are in class_tables/: `label_id` is the value in the annotation files, `class_id` the id that a model
learns.
"""

import csv
import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).parent / "class_tables"

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Format:
    """Defaults that follow from a dataset's layout."""

    train_split: str = "train"
    val_split: str = "val"
    ignore_index: int = 255
    table: str | None = None  # in class_tables/; None: the user configures the classes


FORMATS = {
    "folder": Format(),
    "ade20k": Format("training", "validation", table="ade20k"),
    "cityscapes": Format(table="cityscapes"),
    "voc": Format(table="voc"),
    "coco_stuff": Format("train2017", "val2017", table="coco_stuff"),
    "camvid": Format(table="camvid", ignore_index=11),
    "list": Format(),
    "parquet": Format(),
}


@dataclass(frozen=True)
class KnownClass:
    """Row of a table in class_tables/."""

    class_id: int
    label_id: int
    name: str
    color: Color


@functools.cache
def classes_of(table: str) -> tuple[KnownClass, ...]:
    """Return the classes of a known dataset in the order of their ids."""
    return tuple(
        KnownClass(int(row["class_id"]), int(row["label_id"]), row["name"], _color(row)) for row in _rows(table)
    )


@dataclass(frozen=True)
class Coding:
    """Encoding of classes in one kind of annotation file."""

    class_ids: dict[int, int | None]  # label id in the file -> class id; None: ignored by the loss and the metrics
    colors: dict[Color, int]  # color in the file -> label id; without colors that two classes share


@functools.cache
def coding(name: str) -> Coding:
    """Return the coding with the name that a Pair has."""
    if name == "ade20k":
        return _coding("ade20k", void=(0, 255), colors={(0, 0, 0): 0})
    if name == "cityscapes":
        # The labelIds files have 34 ids, of which 19 are training classes.
        return _coding("cityscapes", void={*range(34), 255} - {known.label_id for known in classes_of("cityscapes")})
    if name == "voc":
        return _coding("voc", void=(255,), colors={(224, 224, 192): 255})
    if name == "coco_stuff":
        return _coding("coco_stuff", void=(255,))
    if name == "camvid":
        return _coding("camvid", void=(11, 255), colors=_camvid_colors(void=11))
    if name in ("cityscapes_train_ids", "coco_stuff_train_ids"):
        table = name.removesuffix("_train_ids")
        return Coding({**{known.class_id: known.class_id for known in classes_of(table)}, 255: None}, {})
    raise AssertionError(name)


def distinct_colors(colors: Iterable[Color]) -> dict[Color, int]:
    """Map each color that occurs exactly once to its position in the given order."""
    listed = list(colors)
    count = Counter(listed)
    return {color: place for place, color in enumerate(listed) if count[color] == 1}


def _coding(table: str, void: Iterable[int], colors: dict[Color, int] | None = None) -> Coding:
    known = classes_of(table)
    class_ids: dict[int, int | None] = {entry.label_id: entry.class_id for entry in known}
    own_colors = {
        color: known[place].label_id for color, place in distinct_colors(entry.color for entry in known).items()
    }
    return Coding(class_ids | dict.fromkeys(void), own_colors | (colors or {}))


def _camvid_colors(void: int) -> dict[Color, int]:
    """Map the 32 colors of the original annotations to the label ids of their classes."""
    label_ids = {known.name: known.label_id for known in classes_of("camvid")} | {"void": void}
    return {_color(row): label_ids[row["class"]] for row in _rows("camvid_colors")}


def _rows(table: str) -> list[dict[str, str]]:
    with open(TABLES / f"{table}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _color(row: dict[str, str]) -> Color:
    return int(row["red"]), int(row["green"]), int(row["blue"])
