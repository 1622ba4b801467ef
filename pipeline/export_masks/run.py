"""Mask export: select images, export them part by part, and write the files that cover all of them."""

import json
import posixpath
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.config.jobs import ExportMasksConfig
from pipeline.errors import UserError, raise_user_error
from pipeline.export_masks.formats import Format, format_of
from pipeline.export_masks.labelled_image import Classes
from pipeline.export_masks.selection import MaskSelection, SelectedPart
from pipeline.export_masks.tasks import COMPLETE, FRAGMENTS, INCOMPLETE, SHOWN, export_part
from pipeline.output.parquet import read_table
from pipeline.output.schema import CLASSES
from pipeline.query import engine
from pipeline.storage.places import place_prefix

SETTINGS = ".export/settings.json"
# Options that do not affect the exported files.
BESIDE_THE_POINT = {"config", "verbose", "to"}
# Up to this many images (or images to label again) are exported in this process, because starting Ray takes longer.
FEW, FEW_TO_PREDICT = 2000, 50
WAVE = 1_000_000  # images whose names the driver holds in memory
SECONDS_BETWEEN_LINES = 10.0


@dataclass
class MaskExportSummary:
    """Result of an export."""

    target: str
    folder: str = ""  # prefix that is stripped from the names
    notes: list[str] = field(default_factory=list)
    done_before: int = 0  # images
    exported: int = 0  # in this run
    failed: int = 0
    failures: list[str] = field(default_factory=list)  # the first few


def export_masks(config: ExportMasksConfig) -> MaskExportSummary:
    """Export an output's masks, or resume an earlier export. Raises UserError."""
    output, target = config.output, config.to
    if place_prefix(target).startswith(place_prefix(output)):
        raise UserError(f"target {target}: is inside the output {output}; choose a folder outside of it")
    with MaskSelection(output, config.where) as selection:
        summary = MaskExportSummary(target, notes=engine.warnings(output))
        selection.require_apart(target)
        before = _settings_before(target)
        classes = Classes.of(read_table(storage.join(output, "classes.parquet"), schema=CLASSES))
        model_ids = selection.model_ids()
        if len(model_ids) > 1:
            raise UserError(f"output {output}: contains masks of several models; run python jobs/verify.py for details")
        summary.folder = selection.choose(target, config.strip, before["folder"] if before else None)
        format = format_of(config, classes, target, model_ids[0])
        _claim(target, config, before, summary.folder, model_ids[0])
        chosen = selection.parts()
        done = _fragments(target)
        todo = [part for part in chosen if part.fragment + COMPLETE not in done]
        total = sum(part.images for part in todo)
        summary.done_before = sum(part.images for part in chosen) - total
        for row in _watched(_export(config, selection, todo, output, target, format), total):
            summary.exported += row["exported"]
            summary.failed += row["failed"]
            summary.failures += row["failures"][: SHOWN - len(summary.failures)]
        format.finish(_records(target, _tidy(target, chosen)))
    return summary


def _export(
    config: ExportMasksConfig,
    selection: MaskSelection,
    todo: list[SelectedPart],
    output: str,
    target: str,
    format: Format,
) -> Iterator[dict[str, Any]]:
    """Yield EXPORTED rows as parts are completed."""
    few = sum(part.images for part in todo) <= (FEW_TO_PREDICT if format.predicts else FEW)
    for wave in _waves(todo):
        tables = selection.tables(wave)
        done = _here(tables, output, target, format) if few else _on_ray(config, tables, output, target, format)
        for table in done:
            yield from table.to_pylist()


def _here(tables: list[pa.Table], output: str, target: str, format: Format) -> Iterator[pa.Table]:
    for table in tables:
        yield from export_part(table, output, target, format)


def _on_ray(
    config: ExportMasksConfig, tables: list[pa.Table], output: str, target: str, format: Format
) -> Iterator[pa.Table]:
    from pipeline.cluster import connection
    from pipeline.cluster.ray_data import map_tables
    from pipeline.cluster.shared_files import check_shared

    connection.connect(config.verbose)
    image = tables[0]["image_uri"][0].as_py() if format.needs_images else None
    check_shared({"output": output, "to": target, "checkpoint": config.checkpoint, "image": image})
    have = connection.resources()
    # A task that predicts uses all CPUs of its node, so it reserves all of them.
    num_cpus = max(1, have.node_cpus) if format.predicts else 1
    exported = map_tables(
        export_part,
        tables,
        num_cpus=num_cpus,
        concurrency=min(len(tables), max(1, have.max_cpus // num_cpus)),
        verbose=config.verbose,
        output=output,
        target=target,
        format=format,
    )
    try:
        yield from exported.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except Exception as error:
        raise_user_error(error)


def _waves(todo: list[SelectedPart]) -> Iterator[list[SelectedPart]]:
    wave: list[SelectedPart] = []
    images = 0
    for part in todo:
        wave.append(part)
        images += part.images
        if images >= WAVE:
            yield wave
            wave, images = [], 0
    if wave:
        yield wave


def _watched(rows: Iterator[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """Yield the same rows, and print the progress from time to time."""
    started = last = time.monotonic()
    done = 0
    for row in rows:
        done += row["exported"] + row["failed"]
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(f"{done:,} of {total:,} images · {done / (now - started):.1f} images/s", flush=True)
        yield row


def _settings_before(target: str) -> dict[str, Any] | None:
    """Return the settings of an earlier export; None for an empty target.

    Raises: UserError if the target contains other files.
    """
    uri = storage.join(target, SETTINGS)
    if storage.exists(uri):
        try:
            before = json.loads(storage.read_bytes(uri))
            return {"folder": str(before["folder"]), "settings": dict(before["settings"])}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{uri}: not a settings file of an export; choose another target") from None
    for page in storage.listed(target):
        raise UserError(
            f"target {target}: contains files not written by an export, such as {page[0].uri}; choose an empty folder"
        )
    return None


def _claim(target: str, config: ExportMasksConfig, before: dict[str, Any] | None, folder: str, model_id: str) -> None:
    """Write the settings of this export to the target. Raises UserError if it has an export with other settings."""
    settings = {**config.model_dump(mode="json", exclude=BESIDE_THE_POINT), "model": model_id}
    if before is None:
        about = {"folder": folder, "settings": settings}
        storage.write_bytes(storage.join(target, SETTINGS), json.dumps(about, indent=1, ensure_ascii=False).encode())
        return
    was = before["settings"]
    changed = [name for name in {**was, **settings} if was.get(name) != settings.get(name)]
    if before["folder"] != folder or changed:
        name = changed[0] if changed else "strip"
        old, new = (was.get(name), settings.get(name)) if changed else (before["folder"], folder)
        raise UserError(
            f"target {target}: was exported with {name} {old!r}, not {new!r}; choose another target, or use the same "
            "options to resume"
        )


def _fragments(target: str) -> set[str]:
    """Return the names of all fragments in the target, complete or not."""
    return {posixpath.basename(uri) for uri in storage.find(storage.join(target, FRAGMENTS)) if uri.endswith(".jsonl")}


def _tidy(target: str, chosen: list[SelectedPart]) -> list[str]:
    """Return the one fragment of each part.

    Removes fragments of parts that no longer exist, or that were exported with another selection of images.
    """
    found = _fragments(target)
    best = [
        next(name for name in (part.fragment + COMPLETE, part.fragment + INCOMPLETE) if name in found)
        for part in chosen
    ]
    for name in found - {*best}:
        storage.remove(storage.join(target, FRAGMENTS, name))
    return best


def _records(target: str, fragments: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of all images, loading one part at a time."""
    for fragment in fragments:
        for line in storage.read_bytes(storage.join(target, FRAGMENTS, fragment)).splitlines():
            yield json.loads(line)
