"""Glob patterns of names in storage."""

import posixpath
import re

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError

GLOB_CHARACTERS = "*?["


def is_glob(uri: str) -> bool:
    return any(character in uri for character in GLOB_CHARACTERS)


def expression(pattern: str, option: str) -> str:
    """Translate a glob to an RE2 regular expression for whole URIs.

    `*` and `?` do not match a slash, `**` as a whole path component matches any number of folders, and `[ab]` and
    `[!ab]` match one character. A pattern with a scheme or a leading slash must match the whole URI or path; any
    other pattern may start in any folder, so `*.jpg` matches all .jpg files.

    Raises: UserError that names the option.
    """
    if pattern.startswith("/"):
        pattern = "file://" + pattern
    anchored = storage.SCHEME.match(pattern) is not None
    parts = []
    names = pattern.split("/")
    for position, name in enumerate(names):
        last = position == len(names) - 1
        if name == "**":
            parts.append(".*" if last else "(?:.*/)?")
            continue
        if "**" in name:
            raise UserError(f"{option} {pattern}: ** must be a whole path component, as in photos/**/*.jpg")
        parts.append(_name(name) + ("" if last else "/"))
    found = ("(?s)^" if anchored else "(?s)(?:^|/)") + "".join(parts) + r"\z"
    try:
        matches(pa.array([""]), [found])
    except pa.ArrowInvalid as error:
        raise UserError(f"{option} {pattern}: invalid pattern: {error}") from error
    return found


def matches(uris: pa.Array, expressions: list[str]) -> pa.BooleanArray:
    """Return True for each URI that matches at least one of the expressions."""
    found = pa.repeat(False, len(uris))
    for one in expressions:
        found = pc.or_(found, pc.match_substring_regex(uris, one))
    return found


def _name(glob: str) -> str:
    """Translate one path component of a glob."""
    parts = []
    position = 0
    while position < len(glob):
        character = glob[position]
        position += 1
        # A "]" right after the opening bracket is one of the characters, not the end of the set.
        closing = glob.find("]", position + (2 if glob[position : position + 1] == "!" else 1))
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "[" and closing > 0:
            inside = glob[position:closing]
            negated = inside.startswith("!")
            parts.append(f"[{'^/' if negated else ''}{_range(inside.removeprefix('!'))}]")
            position = closing + 1
        else:
            parts.append(re.escape(character))
    return "".join(parts)


def _range(inside: str) -> str:
    """Escape the characters of a set such as `a-z_`, except for the hyphen of a range."""
    return re.sub(r"([\\\[\]^&~|])", r"\\\1", inside)


def folder_of(uri: str) -> str:
    """Return the deepest folder that contains everything a prefix or glob can match."""
    first = min((uri.index(character) for character in GLOB_CHARACTERS if character in uri), default=None)
    return uri if first is None else posixpath.dirname(uri[:first])


def absolute_pattern(glob: str) -> str:
    """Return a glob with the scheme and the absolute folder of the URIs that it can match."""
    folder = folder_of(glob)
    return storage.join(storage.absolute(folder), glob[len(folder) :].lstrip("/"))


def select_matches(uris: list[str], glob: str, option: str) -> list[str]:
    """Return those of the URIs that match the whole glob, which may be relative. Raises UserError like `expression`."""
    found = matches(pa.array(uris, pa.string()), [expression(absolute_pattern(glob), option)])
    return pa.array(uris, pa.string()).filter(found).to_pylist()
