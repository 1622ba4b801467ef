"""Checks within one part: of each row of masks, each row of class_stats, and their agreement. Needs only Arrow tables.

Suffixes of arrays: M rows of masks, S rows of class_stats, B boxes of low confidence.
"""

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.output import errors, parts
from pipeline.output.schema import SCHEMA_VERSION, image_id
from pipeline.verify.findings import SHOWN, OutputFinding

Bools = NDArray[np.bool_]

REGION_COLUMNS = ["class_id", "pixel_count", "x_min", "y_min", "x_max", "y_max", "centroid_x", "centroid_y"]
ROUNDING = 1e-3  # tolerance for float32 probabilities and entropies
PIXEL_ROUNDING = 0.01  # tolerance for float32 positions, pixels
# Tolerance for float64 fractions, pixels: a missing row of one pixel changes the largest of 65,535 classes by more.
FRACTION_ROUNDING = 1e-5


class Reference(NamedTuple):
    """Content of classes.parquet; None for what it does not have."""

    model_id: str | None
    class_names: list[str] | None


class Rows:
    """Table of a part, with checks of its rows."""

    def __init__(self, file: str, table: pa.Table) -> None:
        self.file, self.table = file, table

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return a column's values as float64; null becomes NaN."""
        return self.table[column].cast(pa.float64()).to_numpy()

    def within(self, column: str, least: float, most: float) -> Bools:
        values = self.numbers(column)
        return (least <= values) & (values <= most)  # False for NaN

    def valid(self, column: str) -> Bools:
        return self.table[column].is_valid().to_numpy()

    def among(self, column: str, values: Iterable[str | None]) -> Bools:
        return pc.is_in(self.table[column], pa.array(values, pa.string()), skip_nulls=True).to_numpy()

    def expect(self, holds: Bools, kind: str, message: str, **more: Any) -> Iterator[OutputFinding]:
        """Yield a finding for each of the first SHOWN rows that are wrong; the last of these counts the rest.

        Args:
            holds: True for each row that is right.
            message: format string of the row's columns and of `more`, whose arrays and lists have one value per row.
        """
        wrong = np.flatnonzero(~holds)
        for place, n in enumerate(wrong[:SHOWN].tolist(), 1):
            row = self.table.slice(n, 1).to_pylist()[0]
            row |= {name: value[n] if isinstance(value, np.ndarray | list) else value for name, value in more.items()}
            rest = len(wrong) - SHOWN if place == SHOWN else 0
            yield OutputFinding(kind, self.file, message.format(**row), row["image_uri"], rest)


def schema_problem(found: pa.Schema, wanted: pa.Schema) -> str | None:
    """Return how a file's schema differs from the wanted one, apart from descriptions; None if it does not."""
    version = (found.metadata or {}).get(b"sceneparse.schema_version", b"(none)").decode()
    if version != SCHEMA_VERSION:
        return f"has table schema version {version}, but this program uses {SCHEMA_VERSION}"
    if found.equals(wanted):
        return None
    missing, extra = set(wanted.names) - set(found.names), set(found.names) - set(wanted.names)
    changed = {name for name in wanted.names if name in found.names and found.field(name) != wanted.field(name)}
    told = [("missing columns:", missing), ("unexpected columns:", extra), ("columns with another type:", changed)]
    return (
        "; ".join(f"{what} {', '.join(sorted(names))}" for what, names in told if names)
        or "the columns are in another order"
    )


def check_masks(file: str, masks: pa.Table, reference: Reference) -> Iterator[OutputFinding]:
    """Yield the findings in the masks of a part that has rows; of the column `mask` only `path` is checked."""
    rows = Rows(file, masks)
    yield from _check_identity(rows, reference)
    ok, error = rows.among("status", ["ok"]), rows.among("status", ["error"])
    yield from rows.expect(ok | error, "unknown status", "status is {status!r}, which is neither 'ok' nor 'error'")

    no_error = ~rows.valid("error_stage") & ~rows.valid("error_type") & ~rows.valid("error_message")
    message = "status is 'ok', but error_stage is {error_stage} and error_type is {error_type}"
    yield from rows.expect(~ok | no_error, "error in an ok row", message)
    names = [found.hex() + ".png" for found in masks["image_id"].to_pylist()]
    paths = pc.struct_field(masks["mask"], "path").to_pylist()
    named = np.array([path == name for path, name in zip(paths, names, strict=True)])
    message = "status is 'ok', but mask.path is {path!r}, not {name}"
    yield from rows.expect(~ok | named, "no mask", message, path=paths, name=names)
    sized = rows.within("width", 1, np.inf) & rows.within("height", 1, np.inf)
    yield from rows.expect(~ok | sized, "no size", "the size is {width} x {height} pixels")
    most_entropy = np.log(len(reference.class_names)) if reference.class_names else np.inf
    for column, most in (("mean_confidence", 1), ("mean_entropy", most_entropy), ("low_confidence_fraction", 1)):
        possible = rows.within(column, -ROUNDING, most + ROUNDING)
        yield from rows.expect(~ok | possible, "wrong confidence", f"{column} is {{{column}}}")

    known = rows.among("error_stage", errors.STAGES) & rows.among("error_type", errors.ERROR_TYPES)
    known &= rows.valid("error_message") & ~rows.among("error_message", [""])
    message = "error_stage is {error_stage!r}, error_type is {error_type!r}, error_message is {error_message!r}"
    yield from rows.expect(~error | known, "unknown error", message)
    labels = ("mask", "class_ids", "mean_confidence", "mean_entropy", "low_confidence_fraction", "low_confidence_boxes")
    for column in labels:
        unset = ~rows.valid(column)
        yield from rows.expect(~error | unset, "labels in an error row", f"status is 'error', but {column} is not null")


def _has_right_boxes(masks: Rows, num_with_data_M: NDArray[np.int64]) -> Bools:
    """Return, by row, True if its boxes of low confidence lie in the image and hold no more such pixels than it has."""
    lists = masks.table["low_confidence_boxes"].combine_chunks()
    row_B = pc.list_parent_indices(lists).to_numpy()
    boxes = Rows(masks.file, pa.Table.from_struct_array(pc.list_flatten(lists)))
    x_min, y_min, x_max, y_max = (boxes.numbers(name) for name in ("x_min", "y_min", "x_max", "y_max"))
    count = boxes.numbers("pixel_count")
    width, height = masks.numbers("width"), masks.numbers("height")
    inside = (x_min >= 0) & (x_min < x_max) & (x_max <= width[row_B])
    inside &= (y_min >= 0) & (y_min < y_max) & (y_max <= height[row_B])
    inside &= (count >= 1) & (count <= (x_max - x_min) * (y_max - y_min))
    right = masks.valid("low_confidence_boxes")
    right[row_B[~inside]] = False
    most = (masks.numbers("low_confidence_fraction") + ROUNDING) * num_with_data_M
    return right & ~(np.bincount(row_B, count, len(right)) > most)


def _check_identity(rows: Rows, reference: Reference) -> Iterator[OutputFinding]:
    """Check that each row has the right image id, run id and model id."""
    masks = rows.table
    ids, uris = masks["image_id"].to_pylist(), masks["image_uri"].to_pylist()
    hashed = [image_id(uri) for uri in uris]
    right = np.array([found == wanted for found, wanted in zip(ids, hashed, strict=True)])
    message = "image_id is {found}, but the hash of image_uri is {wanted}"
    texts = {"found": [found.hex() for found in ids], "wanted": [wanted.hex() for wanted in hashed]}
    yield from rows.expect(right, "wrong image id", message, **texts)
    first = dict(zip(reversed(ids), reversed(range(len(ids))), strict=True))
    is_first = np.array([first[found] == n for n, found in enumerate(ids)])
    yield from rows.expect(is_first, "image twice in a part", "the image has another row in the same part")
    run = masks["run_id"][0].as_py()
    message = "belongs to run {run_id}, but the first row of the part to {run}"
    yield from rows.expect(rows.among("run_id", [run]), "several runs in a part", message, run=run)
    if reference.model_id is not None:
        same = rows.among("model_id", [reference.model_id])
        message = "belongs to model {model_id}, but classes.parquet to {model}"
        yield from rows.expect(same, "another model", message, model=reference.model_id)


def check_name(file: str, masks: pa.Table) -> Iterator[OutputFinding]:
    """Yield a finding if a part's name does not match its rows, in which nothing else is wrong."""
    run, there = masks["run_id"][0].as_py(), posixpath.basename(file)
    name = parts.part_name(run, masks)
    if there not in (name, parts.part_name(run, masks, kept=True)) and not parts.EARLIER_PART.fullmatch(there):
        yield OutputFinding("wrong part name", file, f"for its run, images and labels the expected name is {name}")


class Statistics:
    """The class_stats of a part, each row joined with the image that it belongs to."""

    def __init__(self, file: str, class_stats: pa.Table, masks_file: str, masks: pa.Table) -> None:
        place = pc.index_in(class_stats["image_id"], value_set=masks["image_id"].combine_chunks())
        image = masks.select(["image_uri", "status", "width", "height"]).take(place)
        self._rows = Rows(file, class_stats)
        for name in image.column_names:
            self._rows.table = self._rows.table.append_column(f"masks_{name}", image[name])
        self._masks = Rows(masks_file, masks)
        self._ok_M = self._masks.among("status", ["ok"])
        same_uri = pc.fill_null(pc.equal(class_stats["image_uri"], image["image_uri"]), False).to_numpy()
        self._of_image_S = self._rows.among("masks_status", ["ok"]) & same_uri
        self._place_S = pc.fill_null(place, -1).to_numpy().astype(np.int64)
        order = np.lexsort((self._rows.numbers("class_id"), self._place_S))
        self._order = order[self._of_image_S[order]]  # rows that belong to an image, sorted by image and class
        self._regions = class_stats.select(REGION_COLUMNS).take(pa.array(self._order)).combine_chunks()
        self._starts = np.searchsorted(self._place_S[self._order], np.arange(len(masks) + 1))
        counts = self._rows.numbers("pixel_count")[self._order]
        self._num_with_data_M = np.bincount(self._place_S[self._order], counts, len(masks)).astype(np.int64)

    def of_image(self, n: int) -> list[dict[str, Any]]:
        """Return the REGION_COLUMNS of the classes of row `n` of masks, sorted by class id."""
        return self._regions.slice(self._starts[n], self._starts[n + 1] - self._starts[n]).to_pylist()

    def check(self, reference: Reference) -> Iterator[OutputFinding]:
        """Yield the findings in the rows, and for images to which their rows do not add up."""
        rows, of_image = self._rows, self._of_image_S
        yield from rows.expect(
            of_image, "statistics without image", "masks has no ok row of this image in the same part"
        )
        yield from self._check_stamps(reference)
        count, width, height = (rows.numbers(name) for name in ("pixel_count", "masks_width", "masks_height"))
        of_image = of_image & (width >= 1) & (height >= 1)
        total = self._num_with_data_M[self._place_S]
        right = np.abs(rows.numbers("pixel_fraction") * total - count) < FRACTION_ROUNDING
        message = "class {class_id}: pixel_fraction is {pixel_fraction}, but it has {pixel_count} of {total} pixels"
        yield from rows.expect(~of_image | right, "wrong pixel fraction", message, total=total)
        possible = rows.within("mean_confidence", -ROUNDING, 1 + ROUNDING)
        message = "class {class_id}: mean_confidence is {mean_confidence}"
        yield from rows.expect(~of_image | possible, "wrong confidence", message)
        x_min, y_min, x_max, y_max = (rows.numbers(name) for name in ("x_min", "y_min", "x_max", "y_max"))
        inside = (x_min >= 0) & (x_min < x_max) & (x_max <= width) & (y_min >= 0) & (y_min < y_max) & (y_max <= height)
        inside &= (x_max - x_min) * (y_max - y_min) >= count
        message = "class {class_id}: {pixel_count} pixels in columns {x_min} to {x_max}, rows {y_min} to {y_max}"
        message += " in an image of {masks_width} x {masks_height}"
        yield from rows.expect(~of_image | inside, "wrong box", message)
        x, y = rows.numbers("centroid_x"), rows.numbers("centroid_y")
        central = (x >= x_min - PIXEL_ROUNDING) & (x <= x_max - 1 + PIXEL_ROUNDING)
        central &= (y >= y_min - PIXEL_ROUNDING) & (y <= y_max - 1 + PIXEL_ROUNDING)
        message = "class {class_id}: centroid ({centroid_x}, {centroid_y}) is outside its box, which starts at "
        message += "({x_min}, {y_min}) and ends before ({x_max}, {y_max})"
        yield from rows.expect(~of_image | ~inside | central, "wrong centroid", message)
        yield from self._check_sums()

    def _check_stamps(self, reference: Reference) -> Iterator[OutputFinding]:
        rows = self._rows
        for column, kind in (("model_id", "another model"), ("run_id", "several runs in a part")):
            of_masks = self._masks.table[column][0].as_py()
            message = f"{column} is {{{column}}}, but {{of_masks}} in masks"
            yield from rows.expect(rows.among(column, [of_masks]), kind, message, of_masks=of_masks)
        names = reference.class_names
        if names is None:
            return
        known = rows.within("class_id", 0, len(names) - 1)
        message = "class {class_id} is not one of the {number} classes in classes.parquet"
        yield from rows.expect(known, "unknown class", message, number=len(names))
        wanted = [names[k] if k < len(names) and k >= 0 else None for k in rows.table["class_id"].to_pylist()]
        same = np.array([a == b for a, b in zip(wanted, rows.table["class_name"].to_pylist(), strict=True)], bool)
        message = "class {class_id} is named {class_name!r}, but {wanted!r} in classes.parquet"
        yield from rows.expect(~known | same, "wrong class name", message, wanted=wanted)

    def _check_sums(self) -> Iterator[OutputFinding]:
        """Compare the classes and pixels of each image in masks and in class_stats."""
        masks, order = self._masks, self._order
        place = self._place_S[order]
        here = _pairs(place, self._rows.table["class_id"].to_numpy()[order])
        lists = masks.table["class_ids"].combine_chunks()
        there = _pairs(pc.list_parent_indices(lists).to_numpy(), pc.fill_null(pc.list_flatten(lists), -1).to_numpy())
        there = there[self._ok_M[there >> 32]]
        repeated = [pairs[1:][np.diff(pairs) <= 0] for pairs in (here, there)]
        right = np.ones(len(masks.table), bool)
        right[np.concatenate([np.setxor1d(here, there), *repeated]) >> 32] = False
        right &= ~self._ok_M | masks.valid("class_ids")
        told = {n: [row["class_id"] for row in self.of_image(n)] for n in np.flatnonzero(~right)[:SHOWN].tolist()}
        message = "class_ids is {class_ids}, but class_stats has {told}"
        listed = [told.get(n) for n in range(len(right))]
        yield from masks.expect(right, "wrong class_ids", message, told=listed)

        total = self._num_with_data_M
        width, height = masks.numbers("width"), masks.numbers("height")
        sized = self._ok_M & (width >= 1) & (height >= 1)
        message = "the image has {width} x {height} pixels, but class_stats counts {total}"
        right = (total >= 1) & (total <= width * height)
        yield from masks.expect(~sized | right, "wrong pixel count", message, total=total)
        message = "low_confidence_boxes is {low_confidence_boxes}, with a low_confidence_fraction of "
        message += "{low_confidence_fraction} in {width} x {height} pixels, {total} of which class_stats counts"
        yield from masks.expect(~sized | _has_right_boxes(masks, total), "wrong box", message, total=total)


def _pairs(rows: NDArray[Any], class_ids: NDArray[Any]) -> NDArray[np.int64]:
    """Return one number for each pair of row and class; the numbers sort like the pairs."""
    return (rows.astype(np.int64) << 32) + (class_ids.astype(np.int64) + (1 << 31))
