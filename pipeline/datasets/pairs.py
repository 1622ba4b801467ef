"""What a dataset's listing is made of: pairs of image and annotation, and what is wrong with it."""

import hashlib
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline import storage
from pipeline.config.data import DataFolder
from pipeline.errors import UserError
from pipeline.storage.places import Places

SHOWN = 5  # examples in an error message
NOWHERE = Places((), "data.allow")
OUTSIDE = "outside the places allowed"


@dataclass(frozen=True)
class Cell:
    """A place in a Parquet file that holds a file's bytes."""

    file: str
    row_group: int
    row: int  # in the file, from 0
    column: str
    places: Places = field(default=NOWHERE, compare=False)  # that it may name, where it has a path in place of bytes

    def __str__(self) -> str:
        return f"{self.file}#row={self.row}&column={self.column}"


@dataclass(frozen=True)
class Pair:
    """An image and its annotation: URIs, or cells of a Parquet file."""

    image: str | Cell
    label: str | Cell
    coding: str | None = None  # of the annotation, see dataset_formats.coding; None: label ids are class ids
    ignored: tuple[int, ...] = ()  # label ids of this annotation that are not trusted
    stamp: str = field(default="", compare=False)  # sizes and ETags when it was listed, where storage tells them

    @property
    def image_uri(self) -> str:
        """The image's name in messages."""
        return str(self.image)

    @property
    def label_uri(self) -> str:
        """The annotation's name in messages."""
        return str(self.label)


def fingerprint(pairs: Iterable[Pair]) -> str:
    """Short hash of a listing; it changes when a file is added, removed, renamed, resized or, on S3, written anew."""
    hashed = hashlib.sha256()
    for pair in pairs:
        entry = (pair.image_uri, pair.label_uri, pair.coding, pair.ignored, pair.stamp)
        hashed.update(repr(entry).encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()[:16]


class FindingKind(NamedTuple):
    """A kind of thing that can be wrong with a dataset."""

    is_error: bool  # or a warning
    remedy: str


FINDING_KINDS = {
    "no images": FindingKind(True, "check the folder, data.format and the split's name"),
    "unreadable list": FindingKind(True, "mend the lines"),
    OUTSIDE: FindingKind(True, "add a prefix to data.allow if what the row names is meant to be opened"),
    "missing image": FindingKind(True, "add the images or take them off the list"),
    "missing annotation": FindingKind(True, "add the annotations or remove the images"),
    "two files for one name": FindingKind(True, "keep one of them"),
    "unreadable image": FindingKind(True, "repair or remove it and its annotation"),
    "unreadable annotation": FindingKind(True, "repair or remove it and its image"),
    "sizes differ": FindingKind(True, "make image and annotation of one size"),
    "ids outside the classes": FindingKind(True, "add the classes to data.classes or map the ids with data.label_map"),
    "duplicate between splits": FindingKind(True, "keep the image in one split"),
    "duplicate within a split": FindingKind(False, "keep it once, unless it is meant to count more"),
    "annotation without image": FindingKind(False, "add the image or remove the annotation"),
    "nothing labelled": FindingKind(False, "check ignore_index and label_map if this is not meant"),
    "class that never occurs": FindingKind(False, "add images of it, or take it out of data.classes"),
}


@dataclass(frozen=True)
class DatasetFinding:
    """One thing that is wrong, of one of KINDS."""

    kind: str
    where: str  # file, and row or line in it
    message: str

    @property
    def is_error(self) -> bool:
        return FINDING_KINDS[self.kind].is_error


class PairError(UserError):
    """A pair that cannot be used; `finding` says the same for a report."""

    def __init__(self, message: str, finding: DatasetFinding) -> None:
        super().__init__(message, finding)
        self.finding = finding

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class Listing:
    """A split: its pairs in order, and everything that keeps other files from being pairs."""

    pairs: list[Pair] = field(default_factory=list)
    findings: list[DatasetFinding] = field(default_factory=list)

    def add(self, kind: str, where: str, message: str) -> None:
        self.findings.append(DatasetFinding(kind, where, message))

    def check_places(self, places: Places, where: str, *sources: str | Cell) -> bool:
        """Return whether a row's URIs lie in the places; a finding says which do not. Cells are checked when read."""
        uris = [source for source in sources if isinstance(source, str)]
        refused = [f"{uri} {refusal}" for uri in uris if (refusal := places.refusal(uri))]
        if refused:
            self.add(OUTSIDE, where, "; ".join(refused))
        return not refused


def places_of(data: DataFolder, file: str) -> Places:
    """Return what the rows of a list or table may name: what lies in root or in the file's folder, or is allowed."""
    places = [storage.absolute(data.root), posixpath.dirname(file), *data.allow]
    return Places([one if one.endswith("://") else storage.absolute(one) for one in places], "data.allow")
