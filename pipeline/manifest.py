"""Which images there are to label."""

import posixpath
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.tables import LISTED, image_id, table

GLOB_CHARACTERS = "*?["


def list_images(uri: str) -> pa.Table:
    """List every file under a prefix, or every match of a glob, in name order.

    All files count as images: one that is none becomes a row that says so, and nothing is left out silently.
    Only the markers that stand for folders in object stores are no files.

    Returns: table of tables.LISTED.
    Raises: UserError if storage fails or nothing is there.
    """
    if any(character in uri for character in GLOB_CHARACTERS):
        filesystem, pattern = storage.open_filesystem(uri)
        storage.find_bucket(uri)
        with storage.explained(uri):
            found = filesystem.glob(pattern, detail=True)
        files = {filesystem.unstrip_protocol(name): found[name] for name in sorted(found)}
        files = {name: info for name, info in files.items() if info["type"] == "file"}
    else:
        files = storage.find(uri)
    rows = [_row(name, info) for name, info in files.items() if not name.endswith("/")]
    if not rows:
        raise UserError(f"input {uri}: no files there; check the prefix or pattern")
    return table(rows, LISTED)


def refuse_output_inside_input(input_uri: str, output_uri: str) -> None:
    """Raise UserError where the next run would take this run's output for images."""
    base = input_uri
    for character in GLOB_CHARACTERS:
        base = base.split(character)[0]
    if base != input_uri:
        base = posixpath.dirname(base)
    prefix = storage.absolute(base).rstrip("/") + "/"
    if (storage.absolute(output_uri) + "/").startswith(prefix):
        raise UserError(f"output {output_uri} lies inside input {input_uri}; choose a place outside of it")


def _row(uri: str, info: dict[str, Any]) -> dict[str, Any]:
    etag = info.get("ETag")
    return {
        "image_id": image_id(uri),
        "image_uri": uri,
        "etag": etag.strip('"') if etag else None,
        "size_bytes": info["size"],
    }
