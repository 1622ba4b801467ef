"""Reports of a dataset check: terminal summary, dataset.json and dataset.html."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.datasets import Pair, load_pair
from pipeline.datasets.pairs import FINDING_KINDS
from pipeline.datasets.validation import DatasetCheck, SplitCheck
from pipeline.errors import UserError
from pipeline.html.charts import COLORS
from pipeline.html.page import data_uri, render
from pipeline.images.codec import overlay, shrink

TERMINAL_CLASSES = 40  # if there are more, only the rarest are printed
TERMINAL_EXAMPLES = 5
PICTURES = 4  # of each split
PICTURE_SIDE = 480  # pixels


def summary(check: DatasetCheck) -> Iterator[str]:
    """Yield the lines of the terminal summary."""
    data = check.data
    yield f"Dataset     {data.root} ({data.format}, {len(data.classes)} classes, ignore_index {data.ignore_index})"
    for split, found in check.splits.items():
        about = f"{_images(found)} · {_size(found)} · {found.ignored_share:.1%} of the pixels ignored"
        yield f"Split       {split}: {about} · fingerprint {found.fingerprint}"
    splits = list(check.splits)
    shares = {split: _shares(check.splits[split]) for split in splits}
    rarest = sorted(range(len(data.classes)), key=lambda k: shares[splits[0]][k])
    shown = sorted(rarest[:TERMINAL_CLASSES])
    yield "Classes     fraction of the labeled pixels, and number of images with the class"
    if len(shown) < len(data.classes):
        yield f"            only the {len(shown)} rarest of {len(data.classes)} classes; dataset.json lists all of them"
    yield f"  {'id':>3}  {'name':<20}" + "".join(f"{split[:22]:>24}" for split in splits)
    for k in shown:
        columns = [f"{shares[split][k]:>12.4%}{check.splits[split].images_with_K[k]:>12,}" for split in splits]
        yield f"  {k:>3}  {data.classes[k].name[:20]:<20}" + "".join(columns)
    for kind in check.kinds:
        word = "error" if FINDING_KINDS[kind].is_error else "warning"
        yield f"{word:<12}{kind}: {check.totals[kind]:,}; {check.remedy(kind)}"
        by_message: dict[str, list[str]] = defaultdict(list)
        for finding in check.examples[kind]:
            by_message[finding.message].append(finding.where)
        examples = list(by_message.items())[:TERMINAL_EXAMPLES]
        for message, places in examples:
            more = f" (and {len(places) - 1:,} more like it)" if len(places) > 1 else ""
            yield f"  {places[0]}: {message}{more}"
        rest = check.totals[kind] - sum(len(places) for _, places in examples)
        if rest:
            yield f"  ... and {rest:,} more"
    yield f"Result      {check.errors:,} error(s), {check.warnings:,} warning(s)"


def write_report(check: DatasetCheck, pairs: dict[str, list[Pair]], output: str) -> None:
    """Write OUTPUT/dataset.json and OUTPUT/dataset.html. Raises UserError."""
    about = as_json(check)
    storage.write_bytes(storage.join(output, "dataset.json"), json.dumps(about, indent=1).encode())
    page = render("dataset.html", check=check, about=about, bars=_bars(check), pictures=_pictures(check, pairs))
    storage.write_bytes(storage.join(output, "dataset.html"), page)


def as_json(check: DatasetCheck) -> dict[str, Any]:
    """Return the whole check as JSON values, with up to validation.EXAMPLES examples per kind of finding."""
    data = check.data
    return {
        "root": data.root,
        "format": data.format,
        "ignore_index": data.ignore_index,
        "errors": check.errors,
        "warnings": check.warnings,
        "seconds": round(check.seconds, 1),
        "splits": {
            split: {
                "pairs": found.listed,
                "images": found.images,
                "fingerprint": found.fingerprint,
                "labelled_pixels": int(found.pixels_K.sum()),
                "ignored_pixels": found.ignored,
                "width": list(found.sides[:2]) if found.sides else None,
                "height": list(found.sides[2:]) if found.sides else None,
                "size": _size(found),
                "classes": [
                    {
                        "class_id": k,
                        "class_name": entry.name,
                        "pixel_count": int(found.pixels_K[k]),
                        "pixel_fraction": float(_shares(found)[k]),
                        "images": int(found.images_with_K[k]),
                    }
                    for k, entry in enumerate(data.classes)
                ],
            }
            for split, found in check.splits.items()
        },
        "findings": [
            {
                "kind": kind,
                "severity": "error" if FINDING_KINDS[kind].is_error else "warning",
                "total": check.totals[kind],
                "remedy": check.remedy(kind),
                "examples": [asdict(finding) for finding in check.examples[kind]],
            }
            for kind in check.kinds
        ],
    }


def _shares(found: SplitCheck) -> NDArray[np.float64]:
    """Return the fraction of the labeled pixels that each class has, K."""
    return found.pixels_K / max(1, found.pixels_K.sum())


def _images(found: SplitCheck) -> str:
    wrong = found.listed - found.images
    return f"{found.images:,} images" + (f" and {wrong:,} pairs with errors" if wrong else "")


def _size(found: SplitCheck) -> str:
    if found.sides is None:
        return "no image could be read"
    narrow, wide, low, high = found.sides
    if (narrow, low) == (wide, high):
        return f"{wide} x {high} pixels"
    return f"{narrow} to {wide} x {low} to {high} pixels"


def _bars(check: DatasetCheck) -> list[dict[str, Any]]:
    """Return the id of each class and its bars, one per split: color, and length as a percentage of the longest bar.

    Classes are sorted by their frequency in the first split, the most frequent first. Empty if no pixel is labeled.
    """
    shares_SK = np.stack([_shares(found) for found in check.splits.values()])
    if not shares_SK.any():
        return []
    lengths_SK = 100 * shares_SK / shares_SK.max()
    return [
        {"class_id": k, "bars": list(zip(cycle(COLORS), lengths_SK[:, k].tolist(), strict=False))}
        for k in np.argsort(-shares_SK[0], kind="stable").tolist()
    ]


def _pictures(check: DatasetCheck, pairs: dict[str, list[Pair]]) -> list[dict[str, str]]:
    """Return some images of each split, evenly spread, each with its annotation overlay.

    Skips images that cannot be read.
    """
    palette = np.array([entry.color for entry in check.data.classes], np.uint8)
    pictures = []
    for split, listed in pairs.items():
        shown = min(PICTURES, len(listed))
        for pair in (listed[number * len(listed) // shown] for number in range(shown)):
            try:
                image_HW3, label_HW = load_pair(pair, check.data)
            except UserError:
                continue  # already reported as a finding
            # overlay() leaves pixels whose id is beyond the palette unchanged.
            shown_HW = np.where(label_HW == check.data.ignore_index, len(palette), label_HW)
            views = {"image": image_HW3, "annotated": overlay(image_HW3, shown_HW, palette)}
            sources = {view: data_uri(shrink(picture_HW3, PICTURE_SIDE)) for view, picture_HW3 in views.items()}
            pictures.append({"split": split, "name": pair.image_uri, **sources})
    return pictures
