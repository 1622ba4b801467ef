"""Safe file names below the target, made from an image's key without its extension.

Keys of a bucket can be any text. Underscores replace everything that has a special meaning for a file system, a web
server or Windows, so names cannot escape the target. Nothing is decoded first.
"""

import hashlib
import posixpath
import re

import pyarrow as pa
import pyarrow.compute as pc

MAX_NAME_BYTES = 200  # per path component; file systems allow 255, and formats append suffixes
# Control characters; Windows separators and drives; % because of %2e, in case a program decodes it; shell wildcards.
UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|%]')
DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE | re.DOTALL)
ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}")
# Stems that `clean` may change, for a fast check of many. All others are valid names already.
ODD = (
    r'(?is)[^ -~]|[\\:*?"<>|%]|[. ](?:/|$)|(?:^|/)(?:[./]|$|(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|$))'
    rf"|[^/]{{{MAX_NAME_BYTES + 1}}}"
)


def common_folder(first: str, last: str) -> str:
    """Return the longest common folder, with its slash, of all URIs sorted between the two; empty if there is none."""
    above, slash, _ = posixpath.commonprefix([first, last]).rpartition("/")
    return above + slash


def cleaned(uris: pa.Array, folder: str) -> pa.Array:
    """Return the names of images relative to the folder, made safe, without the extensions of their files."""
    keys = pc.utf8_slice_codeunits(uris, len(folder))
    stems = pc.replace_substring_regex(keys, rf"{ENDING.pattern}$", "")
    has_other_dot = pc.and_not(
        pc.match_substring_regex(keys, r"\.[^/]*$"), pc.match_substring_regex(keys, rf"{ENDING.pattern}$")
    )
    is_odd = pc.or_(pc.match_substring_regex(stems, ODD), has_other_dot)
    names = [clean(key) for key in keys.filter(is_odd).to_pylist()]
    return pc.replace_with_mask(stems, is_odd, pa.array(names, pa.string()))


def clean(key: str) -> str:
    """Make one name safe, without its extension."""
    stem, ending = split_ending(key)
    if not ending:  # otherwise readers take the text after the last dot for an extension and find no matching pair
        above, slash, name = stem.rpartition("/")
        stem = above + slash + name.replace(".", "_")
    return "/".join(_clean_part(part) for part in stem.split("/"))


def split_ending(key: str) -> tuple[str, str]:
    """Split off the extension: `a/b.jpg` -> `a/b`, `.jpg`; it is empty if the last dot begins no plausible one."""
    stem, dot, ending = key.rpartition(".")
    return (stem, dot + ending) if ENDING.fullmatch(dot + ending) else (key, "")


def _clean_part(part: str) -> str:
    """Make one path component safe."""
    part = UNSAFE.sub("_", part)
    end = part.rstrip(". ")  # Windows strips them; ".." becomes empty
    part = end + "_" * (len(part) - len(end)) or "_"
    if part.startswith(".") or DEVICE.fullmatch(part):  # most readers skip hidden files
        part = "_" + part.removeprefix(".")
    encoded = part.encode()
    if len(encoded) > MAX_NAME_BYTES:
        digest = hashlib.blake2b(encoded, digest_size=6).hexdigest()
        part = f"{encoded[: MAX_NAME_BYTES - 13].decode(errors='ignore')}-{digest}"
    return part
