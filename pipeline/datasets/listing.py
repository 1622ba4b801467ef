"""Listing of a split's pairs, independent of the dataset's layout."""

from collections.abc import Callable
from dataclasses import replace

from pipeline.config.data import DataConfig
from pipeline.config.dataset_formats import Color, classes_of, has_own_classes, mismatch
from pipeline.datasets import layouts
from pipeline.datasets.pairs import FINDING_KINDS, SHOWN, DatasetFinding, Listing, Pair
from pipeline.datasets.parquet import list_tables
from pipeline.errors import UserError

LAYOUTS: dict[str, Callable[[DataConfig, str], Listing]] = {
    "folder": layouts.list_folder,
    "ade20k": layouts.list_ade20k,
    "cityscapes": layouts.list_cityscapes,
    "voc": layouts.list_voc,
    "coco_stuff": layouts.list_coco_stuff,
    "camvid": layouts.list_camvid,
    "list": layouts.list_lines,
    "parquet": list_tables,
}


def list_split(data: DataConfig, split: str) -> Listing:
    """Return the pairs of a split and all problems found while listing it, without reading any image.

    Raises: UserError if storage fails, if a file that the whole listing depends on is missing, or if data.classes are
        neither classes of the format nor can have its layout.
    """
    check_classes(data)
    listing = LAYOUTS[data.format](data, split)
    if has_own_classes(data.format, [entry.name for entry in data.classes]):
        listing.pairs = [replace(pair, coding=None) for pair in listing.pairs]
    if not listing.pairs and not listing.findings:
        listing.add("no images", data.root, f"split {split!r} has no images")
    return listing


def check_classes(data: DataConfig) -> None:
    """Raise UserError, with both tables, if data.classes do not fit the annotations of the format."""
    ours = [(entry.name, entry.color) for entry in data.classes]
    if problem := mismatch(data.format, ours):
        theirs = [(entry.name, entry.color) for entry in classes_of(data.format)]
        raise UserError(
            f"data.classes do not fit format {data.format}: {problem}.\n  data.classes: {_table(ours)}\n  "
            f"{data.format}: {_table(theirs)}\nUse the format's names and colors, or remove data.classes; if the "
            "annotations hold the positions or colors of data.classes, use format folder or list"
        )


def _table(classes: list[tuple[str, Color]]) -> str:
    return ", ".join(f"{name} {color}" for name, color in classes)


def list_pairs(data: DataConfig, split: str) -> list[Pair]:
    """Return the pairs of a split in a deterministic order.

    Raises: UserError if the listing has errors, such as no images, or images with no annotation or with two. The
        message names the first few.
    """
    listing = list_split(data, split)
    errors = [finding for finding in listing.findings if finding.is_error]
    if errors:
        kinds = dict.fromkeys(finding.kind for finding in errors)
        described = "".join(f"\n  {_describe(kind, errors)}" for kind in kinds)
        raise UserError(f"data.root {data.root}, split {split!r}:{described}")
    return listing.pairs


def _describe(kind: str, errors: list[DatasetFinding]) -> str:
    """Format the findings of one kind: their number, the first few, and the remedy."""
    found = [f"{finding.where}: {finding.message}" for finding in errors if finding.kind == kind]
    count = f" ({len(found)})" if len(found) > 1 else ""
    more = " ..." if len(found) > SHOWN else ""
    return f"{kind}{count}: {'; '.join(found[:SHOWN])}{more}; {FINDING_KINDS[kind].remedy}"


def check_no_shared_images(data: DataConfig, train_pairs: list[Pair], val_pairs: list[Pair]) -> None:
    """Raise UserError if the training and validation splits share an image.

    Compares URIs without reading images, so it does not detect copies under another name.
    """
    training = {pair.image for pair in train_pairs}
    shared = [pair.image_uri for pair in val_pairs if pair.image in training]
    if shared:
        raise UserError(
            f"data.root {data.root}: {len(shared)} of the {len(val_pairs)} images of split {data.val_split!r} are also "
            f"in split {data.train_split!r}: {', '.join(shared[:SHOWN])}{' ...' if len(shared) > SHOWN else ''}; "
            f"{FINDING_KINDS['duplicate between splits'].remedy}"
        )
