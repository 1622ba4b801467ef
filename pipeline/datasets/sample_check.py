"""Check of some annotations before a training starts, which finds what all have in common without reading all."""

from concurrent.futures import ThreadPoolExecutor

from pipeline import storage
from pipeline.config.data import DataConfig
from pipeline.datasets.label_advice import Values, class_name, ignored_foreground, remedy_for_colors, remedy_for_ids
from pipeline.datasets.loading import OUTSIDE, class_ids_of, label_counts, open_label, read
from pipeline.datasets.pairs import Pair, PairError
from pipeline.errors import UserError
from pipeline.images.label_files import UnknownColorError

SAMPLED = 16  # annotations, evenly spread over the listing


def check_sample(pairs: list[Pair], data: DataConfig) -> None:
    """Read some annotations, and compare their label ids and colors with the classes.

    Raises: UserError, with the counts of all that were read, if ids or colors are of no class, if all ids are 0 or the
        ignored one, or if an annotation cannot be read.
    """
    sample = [pairs[number * len(pairs) // SAMPLED] for number in range(SAMPLED)] if len(pairs) > SAMPLED else pairs
    with ThreadPoolExecutor(storage.FETCHES) as pool:
        contents = list(pool.map(read, [pair.label for pair in sample]))
    ids, colors = Values(), Values()
    outside: dict[int, Pair] = {}
    colored: list[Pair] = []
    for pair, content in zip(sample, contents, strict=True):
        try:
            raw_ids, counts = label_counts(open_label(pair, content, data))
        except PairError as error:
            if not isinstance(error.__cause__, UnknownColorError):
                raise
            colors.add(error.__cause__.colors)
            colored.append(pair)
            continue
        ids.add(dict(zip(raw_ids.tolist(), counts.tolist(), strict=True)))
        of_no_class = raw_ids[class_ids_of(raw_ids, pair, data) == OUTSIDE]
        outside |= {label_id: pair for label_id in of_no_class.tolist() if label_id not in outside}
    read_of = f"of the {len(sample)} annotations read first"
    if colored:
        raise UserError(
            f"data.root {data.root}: {len(colored)} {read_of} have colors of no class, such as "
            f"{colored[0].label_uri}; {remedy_for_colors(colors, data)}"
        )
    if outside:
        listed = ", ".join(f"{label_id} (in {ids.annotations[label_id]})" for label_id in sorted(outside)[:SAMPLED])
        raise UserError(
            f"data.root {data.root}: {read_of}, some have label ids of no class: {listed}, such as "
            f"{next(iter(outside.values())).label_uri}; {remedy_for_ids(ids.pixels, data)}"
        )
    if label_map := ignored_foreground(ids.pixels, data):
        raise UserError(
            f"data.root {data.root}: all label ids {read_of} are 0 or {data.ignore_index}, which is ignored; if "
            f"{data.ignore_index} is {class_name(data, 1)}, set data.label_map: {label_map}"
        )
