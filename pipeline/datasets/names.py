"""Names by which images meet their annotations: extensions, suffixes, Unicode, and lines of list files."""

import posixpath
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

IMAGE_EXTENSIONS = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".psd",
        ".qoi",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
# Files that other programs write beside images: descriptions, settings of a folder, thumbnails.
SIDECAR_EXTENSIONS = frozenset(
    (
        *(".csv", ".db", ".htm", ".html", ".ini", ".json", ".log", ".md"),
        *(".txt", ".url", ".xml", ".xmp", ".yaml", ".yml", ".zip"),
    )
)
_SUFFIX = re.compile(r"[\W_]|mask|label|gt|seg|anno", re.IGNORECASE)
LABELS_PER_IMAGE = 20  # looked at for a suffix


def normalized(name: str) -> str:
    """Return a name in Unicode's form NFC, since macOS writes accents as characters of their own."""
    return unicodedata.normalize("NFC", name)


def is_sidecar(path: str) -> bool:
    """Return True for files that are no images but lie beside them, such as a.json."""
    return posixpath.splitext(path)[1].lower() in SIDECAR_EXTENSIONS


def has_image_extension(path: str) -> bool:
    return posixpath.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def bare(name: str) -> str:
    """Return a name without extensions of images: `a` for a, a.jpg and a.jpg.png."""
    while has_image_extension(name):
        name = posixpath.splitext(name)[0]
    return name


def match_bare(images: Iterable[str], labels: Iterable[str]) -> dict[str, str]:
    """Return name of an image -> name of the annotation, where they differ only in extensions, and no others do."""
    by_bare = [_grouped(names) for names in (images, labels)]
    return {
        found[0]: by_bare[1][name][0]
        for name, found in by_bare[0].items()
        if len(found) == 1 == len(by_bare[1].get(name, ()))
    }


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(bare(name), []).append(name)
    return groups


def folded(name: str) -> str:
    """Return a name without blanks and differences of case, for messages about names that are almost the same."""
    return "".join(name.casefold().split())


def common_suffix(images: Collection[str], labels: Iterable[str]) -> str | None:
    """Return what follows the image's name in the names of most annotations, such as _mask; None if nothing does."""
    ordered = sorted(labels)
    suffixes: Counter[str] = Counter()
    for name in images:
        start = bisect_left(ordered, name)
        for label in ordered[start : start + LABELS_PER_IMAGE]:
            suffix = label.removeprefix(name)
            if suffix != label and _SUFFIX.match(suffix) and suffix.lower() not in IMAGE_EXTENSIONS:
                suffixes[suffix] += 1
    suffix, count = max(suffixes.items(), key=lambda item: item[1], default=("", 0))
    return suffix if 2 * count >= len(images) and count else None


def listed_names(line: str) -> list[str]:
    """Return the names that a line of a list may mean, without extension, most likely first.

    A line is an image's name or path, possibly followed by other fields; names may have dots and blanks.
    """
    image = next((prefix for prefix in _prefixes(line) if has_image_extension(prefix)), None)
    first = line.split()[0]
    paths = [image] if image else [line, first] if "/" not in line.removeprefix(first) else [first]
    names = [normalized(posixpath.basename(path.strip())) for path in paths]
    return list(dict.fromkeys([*(posixpath.splitext(name)[0] for name in names if has_image_extension(name)), *names]))


def split_line(line: str) -> list[str]:
    """Return the paths in a line `image annotation`; blanks within paths need extensions, or a tab between the paths.

    Returns: one path if there is no second, and not one or two if the line is ambiguous.
    """
    if "\t" in line:
        return [path.strip() for path in line.split("\t")]
    fields = line.split()
    if len(fields) <= 2:
        return fields
    if not has_image_extension(line):
        return fields
    cuts = [prefix for prefix in _prefixes(line) if prefix != line and has_image_extension(prefix)]
    if len(cuts) > 1:
        return fields
    return [cuts[0], line.removeprefix(cuts[0]).strip()] if cuts else [line]


def _prefixes(line: str) -> Iterator[str]:
    """Yield what precedes each blank of a line, and the line."""
    for blank in re.finditer(r"\s+|$", line):
        yield line[: blank.start()]
