"""Task that exports one part: read its masks, export the selected images, and write a fragment to the target.

The fragment is the commit of the part, like the masks file in an output. Its lines are the records for the files that
cover all images.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.export_masks.formats import Format
from pipeline.export_masks.labelled_image import Cannot, Labelled
from pipeline.storage.parquet_files import open_parquet

THREADS = 8  # concurrent images; most of the time is spent waiting for storage
MASKS_AT_ONCE = 32  # in memory
FRAGMENTS = ".export/parts"
COMPLETE = ".jsonl"
# For a part with failed images: its records are used, but the next run retries the part.
INCOMPLETE = ".incomplete.jsonl"
SHOWN = 10  # failed images listed per part

EXPORTED = pa.schema(
    [
        ("fragment", pa.string()),  # name of the file
        ("exported", pa.int64()),
        ("failed", pa.int64()),
        ("failures", pa.list_(pa.string())),  # the first few
    ]
)


def export_part(chosen: pa.Table, output: str, target: str, format: Format) -> Iterator[pa.Table]:
    """Export the images of a part, selection.CHOSEN rows, and yield one EXPORTED row. Raises UserError."""
    cv2.setNumThreads(1)
    part, fragment = chosen["part"][0].as_py(), chosen["fragment"][0].as_py()
    names = dict(zip(chosen["image_uri"].to_pylist(), chosen["name"].to_pylist(), strict=True))
    export = partial(_exported, target=target, format=format)
    lines: list[bytes] = []
    failures: list[str] = []
    # Prediction uses all CPUs already.
    with ThreadPoolExecutor(1 if format.predicts else THREADS) as pool:
        for images in _read(storage.join(output, "masks", part), names, format.num_classes):
            for record, failure in pool.map(export, images):
                if failure is not None:
                    failures.append(failure)
                elif record is not None:
                    lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    fragment += INCOMPLETE if failures else COMPLETE
    storage.write_bytes(storage.join(target, FRAGMENTS, fragment), b"".join(lines))
    counts = {"exported": len(names) - len(failures), "failed": len(failures)}
    yield pa.Table.from_pylist([{"fragment": fragment, **counts, "failures": failures[:SHOWN]}], EXPORTED)


def _exported(image: Labelled, target: str, format: Format) -> tuple[dict[str, Any] | None, str | None]:
    """Export one image. Return (its record if the format has records, the reason if it could not be exported)."""
    if format.needs_images:
        (file,) = storage.fetch([image.uri])
        if isinstance(file, Exception):
            return None, f"{image.uri}: {storage.failure_kind(file)}: {file}"
        image = replace(image, file=file, rendering=format.rendering)
    try:
        made = format.make(image)
    except Cannot as error:
        return None, f"{image.uri}: {error}"
    for name, content in made.files.items():
        storage.write_bytes(storage.join(target, name), content)
    return made.record, None


def _read(uri: str, names: dict[str, str], num_classes: int) -> Iterator[list[Labelled]]:
    """Yield batches of the images in `names` from a masks file. Skips the masks of row groups without such images."""
    source = storage.open_file(uri)
    wanted = pa.array(names, pa.string())
    try:
        with source:
            file = open_parquet(source, pre_buffer=True)
            for group in range(file.num_row_groups):
                uris = file.read_row_group(group, ["image_uri"])["image_uri"]
                if not pc.any(pc.is_in(uris, value_set=wanted)).as_py():
                    continue
                for batch in file.iter_batches(MASKS_AT_ONCE, [group], ["image_uri", "width", "height", "mask.bytes"]):
                    rows = batch.filter(pc.is_in(batch["image_uri"], value_set=wanted)).to_pylist()
                    yield [
                        Labelled(
                            row["image_uri"],
                            names[row["image_uri"]],
                            row["mask"]["bytes"],
                            row["width"] * row["height"],
                            num_classes,
                        )
                        for row in rows
                    ]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if source.failure is not None:
            with storage.explained(uri):
                raise source.failure from None
        raise UserError(
            f"{uri}: is damaged or truncated: {error}; run python jobs/verify.py --repair to remove such parts, and "
            "jobs/segment_bucket.py to label their images again"
        ) from error
