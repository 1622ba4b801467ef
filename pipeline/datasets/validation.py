"""Validation of a whole dataset before training: Ray tasks read and reduce, the driver adds up.

The results that tasks send to the driver grow with the number of images (16 bytes each) and of classes, not with the
number of pixels.
"""

import hashlib
import pickle
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.cluster import connection
from pipeline.cluster.ray_data import map_tables
from pipeline.cluster.shared_files import check_shared
from pipeline.config.data import DataConfig
from pipeline.config.jobs import ValidateDatasetConfig
from pipeline.console import duration, log
from pipeline.datasets import Cell, Pair, PairError, fingerprint, list_split
from pipeline.datasets.label_advice import (
    BLACK_AND_WHITE,
    ONE_BIT,
    BinaryMasks,
    Values,
    class_name,
    form_of,
    ignored_foreground,
    merged,
    remedy_for_absent,
    remedy_for_colors,
    remedy_for_ids,
    remedy_for_two_foregrounds,
    two_foregrounds,
)
from pipeline.datasets.loading import (
    OUTSIDE,
    check_ids,
    check_sizes,
    class_ids_of,
    label_counts,
    open_image,
    open_label,
    read,
    turns_of,
)
from pipeline.datasets.pairs import FINDING_KINDS, SHOWN, DatasetFinding
from pipeline.errors import UserError, raise_user_error
from pipeline.images.label_files import UnknownColorError
from pipeline.images.raster import WHITE, Raster

PAIRS_PER_BLOCK = 32  # plus the rest of a table's row group, which is read as a whole
MAX_PER_BLOCK = 256
EXAMPLES = 100  # kept per kind of finding
SECONDS_BETWEEN_LINES = 10.0
HASH_BYTES = 16
MOSTLY = 0.5  # fraction of a split's pixels; a warning tells if more are ignored
UNREAD = bytes(HASH_BYTES)  # stands in for the hash of an image that cannot be read

BLOCK = pa.schema([("split", pa.string()), ("start", pa.int64()), ("pairs", pa.binary())])
VALUE = pa.struct([(name, pa.int64()) for name in ("value", "pixels", "annotations")])
READ = pa.schema(
    [
        ("split", pa.string()),
        ("start", pa.int64()),  # number of the first pair
        ("hashes", pa.large_binary()),  # HASH_BYTES per pair
        ("images", pa.int64()),  # number of pairs without an error
        ("pixels", pa.list_(pa.int64())),  # K
        ("images_with", pa.list_(pa.int64())),  # K
        ("ignored", pa.int64()),  # pixels
        ("sides", pa.list_(pa.int32())),  # smallest and largest width, then height; empty if no image was read
        ("ids", pa.list_(VALUE)),  # label ids in the files
        ("colors", pa.list_(VALUE)),  # of annotations with unknown colors
        ("forms", pa.list_(pa.struct([("form", pa.string()), ("masks", pa.int64()), ("example", pa.string())]))),
        ("findings", pa.list_(pa.struct([(name, pa.string()) for name in ("kind", "where", "message")]))),
    ]
)


@dataclass
class SplitCheck:
    """Statistics of a split's images and annotations."""

    listed: int  # pairs
    fingerprint: str
    pixels_K: NDArray[np.int64]
    images_with_K: NDArray[np.int64]
    images: int = 0  # pairs without an error
    ignored: int = 0  # pixels
    sides: tuple[int, int, int, int] | None = None  # smallest and largest width, then height, pixels

    @property
    def ignored_share(self) -> float:
        """Fraction of the pixels of readable annotations that are ignored."""
        return self.ignored / max(1, self.ignored + int(self.pixels_K.sum()))


@dataclass
class DatasetCheck:
    """Result of validating a dataset."""

    data: DataConfig
    splits: dict[str, SplitCheck]
    totals: Counter[str] = field(default_factory=Counter)  # findings of each kind
    examples: dict[str, list[DatasetFinding]] = field(
        default_factory=lambda: defaultdict(list)
    )  # the first of each kind
    ids: Values = field(default_factory=Values)  # label ids in the files
    colors: Values = field(default_factory=Values)  # of annotations with unknown colors
    forms: dict[str, BinaryMasks] = field(default_factory=dict)  # ONE_BIT, BLACK_AND_WHITE
    remedies: dict[str, str] = field(default_factory=dict)  # kind of finding -> next step, from all label ids
    seconds: float = 0.0

    def remedy(self, kind: str) -> str:
        """Return the next step for the findings of a kind."""
        return self.remedies.get(kind, FINDING_KINDS[kind].remedy)

    def add(self, finding: DatasetFinding) -> None:
        self.totals[finding.kind] += 1
        if len(self.examples[finding.kind]) < EXAMPLES:
            self.examples[finding.kind].append(finding)

    @property
    def errors(self) -> int:
        return sum(count for kind, count in self.totals.items() if FINDING_KINDS[kind].is_error)

    @property
    def warnings(self) -> int:
        return sum(self.totals.values()) - self.errors

    @property
    def kinds(self) -> list[str]:
        """Kinds of findings that occur, errors first."""
        return sorted(self.totals, key=lambda kind: (not FINDING_KINDS[kind].is_error, list(FINDING_KINDS).index(kind)))


def check_dataset(config: ValidateDatasetConfig) -> tuple[DatasetCheck, dict[str, list[Pair]]]:
    """List and read every pair of the splits once, and collect all problems instead of stopping at the first.

    Returns: the check, and the pairs of each split.
    Raises: UserError if storage or a table cannot be used at all.
    """
    started = time.monotonic()
    data = config.data
    pairs: dict[str, list[Pair]] = {}
    check = DatasetCheck(data, {})
    for split in dict.fromkeys(config.splits or (data.train_split, data.val_split)):
        listing = list_split(data, split)
        pairs[split] = listing.pairs
        zeros_K = np.zeros(len(data.classes), np.int64)
        check.splits[split] = SplitCheck(len(listing.pairs), fingerprint(listing.pairs), zeros_K, zeros_K.copy())
        for finding in listing.findings:
            check.add(finding)
    log(f"{data.root}: " + ", ".join(f"{len(listed):,} pairs in {split}" for split, listed in pairs.items()))
    hashes = _read_all(check, pairs, config.verbose) if any(pairs.values()) else {}
    for finding in _duplicates(hashes, pairs):
        check.add(finding)
    finish(check)
    check.seconds = time.monotonic() - started
    return check, pairs


def _read_all(check: DatasetCheck, pairs: dict[str, list[Pair]], verbose: bool) -> dict[str, NDArray[np.uint8]]:
    """Read all pairs and add the results to `check`. Return the image hashes of each split, N x HASH_BYTES."""
    connection.connect(verbose)
    check_shared(next(listed[0] for listed in pairs.values() if listed).files)
    hashes = {split: np.zeros((len(listed), HASH_BYTES), np.uint8) for split, listed in pairs.items()}
    total, done = sum(map(len, pairs.values())), 0
    start = last = time.monotonic()
    read_blocks = map_tables(read_block, list(_blocks(pairs)), num_cpus=1, verbose=verbose, data=check.data)
    try:
        for table in read_blocks.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in pa.table(table).to_pylist():
                read_hashes = np.frombuffer(row["hashes"], np.uint8).reshape(-1, HASH_BYTES)
                hashes[row["split"]][row["start"] : row["start"] + len(read_hashes)] = read_hashes
                _add(check, row)
                done += len(read_hashes)
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN_LINES and done < total:
                left = (now - start) / done * (total - done)
                log(f"  {done:,} of {total:,} images · {duration(left)} left · {check.errors:,} errors")
                last = now
    except Exception as error:
        raise_user_error(error)
    return hashes


def _blocks(pairs: dict[str, list[Pair]]) -> Iterator[pa.Table]:
    for split, listed in pairs.items():
        start = 0
        for end in range(1, len(listed) + 1):
            full = end - start >= PAIRS_PER_BLOCK and not _in_one_row_group(listed[end - 1 : end + 1])
            if full or end - start == MAX_PER_BLOCK or end == len(listed):
                block = pickle.dumps(listed[start:end])
                yield pa.Table.from_pylist([{"split": split, "start": start, "pairs": block}], BLOCK)
                start = end


def _in_one_row_group(pairs: list[Pair]) -> bool:
    """Return True if all cells of these pairs are in the same row group."""
    cells = [source for pair in pairs for source in (pair.image, pair.label) if isinstance(source, Cell)]
    return len(cells) >= len(pairs) and len({(cell.file, cell.row_group) for cell in cells}) == 1


def read_block(blocks: pa.Table, data: DataConfig) -> Iterator[pa.Table]:
    """Read the pairs of a BLOCK and reduce them to one READ row (a Ray task)."""
    yield pa.Table.from_pylist([_read_pairs(row, data) for row in blocks.to_pylist()], READ)


def _read_pairs(block: dict[str, Any], data: DataConfig) -> dict[str, Any]:
    pairs = pickle.loads(block["pairs"])
    seen = []
    with ThreadPoolExecutor(storage.FETCHES) as pool:
        for few in (pairs[start : start + PAIRS_PER_BLOCK] for start in range(0, len(pairs), PAIRS_PER_BLOCK)):
            contents = list(pool.map(_content, [source for pair in few for source in (pair.image, pair.label)]))
            seen += [_read_pair(*work, data) for work in zip(few, contents[::2], contents[1::2], strict=True)]
    widths, heights = ([one.size[side] for one in seen if one.size] for side in (0, 1))
    return {
        "split": block["split"],
        "start": block["start"],
        "hashes": b"".join(one.image_hash for one in seen),
        "images": sum(not any(finding.is_error for finding in one.findings) for one in seen),
        "pixels": np.sum([one.pixels_K for one in seen], axis=0).tolist(),
        "images_with": np.sum([one.pixels_K > 0 for one in seen], axis=0).tolist(),
        "ignored": sum(one.ignored for one in seen),
        "sides": [min(widths), max(widths), min(heights), max(heights)] if widths else [],
        "ids": merged([one.ids for one in seen]).rows(),
        "colors": merged([one.colors for one in seen]).rows(),
        "forms": [
            {"form": form, "masks": len(uris), "example": uris[0]}
            for form in (ONE_BIT, BLACK_AND_WHITE)
            if (uris := [pair.label_uri for pair, one in zip(pairs, seen, strict=True) if one.form == form])
        ],
        "findings": [asdict(finding) for one in seen for finding in one.findings],
    }


def _content(source: str | Cell) -> bytes | UserError:
    """Return a file's bytes, or the error of reading it.

    Raises: UserError if storage cannot be reached, because then the file itself may be fine.
    """
    try:
        return read(source)
    except UserError as error:
        if isinstance(error.__cause__, storage.UNREACHABLE):
            raise
        return error


@dataclass
class _Seen:
    """Statistics and findings of one pair."""

    pixels_K: NDArray[np.int64]
    image_hash: bytes = UNREAD
    size: tuple[int, int] | None = None  # width, height
    ignored: int = 0
    ids: Values = field(default_factory=Values)
    colors: Values = field(default_factory=Values)  # if one of them is unknown
    form: str | None = None
    findings: list[DatasetFinding] = field(default_factory=list)

    @contextmanager
    def noted(self, what: str, uri: str) -> Iterator[None]:
        """Turn an error in the block into a finding about the image or annotation `uri`."""
        try:
            yield
        except PairError as error:
            self.findings.append(error.finding)
            if isinstance(error.__cause__, UnknownColorError):
                self.colors.add(error.__cause__.colors)
        except UserError as error:
            kind = "missing" if isinstance(error.__cause__, FileNotFoundError) else "unreadable"
            self.findings.append(DatasetFinding(f"{kind} {what}", uri, str(error)))


def _read_pair(pair: Pair, image: bytes | UserError, label: bytes | UserError, data: DataConfig) -> _Seen:
    seen = _Seen(np.zeros(len(data.classes), np.int64))
    raster = label_HW = None
    with seen.noted("image", pair.image_uri):
        raster = open_image(pair, _given(image), data)
        seen.size = raster.pixels_HW3.shape[1], raster.pixels_HW3.shape[0]
        seen.image_hash = _pixel_hash(raster.filled(WHITE))
    with seen.noted("annotation", pair.label_uri):
        label_HW = open_label(pair, _given(label), data)
        raw_ids, counts = label_counts(label_HW)
        seen.ids.add(dict(zip(raw_ids.tolist(), counts.tolist(), strict=True)))
        seen.form = form_of(_given(label), set(raw_ids.tolist()))
        class_ids = class_ids_of(raw_ids, pair, data)
        known = (class_ids != OUTSIDE) & (class_ids != data.ignore_index)
        nodata_counts = _nodata_counts(raster, label_HW, raw_ids)
        np.add.at(seen.pixels_K, class_ids[known], (counts - nodata_counts)[known])
        seen.ignored = int(counts[class_ids == data.ignore_index].sum() + nodata_counts[known].sum())
        check_ids(pair, raw_ids, class_ids, data)
        if not seen.pixels_K.any():
            seen.findings.append(DatasetFinding("nothing labelled", pair.label_uri, "every pixel is ignored"))
    if raster is not None and label_HW is not None:
        with seen.noted("annotation", pair.label_uri):
            check_sizes(pair, raster.pixels_HW3, label_HW, turns_of(_given(image), _given(label)))
    return seen


def _nodata_counts(
    raster: Raster | None, label_HW: NDArray[np.int32], raw_ids: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Return for each label id the number of its pixels that have no data in an image of the same size."""
    if raster is None or raster.valid_HW is None or raster.valid_HW.shape != label_HW.shape:
        return np.zeros(len(raw_ids), np.int64)
    return np.bincount(np.searchsorted(raw_ids, label_HW[~raster.valid_HW]), minlength=len(raw_ids))


def _given(content: bytes | UserError) -> bytes:
    if isinstance(content, UserError):
        raise content
    return content


def _pixel_hash(image_HW3: NDArray[np.uint8]) -> bytes:
    """Return a hash of the decoded pixels, which finds copies in another lossless format or with other metadata too."""
    hashed = hashlib.blake2b(repr(image_HW3.shape).encode(), digest_size=HASH_BYTES)
    hashed.update(np.ascontiguousarray(image_HW3).data)
    return hashed.digest()


def _add(check: DatasetCheck, row: dict[str, Any]) -> None:
    split = check.splits[row["split"]]
    split.images += row["images"]
    split.pixels_K += np.array(row["pixels"], np.int64)
    split.images_with_K += np.array(row["images_with"], np.int64)
    split.ignored += row["ignored"]
    check.ids.add_rows(row["ids"])
    check.colors.add_rows(row["colors"])
    for form in row["forms"]:
        before = check.forms.get(form["form"], BinaryMasks(0, form["example"]))
        check.forms[form["form"]] = replace(before, count=before.count + form["masks"])
    if row["sides"]:
        narrow, wide, low, high = row["sides"]
        ours = split.sides or (narrow, wide, low, high)
        split.sides = min(narrow, ours[0]), max(wide, ours[1]), min(low, ours[2]), max(high, ours[3])
    for finding in row["findings"]:
        check.add(DatasetFinding(**finding))


def finish(check: DatasetCheck) -> None:
    """Add the findings about the pixels of all annotations, and the next steps that follow from all their values."""
    for finding in [*_of_binary_masks(check), *_of_splits(check)]:
        check.add(finding)
    check.remedies = _remedies(check)


def _of_splits(check: DatasetCheck) -> Iterator[DatasetFinding]:
    """Yield the findings about the pixels of whole splits."""
    for split, found in check.splits.items():
        for entry, num_pixels in zip(check.data.classes, found.pixels_K, strict=True):
            if found.images and not num_pixels:
                yield DatasetFinding("class that never occurs", f"split {split}", entry.name)
        if found.ignored_share > MOSTLY:
            yield DatasetFinding("mostly ignored", f"split {split}", f"{found.ignored_share:.1%} of the pixels")


def _of_binary_masks(check: DatasetCheck) -> Iterator[DatasetFinding]:
    """Yield the findings about masks of two values whose foreground is not what the classes say."""
    data = check.data
    if ignored_foreground(check.ids.pixels, data):
        yield DatasetFinding(
            "ignored foreground",
            f"splits {', '.join(check.splits)}",
            f"all label ids are 0 or {data.ignore_index}, and {data.ignore_index} is ignore_index",
        )
    if problem := two_foregrounds(check.forms, data):
        yield DatasetFinding("masks of 1 and of 8 bits", check.forms[BLACK_AND_WHITE].example, problem)


def _remedies(check: DatasetCheck) -> dict[str, str]:
    """Return the next step for kinds of findings that depend on all label ids and colors of the dataset."""
    data, ids = check.data, check.ids.pixels
    remedies = {
        "ids outside the classes": remedy_for_ids(ids, data),
        "unknown colors": remedy_for_colors(check.colors, data),
        "masks of 1 and of 8 bits": remedy_for_two_foregrounds(data),
    }
    if absent := remedy_for_absent(ids, data):
        remedies["class that never occurs"] = absent
    elif check.totals["ids outside the classes"] or check.totals["unknown colors"]:
        remedies["class that never occurs"] = "fix the errors first, since their pixels may be of the class"
    if label_map := ignored_foreground(ids, data):
        mapped = f"if {data.ignore_index} is {class_name(data, 1)}, set data.label_map: {label_map}"
        remedies |= dict.fromkeys(
            ("ignored foreground", "mostly ignored", "nothing labelled", "class that never occurs"), mapped
        )
    return {kind: remedy for kind, remedy in remedies.items() if check.totals[kind]}


def _duplicates(hashes: dict[str, NDArray[np.uint8]], pairs: dict[str, list[Pair]]) -> Iterator[DatasetFinding]:
    """Yield a finding for each group of images with the same pixels, in the order of the listing."""
    if not hashes:
        return
    all_N = np.concatenate(list(hashes.values())).view(f"V{HASH_BYTES}").ravel()
    _, group_N, count_N = np.unique(all_N, return_inverse=True, return_counts=True)
    splits, starts = list(hashes), np.cumsum([0, *map(len, hashes.values())])
    groups: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for place in np.flatnonzero((count_N[group_N] > 1) & (all_N != np.void(UNREAD))):
        number = int(np.searchsorted(starts, place, side="right")) - 1
        split = splits[number]
        groups[group_N[place]].append((split, pairs[split][place - starts[number]].image_uri))
    for (split, first), *copies in groups.values():
        between = any(other != split for other, _ in copies)
        more = " ..." if len(copies) > SHOWN else ""
        listed = ", ".join(f"{uri} ({other})" for other, uri in copies[:SHOWN]) + more
        kind = "duplicate between splits" if between else "duplicate within a split"
        yield DatasetFinding(kind, f"{first} ({split})", f"has the same pixels as {listed}")
