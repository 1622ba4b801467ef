"""Report of a segmentation output: one HTML page with statistics from its tables and pictures of selected images."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline import storage
from pipeline.console import duration, log
from pipeline.html.page import render
from pipeline.images.pixels import MIN_LEVELS
from pipeline.report import output_charts
from pipeline.report.gallery import REASONS, Gallery, make_gallery
from pipeline.report.tables import PAIRED_IMAGES, PRESENT, OutputTables, Row

REPORT = "report.html"
SHOWN_RUNS = 20


@dataclass(frozen=True)
class Report:
    uri: str
    bytes: int
    notes: list[str]  # limitations for the reader, which are on the page too


def build_report(output: str, to: str | None, pictures: int, max_bytes: int, max_parts: int) -> Report:
    """Write the report of an output. This works at any time, even during a run.

    Args:
        output: folder or URI that jobs/segment_bucket.py wrote.
        to: file or URI of the page; None: OUTPUT/report.html.
        pictures: maximum number of images in the gallery.
        max_bytes: maximum size of the page. The page without pictures can be larger, about 1 MB for 1,000 classes.
        max_parts: maximum number of parts to read per table; if there are more, a random sample is read.

    Raises: UserError.
    """
    output = storage.absolute(output)
    tables = OutputTables(output, max_parts)
    log(f"Reading {len(tables.names):,} of {tables.num_parts:,} parts")
    classes = tables.classes()
    values = _values(tables, classes)
    palette_K3 = np.array([row["color"] for row in sorted(classes, key=lambda row: row["id"])], np.uint8)
    gallery = make_gallery(tables, palette_K3, pictures, max_bytes)
    page = _page(values, gallery, classes)
    while len(page) > max_bytes and gallery.pictures:
        gallery.shrink(len(page) - max_bytes)
        page = _page(values, gallery, classes)
    uri = to or storage.join(output, REPORT)
    storage.write_bytes(uri, page)
    return Report(uri, len(page), [*values["notes"], *_gallery_notes(gallery)])


def _values(tables: OutputTables, classes: list[Row]) -> dict[str, Any]:
    """Return the template's values, except for the gallery."""
    runs = [_run(row) for row in tables.runs()]
    seen = [row for row in classes if row["images"]]
    labelled = max(1, tables.totals.labelled)
    for row in classes:
        row["share"] = row["pixels"] / max(1, tables.totals.pixels)
        row["frequency"] = row["images"] / labelled
    return {
        "name": tables.output.rpartition("/")[2],
        "output": tables.output,
        "made_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "notes": [*tables.warnings, *_sample_notes(tables), *_level_notes(runs)],
        "tiles": _tiles(tables, len(seen), len(classes), runs),
        "totals": tables.totals,
        "classes": seen,
        "unseen": sorted(row["name"] for row in classes if not row["images"]),
        "charts": _charts(tables, runs),
        "matrices": _matrices(tables, seen),
        "sizes": tables.sizes(),
        "failures": tables.failures(),
        "is_sampled": tables.is_sampled,
        "runs": runs[:SHOWN_RUNS],
        "num_runs": len(runs),
    }


def _tiles(tables: OutputTables, num_seen: int, num_classes: int, runs: list[Row]) -> list[tuple[str, str, str]]:
    """Return tiles as (value, label, details)."""
    totals = tables.totals
    about = "about " if tables.is_sampled else ""
    failed = f"{100 * totals.failed / max(1, totals.images):.3g}% of the images"
    rates = [row["rate"] for row in runs if row["rate"]]
    tiles = [
        (about + f"{tables.estimated(totals.images):,}", "images", ""),
        (about + f"{tables.estimated(totals.labelled):,}", "labeled", _megapixels(tables.estimated(totals.pixels))),
        (about + f"{tables.estimated(totals.failed):,}", "failed", failed),
        (f"{num_seen:,}", "classes found", f"of {num_classes:,}"),
    ]
    if totals.mean_confidence is not None:
        detail = f"from 0 to 1; {100 * (totals.low_confidence or 0):.3g}% of pixels below 0.5"
        tiles.append((f"{totals.mean_confidence:.3f}", "mean confidence", detail))
    if runs:
        rate = f"latest run: {rates[0]:,.1f} images/s" if rates else ""
        tiles.append((duration(sum(row["seconds"] or 0 for row in runs)), "in finished runs", rate))
    return tiles


def _megapixels(pixels: int) -> str:
    for unit, name in ((1e12, "terapixels"), (1e9, "gigapixels"), (1e6, "megapixels")):
        if pixels >= unit:
            return f"{pixels / unit:,.3g} {name}"
    return f"{pixels:,} pixels"


def _sample_notes(tables: OutputTables) -> list[str]:
    if not tables.is_sampled:
        return []
    images = tables.totals.images
    return [
        f"This report is based on a random sample of {len(tables.names):,} of the {tables.num_parts:,} parts: "
        f"{images:,} of about {tables.estimated(images):,} images. Percentages, charts and pictures describe the "
        "sample. Image counts of the whole output are estimates, and rare classes may be missing."
    ]


def _level_notes(runs: list[Row]) -> list[str]:
    few = sum(run["few_levels"] for run in runs)
    if not few:
        return []
    return [
        f"Images with fewer than {MIN_LEVELS} different pixel values, in all finished runs: {few:,}. Unless they are "
        "empty, label them with --value-range (docs/images.md)."
    ]


def _charts(tables: OutputTables, runs: list[Row]) -> list[tuple[str, Markup]]:
    """Return the charts as (title, SVG)."""
    drawn: list[tuple[str, Markup | None]] = []
    if bins := tables.confidences():
        drawn.append(("Images by mean confidence", output_charts.confidence_chart(bins)))
    if bins := tables.long_sides():
        drawn.append(("Images by longer side", output_charts.sizes_chart(bins)))
    if bins := tables.seconds():
        drawn.append(("Images by processing time", output_charts.seconds_chart(bins)))
    drawn.append(("Seconds of work per image, by stage and run", output_charts.stage_chart(runs)))
    return [(title, chart) for title, chart in drawn if chart is not None]


def _matrices(tables: OutputTables, seen: list[Row]) -> list[dict[str, Any]]:
    shown = seen[: output_charts.SHOWN_CLASSES]
    if not shown:
        return []
    ids = [row["id"] for row in shown]
    of_classes = f" Shows the {len(shown)} largest of {len(seen):,} classes by area." if len(shown) < len(seen) else ""
    of_images = ""
    if tables.totals.labelled > PAIRED_IMAGES:
        of_images = f" Based on a random sample of about {PAIRED_IMAGES:,} images."
    matrices: list[dict[str, Any]] = [
        {
            "title": "Confidence by class",
            "text": "Mean confidence of each class in the images that contain it. Each row adds up to 100% of these "
            "images; the stronger a cell's color, the more of them." + of_classes,
            "chart": output_charts.class_confidence_matrix(tables.class_confidences(ids), shown),
            "width": None,
        }
    ]
    if len(shown) > 1:
        pairs, pairs_width = output_charts.pairs_matrix(tables.pairs(ids), shown)
        text = (
            "Percentage of the images with the row's class that also contain the column's class. A class counts if it "
            f"covers at least {PRESENT:.0%} of the image."
        )
        matrices.append(
            {
                "title": "Classes that appear together",
                "text": text + of_classes + of_images,
                "chart": pairs,
                "width": pairs_width,
            }
        )
    return matrices


def _run(row: Row) -> Row:
    """Return a run as the page shows it. Records of older versions may have no stages."""
    record = json.loads(row["record"])
    stages = record.get("stage_seconds") or {}
    images = row["labelled"] + row["failed"]
    return {
        "run_id": row["run_id"],
        "finished_at": f"{row['finished_at']:%Y-%m-%d %H:%M}" if row["finished_at"] else "",
        "labelled": row["labelled"],
        "failed": row["failed"],
        "images": images,
        "seconds": row["seconds"],
        "duration": duration(row["seconds"]) if row["seconds"] else "",
        "rate": images / row["seconds"] if row["seconds"] else None,
        "to_first": duration(row["seconds_to_first"]) if row["seconds_to_first"] else "",
        "stages": {name: spent["seconds"] for name, spent in stages.items()},
        "few_levels": record.get("few_levels") or 0,
        "checkpoint": (record.get("configuration") or {}).get("checkpoint") or "",
    }


def _page(values: dict[str, Any], gallery: Gallery, classes: list[Row]) -> bytes:
    """Render the page, with the pictures in the script's initial order."""
    pictures = sorted(gallery.pictures, key=lambda picture: (picture.confidence, picture.uri))
    num_pictures = Counter(class_id for picture in pictures for class_id, _, _ in picture.classes)
    in_pictures = sorted((row for row in classes if row["id"] in num_pictures), key=lambda row: row["name"].lower())
    return render(
        "segmentation.html",
        **values,
        pictures=pictures,
        gallery_notes=_gallery_notes(gallery),
        reasons=[reason for reason in REASONS if any(picture.reason == reason for picture in pictures)],
        filters=[(row["id"], row["name"], num_pictures[row["id"]]) for row in in_pictures],
        facts={
            "classes": {str(row["id"]): {"name": row["name"], "color": row["color"]} for row in in_pictures},
            "pictures": [picture.facts() for picture in pictures],
        },
    )


def _gallery_notes(gallery: Gallery) -> list[str]:
    notes = []
    if gallery.without_image:
        reasons = sorted({note for p in gallery.pictures if p.image is None for note in p.notes})
        reason = reasons[0] if len(reasons) == 1 else f"for example, {reasons[0]}"
        notes.append(
            f"The image is missing for {gallery.without_image} of {len(gallery.pictures)} pictures ({reason}). Masks "
            "and statistics are not affected, because they come from the tables."
        )
    if gallery.left_out:
        notes.append(f"{gallery.left_out} more pictures did not fit into the page; increase --max-bytes to add them.")
    return notes
