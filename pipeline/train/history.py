"""History of a training run: one record per logged step and per validation, saved in the run's output.

    OUTPUT/history.jsonl           all records, without pictures
    OUTPUT/pictures/latest.json    images of the latest validation as data URIs (from pipeline/html/pictures.py)
    OUTPUT/pictures/best.json      images of the best validation, likewise

pipeline/train/report.py builds the report from these files.
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
MAX_STEPS = 10_000  # step records to keep; a longer history is thinned evenly
DIGITS = 6

Record = dict[str, Any]


@dataclass
class History:
    """Records of a run, sorted by step.

    A step record has step, epoch, loss, auxiliary_loss, learning_rate, images_per_second and gradient_norm; a
    validation record has step, epoch, checkpoint, seconds and metrics. Both have `elapsed`: the training time so far in
    seconds, including earlier starts of the run. Non-finite numbers are None.
    """

    steps: list[Record] = field(default_factory=list)
    validations: list[Record] = field(default_factory=list)
    mlflow_run: str | None = None  # id of the run in MLflow
    elapsed: float = 0.0

    def add(self, record: Record) -> None:
        """Add a step or validation record. It replaces an earlier record of the same step."""
        kind, step = record["kind"], record["step"]
        kept = _plain({key: value for key, value in record.items() if key not in ("panel", "worst")})
        self.elapsed = max(self.elapsed, kept.get("elapsed") or 0.0)
        records = self.validations if kind == "validation" else self.steps
        if not records or records[-1]["step"] < step:
            records.append(kept)
        else:  # validations run in parallel with training and can finish out of order
            records[:] = sorted([*(other for other in records if other["step"] != step), kept], key=_step)
        if len(self.steps) > 2 * MAX_STEPS:
            self.steps = thinned(self.steps, MAX_STEPS)

    def rewind(self, step: int) -> None:
        """Drop all records after `step`, from which training resumes."""
        self.steps = [record for record in self.steps if record["step"] <= step]
        self.validations = [record for record in self.validations if record["step"] <= step]

    def best(self) -> Record | None:
        """Return the validation with the highest mIoU, the earliest one in case of ties; None if there is none yet."""
        measured = [record for record in self.validations if record["metrics"].get("miou") is not None]
        return max(measured, key=lambda record: record["metrics"]["miou"], default=None)

    def content(self) -> bytes:
        """Return the content of the history file: one JSON object per line."""
        about = {"kind": "run", "elapsed": round(self.elapsed, 1), "mlflow_run": self.mlflow_run}
        records = [about, *thinned(self.steps, MAX_STEPS), *self.validations]
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def read_history(output: str) -> History:
    """Read the history from a run's output. It is empty for a new run. Raises UserError."""
    uri = storage.join(output, HISTORY)
    history = History()
    if not storage.exists(uri):
        return history
    try:
        records = [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
    except ValueError as error:
        raise UserError(
            f"{uri}: not a valid training history ({error}); delete it to continue without the earlier curves"
        ) from None
    for record in records:
        if record["kind"] == "run":
            history.elapsed, history.mlflow_run = record["elapsed"], record["mlflow_run"]
        else:
            (history.validations if record["kind"] == "validation" else history.steps).append(record)
    return history


def pictures_uri(output: str, which: str) -> str:
    """Return the URI of the pictures of the `latest` or the `best` validation."""
    return storage.join(output, PICTURES, f"{which}.json")


def read_pictures(output: str, step: int | None) -> dict[str, Any] | None:
    """Return the pictures of the validation at `step` if saved, else of the latest one; None if there is none yet."""
    latest = None
    for which in ("best", "latest"):
        uri = pictures_uri(output, which)
        if storage.exists(uri):
            latest = json.loads(storage.read_bytes(uri))
            if latest["step"] == step:
                return latest
    return latest


def thinned(records: list[Record], most: int) -> list[Record]:
    """Return at most `most` + 1 records, evenly spaced in steps and including the last one."""
    if len(records) <= most:
        return records
    width = 1  # one record is kept per `width` steps; powers of 2, so that thinning again drops every other record
    while records[-1]["step"] // width > most:
        width *= 2
    return list({record["step"] // width: record for record in records}.values())


def epochs_of(steps: int, steps_per_epoch: int) -> int | float:
    """Return the epochs that steps make up: an integer at the end of an epoch, else rounded to three digits."""
    epochs, rest = divmod(steps, steps_per_epoch)
    return round(steps / steps_per_epoch, 3) if rest else epochs


def finite(values: Iterable[float | None]) -> list[float]:
    """Return the values that are neither None nor infinite nor nan."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _step(record: Record) -> int:
    return record["step"]


def _plain(value: Any) -> Any:
    """Convert to JSON types: no NumPy scalars, None for nan and infinity, and only as many digits as a chart shows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
