"""What the stages of a segmentation run do with one block of images: tasks decode, actors predict.

Does not import torch, which would cost every decoding process seconds; the actors load it with their model.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.images import ImageError, decode_image, encode_mask, shrink
from pipeline.tables import DECODED, PREDICTED, table

# Decoded pixels are handed on in pieces of about this size, so that large images do not pile up in a task.
DECODED_BYTES = 64_000_000


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
        # Not kept: the predictor has packed its own weights.
        model = Checkpoint.load(checkpoint, long_side)
        if model.model_id != model_id:
            raise UserError(f"checkpoint {checkpoint}: changed while the run was starting; start it again")
        self._predictor = model.predictor(device, precision)
        self._palette = model.palette
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
            masks.append((row, self._encoders.submit(encode_mask, prediction.class_ids_NHW[n], self._palette)))
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
