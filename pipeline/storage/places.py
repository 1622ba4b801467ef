"""The places that lists and tables may name, decided on the very text that is opened later.

A list may come from someone else: what its rows name is opened only inside the places that its reader allows.
"""

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote

from pipeline import storage

MAX_URI_BYTES = 8192  # bytes; S3 allows 1,024 for a key
SAME_SCHEME = {"s3a": "s3", "gcs": "gs", "az": "abfs", "local": "file"}


class Places:
    """Prefixes of URIs, and how a message calls the option that names further ones."""

    def __init__(self, allowed: Sequence[str], option: str) -> None:
        self.prefixes = tuple(place_prefix(place) for place in allowed)
        self._option = option

    def refusal(self, uri: str) -> str | None:
        """Return why a canonical URI may not be opened; None if it may."""
        if ".." in _folders(uri) or not (uri + "/").startswith(self.prefixes):
            return f"lies outside {', '.join(self.prefixes)}; {self._option} names further places"
        return None


def canonical(uri: str) -> str:
    """The one spelling of a URI. Raises ValueError if it can name no image."""
    match = storage.SCHEME.match(uri)
    if match is None:
        raise ValueError("no URI")
    if "\0" in uri:
        raise ValueError("has a NUL character")
    if len(uri.encode()) > MAX_URI_BYTES:
        raise ValueError(f"longer than {MAX_URI_BYTES:,} bytes")
    scheme = SAME_SCHEME.get(match[1].lower(), match[1].lower())
    rest = uri[match.end() :]
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError("file:// takes an absolute path")
        if rest.rpartition("/")[2] in ("", ".", ".."):
            raise ValueError("names a folder")
        return "file:///" + os.path.normpath(rest).lstrip("/")
    host, _, name = rest.partition("/")
    if not host:
        raise ValueError("names no bucket or host")
    if not name or name.endswith("/"):
        raise ValueError("names a folder, not an image")
    if scheme in ("http", "https"):
        if re.search(r"[\x00-\x20\x7f\\]", rest):
            raise ValueError("has characters that no web address has")
        host = host.lower()
    return f"{scheme}://{host}/{name}"


def place_prefix(place: str) -> str:
    """A place as the beginning of all URIs inside it: `s3a://bucket/photos` -> `s3://bucket/photos/`."""
    match = storage.SCHEME.match(place)
    scheme = SAME_SCHEME.get(match[1].lower(), match[1].lower()) if match else "file"
    if scheme == "file" and place[match.end() if match else 0 :]:
        return "file://" + storage.open_filesystem(place)[1].rstrip("/") + "/"
    rest = place[match.end() :] if match else ""
    host, slash, name = rest.partition("/")
    if scheme in ("http", "https"):
        host = host.lower()
    rest = (host + slash + name).rstrip("/")
    return f"{scheme}://{rest}/" if rest else f"{scheme}://"


def home_of(folder: str) -> str:
    """What the lists in a folder may name unless told otherwise: its whole bucket or host; on a disk, the folder."""
    match = storage.SCHEME.match(folder)
    assert match, folder
    bucket = folder[match.end() :].split("/")[0]
    # The ARN of an access point goes on behind the slash.
    return folder if match[1] == "file" or bucket.startswith("arn:") else match[0] + bucket


def _folders(uri: str) -> set[str]:
    """The names between the slashes of a URI; `..` stands for `.` and `..`, however a client writes them."""
    path = uri.partition("://")[2]
    if uri.startswith("http"):
        path = unquote(re.split("[?#]", path)[0]).replace("\\", "/")
    return {".." if name == "." else name for name in path.split("/")}
