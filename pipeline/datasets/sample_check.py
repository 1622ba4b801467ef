"""Check of some annotations before a training starts, which finds what all have in common without reading all."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pipeline import storage
from pipeline.config.data import DataConfig
from pipeline.datasets.label_advice import (
    BinaryMasks,
    Values,
    class_name,
    form_of,
    ignored_foreground,
    remedy_for_colors,
    remedy_for_ids,
    remedy_for_two_foregrounds,
    two_foregrounds,
)
from pipeline.datasets.loading import OUTSIDE, class_ids_of, label_counts, open_label, read
from pipeline.datasets.pairs import Pair, PairError
from pipeline.errors import UserError
from pipeline.images.label_files import UnknownColorError

SAMPLED = 16  # annotations, evenly spread over the listing


def check_sample(pairs: list[Pair], data: DataConfig) -> None:
    """Read some annotations, and compare their label ids and colors with the classes.

    Raises: UserError, with the counts of all that were read, if ids or colors are of no class, if the foreground of
        binary masks is ignored or has two ids, or if an annotation cannot be read.
    """
    chosen = [pairs[number * len(pairs) // SAMPLED] for number in range(SAMPLED)] if len(pairs) > SAMPLED else pairs
    if problem := _problem(_read_sample(chosen, data), f"of the {len(chosen)} annotations read first", data):
        raise UserError(f"data.root {data.root}: {problem}")


@dataclass
class _Sample:
    """Label ids, and colors of annotations with unknown ones, with the annotations that have them."""

    ids: Values = field(default_factory=Values)
    colors: Values = field(default_factory=Values)
    outside: dict[int, Pair] = field(default_factory=dict)  # label id of no class -> the first that has it
    colored: list[Pair] = field(default_factory=list)  # with unknown colors
    masks: dict[str, BinaryMasks] = field(default_factory=dict)


def _read_sample(pairs: list[Pair], data: DataConfig) -> _Sample:
    with ThreadPoolExecutor(storage.FETCHES) as pool:
        contents = list(pool.map(read, [pair.label for pair in pairs]))
    seen = _Sample()
    for pair, content in zip(pairs, contents, strict=True):
        try:
            raw_ids, counts = label_counts(open_label(pair, content, data))
        except PairError as error:
            if not isinstance(error.__cause__, UnknownColorError):
                raise
            seen.colors.add(error.__cause__.colors)
            seen.colored.append(pair)
            continue
        seen.ids.add(dict(zip(raw_ids.tolist(), counts.tolist(), strict=True)))
        if form := form_of(content, set(raw_ids.tolist())):
            before = seen.masks.get(form, BinaryMasks(0, pair.label_uri))
            seen.masks[form] = replace(before, count=before.count + 1)
        for label_id in raw_ids[class_ids_of(raw_ids, pair, data) == OUTSIDE].tolist():
            seen.outside.setdefault(label_id, pair)
    return seen


def _problem(seen: _Sample, read_of: str, data: DataConfig) -> str | None:
    """Return what is wrong with the annotations and the next step, None if nothing is."""
    if seen.colored:
        return (
            f"{len(seen.colored)} {read_of} have colors of no class, such as {seen.colored[0].label_uri}; "
            f"{remedy_for_colors(seen.colors, data)}"
        )
    if seen.outside:
        some = sorted(seen.outside)[:SAMPLED]
        listed = ", ".join(f"{label_id} (in {seen.ids.annotations[label_id]})" for label_id in some)
        return (
            f"{read_of}, some have label ids of no class: {listed}, such as {seen.outside[some[0]].label_uri}; "
            f"{remedy_for_ids(seen.ids.pixels, data)}"
        )
    if problem := two_foregrounds(seen.masks, data):
        return f"{read_of}, {problem}; {remedy_for_two_foregrounds(data)}"
    if label_map := ignored_foreground(seen.ids.pixels, data):
        return (
            f"all label ids {read_of} are 0 or {data.ignore_index}, which is ignored; if {data.ignore_index} is "
            f"{class_name(data, 1)}, set data.label_map: {label_map}"
        )
    return None
