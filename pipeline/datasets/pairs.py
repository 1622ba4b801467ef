"""Parts of a dataset listing: pairs of image and annotation, and findings (problems)."""

import hashlib
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline import storage
from pipeline.config.data import DataFolder
from pipeline.errors import UserError
from pipeline.storage.places import Places

SHOWN = 5  # examples per error message
NOWHERE = Places((), "data.allow")
OUTSIDE = "outside the places allowed"


@dataclass(frozen=True)
class Cell:
    """Cell of a Parquet file that holds the bytes of an image or annotation file."""

    file: str
    row_group: int
    row: int  # in the file, from 0
    column: str
    places: Places = field(default=NOWHERE, compare=False)  # allowed for a cell that holds a path instead of bytes

    def __str__(self) -> str:
        return f"{self.file}#row={self.row}&column={self.column}"


@dataclass(frozen=True)
class Pair:
    """Image and its annotation, each a URI or a cell of a Parquet file."""

    image: str | Cell
    label: str | Cell
    coding: str | None = None  # annotation encoding, see dataset_formats.coding; None: label ids are class ids
    ignored: tuple[int, ...] = ()  # label ids of this annotation with too low confidence
    stamp: str = field(default="", compare=False)  # sizes and ETags when listed, if the storage reports them

    @property
    def image_uri(self) -> str:
        """Name of the image in messages."""
        return str(self.image)

    @property
    def label_uri(self) -> str:
        """Name of the annotation in messages."""
        return str(self.label)

    @property
    def files(self) -> dict[str, str]:
        """URIs of the files that hold the image and the annotation, as the argument of `check_shared`."""
        sources = {"image": self.image, "annotation": self.label}
        return {name: source.file if isinstance(source, Cell) else source for name, source in sources.items()}


def fingerprint(pairs: Iterable[Pair]) -> str:
    """Return a short hash of a listing.

    It changes when a file is added, removed, renamed, changes its size, or, on S3, is overwritten.
    """
    hashed = hashlib.sha256()
    for pair in pairs:
        entry = (pair.image_uri, pair.label_uri, pair.coding, pair.ignored, pair.stamp)
        hashed.update(repr(entry).encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()[:16]


class FindingKind(NamedTuple):
    """Kind of problem that a dataset can have."""

    is_error: bool  # False: a warning
    remedy: str


FINDING_KINDS = {
    "no images": FindingKind(True, "check data.root, data.format and the name of the split"),
    "unreadable list": FindingKind(True, "fix these lines"),
    OUTSIDE: FindingKind(True, "if these files are part of the dataset, add their prefix to data.allow"),
    "missing image": FindingKind(True, "add the images or remove them from the list"),
    "suffix of annotations": FindingKind(True, "set data.label_suffix, or rename the annotations"),
    "missing annotation": FindingKind(True, "add the annotations or remove the images"),
    "two files for one name": FindingKind(True, "keep one of them"),
    "unreadable image": FindingKind(True, "repair the image, or remove it and its annotation"),
    "unreadable annotation": FindingKind(True, "repair the annotation, or remove it and its image"),
    "sizes differ": FindingKind(True, "make image and annotation the same size"),
    "orientations differ": FindingKind(
        True,
        "if the annotation matches the image as viewers show it, save the turned pixels without the tag; if it matches "
        "the stored pixels, remove the tag",
    ),
    "ids outside the classes": FindingKind(True, "add the classes to data.classes or map the ids with data.label_map"),
    "unknown colors": FindingKind(True, "set the colors of data.classes to those of the annotations"),
    "ignored foreground": FindingKind(True, "map the label id of the foreground to its class with data.label_map"),
    "masks of 1 and of 8 bits": FindingKind(True, "save all masks alike"),
    "duplicate between splits": FindingKind(True, "keep each image in only one split"),
    "duplicate within a split": FindingKind(False, "keep one copy, unless the image should have more weight"),
    "annotation without image": FindingKind(False, "add the image or remove the annotation"),
    "mostly ignored": FindingKind(False, "if these pixels have a class, map their label ids with data.label_map"),
    "nothing labelled": FindingKind(False, "if this is not intended, check ignore_index and label_map"),
    "class that never occurs": FindingKind(False, "add images of the class, or remove it from data.classes"),
}


@dataclass(frozen=True)
class DatasetFinding:
    """One problem found in a dataset."""

    kind: str  # a key of FINDING_KINDS
    where: str  # file, and row or line within it
    message: str

    @property
    def is_error(self) -> bool:
        return FINDING_KINDS[self.kind].is_error


class PairError(UserError):
    """Error for a pair that cannot be used; `finding` is the same problem as an entry of a report."""

    def __init__(self, message: str, finding: DatasetFinding) -> None:
        super().__init__(message, finding)
        self.finding = finding


@dataclass
class Listing:
    """Pairs of a split in order, and the problems found while listing it."""

    pairs: list[Pair] = field(default_factory=list)
    findings: list[DatasetFinding] = field(default_factory=list)

    def add(self, kind: str, where: str, message: str) -> None:
        self.findings.append(DatasetFinding(kind, where, message))

    def check_places(self, places: Places, where: str, *sources: str | Cell) -> bool:
        """Return True if all URIs of a row are in allowed places, and add a finding otherwise.

        Cells are checked when they are read.
        """
        uris = [source for source in sources if isinstance(source, str)]
        refused = [f"{uri} {refusal}" for uri in uris if (refusal := places.refusal(uri))]
        if refused:
            self.add(OUTSIDE, where, "; ".join(refused))
        return not refused


def places_of(data: DataFolder, file: str) -> Places:
    """Return the places that rows of a list or table may refer to: root, the file's own folder, and data.allow."""
    places = [data.root, posixpath.dirname(file), *data.allow]
    return Places([one if one.endswith("://") else storage.absolute(one) for one in places], "data.allow")
