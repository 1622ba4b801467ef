"""Time, images and bytes of each stage, summed over all workers. Used for runs/RUN_ID.json and for plans."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


@dataclass
class Spent:
    """Totals of a stage."""

    seconds: float = 0.0  # wall-clock time of the work
    cpu_seconds: float = 0.0  # CPU time of the processes
    images: int = 0
    bytes: int = 0  # of the files read or written

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
    """Totals of one process by stage since its last report."""

    spent: dict[str, Spent]
    first: set[str]  # stages that this process reports for the first time, with the time for loading libraries


@dataclass
class StageSeconds:
    """Sum of all reports of a run."""

    spent: dict[str, Spent] = field(default_factory=dict)
    warm: dict[str, Spent] = field(default_factory=dict)  # without each process's first report

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
