"""More frequent training on images that show a rare class."""

import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.cluster.ray_data import map_tables
from pipeline.config.data import DataConfig
from pipeline.console import log
from pipeline.datasets import Pair
from pipeline.datasets.loading import class_ids_of, label_counts, open_label, read
from pipeline.errors import UserError, raise_user_error
from pipeline.evaluate.stages import listed_block

PAIRS_PER_TASK = 64

SHOWN = pa.schema([("number", pa.int64()), ("class_ids", pa.list_(pa.int64()))])


def repeated_pairs(pairs: Sequence[Pair], data: DataConfig) -> list[Pair]:
    """Return the pairs, each as often as the largest of `data.sampling_factors` of its annotation's classes.

    With factors, every annotation is read, on the connected Ray cluster.

    Raises: UserError if a factor is of a class that no annotation shows, or if an annotation cannot be read.
    """
    if not data.sampling_factors:
        return list(pairs)
    log(f"Reading {len(pairs):,} annotations for data.sampling_factors")
    return [
        pair
        for pair, repeat in zip(pairs, repeats(shown_classes(pairs, data), data), strict=True)
        for _ in range(repeat)
    ]


def repeats(shown: Sequence[Sequence[int]], data: DataConfig) -> list[int]:
    """Return how often to list each image, from the class ids that it shows. Raises: UserError."""
    names = [entry.name for entry in data.classes]
    factors = {names.index(name): factor for name, factor in data.sampling_factors.items()}
    absent = factors.keys() - {class_id for class_ids in shown for class_id in class_ids}
    if absent:
        raise UserError(
            "data.sampling_factors: no training annotation shows "
            f"{', '.join(repr(names[class_id]) for class_id in sorted(absent))}; remove the factor, or check "
            "data.label_map"
        )
    return [max((factors.get(class_id, 1) for class_id in class_ids), default=1) for class_ids in shown]


def shown_classes(pairs: Sequence[Pair], data: DataConfig) -> list[list[int]]:
    """Return the class ids in each pair's annotation, in the order of the pairs. Raises: UserError."""
    starts = range(0, len(pairs), PAIRS_PER_TASK)
    blocks = [listed_block(start, list(pairs[start : start + PAIRS_PER_TASK])) for start in starts]
    shown: list[list[int]] = [[] for _ in pairs]
    try:
        for table in map_tables(read_classes, blocks, num_cpus=1, data=data).iter_batches(
            batch_size=None, batch_format="pyarrow"
        ):
            for row in pa.table(table).to_pylist():
                shown[row["number"]] = row["class_ids"]
    except Exception as error:
        raise_user_error(error)
    return shown


def read_classes(listed: pa.Table, data: DataConfig) -> Iterator[pa.Table]:
    """Read the annotations of LISTED pairs and yield their SHOWN classes (a Ray task)."""
    pairs: list[Pair] = [pickle.loads(pair) for pair in listed["pair"].to_pylist()]
    with ThreadPoolExecutor(storage.FETCHES) as pool:
        contents = list(pool.map(read, [pair.label for pair in pairs]))
    class_ids = [_class_ids(pair, content, data) for pair, content in zip(pairs, contents, strict=True)]
    yield pa.table({"number": listed["number"], "class_ids": class_ids}, SHOWN)


def _class_ids(pair: Pair, content: bytes, data: DataConfig) -> list[int]:
    raw_ids, _ = label_counts(open_label(pair, content, data))
    class_ids = np.unique(class_ids_of(raw_ids, pair, data))
    return class_ids[(class_ids >= 0) & (class_ids < len(data.classes))].tolist()
