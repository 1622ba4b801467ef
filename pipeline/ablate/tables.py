"""Results of an ablation: their Parquet schema, and tables in the paper's layout next to its published numbers."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.ablate.grid import PYRAMID, Case, cases_of
from pipeline.config.jobs import AblateConfig
from pipeline.datasets.scenes import AMBIGUOUS_PAIRS

Row = dict[str, Any]  # a row of RESULTS


def _field(name: str, kind: pa.DataType, description: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable, {"description": description})


RESULTS = pa.schema(
    [
        _field("run", pa.string(), "name of the training, a folder in runs/"),
        _field("experiments", pa.list_(pa.field("element", pa.string())), "experiments that include the training"),
        _field("backbone", pa.string(), "dilated ResNet"),
        _field("bins", pa.list_(pa.field("element", pa.int32())), "pyramid levels, cells per side; [] for none"),
        _field("pooling", pa.string(), "'average' or 'max'; null without bins", nullable=True),
        _field("reduce", pa.bool_(), "dimension reduction after pooling; null without bins", nullable=True),
        _field("auxiliary_weight", pa.float64(), "weight of the auxiliary loss; 0: no auxiliary head"),
        _field("seed", pa.int64(), "random seed of weights, shuffling and augmentation"),
        _field("protocol", pa.string(), "'single-scale' or 'multi-scale', both with mirroring"),
        _field("miou", pa.float64(), "mIoU of the last checkpoint on the validation split, 0 to 1"),
        _field("pixel_accuracy", pa.float64(), "pixel accuracy, likewise"),
        _field("class_iou", pa.map_(pa.string(), pa.float64()), "IoU by class name, for classes that occur"),
        _field("steps", pa.int64(), "training steps"),
        _field("seconds", pa.float64(), "duration of training including validation, over all starts"),
        _field("config_hash", pa.string(), "hash of the settings that determine the training's outcome"),
    ]
)

SPREAD = "mean ± standard deviation over seeds"


@dataclass(frozen=True)
class Table:
    """Table of text cells with a title and a note. The first column is left-aligned, all others right-aligned."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """Format the table for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

        def line(row: list[str]) -> str:
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            return "  ".join([row[0].ljust(len(first)), *others]).rstrip()

        lines = [line(row) for row in (self.header, ["-" * width for width in widths], *self.rows)]
        return "\n".join([self.title, self.note, "", *lines])

    def markdown(self) -> str:
        """Format the table for ablation.md."""
        rule = ["-"] + ["-:"] * (len(self.header) - 1)
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", self.note, "", *lines])


def ambiguous_classes(class_names: Sequence[str]) -> list[str]:
    """Return the classes of the built-in scenes that only context distinguishes; empty for other datasets."""
    ambiguous = [name for pair in AMBIGUOUS_PAIRS for name in pair]
    return ambiguous if set(ambiguous) <= set(class_names) else []


def tables_of(config: AblateConfig, rows: Sequence[Row]) -> list[Table]:
    """Return one table per experiment, followed by a test of the paper's claim if there is a pooling experiment.

    Missing trainings show as a dash, or as a mean over fewer seeds with their number.
    """
    results = _Results(config, rows)
    titles = {
        "pooling": "Pooling (the paper's table 1)",
        "auxiliary": "Weight of the auxiliary loss, network without pooling (the paper's table 2)",
        "depth": "Depth of the backbone (the paper's table 3)",
        "scales": "Single-scale and multi-scale testing (the paper's table 3)",
    }
    tables = [results.table(titles[name], cases_of(name, config)) for name in config.experiments]
    if "pooling" in config.experiments:
        tables.append(results.claim(cases_of("pooling", config)))
    return tables


class _Results:
    def __init__(self, config: AblateConfig, rows: Sequence[Row]) -> None:
        self.config = config
        self.ambiguous = ambiguous_classes([entry.name for entry in config.data.classes])
        self._rows = {_key(row): row for row in rows}
        self.measures: dict[str, Callable[[Row], float]] = {
            "mIoU": lambda row: row["miou"],
            "pixel acc.": lambda row: row["pixel_accuracy"],
        }
        if self.ambiguous:
            self.measures["context mIoU"] = self._context

    def table(self, title: str, cases: list[Case]) -> Table:
        rows = []
        for case in cases:
            measured = [self._mean([measure(row) for row in self._of(case)]) for measure in self.measures.values()]
            published = [f"{value:.2f}" for value in case.paper] if case.paper else ["–", "–"]
            rows.append([case.label, *measured, *published])
        note = (
            f"Percent, {SPREAD} {', '.join(map(str, self.config.seeds))}; the paper's numbers are from ADE20K, one "
            "training each."
        )
        if self.ambiguous:
            note += f" Context mIoU is over {', '.join(self.ambiguous)}."
        return Table(title, note, ["", *self.measures, "paper mIoU", "paper acc."], rows)

    def claim(self, cases: list[Case]) -> Table:
        """Return the differences, at equal seeds, between networks that differ only in their bins."""
        measures = {name: measure for name, measure in self.measures.items() if name != "pixel acc."}
        baseline = cases[0]
        one_bin = {_like(case): case for case in cases if case.setting.bins == (1,)}
        rows = []
        for case in cases:
            if case.setting.bins == PYRAMID:
                one = one_bin[_like(case)]
                rows += [self._difference(one, baseline, measures), self._difference(case, one, measures)]
        header = [""]
        for name in measures:
            header += [name, "seeds above 0"]
        header.append("paper mIoU")
        note = f"Percentage points, {SPREAD}; both networks of a difference have the same seed."
        return Table("The claim: baseline < B1 < B1236", note, header, rows)

    def _difference(self, better: Case, worse: Case, measures: dict[str, Callable[[Row], float]]) -> list[str]:
        cells = [f"{better.label} − {worse.label.removeprefix('+ ')}"]
        pairs = [(row, self._row(worse, row["seed"])) for row in self._of(better)]
        for measure in measures.values():
            differences = [measure(row) - measure(other) for row, other in pairs if other is not None]
            above = sum(difference > 0 for difference in differences)
            cells += [self._mean(differences, signed=True), f"{above} of {len(differences)}"]
        published = f"{better.paper.miou - worse.paper.miou:+.2f}" if better.paper and worse.paper else "–"
        return [*cells, published]

    def _of(self, case: Case) -> list[Row]:
        found = [self._row(case, seed) for seed in self.config.seeds]
        return [row for row in found if row is not None]

    def _row(self, case: Case, seed: int) -> Row | None:
        return self._rows.get((case.setting.name, seed, case.protocol))

    def _mean(self, values: list[float], signed: bool = False) -> str:
        """Format the mean in percent with two digits, as in the paper: `41.68 ± 0.21`."""
        if not values:
            return "–"
        text = f"{100 * statistics.mean(values):{'+' if signed else ''}.2f}"
        if len(values) > 1:
            text += f" ± {100 * statistics.stdev(values):.2f}"
        missing = len(values) < len(self.config.seeds)
        return f"{text} ({len(values)} of {len(self.config.seeds)})" if missing else text

    def _context(self, row: Row) -> float:
        """Return the mean IoU of the ambiguous classes, without those that are neither annotated nor predicted."""
        iou = dict(row["class_iou"])
        return statistics.mean(iou[name] for name in self.ambiguous if name in iou)


def _like(case: Case) -> tuple[str, bool]:
    """Return the settings that must be equal for comparing the bins of two networks."""
    return case.setting.pooling, case.setting.reduce


def _key(row: Row) -> tuple[str, int, str]:
    return row["run"].rpartition("-seed")[0], row["seed"], row["protocol"]
