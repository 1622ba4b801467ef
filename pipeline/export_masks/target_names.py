"""Where an image's files go below the target: its key's folders and stem, so written that no name leads elsewhere.

A bucket's keys are any text. What a file system, a web server or Windows would take for more than a name is
replaced by underscores; nothing is decoded first.
"""

import hashlib
import posixpath
import re

import pyarrow as pa
import pyarrow.compute as pc

MAX_NAME_BYTES = 200  # bytes of a name between slashes; file systems allow 255, of which formats add some
# Control characters; separators and drives of Windows; % for %2e, in case someone decodes it; what shells expand.
UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|%]')
DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE | re.DOTALL)
ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}")
# Stems that `clean` may change, for a fast look at many; all others are names already.
ODD = (
    r'(?is)[^ -~]|[\\:*?"<>|%]|[. ](?:/|$)|(?:^|/)(?:[./]|$|(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|$))'
    rf"|[^/]{{{MAX_NAME_BYTES + 1}}}"
)


def common_folder(first: str, last: str) -> str:
    """The longest folder, with its slash, of all URIs between the two in order; empty where they share none."""
    above, slash, _ = posixpath.commonprefix([first, last]).rpartition("/")
    return above + slash


def cleaned(uris: pa.Array, folder: str) -> pa.Array:
    """Names below the target of images in the folder, without the ending of their files."""
    keys = pc.utf8_slice_codeunits(uris, len(folder))
    stems = pc.replace_substring_regex(keys, rf"{ENDING.pattern}$", "")
    has_other_dot = pc.and_not(
        pc.match_substring_regex(keys, r"\.[^/]*$"), pc.match_substring_regex(keys, rf"{ENDING.pattern}$")
    )
    is_odd = pc.or_(pc.match_substring_regex(stems, ODD), has_other_dot)
    names = [clean(key) for key in keys.filter(is_odd).to_pylist()]
    return pc.replace_with_mask(stems, is_odd, pa.array(names, pa.string()))


def clean(key: str) -> str:
    """One name, as `cleaned` makes it."""
    stem, ending = split_ending(key)
    if not ending:  # else readers would take what follows the last dot for one, and find no pair of that name
        above, slash, name = stem.rpartition("/")
        stem = above + slash + name.replace(".", "_")
    return "/".join(_clean_part(part) for part in stem.split("/"))


def split_ending(key: str) -> tuple[str, str]:
    """`a/b.jpg` -> `a/b`, `.jpg`; the second is empty where what follows the last dot is no ending."""
    stem, dot, ending = key.rpartition(".")
    return (stem, dot + ending) if ENDING.fullmatch(dot + ending) else (key, "")


def _clean_part(part: str) -> str:
    """What stands between two slashes."""
    part = UNSAFE.sub("_", part)
    end = part.rstrip(". ")  # Windows drops them; of ".." it leaves nothing
    part = end + "_" * (len(part) - len(end)) or "_"
    if part.startswith(".") or DEVICE.fullmatch(part):  # hidden names are passed over by most readers
        part = "_" + part.removeprefix(".")
    encoded = part.encode()
    if len(encoded) > MAX_NAME_BYTES:
        digest = hashlib.blake2b(encoded, digest_size=6).hexdigest()
        part = f"{encoded[: MAX_NAME_BYTES - 13].decode(errors='ignore')}-{digest}"
    return part
