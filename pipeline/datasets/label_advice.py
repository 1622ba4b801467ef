"""Advice about annotations whose label ids or colors do not fit the classes: what to paste into the configuration."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.config.data import DataConfig
from pipeline.config.dataset_formats import Color, has_own_classes
from pipeline.datasets.pairs import SHOWN
from pipeline.images.label_files import is_one_bit

MAX_VALUES = 1024  # kept of one task: depth maps and blended colors have any number
MAX_CLASSES = 256  # more colors than this are no classes
UNSIGNED_VOID = (2**16 - 1, 2**32 - 1)  # -1 in samples without a sign
WHITE = 255
ONE_BIT, BLACK_AND_WHITE = "1 bit, with ids 0 and 1", f"8 bits, with ids 0 and {WHITE}"  # forms of binary masks


@dataclass
class Values:
    """Label ids, or colors as 0xRRGGBB, with the number of their pixels and of the annotations that have them."""

    pixels: Counter[int] = field(default_factory=Counter)
    annotations: Counter[int] = field(default_factory=Counter)

    def add(self, counts: Mapping[int, int]) -> None:
        """Add the pixels of each value in one annotation."""
        self.pixels.update(counts)
        self.annotations.update(counts.keys())

    def rows(self) -> list[dict[str, int]]:
        """Return up to MAX_VALUES values, those in the most annotations first, as `add_rows` takes them."""
        kept = sorted(self.pixels, key=lambda value: (-self.annotations[value], -self.pixels[value]))[:MAX_VALUES]
        return [
            {"value": value, "pixels": self.pixels[value], "annotations": self.annotations[value]} for value in kept
        ]

    def add_rows(self, rows: Iterable[dict[str, int]]) -> None:
        for row in rows:
            self.pixels[row["value"]] += row["pixels"]
            self.annotations[row["value"]] += row["annotations"]


def merged(parts: Iterable[Values]) -> Values:
    """Return the sum of the values of several annotations."""
    total = Values()
    for part in parts:
        total.pixels.update(part.pixels)
        total.annotations.update(part.annotations)
    return total


def remedy_for_ids(ids: Iterable[int], data: DataConfig) -> str:
    """Return the next step for label ids of which some are outside the classes.

    Args:
        ids: all label ids that occur, of one annotation or of many. The more, the more specific the advice.
        data: the dataset.
    """
    count = len(data.classes)
    if not _ids_are_class_ids(data):
        return (
            "data.classes lacks their classes, or these are no annotations of the format: add the classes, or map each "
            "id with data.label_map to a class or, if its pixels should not count, to ignore_index"
        )
    found = {label_id for label_id in ids if label_id not in data.label_map and label_id != data.ignore_index}
    outside = sorted(label_id for label_id in found if not 0 <= label_id < count)
    one_based = yaml_map({label_id: label_id - 1 for label_id in range(1, count + 1)})
    if outside == [count] and 0 not in found:
        return f"the ids seem to count from 1; if they do, set data.label_map: {one_based}"
    if outside == [count]:
        with_void = yaml_map({0: data.ignore_index, **{label_id: label_id - 1 for label_id in range(1, count + 1)}})
        return (
            f"there are {count + 1} ids for {count} classes: add the missing class to data.classes or, if 0 is void "
            f"and the classes count from 1, set data.label_map: {with_void}"
        )
    if outside == [WHITE] and found <= {0, WHITE}:
        return f"the masks have two values; if {WHITE} is {class_name(data, 1)}, set data.label_map: {{{WHITE}: 1}}"
    if void := [label_id for label_id in outside if label_id < 0 or label_id in UNSIGNED_VOID]:
        how = "negative ids" if void[0] < 0 else "the highest id, which is -1 without a sign,"
        mapped = yaml_map(dict.fromkeys(void[:SHOWN], data.ignore_index))
        return f"{how} often mark void; if they do here, set data.label_map: {mapped}"
    return (
        f"add a class for each to data.classes, which has {count}, or map each with data.label_map to the class that "
        "it means"
    )


def remedy_for_colors(colors: Values, data: DataConfig) -> str:
    """Return the colors found in annotations with unknown colors, and the classes to paste."""
    total = sum(colors.pixels.values())
    known = {entry.color: entry.name for entry in data.classes}
    ranked = colors.pixels.most_common()
    listed = "; ".join(
        f"{_rgb(code)} {pixels / total:.2%} in {colors.annotations[code]:,}" for code, pixels in ranked[:MAX_CLASSES]
    )
    if len(ranked) > MAX_CLASSES:
        frequent = "; ".join(f"{_rgb(code)} {pixels / total:.2%}" for code, pixels in ranked[:SHOWN])
        return (
            f"they have at least {len(ranked):,} colors ({frequent} ...), more than classes can have: their borders "
            "were blended or compressed; export them again without anti-aliasing"
        )
    if all(len(set(_rgb(code))) == 1 for code in colors.pixels):
        return (
            f"all colors are gray ({listed} annotations): if the annotations repeat the label id in three channels, "
            "set data.rgb_ids: true"
        )
    entries = [
        f"{{name: {known.get(_rgb(code), 'class_' + '_'.join(map(str, _rgb(code))))}, color: {list(_rgb(code))}}}"
        for code in colors.pixels
    ]
    return (
        f"share of the pixels of each color, and number of annotations: {listed}. Set the colors in data.classes, and "
        "rename, sort or omit as needed (black of no class is void):\n  classes: [\n    "
        + ",\n    ".join(entries)
        + "\n  ]"
    )


def remedy_for_absent(ids: Iterable[int], data: DataConfig) -> str | None:
    """Return advice for classes that never occur if all label ids may be shifted by one, otherwise None."""
    found = {label_id for label_id in ids if label_id != data.ignore_index}
    if data.label_map or not found or min(found) < 1 or not _ids_are_class_ids(data):
        return None
    shifted = yaml_map({label_id: label_id - 1 for label_id in range(1, len(data.classes) + 1)})
    return f"no annotation has label id 0: if ids count from 1, set data.label_map: {shifted}"


def ignored_foreground(ids: Iterable[int], data: DataConfig) -> str | None:
    """Return the `label_map` to set if annotations have two values of which the second is ignored, otherwise None."""
    found = set(ids)
    is_ignored = data.ignore_index in found and data.ignore_index not in data.label_map
    if is_ignored and found <= {0, data.ignore_index} and _ids_are_class_ids(data):
        return yaml_map({data.ignore_index: 1})
    return None


@dataclass(frozen=True)
class BinaryMasks:
    """Number of masks of one form, and the first of them."""

    count: int
    example: str


def form_of(label: bytes, raw_ids: set[int]) -> str | None:
    """Return the form of a binary mask: ONE_BIT, BLACK_AND_WHITE, or None if it is another annotation."""
    if raw_ids <= {0, 1}:
        return ONE_BIT if is_one_bit(label) else None
    return BLACK_AND_WHITE if raw_ids == {0, WHITE} else None


def two_foregrounds(forms: Mapping[str, BinaryMasks], data: DataConfig) -> str | None:
    """Return what is wrong if binary masks of both forms occur and their foregrounds are not the same class."""
    one_bit, white = forms.get(ONE_BIT), forms.get(BLACK_AND_WHITE)
    if not one_bit or not white or data.label_map.get(WHITE, WHITE) == data.label_map.get(1, 1):
        return None
    return (
        f"{white.count:,} mask(s) have {BLACK_AND_WHITE}, but {one_bit.count:,} have {ONE_BIT}, such as "
        f"{one_bit.example}: the same foreground has two ids"
    )


def remedy_for_two_foregrounds(data: DataConfig) -> str:
    return f"if the foreground is {class_name(data, 1)}, set data.label_map: {{{WHITE}: 1}}"


def _ids_are_class_ids(data: DataConfig) -> bool:
    return has_own_classes(data.format, [entry.name for entry in data.classes])


def class_name(data: DataConfig, class_id: int) -> str:
    """Return a class as messages name it."""
    return f"class {class_id} ({data.classes[class_id].name})"


def yaml_map(ids: dict[int, int]) -> str:
    """Return a `label_map` as YAML on one line."""
    return "{" + ", ".join(f"{label_id}: {class_id}" for label_id, class_id in ids.items()) + "}"


def unknown_colors(found: Iterable[int], known: Container[Color]) -> str:
    """Return the first colors found, 0xRRGGBB, that are not known."""
    unknown = [str(_rgb(code)) for code in found if _rgb(code) not in known]
    return ", ".join(unknown[:SHOWN]) + (" ..." if len(unknown) > SHOWN else "")


def _rgb(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255
