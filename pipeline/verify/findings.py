"""What can be wrong with an output, in a bounded list of kinds, and how it is told."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

SHOWN = 10  # findings of a kind that are told one by one

# remove: the file goes; relabel: the part goes and its images are labelled again; newest: of an image's rows one
# stays, of the newest run; note: nothing to mend in the output, what is gone is put on record.
Repair = Literal["remove", "relabel", "newest", "note"]


class FindingKind(NamedTuple):
    """A kind of thing that can be wrong with an output."""

    repair: Repair | None  # what --repair does; None where a person has to decide
    remedy: str


_REMOVE = FindingKind("remove", "--repair deletes it")
_RELABEL = FindingKind("relabel", "--repair deletes the part, and the next run labels its images again")

FINDING_KINDS = {
    # files
    "half-written file": _REMOVE,
    "statistics without masks": _REMOVE,
    "masks without statistics": _RELABEL,
    "not a part": FindingKind(None, "move it away, since readers take all files there for parts"),
    "unreadable part": _RELABEL,
    "wrong columns": _RELABEL,
    "empty part": _REMOVE,
    "wrong part name": FindingKind(None, "its rows may be right: name both files as it says, or remove them"),
    "no classes.parquet": FindingKind(None, "copy it from a backup or from another output of the same model"),
    "wrong classes.parquet": FindingKind(None, "copy it from a backup or from another output of the same model"),
    # rows of masks
    "several runs in a part": _RELABEL,
    "another model": _RELABEL,
    "image in two parts": FindingKind("newest", "--repair keeps one row, of the newest run, and so does the next run"),
    "image twice in a part": _RELABEL,
    "wrong image id": _RELABEL,
    "unknown status": _RELABEL,
    "error in an ok row": _RELABEL,
    "no mask": _RELABEL,
    "no size": _RELABEL,
    "wrong confidence": _RELABEL,
    "unknown error": _RELABEL,
    "labels in an error row": _RELABEL,
    # class_stats, and how they go with the masks
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
    "wrong run file": FindingKind(None, "delete it: it tells of a run, and nothing depends on it"),
    "wrong counts": FindingKind(None, "look at the parts of that run: it does not account for all of them"),
    "lost images": FindingKind("note", "give segment_bucket.py the inputs of that run again; --repair notes the loss"),
    # inputs
    "no row": FindingKind(None, "run segment_bucket.py with this input again"),
}


@dataclass(frozen=True)
class OutputFinding:
    """One thing that is wrong, of one of KINDS."""

    kind: str
    file: str  # relative to the output; the input's URI for an image without a row
    message: str
    image: str | None = None  # its URI, where it is about one row
    more: int = 0  # rows of the same file that it stands for, too

    def __post_init__(self) -> None:
        assert self.kind in FINDING_KINDS, self.kind

    @property
    def repairable(self) -> bool:
        return FINDING_KINDS[self.kind].repair is not None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.image, self.message) if part)


@dataclass
class Tally:
    """All findings counted, and the first of each kind."""

    totals: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[OutputFinding]] = field(default_factory=dict)

    def add(self, finding: OutputFinding) -> None:
        self.totals[finding.kind] += 1 + finding.more
        examples = self.examples.setdefault(finding.kind, [])
        if len(examples) < SHOWN:
            examples.append(finding)

    @property
    def repairable(self) -> int:
        """How many findings --repair mends."""
        return sum(count for kind, count in self.totals.items() if FINDING_KINDS[kind].repair is not None)

    def lines(self) -> Iterator[str]:
        """One line for each finding below one for its kind, in the order of KINDS; of many the first alone."""
        for kind in sorted(self.totals, key=list(FINDING_KINDS).index):
            yield f"{kind}: {self.totals[kind]:,}; {FINDING_KINDS[kind].remedy}"
            for finding in self.examples[kind]:
                yield f"  {finding}"
            if self.totals[kind] > len(self.examples[kind]):
                yield f"  ... and {self.totals[kind] - len(self.examples[kind]):,} more"
