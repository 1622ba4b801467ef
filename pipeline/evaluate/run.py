"""What jobs/evaluate.py does: evaluate a checkpoint, fit its temperature if asked, and write down what was found."""

import json
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.cluster import connection
from pipeline.cluster.sizing import size_actor_pool
from pipeline.config.data import DataConfig
from pipeline.config.jobs import EvaluateConfig
from pipeline.console import duration, log
from pipeline.datasets import list_pairs
from pipeline.errors import UserError
from pipeline.evaluate.evaluation import Evaluation, evaluate
from pipeline.evaluate.report import PAGE, confusion_figure, evaluation_page, reliability_figure
from pipeline.html.charts import png
from pipeline.metrics.calibration_error import BINS, ConfidenceCounts
from pipeline.storage.parquet_files import parquet_bytes

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended; of a fitted temperature, the evaluation is the one with it."""

    evaluation: Evaluation
    about: dict[str, Any]  # as in metrics.json
    before: Evaluation | None  # with the former temperature


def evaluate_checkpoint(config: EvaluateConfig) -> Outcome:
    """Evaluate a checkpoint on the validation split of a dataset.

    Raises: UserError, for everything that can be known before an actor starts within seconds.
    """
    model = Checkpoint.load(config.checkpoint, long_side=None)
    model.require_precision(config.checkpoint, config.precision)
    data = model.data_config(config.checkpoint, config.data)
    if config.fit_temperature:
        _check_no_evaluation(config.fit_temperature)
    if config.output:
        storage.open_filesystem(config.output)
    pairs = list_pairs(data, data.val_split)

    connection.connect(config.verbose)
    stages = size_actor_pool(config, connection.resources())
    log(f"Evaluating {config.checkpoint} on {len(pairs):,} images of {data.root}, split {data.val_split}")

    def evaluated(uri: str, fit_temperature: bool) -> Evaluation:
        return evaluate(
            uri,
            pairs,
            data,
            config.protocol,
            gpu=config.gpu,
            predictors=stages.predictors,
            predictor_cpus=stages.predictor_cpus,
            threads=stages.predictor_threads,
            precision=config.precision,
            boundary=config.boundary,
            fit_temperature=fit_temperature,
            worst=config.worst if config.output else 0,
            on_progress=_Line(),
        )

    evaluation, before = evaluated(config.checkpoint, bool(config.fit_temperature)), None
    if config.fit_temperature:
        assert evaluation.temperature_factor is not None
        temperature = model.metadata.temperature * evaluation.temperature_factor
        write_checkpoint(config.fit_temperature, model.network, replace(model.metadata, temperature=temperature))
        log(f"Temperature {temperature:.4f} written to {config.fit_temperature}; evaluating that")
        model = Checkpoint.load(config.fit_temperature, long_side=None)
        evaluation, before = evaluated(config.fit_temperature, False), evaluation
    about = describe(config, model, data, evaluation)
    if before is not None and before.confidence is not None:
        about["expected_calibration_error_before"] = _number(before.confidence.error)
    if config.output:
        write_results(config.output, evaluation, about, model, before.confidence if before else None)
    return Outcome(evaluation, about, before)


def summary_lines(outcome: Outcome) -> list[str]:
    """The figures as a user reads them, the classes' IoU from high to low."""
    about, before = outcome.about, outcome.before
    lines = [
        f"Images                 {about['images']:,} with {about['labelled_pixels']:,} labelled pixels, in "
        f"{duration(outcome.evaluation.seconds)}",
        f"mIoU                   {_text(about['miou'])}",
        f"Mean class accuracy    {_text(about['mean_accuracy'])}",
        f"Pixel accuracy         {_text(about['pixel_accuracy'])}",
        f"Frequency-weighted IoU {_text(about['frequency_weighted_iou'])}",
    ]
    if about["boundary_iou"] is not None:
        lines.append(f"Boundary IoU           {_text(about['boundary_iou'])}")
    error = f"Calibration error      {_text(about['expected_calibration_error'])}"
    if before is not None:
        assert before.confidence is not None
        error += f" with temperature {about['temperature']:.4f}, {_text(before.confidence.error)} before"
    width = max(5, *(len(row["name"]) for row in about["classes"]))
    lines += [error, f"  {'class':<{width}}     IoU  accuracy  precision  boundary IoU  share of pixels"]
    known = [row for row in about["classes"] if row["iou"] is not None]
    for row in sorted(known, key=lambda row: -row["iou"]):
        ratios = [_text(row[key]) for key in ("iou", "accuracy", "precision", "boundary_iou")]
        share = row["true_pixels"] / about["labelled_pixels"]
        columns = [text.rjust(places) for text, places in zip(ratios, (6, 8, 9, 12), strict=True)]
        lines.append(f"  {row['name']:<{width}}  {'  '.join(columns)}  {share:>15.2%}")
    absent = [row["name"] for row in about["classes"] if row["iou"] is None]
    return [*lines, f"  neither true nor predicted: {', '.join(absent)}"] if absent else lines


def describe(config: EvaluateConfig, model: Checkpoint, data: DataConfig, evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json says: JSON types, null for a ratio of nothing."""
    metrics, confusion_KK, boundary = evaluation.metrics, evaluation.confusion_KK, evaluation.boundary
    values: dict[str, Any] = {
        "checkpoint": storage.absolute(config.fit_temperature or config.checkpoint),
        "model_id": model.model_id,
        "dataset": storage.absolute(data.root),
        "split": data.val_split,
        "images": len(evaluation.images),
        "labelled_pixels": int(confusion_KK.sum()),
        "miou": _number(metrics.miou),
        "mean_accuracy": _number(metrics.mean_accuracy),
        "pixel_accuracy": _number(metrics.pixel_accuracy),
        "frequency_weighted_iou": _number(metrics.frequency_weighted_iou),
        "boundary_iou": _number(boundary.mean) if boundary else None,
        "temperature": model.metadata.temperature,
    }
    confidence = evaluation.confidence
    if confidence is not None:
        values["expected_calibration_error"] = _number(confidence.error)
        values["mean_confidence"] = _number(confidence.mean_confidence)
        values["confidence_bins"] = [
            {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "pixels": int(confidence.pixels_B[index]),
                "correct": int(confidence.correct_B[index]),
                "confidence_sum": float(confidence.confidence_B[index]),
            }
            for index in range(BINS)
        ]
    values["classes"] = [
        {
            "id": k,
            "name": entry.name,
            "color": list(entry.color),
            "iou": _number(metrics.iou_K[k]),
            "accuracy": _number(metrics.accuracy_K[k]),
            "precision": _number(metrics.precision_K[k]),
            "boundary_iou": _number(boundary.iou_K[k]) if boundary else None,
            "true_pixels": int(confusion_KK[k].sum()),
            "predicted_pixels": int(confusion_KK[:, k].sum()),
        }
        for k, entry in enumerate(data.classes)
    ]
    return values | {
        "protocol": config.protocol.model_dump(mode="json"),
        "long_side": data.long_side,
        "precision": config.precision,
        "seconds": round(evaluation.seconds, 2),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_results(
    output: str, evaluation: Evaluation, about: dict[str, Any], model: Checkpoint, before: ConfidenceCounts | None
) -> None:
    """Write metrics.json, tables, pictures and the page to the output, in place of earlier ones."""
    names = model.class_names
    files = {
        "metrics.json": json.dumps(about, indent=1, allow_nan=False).encode(),
        "confusion.parquet": parquet_bytes(confusion_table(evaluation, names)),
        "images.parquet": parquet_bytes(pa.Table.from_pylist([asdict(image) for image in evaluation.images])),
        "confusion.png": png(confusion_figure(evaluation.confusion_KK, names)),
        PAGE: evaluation_page(evaluation, about, model.palette, before),
    }
    if evaluation.confidence is not None:
        files["reliability.png"] = png(reliability_figure(evaluation.confidence, before))
    for name, content in files.items():
        storage.write_bytes(storage.join(output, name), content)


def confusion_table(evaluation: Evaluation, names: list[str]) -> pa.Table:
    """One row for each pair of classes."""
    rows = [
        {
            "true_id": true_id,
            "true_class": true_name,
            "predicted_id": predicted_id,
            "predicted_class": predicted_name,
            "pixels": int(evaluation.confusion_KK[true_id, predicted_id]),
        }
        for true_id, true_name in enumerate(names)
        for predicted_id, predicted_name in enumerate(names)
    ]
    return pa.Table.from_pylist(rows)


class _Line:
    """Prints a progress line every so often."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES and done < total:
            left = (now - self._start) / done * (total - done)
            log(f"  {done:,} of {total:,} images · {duration(left)} left")
            self._last = now


def _check_no_evaluation(uri: str) -> None:
    """Raise UserError where a checkpoint, or a part of one, is."""
    from models.weights.checkpoint import CONFIG, WEIGHTS

    found = [name for name in (WEIGHTS, CONFIG) if storage.exists(storage.join(uri, name))]
    if found:
        raise UserError(
            f"fit_temperature {uri}: holds {' and '.join(found)} already, and a temperature makes another model; "
            "choose another folder, or delete this one first"
        )


def _number(value: float) -> float | None:
    """The ratio as JSON has it, None for nan."""
    return None if value != value else round(float(value), 6)


def _text(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.4f}"
