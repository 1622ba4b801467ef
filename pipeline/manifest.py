"""Which images there are to label."""

import posixpath
import re
from typing import Any

import pyarrow as pa
from fsspec.utils import glob_translate

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
    if uri.startswith("s3://") and storage.open_filesystem(uri)[1] == "/":
        raise UserError(f"input {uri}: names no bucket; give s3://BUCKET or s3://BUCKET/PREFIX")
    files = storage.find(_folder_of(uri))
    if _is_glob(uri):
        # By ourselves, since `glob` takes a missing bucket for an empty one.
        filesystem, pattern = storage.open_filesystem(uri)
        matches = re.compile(glob_translate(pattern)).match
        files = {name: info for name, info in files.items() if matches(filesystem._strip_protocol(name))}
    unreadable = [name for name in files if not _is_utf8(name)]
    if unreadable:
        raise UserError(f"input {uri}: {unreadable[0]!r} is not a name in UTF-8, which tables need; rename it")
    rows = [_row(name, info) for name, info in files.items() if not name.endswith("/")]
    if not rows:
        raise UserError(f"input {uri}: no files there; check the prefix or pattern")
    return table(rows, LISTED)


def refuse_output_inside_input(input_uri: str, output_uri: str) -> None:
    """Raise UserError where the next run would take this run's output for images."""
    prefix = storage.absolute(_folder_of(input_uri)).rstrip("/") + "/"
    if (storage.absolute(output_uri) + "/").startswith(prefix):
        raise UserError(f"output {output_uri} lies inside input {input_uri}; choose a place outside of it")


def _is_glob(uri: str) -> bool:
    return any(character in uri for character in GLOB_CHARACTERS)


def _folder_of(uri: str) -> str:
    """The folder that holds everything a prefix or glob names."""
    first = min((uri.index(character) for character in GLOB_CHARACTERS if character in uri), default=None)
    return uri if first is None else posixpath.dirname(uri[:first])


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _row(uri: str, info: dict[str, Any]) -> dict[str, Any]:
    etag = info.get("ETag")
    return {
        "image_id": image_id(uri),
        "image_uri": uri,
        "etag": etag.strip('"') if etag else None,
        "size_bytes": info["size"],
    }
