"""Known datasets: their classes, their splits, and the ids and colors of their annotations.

The class tables are in class_tables/: `label_id` is the value in the annotation files, `class_id` the id that a model
learns.
"""

import csv
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).parent / "class_tables"

Color = tuple[int, int, int]

TRAIN_IDS = "_train_ids"  # end of the names of codings whose label ids are class ids


@dataclass(frozen=True)
class Format:
    """Defaults that follow from a dataset's layout."""

    train_split: str = "train"
    val_split: str = "val"
    ignore_index: int = 255
    table: str | None = None  # in class_tables/; None: the user configures the classes
    ids_are_positions: bool = False  # label ids are positions in the table, so other classes can have the same layout


FORMATS = {
    "folder": Format(),
    "ade20k": Format("training", "validation", table="ade20k"),
    "cityscapes": Format(table="cityscapes"),
    "voc": Format(table="voc", ids_are_positions=True),
    "coco_stuff": Format("train2017", "val2017", table="coco_stuff"),
    "camvid": Format(table="camvid", ignore_index=11, ids_are_positions=True),
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


def color_of(table: str | None, name: str) -> Color | None:
    """Return the color of the class of this name in a table, None if there is none."""
    return next((known.color for known in classes_of(table) if known.name == name), None) if table else None


def mismatch(format: str, classes: Sequence[tuple[str, Color]]) -> str | None:
    """Return why these classes (names and colors) do not fit the annotations of a format, None if they do.

    They fit if all are in the format's table, in any order, and none has the color of another. They also fit if label
    ids are positions and no name is in the table at another position, as in datasets exported in the layout of VOC.
    """
    known_format = FORMATS[format]
    if known_format.table is None:
        return None
    known = {entry.name: entry for entry in classes_of(known_format.table)}
    unknown = [name for name, _ in classes if name not in known]
    if unknown:
        moved = [name for place, (name, _) in enumerate(classes) if name in known and known[name].class_id != place]
        if known_format.ids_are_positions and not moved:
            return None
        return f"{format} has no class {unknown[0]!r}"
    for name, color in classes:
        owners = _owners(format, color)
        if owners and name not in owners:
            return f"{format} has the color {color} of {name!r} for {owners[0]!r}"
    return None


def _owners(format: str, color: Color) -> list[str]:
    """Return the names of the classes that have a color in the annotations of a format; void is one of them."""
    names = [entry.name for entry in classes_of(format)]
    owners = [entry.name for entry in classes_of(format) if entry.color == color]
    whole = coding(format)
    if not owners and color in whole.colors:
        class_id = whole.class_ids[whole.colors[color]]
        owners = ["void" if class_id is None else names[class_id]]
    return owners


def has_own_classes(format: str, classes: Iterable[str]) -> bool:
    """Return True if label ids are positions in `classes`: the format has no table, or not all of these classes."""
    table = FORMATS[format].table
    return table is None or not {entry.name for entry in classes_of(table)}.issuperset(classes)


@functools.lru_cache(maxsize=64)
def coding_of(name: str, classes: tuple[tuple[str, Color], ...]) -> "Coding":
    """Return the coding of this name with the ids of `classes`, some or all of the table's, instead of the table's.

    Label ids and colors of the table's other classes belong to none. Colors of `classes` count besides the table's.
    """
    whole = coding(name)
    table = classes_of(name.removesuffix(TRAIN_IDS))
    positions = {class_name: place for place, (class_name, _) in enumerate(classes)}
    new_ids = {entry.class_id: positions.get(entry.name) for entry in table}
    kept = {
        label_id: None if class_id is None else new_ids[class_id]
        for label_id, class_id in whole.class_ids.items()
        if class_id is None or new_ids[class_id] is not None
    }
    label_ids = {class_id: label_id for label_id, class_id in kept.items() if class_id is not None}
    own_colors = distinct_colors(color for _, color in classes)
    taken = {entry.color for entry in table} | set(whole.colors)
    colors = {color: label_id for color, label_id in whole.colors.items() if label_id in kept}
    if colors:  # otherwise the annotations of this coding have no colors
        colors |= {color: label_ids[place] for color, place in own_colors.items() if color not in taken}
    return Coding(kept, colors)


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
    if name.endswith(TRAIN_IDS):
        table = name.removesuffix(TRAIN_IDS)
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
