"""What the stages of a run spend on how many images: added up over all workers, for runs/RUN_ID.json and for plans."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


@dataclass
class Spent:
    """What a stage has spent."""

    seconds: float = 0.0  # of the work, by the clock
    cpu_seconds: float = 0.0  # of the processes meanwhile
    images: int = 0
    bytes: int = 0  # of files: read, or written

    def add(self, other: "Spent") -> None:
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.images += other.images
        self.bytes += other.bytes

    @property
    def seconds_per_image(self) -> float:
        return self.seconds / max(1, self.images)

    @property
    def cpu_seconds_per_image(self) -> float:
        return self.cpu_seconds / max(1, self.images)


class Report(NamedTuple):
    """What one process has spent since its last report, by stage."""

    spent: dict[str, Spent]
    first: set[str]  # stages that this process reports for the first time: libraries were loaded, caches empty


@dataclass
class StageSeconds:
    """All reports of a run together."""

    spent: dict[str, Spent] = field(default_factory=dict)
    warm: dict[str, Spent] = field(default_factory=dict)  # the same without each process's first report

    def add(self, report: Report) -> None:
        for stage, work in report.spent.items():
            self.spent.setdefault(stage, Spent()).add(work)
            if stage not in report.first:
                self.warm.setdefault(stage, Spent()).add(work)

    def as_json(self) -> dict[str, Any]:
        return {
            stage: {name: round(value, 3) for name, value in asdict(work).items()}
            for stage, work in sorted(self.spent.items())
        }
