"""Globs, as --input, --include and --exclude take them."""

import posixpath
import re

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.storage import SCHEME

GLOB_CHARACTERS = "*?["


def is_glob(uri: str) -> bool:
    return any(character in uri for character in GLOB_CHARACTERS)


def expression(pattern: str, option: str) -> str:
    """The glob as a regular expression (RE2's) for whole URIs.

    `*` and `?` stop at a slash, `**` as a whole folder stands for any number of them, `[ab]` and `[!ab]` for one
    character. A pattern with a scheme, or one that begins with a slash, is a whole URI or path; any other may begin
    in any folder, so that `*.jpg` means all of them.

    Raises: UserError naming the option.
    """
    if pattern.startswith("/"):
        pattern = "file://" + pattern
    anchored = SCHEME.match(pattern) is not None
    parts = []
    names = pattern.split("/")
    for position, name in enumerate(names):
        last = position == len(names) - 1
        if name == "**":
            parts.append(".*" if last else "(?:.*/)?")
            continue
        if "**" in name:
            raise UserError(f"{option} {pattern}: ** must stand alone between slashes, as in photos/**/*.jpg")
        parts.append(_name(name) + ("" if last else "/"))
    found = ("(?s)^" if anchored else "(?s)(?:^|/)") + "".join(parts) + r"\z"
    try:
        matches(pa.array([""]), [found])
    except pa.ArrowInvalid as error:
        raise UserError(f"{option} {pattern}: no pattern: {error}") from error
    return found


def matches(uris: pa.Array, expressions: list[str]) -> pa.BooleanArray:
    """Which URIs match at least one of the expressions."""
    found = pa.repeat(False, len(uris))
    for one in expressions:
        found = pc.or_(found, pc.match_substring_regex(uris, one))
    return found


def _name(glob: str) -> str:
    """The expression of one name between slashes."""
    parts = []
    position = 0
    while position < len(glob):
        character = glob[position]
        position += 1
        # "]" right after the opening bracket is one of the characters.
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
    """`a-z_` as it stands in an expression, with all that is special there but the hyphen between two letters."""
    return re.sub(r"([\\\[\]^&~|])", r"\\\1", inside)


def folder_of(uri: str) -> str:
    """The folder that holds everything a prefix or glob names."""
    first = min((uri.index(character) for character in GLOB_CHARACTERS if character in uri), default=None)
    return uri if first is None else posixpath.dirname(uri[:first])
