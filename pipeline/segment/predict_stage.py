"""Predict stage: the actor that predicts decoded images.

Imports torch only when the actor is created, because the driver imports this module, too.
"""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.checkpoints.predictor import PredictorActor, PredictorSpec, is_out_of_memory
from pipeline.errors import UserError
from pipeline.images.codec import ImageError, encode_mask
from pipeline.output.errors import failure
from pipeline.segment import large_images, prometheus
from pipeline.segment.crash_isolation import BlockAttempt
from pipeline.segment.prediction_rows import outcome, predicted_table
from pipeline.segment.stage_timing import Spent

# Images after which the error rate of a run is checked for the first time.
MIN_TO_JUDGE = 200
SECONDS_BETWEEN_LINES = 30.0  # between the progress lines of a large image
CALLS = 2  # concurrent calls of one actor


class PredictStage(PredictorActor):
    """Actor that turns DECODED rows into PREDICTED rows; holds one Predictor.

    Ray calls it with CALLS blocks concurrently, from its own threads: one block is predicted while Ray transfers the
    next input and the previous output. A single thread runs all predictions, in the order of the calls.
    """

    def __init__(self, spec: PredictorSpec, max_error_rate: float, progress_actor: Any) -> None:
        super().__init__(spec)
        # One block at a time: if two blocks took turns, both would finish late.
        self._submitting = threading.Lock()
        self._batch_size = spec.batch_size
        self._max_error_rate = max_error_rate
        self._progress_actor = progress_actor
        self._counts: Any = None  # ObjectRef of the run's counts, as of the last update of the progress actor
        self._idle_since = time.perf_counter()  # end of the last prediction
        self._processor_since = time.process_time()
        self._counting_processor = threading.Lock()
        # Masks are compressed, without holding the GIL, while the next batch is predicted.
        self._encoders = ThreadPoolExecutor(2)

    def __call__(self, decoded: pa.Table) -> Iterator[pa.Table]:
        self.require_ready()
        rows = decoded.to_pylist()
        attempt = BlockAttempt("predict", rows, self._progress_actor)
        in_memory = [row for row in rows if not row["by_window"]]
        if in_memory:
            yield self._segment(in_memory, attempt)
        for row in rows:
            if row["by_window"]:
                # One table per image, because a single mask may reach the size limit of a table's column.
                yield self._segment_by_window(row, attempt)
        attempt.end()
        with self._counting_processor:
            self._processor_since = prometheus.count_processor("predict", self._processor_since)
        self._progress_actor.add_timing.remote(prometheus.report())

    def _segment(self, rows: list[dict[str, Any]], attempt: BlockAttempt) -> pa.Table:
        self._tell([row for row in rows if row["error_type"]])
        # Keep only a few batches of a block in memory, because predictions and masks have the images' original size.
        predicting: deque[tuple[list[dict[str, Any]], Future[list[Any]]]] = deque()
        encoding: deque[list[tuple[dict[str, Any], Future[bytes]]]] = deque()
        batch_size, ahead, behind = (1, 0, 0) if attempt.one_by_one else (self._batch_size, 1, 1)

        def finish(most_predicting: int, most_encoding: int) -> None:
            while len(predicting) > most_predicting:
                batch, predictions = predicting.popleft()
                encoding.append(self._finished(batch, predictions.result()))
                self._tell(batch)
            while len(encoding) > most_encoding:
                self._encoded(encoding.popleft())

        with self._submitting:
            for batch in _batches_of_one_size(rows, batch_size):
                with attempt.at(batch[0]["image_id"]):
                    predicting.append((batch, self.submit(self._predict, batch, *_inputs(batch))))
                    finish(ahead, behind)
        finish(0, 0)
        return predicted_table(rows)

    def _segment_by_window(self, row: dict[str, Any], attempt: BlockAttempt) -> pa.Table:
        """Read, label and encode one image by window. A failure of this image becomes an error row."""
        if row["error_type"]:
            self._tell([row])
            return predicted_table([row])
        try:
            with attempt.at(row["image_id"]):
                prediction = self.submit(self._predict_by_window, row).result()
                with prometheus.timed("encode") as work:
                    mask = encode_mask(prediction.class_ids_NHW[0], self.palette)
                    work.bytes = len(mask)
            row["seconds"] += work.seconds
            if len(mask) > large_images.MAX_MASK_BYTES:
                limit = large_images.MAX_MASK_BYTES
                raise ImageError("TooLarge", f"its mask has {len(mask)} bytes as PNG; the limit is {limit}")
            row |= {**outcome(prediction, 0), "mask": {"bytes": mask, "path": row["image_id"].hex() + ".png"}}
        except (ImageError, large_images.ReadFault) as error:
            row |= large_images.failed(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size = f"{row['width']} x {row['height']} pixels by window"
            row |= failure("predict", "OutOfMemory", f"{size}: {storage.reason(error)}")
        self._tell([row])
        return predicted_table([row])

    def _predict_by_window(self, row: dict[str, Any]) -> Any:
        try:
            with self._working() as work:
                return large_images.predicted(self.predictor, row, self._telling(row))
        finally:
            row["seconds"] += work.seconds

    @contextmanager
    def _working(self, images: int = 1) -> Iterator[Spent]:
        """Record the time of the `with` block as predicting `images`, and the idle time before it as waiting."""
        prometheus.count_wait(time.perf_counter() - self._idle_since)
        try:
            with prometheus.timed("predict", images) as work:
                yield work
        finally:
            self._idle_since = time.perf_counter()

    def _telling(self, row: dict[str, Any]) -> Callable[[float], None]:
        """Return a callback that logs the progress of a large image every 30 seconds: one may take hours."""
        told = time.monotonic()

        def on_read(share: float) -> None:
            nonlocal told
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                size = f"{row['width']:,} x {row['height']:,} pixels"
                self._progress_actor.log.remote(f"{row['image_uri']}: read {share:.0%} of {size}")

        return on_read

    def _tell(self, rows: list[dict[str, Any]]) -> None:
        """Report the outcomes of images to the progress actor, and check the error rate of the run.

        The check uses the counts that the previous report returned, so that it need not wait for an answer.

        Raises: UserError if more than `max_error_rate` of the run's images have failed.
        """
        import ray

        if not rows:
            return
        counts = ray.get(self._counts) if self._counts is not None else {}
        outcomes = Counter(row.get("error_type") or "ok" for row in rows)
        self._counts = self._progress_actor.add.remote(**outcomes)
        prometheus.count_images(outcomes)
        seen, failed = sum(counts.values()), sum(counts.values()) - counts.get("ok", 0)
        if seen >= MIN_TO_JUDGE and failed > self._max_error_rate * seen:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()) if kind != "ok")
            raise UserError(
                f"max_error_rate {self._max_error_rate}: {failed:,} of the first {seen:,} images failed ({kinds}); "
                "check the input, filter out files that are not images with --include or --exclude, or raise "
                "--max-error-rate"
            )

    def _predict(
        self, batch: list[dict[str, Any]], images_NHW3: NDArray[np.uint8], output_sizes: list[tuple[int, int]]
    ) -> list[Any]:
        """Return for each row its models.Prediction, or the error if memory is too small for the image alone."""
        with self._working(len(batch)) as work:
            predictions = self._predict_what_fits(images_NHW3, output_sizes)
        for row in batch:
            row["seconds"] += work.seconds_per_image
        return predictions

    def _predict_what_fits(self, images_NHW3: NDArray[np.uint8], output_sizes: list[tuple[int, int]]) -> list[Any]:
        try:
            return self.predictor.predict_each(images_NHW3, output_sizes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(output_sizes) == 1:
                return [error.with_traceback(None)]  # the traceback would keep the tensors of its frames alive
        half = len(output_sizes) // 2
        parts = slice(half), slice(half, None)
        return [one for part in parts for one in self._predict_what_fits(images_NHW3[part], output_sizes[part])]

    def _finished(
        self, batch: list[dict[str, Any]], predictions: list[Any]
    ) -> list[tuple[dict[str, Any], Future[bytes]]]:
        """Fill in the rows of a batch except for their masks; return each row with the future of its PNG."""
        masks = []
        for row, prediction in zip(batch, predictions, strict=True):
            if isinstance(prediction, Exception):
                shape = row["input_height"], row["input_width"], 3
                row |= failure("predict", "OutOfMemory", f"{shape} pixels: {storage.reason(prediction)}")
                continue
            row |= outcome(prediction, 0)
            masks.append((row, self._encoders.submit(encode_mask, prediction.class_ids_NHW[0], self.palette)))
        return masks

    def _encoded(self, masks: list[tuple[dict[str, Any], Future[bytes]]]) -> None:
        with prometheus.timed("encode", len(masks)) as work:
            for row, mask in masks:
                row["mask"] = {"bytes": mask.result(), "path": row["image_id"].hex() + ".png"}
                work.bytes += len(row["mask"]["bytes"])


def _inputs(batch: list[dict[str, Any]]) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """Return the pixels of a batch, removed from its rows, and the (height, width) of each mask."""
    shape = (batch[0]["input_height"], batch[0]["input_width"], 3)
    images_NHW3 = np.stack([np.frombuffer(row.pop("pixels"), np.uint8).reshape(shape) for row in batch])
    return images_NHW3, [(row["height"], row["width"]) for row in batch]


def _batches_of_one_size(rows: list[dict[str, Any]], batch_size: int) -> Iterator[list[dict[str, Any]]]:
    groups: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["error_type"] is None:
            groups[row["input_height"], row["input_width"]].append(row)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
