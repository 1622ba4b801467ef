"""What the stages of a segmentation run do with one block of images: tasks decode, actors predict.

Does not import torch, which would cost every decoding process seconds; the actors load it with their model.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from pipeline import monitoring, storage
from pipeline.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.images import ImageError, decode_image, encode_mask, shrink
from pipeline.prediction import use_threads, with_protocol
from pipeline.recipe import ProtocolConfig
from pipeline.tables import DECODED, PREDICTED, table

# Decoded pixels are handed on in pieces of about this size, so that large images do not pile up in a task.
DECODED_BYTES = 32_000_000
# Downloaded together, while those before them are decoded: at most so many images, and so many bytes of files.
FETCHED_TOGETHER, FETCHED_BYTES = 16, 64_000_000
# A run is not given up for its error rate before it has seen this many images.
FEWEST_TO_JUDGE = 200


class Limits(NamedTuple):
    """Of an image; one that is beyond them becomes an error row."""

    max_pixels: int
    max_bytes: int  # of its file
    seconds: float  # of decoding


def decode(listed: pa.Table, limits: Limits, long_side: int | None) -> Iterator[pa.Table]:
    """Download and decode a block of LISTED images into DECODED rows; a failure becomes a row that says why."""
    cv2.setNumThreads(1)
    rows: list[dict[str, Any]] = []
    listed_rows = listed.to_pylist()
    for row in listed_rows:
        if row["error_type"] is None and (row["size_bytes"] or 0) > limits.max_bytes:
            row |= _failure("download", "TooLarge", f"{row['size_bytes']} bytes; the limit is {limits.max_bytes}")
    for row, file in _downloaded(listed_rows):
        start = time.perf_counter()
        if isinstance(file, Exception):
            row |= _failure("download", storage.failure_kind(file), str(file))
        elif file is not None:
            # It may have changed since it was listed.
            row |= {"etag": file.etag, "size_bytes": len(file.content)}
            try:
                with monitoring.timed("decode"):
                    row |= _decoded(file.content, limits, long_side)
            except ImageError as error:
                row |= _failure("decode", error.kind, error.message)
        row["seconds"] = time.perf_counter() - start
        rows.append(row)
        if sum(len(row.get("pixels", b"")) for row in rows) > DECODED_BYTES:
            yield table(rows, DECODED)
            rows = []
    if rows:
        yield table(rows, DECODED)


def _downloaded(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], storage.Fetched | Exception | None]]:
    """Yields every row with its file, None for one that has failed already; downloads while the caller decodes."""
    groups = list(_groups(rows))

    def fetch(group: list[dict[str, Any]]) -> list[storage.Fetched | Exception]:
        with monitoring.timed("download"):
            return storage.fetch_objects([row["image_uri"] for row in group if row["error_type"] is None])

    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(fetch, group) for group in groups[:1]]
        for group, following in zip_longest(groups, groups[1:]):
            contents = iter(waiting.pop().result())
            if following:
                waiting.append(ahead.submit(fetch, following))
            for row in group:
                yield row, None if row["error_type"] else next(contents)


def _groups(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        if len(group) == FETCHED_TOGETHER or sum(each["size_bytes"] or 0 for each in [*group, row]) > FETCHED_BYTES:
            if group:
                yield group
            group = []
        group.append(row)
    if group:
        yield group


class Segmenter:
    """Actor that predicts DECODED rows into PREDICTED rows; holds one Predictor."""

    def __init__(
        self,
        checkpoint: str,
        model_id: str,
        long_side: int | None,
        protocol: ProtocolConfig,
        device: str,
        precision: str,
        batch_size: int,
        threads: int,
        max_error_rate: float,
        board: Any,
    ) -> None:
        use_threads(device, threads)
        self._problem: UserError | None = None
        # Not kept: the predictor has packed its own weights.
        model = Checkpoint.load(checkpoint, long_side, protocol)
        if model.model_id != model_id:
            # Raised by the first call: what an actor raises while it is made reaches the driver as text alone.
            self._problem = UserError(f"checkpoint {checkpoint}: changed while the run was starting; start it again")
        self._predictor = with_protocol(model.predictor(device, precision), protocol)
        self._palette = model.palette
        self._batch_size = batch_size
        self._max_error_rate = max_error_rate
        self._board = board
        self._counts: Any = None  # of the run, as the board has them; on its way
        self._idle_since = time.perf_counter()
        # Masks are compressed (outside the interpreter's lock) while the next batch is predicted.
        self._encoders = ThreadPoolExecutor(2)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        if self._problem is not None:
            raise self._problem
        monitoring.count_wait(time.perf_counter() - self._idle_since)
        rows = decoded.to_pylist()
        masks: list[tuple[dict[str, Any], Future[bytes]]] = []
        self._tell([row for row in rows if row["error_type"]])
        for batch in _batches_of_one_size(rows, self._batch_size):
            masks += self._predict(batch)
            self._tell(batch)
        for row, mask in masks:
            row["mask"] = {"bytes": mask.result(), "path": row["image_id"].hex() + ".png"}
        keep = PREDICTED.names
        predicted = table([{name: row[name] for name in keep if name in row} for row in rows], PREDICTED)
        self._idle_since = time.perf_counter()
        return predicted

    def _tell(self, rows: list[dict[str, Any]]) -> None:
        """Tell the board how images ended, and give up a run that goes wrong by what it answered the last time.

        Raises: UserError.
        """
        import ray

        if not rows:
            return
        counts = ray.get(self._counts) if self._counts is not None else {}
        outcomes = Counter(row.get("error_type") or "ok" for row in rows)
        self._counts = self._board.add.remote(**outcomes)
        monitoring.count_images(outcomes)
        seen, failed = sum(counts.values()), sum(counts.values()) - counts.get("ok", 0)
        if seen >= FEWEST_TO_JUDGE and failed > self._max_error_rate * seen:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()) if kind != "ok")
            raise UserError(
                f"max_error_rate {self._max_error_rate}: {failed:,} of the first {seen:,} images failed ({kinds}); "
                "check the input, leave out what are no images with --include or --exclude, or raise --max-error-rate"
            )

    def _predict(self, batch: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Future[bytes]]]:
        import torch

        start = time.perf_counter()
        first = batch[0]
        shape = (first["input_height"], first["input_width"], 3)
        images_NHW3 = np.stack([np.frombuffer(row.pop("pixels"), np.uint8).reshape(shape) for row in batch])
        try:
            with monitoring.timed("predict"):
                prediction = self._predictor.predict(images_NHW3, (first["height"], first["width"]))
        except (torch.OutOfMemoryError, MemoryError) as error:
            for row in batch:
                row |= _failure("predict", "OutOfMemory", f"{shape} pixels: {error}")
            return []
        seconds = (time.perf_counter() - start) / len(batch)
        masks = []
        for n, row in enumerate(batch):
            row["seconds"] += seconds
            row["mean_confidence"] = float(prediction.mean_confidence_N[n])
            row["mean_entropy"] = float(prediction.mean_entropy_N[n])
            row["low_confidence_fraction"] = float(prediction.low_confidence_fraction_N[n])
            row["classes"] = class_rows(prediction, n)
            masks.append((row, self._encoders.submit(encode_mask, prediction.class_ids_NHW[n], self._palette)))
        return masks


def _decoded(content: bytes, limits: Limits, long_side: int | None) -> dict[str, Any]:
    image_HW3 = decode_image(content, *limits)
    small_HW3 = shrink(image_HW3, long_side)
    return {
        "width": image_HW3.shape[1],
        "height": image_HW3.shape[0],
        "input_width": small_HW3.shape[1],
        "input_height": small_HW3.shape[0],
        "pixels": np.ascontiguousarray(small_HW3).tobytes(),
    }


def _failure(stage: str, kind: str, message: str) -> dict[str, Any]:
    return {"error_stage": stage, "error_type": kind, "error_message": message}


def _batches_of_one_size(rows: list[dict[str, Any]], batch_size: int) -> Iterator[list[dict[str, Any]]]:
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["error_type"] is None:
            groups[row["height"], row["width"], row["input_height"], row["input_width"]].append(row)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def class_rows(prediction: Any, n: int) -> list[dict[str, Any]]:
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
