"""Check of the locations that rows of lists and tables may refer to.

Lists may come from untrusted sources, so their rows are only opened inside the places that the user allows. The check
is done on the exact URI that is opened later.
"""

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote

from pipeline import storage

MAX_URI_BYTES = 8192  # S3 allows 1,024 bytes for a key
SAME_SCHEME = {"s3a": "s3", "gcs": "gs", "az": "abfs", "local": "file"}


class Places:
    """Allowed URI prefixes, and the name of the option that allows more of them, for messages."""

    def __init__(self, allowed: Sequence[str], option: str) -> None:
        self.prefixes = tuple(place_prefix(place) for place in allowed)
        self._option = option

    def refusal(self, uri: str) -> str | None:
        """Return the reason why a canonical URI must not be opened; None if it is allowed."""
        if ".." in _folders(uri) or not (uri + "/").startswith(self.prefixes):
            return f"is outside {', '.join(self.prefixes)}; use {self._option} to allow more locations"
        return None


def canonical(uri: str) -> str:
    """Return the canonical form of a URI. Raises ValueError if it cannot refer to an image."""
    match = storage.SCHEME.match(uri)
    if match is None:
        raise ValueError("not a URI")
    if "\0" in uri:
        raise ValueError("contains a NUL character")
    if len(uri.encode()) > MAX_URI_BYTES:
        raise ValueError(f"longer than {MAX_URI_BYTES:,} bytes")
    scheme = SAME_SCHEME.get(match[1].lower(), match[1].lower())
    rest = uri[match.end() :]
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError("file:// requires an absolute path")
        if rest.rpartition("/")[2] in ("", ".", ".."):
            raise ValueError("refers to a folder")
        return "file:///" + os.path.normpath(rest).lstrip("/")
    host, _, name = rest.partition("/")
    if not host:
        raise ValueError("the bucket or host is missing")
    if not name or name.endswith("/"):
        raise ValueError("refers to a folder, not an image")
    if scheme in ("http", "https"):
        if re.search(r"[\x00-\x20\x7f\\]", rest):
            raise ValueError("contains characters that are invalid in a URL")
        host = host.lower()
    return f"{scheme}://{host}/{name}"


def place_prefix(place: str) -> str:
    """Return the prefix of all canonical URIs inside a place: `s3a://bucket/photos` -> `s3://bucket/photos/`."""
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
    """Return the default place for lists in a folder: its whole bucket or host, or, on a disk, the folder itself."""
    match = storage.SCHEME.match(folder)
    assert match, folder
    bucket = folder[match.end() :].split("/")[0]
    # The ARN of an access point contains a slash, so it does not end with this component.
    return folder if match[1] == "file" or bucket.startswith("arn:") else match[0] + bucket


def _folders(uri: str) -> set[str]:
    """Return the path components of a URI, with `..` for each `.` or `..`, including percent-encoded ones."""
    path = uri.partition("://")[2]
    if uri.startswith("http"):
        path = unquote(re.split("[?#]", path)[0]).replace("\\", "/")
    return {".." if name == "." else name for name in path.split("/")}
