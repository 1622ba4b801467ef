"""Locations in settings: they become absolute URIs once, so that every process reads the same ones."""

import os
import re

# Set by Ray in the processes of `ray job submit` alone.
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = ("file", "local")


def absolute_uri(location: str) -> str:
    """Return a path or URI as an absolute URI without a trailing slash: `runs/a/` -> `file:///here/runs/a`.

    Raises: ValueError for an empty text, and for a relative path in a submitted job, which runs in a temporary folder.
    """
    if not location:
        raise ValueError("is empty; give a path or a URI")
    scheme = SCHEME.match(location)
    if scheme and scheme[1] not in _LOCAL:
        return re.sub("^s3a://", "s3://", location).rstrip("/")
    path = os.path.expanduser(location[scheme.end() :] if scheme else location)
    if SUBMITTED in os.environ and not os.path.isabs(path):
        raise ValueError(
            f"{location} is a relative path, but a submitted job runs in a temporary copy of the working directory; "
            "use a URI, such as s3://bucket/folder, or an absolute path"
        )
    return "file://" + os.path.abspath(path)
