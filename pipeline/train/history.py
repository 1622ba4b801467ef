"""What a training run has gone through: one record for each logged step and each validation, kept in its output.

    OUTPUT/history.jsonl           all records but the pictures
    OUTPUT/pictures/latest.json    images of the latest validation, and of the best one, as data URIs;
    OUTPUT/pictures/best.json      pipeline/html/pictures.py makes them

The files are what pipeline/train/report.py builds a report of.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline import storage
from pipeline.errors import UserError

HISTORY = "history.jsonl"
PICTURES = "pictures"
MAX_STEPS = 10_000  # step records that are kept; of more, evenly spaced ones
DIGITS = 6

Record = dict[str, Any]


@dataclass
class History:
    """Records of a run in the order of their steps.

    A step record has step, epoch, loss, auxiliary_loss, learning_rate, images_per_second and gradient_norm; a
    validation record has step, epoch, checkpoint, seconds and metrics. Both have `elapsed`, seconds of training time so
    far, over all the processes that the run has had. Numbers that are not finite are None.
    """

    steps: list[Record] = field(default_factory=list)
    validations: list[Record] = field(default_factory=list)
    mlflow_run: str | None = None  # id of the run in MLflow
    elapsed: float = 0.0

    def add(self, record: Record) -> None:
        """Take up a step or validation record. Another one of the same step replaces the first."""
        kind, step = record["kind"], record["step"]
        kept = _plain({key: value for key, value in record.items() if key not in ("panel", "worst")})
        self.elapsed = max(self.elapsed, kept.get("elapsed") or 0.0)
        records = self.validations if kind == "validation" else self.steps
        if not records or records[-1]["step"] < step:
            records.append(kept)
        else:  # validations run beside training and may end in another order
            records[:] = sorted([*(other for other in records if other["step"] != step), kept], key=_step)
        if len(self.steps) > 2 * MAX_STEPS:
            self.steps = thinned(self.steps, MAX_STEPS)

    def rewind(self, step: int) -> None:
        """Forget what came after `step`: training goes on from there."""
        self.steps = [record for record in self.steps if record["step"] <= step]
        self.validations = [record for record in self.validations if record["step"] <= step]

    def best(self) -> Record | None:
        """The validation of the highest mIoU, the first of equals; None before one is measured."""
        measured = [record for record in self.validations if record["metrics"].get("miou") is not None]
        return max(measured, key=lambda record: record["metrics"]["miou"], default=None)

    def content(self) -> bytes:
        """The history file: one JSON object a line."""
        about = {"kind": "run", "elapsed": round(self.elapsed, 1), "mlflow_run": self.mlflow_run}
        records = [about, *thinned(self.steps, MAX_STEPS), *self.validations]
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def read_history(output: str) -> History:
    """The history in a run's output, empty for a new one. Raises UserError."""
    uri = storage.join(output, HISTORY)
    history = History()
    if not storage.exists(uri):
        return history
    try:
        records = [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
    except ValueError as error:
        raise UserError(
            f"{uri}: not what a training run writes ({error}); remove it to go on without the earlier curves"
        ) from None
    for record in records:
        if record["kind"] == "run":
            history.elapsed, history.mlflow_run = record["elapsed"], record["mlflow_run"]
        else:
            (history.validations if record["kind"] == "validation" else history.steps).append(record)
    return history


def pictures_uri(output: str, which: str) -> str:
    """Where the pictures of the `latest` or the `best` validation are kept."""
    return storage.join(output, PICTURES, f"{which}.json")


def read_pictures(output: str, step: int | None) -> dict[str, Any] | None:
    """Pictures of the validation of that step if they are kept, else of the latest one; None before the first."""
    latest = None
    for which in ("best", "latest"):
        uri = pictures_uri(output, which)
        if storage.exists(uri):
            latest = json.loads(storage.read_bytes(uri))
            if latest["step"] == step:
                return latest
    return latest


def thinned(records: list[Record], most: int) -> list[Record]:
    """At most so many records and one, evenly spaced in steps; the last one is among them."""
    if len(records) <= most:
        return records
    width = 1  # of a stretch of steps of which one record stays; doubled, so that thinning again drops every other one
    while records[-1]["step"] // width > most:
        width *= 2
    return list({record["step"] // width: record for record in records}.values())


def finite(values: Iterable[float | None]) -> list[float]:
    """The numbers that there are."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _step(record: Record) -> int:
    return record["step"]


def _plain(value: Any) -> Any:
    """As JSON has it: no NumPy scalars, no nan, and no more digits than a chart shows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
