"""Kinds of findings about an output (a fixed list), their remedies, and how they are reported."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

SHOWN = 10  # findings of one kind that are listed individually

# remove: delete the file. relabel: delete the part, so that its images are labeled again. newest: keep one of the rows
# of an image, of the newest run. note: there is nothing to repair in the output; record what is missing.
Repair = Literal["remove", "relabel", "newest", "note"]


class FindingKind(NamedTuple):
    """Kind of problem that an output can have."""

    repair: Repair | None  # what --repair does; None if a person has to decide
    remedy: str


_REMOVE = FindingKind("remove", "--repair deletes it")
_RELABEL = FindingKind("relabel", "--repair deletes the part, and the next run labels its images again")

FINDING_KINDS = {
    # files
    "half-written file": _REMOVE,
    "statistics without masks": _REMOVE,
    "masks without statistics": _RELABEL,
    "not a part": FindingKind(None, "move it out of the folder, because readers treat every file there as a part"),
    "unreadable part": _RELABEL,
    "wrong columns": _RELABEL,
    "empty part": _REMOVE,
    "wrong part name": FindingKind(None, "its rows may be right: rename both files as expected, or delete them"),
    "no classes.parquet": FindingKind(None, "copy it from a backup or from another output of the same model"),
    "wrong classes.parquet": FindingKind(None, "copy it from a backup or from another output of the same model"),
    # rows of masks
    "several runs in a part": _RELABEL,
    "another model": _RELABEL,
    "image in two parts": FindingKind("newest", "--repair keeps the row of the newest run, and so does the next run"),
    "image twice in a part": _RELABEL,
    "wrong image id": _RELABEL,
    "unknown status": _RELABEL,
    "error in an ok row": _RELABEL,
    "no mask": _RELABEL,
    "no size": _RELABEL,
    "wrong confidence": _RELABEL,
    "unknown error": _RELABEL,
    "labels in an error row": _RELABEL,
    # class_stats, and their agreement with masks
    "statistics without image": _RELABEL,
    "unknown class": _RELABEL,
    "wrong class name": _RELABEL,
    "wrong class_ids": _RELABEL,
    "wrong pixel count": _RELABEL,
    "wrong pixel fraction": _RELABEL,
    "wrong box": _RELABEL,
    "wrong centroid": _RELABEL,
    # decoded masks
    "undecodable mask": _RELABEL,
    "wrong mask size": _RELABEL,
    "unknown class in a mask": _RELABEL,
    "mask and statistics differ": _RELABEL,
    # runs
    "wrong run file": FindingKind(None, "delete it: it is only a record, and nothing depends on it"),
    "wrong counts": FindingKind(None, "inspect the parts of that run: its record does not account for all rows"),
    "lost images": FindingKind("note", "run segment_bucket.py on the inputs of that run again; --repair records it"),
    # inputs
    "no row": FindingKind(None, "run segment_bucket.py with this input again"),
}


@dataclass(frozen=True)
class OutputFinding:
    """One problem in an output, of one of FINDING_KINDS."""

    kind: str
    file: str  # path relative to the output
    message: str
    image: str | None = None  # URI of the image, if the finding is about one row
    more: int = 0  # further rows of the same file that this finding stands for

    def __post_init__(self) -> None:
        assert self.kind in FINDING_KINDS, self.kind

    @property
    def repairable(self) -> bool:
        return FINDING_KINDS[self.kind].repair is not None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.image, self.message) if part)


@dataclass
class Tally:
    """Counts of all findings, and the first findings of each kind."""

    totals: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[OutputFinding]] = field(default_factory=dict)

    def add(self, finding: OutputFinding) -> None:
        self.totals[finding.kind] += 1 + finding.more
        examples = self.examples.setdefault(finding.kind, [])
        if len(examples) < SHOWN:
            examples.append(finding)

    @property
    def repairable(self) -> int:
        """Return the number of findings that --repair fixes."""
        return sum(count for kind, count in self.totals.items() if FINDING_KINDS[kind].repair is not None)

    def lines(self) -> Iterator[str]:
        """Yield a line for each kind, in the order of FINDING_KINDS, and then a line for each of its first findings."""
        for kind in sorted(self.totals, key=list(FINDING_KINDS).index):
            yield f"{kind}: {self.totals[kind]:,}; {FINDING_KINDS[kind].remedy}"
            for finding in self.examples[kind]:
                yield f"  {finding}"
            if self.totals[kind] > len(self.examples[kind]):
                yield f"  ... and {self.totals[kind] - len(self.examples[kind]):,} more"
