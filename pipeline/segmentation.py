"""Labelling a bucket: listed images are decoded by tasks, predicted by actors and written as parts.

    list_images -> decode (tasks) -> Segmenter (actors) -> PartSink (tasks)

This module does not import torch: the processes that decode and write would spend seconds on it.
"""

import json
import math
import os
import platform
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from numpy.typing import NDArray

from pipeline import cluster, parts, storage
from pipeline.config import SegmentConfig
from pipeline.errors import UserError, user_error
from pipeline.images import ImageError, decode_image, encode_mask, shrink
from pipeline.manifest import list_images, refuse_output_inside_input
from pipeline.progress import SegmentationLine, say, start_board, watched
from pipeline.sink import PartSink
from pipeline.tables import CLASSES, DECODED, PREDICTED, SCHEMA_VERSION, table

IMAGES_PER_BLOCK = 16
# Decoded pixels are handed on in pieces of about this size, so that large images do not pile up in a task.
DECODED_BYTES = 64_000_000


@dataclass
class Summary:
    """How a run ended."""

    run_id: str
    output: str
    total: int  # images in the input
    done_before: int
    outcomes: dict[str, int] = field(default_factory=dict)  # of this run: 'ok' or kind of failure -> images
    failures: list[dict[str, str]] = field(default_factory=list)  # the first of this run's failed images
    seconds: float = 0.0
    seconds_to_first: float | None = None

    @property
    def missing(self) -> int:
        """Images that have no row yet."""
        return self.total - self.done_before - sum(self.outcomes.values())


def segment(config: SegmentConfig) -> Summary:
    """Label every image of the input that the output does not hold yet.

    Raises: UserError, for everything that can be known before an actor starts within seconds.
    """
    started = time.monotonic()
    output = storage.absolute(config.output)
    refuse_output_inside_input(config.input, output)
    model = _Checkpoint.read(config)
    images = list_images(config.input)
    _claim_output(output, model)
    reconciled = parts.reconcile(output)
    for line in reconciled.mended:
        say(f"mended: {line}")
    todo = images.filter(pc.invert(pc.is_in(images["image_id"], value_set=reconciled.image_ids)))
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    summary = Summary(run_id, output, len(images), len(images) - len(todo))
    say(f"{len(images):,} images in {config.input}, {summary.done_before:,} of them done; model {model.model_id}")
    if len(todo):
        _run(config, model, todo, summary)
    summary.seconds = time.monotonic() - started
    _write_run(config, model, summary)
    return summary


def _run(config: SegmentConfig, model: "_Checkpoint", todo: pa.Table, summary: Summary) -> None:
    cluster.connect(config.verbose)
    stages = plan_stages(config, cluster.resources())
    board = start_board()
    sink = PartSink(summary.output, model.class_names, model.model_id, summary.run_id, config.rows_per_part)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.verbose_progress = config.verbose
    context.print_on_execution_start = False
    blocks = [todo.slice(start, IMAGES_PER_BLOCK) for start in range(0, len(todo), IMAGES_PER_BLOCK)]
    pipeline = (
        ray.data.from_arrow(blocks)
        .map_batches(
            decode,  # type: ignore[arg-type]  # Ray's types know no extra arguments
            fn_kwargs={"max_pixels": config.max_pixels, "long_side": model.long_side},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            concurrency=stages.decode_tasks,
        )
        .map_batches(
            Segmenter,
            fn_constructor_kwargs={
                "checkpoint": storage.absolute(config.checkpoint),
                "model_id": model.model_id,
                "long_side": config.long_side,
                "device": "cuda" if config.gpu else "cpu",
                "precision": config.precision,
                "batch_size": config.batch_size,
                "threads": stages.predictor_threads,
                "board": board,
            },
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=stages.predictor_cpus,
            num_gpus=1 if config.gpu else 0,
            compute=ray.data.ActorPoolStrategy(size=stages.predictors),
        )
    )
    line = SegmentationLine(len(todo))
    try:
        with watched(board, line.show):
            pipeline.write_datasink(sink, ray_remote_args={"num_cpus": 1}, concurrency=stages.write_tasks)
    except Exception as error:
        raise user_error(error) or error from None
    summary.seconds_to_first = line.seconds_to_first
    summary.outcomes = dict(sum((Counter(part.outcomes) for part in sink.written), Counter()))
    names = {part.name for part in sink.written}
    parts.remove_strays(summary.output, summary.run_id, names)
    failed = [part.name for part in sink.written if set(part.outcomes) != {"ok"}]
    summary.failures = _first_failures(summary.output, failed)


@dataclass(frozen=True)
class Stages:
    """How many of each there are, and what each reserves."""

    predictors: int
    predictor_cpus: int
    predictor_threads: int
    decode_tasks: int
    write_tasks: int


def plan_stages(config: SegmentConfig, have: cluster.Resources) -> Stages:
    """Size the stages so that each can always run: predictors never reserve the CPUs that feed them.

    A CPU predictor reserves half of its node and computes with all of it: decoding takes little beside it.

    Raises: UserError where the cluster cannot hold the predictors and one CPU beside them.
    """
    if config.gpu and not have.gpus:
        raise UserError("gpu: the cluster has no GPU; add a GPU node or leave out --gpu")
    predictors = config.predictors or (have.gpus if config.gpu else have.cpu_nodes)
    if config.gpu and predictors > have.gpus:
        raise UserError(f"predictors: {predictors} asked for, but the cluster has {have.gpus} GPU(s)")
    reserved = config.predictor_cpus or (1 if config.gpu else max(1, have.node_cpus // 2))
    left = have.cpus - predictors * reserved
    if left < 1:
        raise UserError(
            f"predictors: {predictors} with {reserved} CPU(s) each leave none of the cluster's {have.cpus} CPUs "
            "for decoding; lower --predictors or --predictor-cpus, or add CPUs"
        )
    on_a_node = math.ceil(predictors / max(1, have.cpu_nodes))
    threads = config.predictor_cpus or max(1, (os.cpu_count() or 1) // on_a_node)
    return Stages(predictors, reserved, threads, decode_tasks=max(1, left // 2), write_tasks=max(1, left // 4))


def decode(listed: pa.Table, max_pixels: int, long_side: int | None) -> Iterator[pa.Table]:
    """Download and decode a block of LISTED images into DECODED rows; a failure becomes a row that says why."""
    cv2.setNumThreads(1)
    rows: list[dict[str, Any]] = []
    listed_rows = listed.to_pylist()
    contents = storage.fetch([row["image_uri"] for row in listed_rows])
    for row, content in zip(listed_rows, contents, strict=True):
        start = time.perf_counter()
        if isinstance(content, Exception):
            row |= {"error_stage": "download", **_failure(storage.failure_kind(content), str(content))}
        else:
            try:
                row |= _decoded(content, max_pixels, long_side)
            except ImageError as error:
                row |= {"error_stage": "decode", **_failure(error.kind, error.message)}
        row["seconds"] = time.perf_counter() - start
        rows.append(row)
        if sum(len(row.get("pixels", b"")) for row in rows) > DECODED_BYTES:
            yield table(rows, DECODED)
            rows = []
    if rows:
        yield table(rows, DECODED)


class Segmenter:
    """Actor that predicts DECODED rows into PREDICTED rows; holds one Predictor."""

    def __init__(
        self,
        checkpoint: str,
        model_id: str,
        long_side: int | None,
        device: str,
        precision: str,
        batch_size: int,
        threads: int,
        board: Any,
    ) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self._model = _Checkpoint.load(checkpoint, long_side)
        if self._model.model_id != model_id:
            raise UserError(f"checkpoint {checkpoint}: changed while the run was starting; start it again")
        self._predictor = self._model.predictor(device, precision)
        self._batch_size = batch_size
        self._board = board
        # Masks are compressed (outside the interpreter's lock) while the next batch is predicted.
        self._encoders = ThreadPoolExecutor(2)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        rows = decoded.to_pylist()
        masks: list[tuple[dict[str, Any], Future[bytes]]] = []
        for batch in _batches_of_one_size(rows, self._batch_size):
            masks += self._predict(batch)
        for row, mask in masks:
            row["mask"] = {"bytes": mask.result(), "path": row["image_id"].hex() + ".png"}
        outcomes = Counter(row.get("error_type") or "ok" for row in rows)
        self._board.add.remote(**outcomes)
        keep = PREDICTED.names
        return table([{name: row[name] for name in keep if name in row} for row in rows], PREDICTED)

    def _predict(self, batch: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Future[bytes]]]:
        import torch

        start = time.perf_counter()
        first = batch[0]
        shape = (first["input_height"], first["input_width"], 3)
        images_NHW3 = np.stack([np.frombuffer(row.pop("pixels"), np.uint8).reshape(shape) for row in batch])
        try:
            prediction = self._predictor.predict(images_NHW3, (first["height"], first["width"]))
        except (torch.OutOfMemoryError, MemoryError) as error:
            for row in batch:
                row |= {"error_stage": "predict", **_failure("OutOfMemory", f"{shape} pixels: {error}")}
            return []
        seconds = (time.perf_counter() - start) / len(batch)
        masks = []
        for n, row in enumerate(batch):
            row["seconds"] += seconds
            row["mean_confidence"] = float(prediction.mean_confidence_N[n])
            row["mean_entropy"] = float(prediction.mean_entropy_N[n])
            row["low_confidence_fraction"] = float(prediction.low_confidence_fraction_N[n])
            row["classes"] = _class_rows(prediction, n)
            masks.append((row, self._encoders.submit(encode_mask, prediction.class_ids_NHW[n], self._model.palette)))
        return masks


def _decoded(content: bytes, max_pixels: int, long_side: int | None) -> dict[str, Any]:
    image_HW3 = decode_image(content, max_pixels)
    small_HW3 = shrink(image_HW3, long_side)
    return {
        "width": image_HW3.shape[1],
        "height": image_HW3.shape[0],
        "input_width": small_HW3.shape[1],
        "input_height": small_HW3.shape[0],
        "pixels": np.ascontiguousarray(small_HW3).tobytes(),
    }


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"error_type": kind, "error_message": message}


def _batches_of_one_size(rows: list[dict[str, Any]], batch_size: int) -> Iterator[list[dict[str, Any]]]:
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["error_type"] is None:
            groups[row["height"], row["width"], row["input_height"], row["input_width"]].append(row)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _class_rows(prediction: Any, n: int) -> list[dict[str, Any]]:
    counts = prediction.pixel_count_NK[n]
    total = int(counts.sum())
    rows = []
    for k in np.flatnonzero(counts):
        x_min, y_min, x_max, y_max = (int(edge) for edge in prediction.box_NK4[n, k])
        centroid_x, centroid_y = (float(mean) for mean in prediction.centroid_NK2[n, k])
        rows.append(
            {
                "class_id": int(k),
                "pixel_count": int(counts[k]),
                "pixel_fraction": int(counts[k]) / total,
                "mean_confidence": float(prediction.confidence_sum_NK[n, k] / counts[k]),
                "x_min": x_min,
                "y_min": y_min,
                "x_max": x_max,
                "y_max": y_max,
                "centroid_x": centroid_x,
                "centroid_y": centroid_y,
            }
        )
    return rows


@dataclass(frozen=True)
class _Checkpoint:
    """A loaded checkpoint and how images are prepared for it."""

    network: Any
    metadata: Any
    long_side: int | None
    model_id: str

    @classmethod
    def read(cls, config: SegmentConfig) -> "_Checkpoint":
        return cls.load(config.checkpoint, config.long_side)

    @classmethod
    def load(cls, uri: str, long_side: int | None) -> "_Checkpoint":
        import models

        with storage.local_copy(uri) as folder:
            try:
                network, metadata = models.load(folder)
            except (ValueError, FileNotFoundError) as error:
                raise UserError(f"checkpoint {uri}: {error}") from error
        if long_side is not None:
            # Another preprocessing makes other masks, so it counts as another model.
            metadata.preprocessing = {**metadata.preprocessing, "long_side": long_side}
        return cls(network, metadata, metadata.preprocessing.get("long_side"), models.model_id(network, metadata))

    @property
    def class_names(self) -> list[str]:
        return list(self.metadata.classes)

    @property
    def palette(self) -> NDArray[np.uint8]:
        return np.array(self.metadata.colors, np.uint8)

    def predictor(self, device: str, precision: Any) -> Any:
        from models import Predictor

        return Predictor(self.network, self.metadata.mean, self.metadata.std, device=device, precision=precision)


def _claim_output(output: str, model: _Checkpoint) -> None:
    """Write the output's class table, which names its model; refuse an output of another model or schema."""
    uri = storage.join(output, "classes.parquet")
    ours = {"sceneparse.model_id": model.model_id, "sceneparse.schema_version": SCHEMA_VERSION}
    if storage.exists(uri):
        existing = parts.read_table(uri)
        found = {key.decode(): value.decode() for key, value in (existing.schema.metadata or {}).items()}
        for key, meaning in (("sceneparse.schema_version", "table schema"), ("sceneparse.model_id", "model")):
            if found.get(key) != ours[key]:
                raise UserError(
                    f"output {output} belongs to another {meaning} ({found.get(key)}, this one is {ours[key]}); "
                    "an output holds one model with one preprocessing: choose another --output, or use that checkpoint"
                )
        if existing["class_name"].to_pylist() != model.class_names:
            raise UserError(
                f"output {output} names its classes {existing['class_name'].to_pylist()}, the checkpoint "
                f"{model.class_names}; choose another --output, or use a checkpoint of those classes"
            )
        return
    if storage.find(storage.join(output, "masks")):
        raise UserError(f"output {output} has masks but no classes.parquet, so its model is unknown; choose another")
    rows = [
        {"class_id": k, "class_name": name, "red": red, "green": green, "blue": blue}
        for k, (name, (red, green, blue)) in enumerate(zip(model.class_names, model.metadata.colors, strict=True))
    ]
    parts.write_table(uri, table(rows, CLASSES.with_metadata(ours)))


def _first_failures(output: str, names: list[str], most: int = 10) -> list[dict[str, str]]:
    columns = ["image_uri", "error_stage", "error_type", "error_message"]
    failures: list[dict[str, str]] = []
    for name in names:
        part = parts.read_table(storage.join(output, "masks", name), columns)
        failures += part.filter(pc.is_valid(part["error_type"])).to_pylist()
        if len(failures) >= most:
            break
    return failures[:most]


def _write_run(config: SegmentConfig, model: _Checkpoint, summary: Summary) -> None:
    run = {
        "run_id": summary.run_id,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_id": model.model_id,
        "configuration": config.model_dump(mode="json"),
        "images": summary.total,
        "done_before": summary.done_before,
        "outcomes": summary.outcomes,
        "seconds": round(summary.seconds, 2),
        "seconds_to_first": summary.seconds_to_first,
        "versions": {"python": platform.python_version(), "ray": ray.__version__, "pyarrow": pa.__version__},
    }
    uri = storage.join(summary.output, "runs", f"{summary.run_id}.json")
    storage.write_bytes(uri, json.dumps(run, indent=1).encode())
