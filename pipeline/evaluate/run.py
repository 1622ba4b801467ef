"""Driver of jobs/evaluate.py: evaluate a checkpoint, optionally fit its temperature, and write the results."""

import json
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.checkpoints.predictor import PredictorSpec
from pipeline.cluster import connection
from pipeline.cluster.shared_files import check_shared
from pipeline.cluster.sizing import Reservation, size_actor_pool
from pipeline.config.data import DataConfig
from pipeline.config.jobs import EvaluateConfig
from pipeline.console import duration, log
from pipeline.datasets import list_pairs
from pipeline.errors import UserError
from pipeline.evaluate.evaluation import Evaluation, evaluate
from pipeline.evaluate.report import PAGE, confusion_figure, evaluation_page, reliability_figure
from pipeline.evaluate.stages import EvalOptions
from pipeline.html.charts import png
from pipeline.metrics.calibration_error import BINS, ConfidenceCounts
from pipeline.storage.parquet_files import parquet_bytes

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Outcome:
    """Result of the job. If a temperature was fitted, the evaluation uses it."""

    evaluation: Evaluation
    about: dict[str, Any]  # content of metrics.json
    before: Evaluation | None  # evaluation with the previous temperature; None if none was fitted


def evaluate_checkpoint(config: EvaluateConfig) -> Outcome:
    """Evaluate a checkpoint on the validation split of a dataset.

    Raises: UserError, within seconds if the error can be detected before an actor starts.
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
    check_shared({"checkpoint": config.checkpoint, **pairs[0].files})
    stages = size_actor_pool(config, connection.resources())
    log(f"Evaluating {config.checkpoint} on {len(pairs):,} images of {data.root}, split {data.val_split}")

    def evaluated(uri: str, fit_temperature: bool) -> Evaluation:
        spec = PredictorSpec(
            checkpoint=uri,
            protocol=config.protocol,
            gpu=config.gpu,
            precision=config.precision,
            threads=stages.predictor_threads,
            fill=tuple(model.metadata.mean),
        )
        options = EvalOptions(
            boundary=config.boundary, fit_temperature=fit_temperature, worst=config.worst if config.output else 0
        )
        predictors = Reservation("predictors", stages.predictors, stages.predictor_cpus, config.gpu)
        return evaluate(spec, pairs, data, predictors, options, _Line())

    evaluation, before = evaluated(config.checkpoint, bool(config.fit_temperature)), None
    if config.fit_temperature:
        assert evaluation.temperature_factor is not None
        temperature = model.metadata.temperature * evaluation.temperature_factor
        write_checkpoint(config.fit_temperature, model.network, replace(model.metadata, temperature=temperature))
        log(f"Temperature {temperature:.4f} written to {config.fit_temperature}; evaluating the new checkpoint")
        model = Checkpoint.load(config.fit_temperature, long_side=None)
        evaluation, before = evaluated(config.fit_temperature, False), evaluation
    about = describe(config, model, data, evaluation)
    if before is not None and before.confidence is not None:
        about["expected_calibration_error_before"] = _number(before.confidence.error)
    if config.output:
        write_results(config.output, evaluation, about, model, before.confidence if before else None)
    return Outcome(evaluation, about, before)


def summary_lines(outcome: Outcome) -> list[str]:
    """Return the metrics as text lines, with the classes sorted by IoU, the highest first."""
    about, before = outcome.about, outcome.before
    lines = [
        f"Images                 {about['images']:,} with {about['labelled_pixels']:,} labeled pixels, in "
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
    return [*lines, f"  neither annotated nor predicted: {', '.join(absent)}"] if absent else lines


def describe(config: EvaluateConfig, model: Checkpoint, data: DataConfig, evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of metrics.json: JSON types, null for a ratio with a zero denominator."""
    metrics, confusion_KK, boundary = evaluation.metrics, evaluation.confusion_KK, evaluation.boundary
    values: dict[str, Any] = {
        "checkpoint": config.fit_temperature or config.checkpoint,
        "model_id": model.model_id,
        "dataset": data.root,
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
    """Write metrics.json, tables, pictures and the page to the output; existing files are overwritten."""
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
    """Return the confusion matrix as a table with one row per pair of classes."""
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
    """Progress line, printed every SECONDS_BETWEEN_LINES."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES and done < total:
            left = (now - self._start) / done * (total - done)
            log(f"  {done:,} of {total:,} images · {duration(left)} left")
            self._last = now


def _check_no_evaluation(uri: str) -> None:
    """Raise UserError if the folder contains a checkpoint, or a part of one."""
    from models.weights.checkpoint import CONFIG, WEIGHTS

    found = [name for name in (WEIGHTS, CONFIG) if storage.exists(storage.join(uri, name))]
    if found:
        raise UserError(
            f"fit_temperature {uri}: already contains {' and '.join(found)}, which would be overwritten by a different "
            "model; choose another folder, or delete this one first"
        )


def _number(value: float) -> float | None:
    """Round a ratio for JSON; None for nan."""
    return None if value != value else round(float(value), 6)


def _text(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.4f}"
