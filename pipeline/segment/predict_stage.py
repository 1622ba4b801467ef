"""The actor that predicts decoded images. Imports torch only when it is made, since the driver imports it, too."""

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
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.predictor import is_out_of_memory, use_threads, with_protocol
from pipeline.config.training import ProtocolConfig
from pipeline.errors import UserError
from pipeline.images.codec import ImageError, encode_mask
from pipeline.output.errors import failure
from pipeline.segment import large_images, prometheus
from pipeline.segment.crash_isolation import BlockAttempt
from pipeline.segment.prediction_rows import outcome, predicted_table
from pipeline.segment.stage_timing import Spent

# A run is not given up for its error rate before it has seen this many images.
MIN_TO_JUDGE = 200
SECONDS_BETWEEN_LINES = 30.0  # that tell how far a scene is
CALLS = 2  # at the same time


class PredictStage:
    """Actor that predicts DECODED rows into PREDICTED rows; holds one Predictor.

    Ray calls it with CALLS blocks at a time, from threads of its own: one block is predicted while Ray brings the next
    and takes away the last. All predicting is done by one thread, in the order of the calls.
    """

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
        progress_actor: Any,
    ) -> None:
        # Always the same, since torch's number of threads and CUDA graphs belong to a thread.
        self._predicting = ThreadPoolExecutor(1, "predict", use_threads, (device, threads))
        # Block by block: of two that are predicted in turns, neither would be ready while the other is.
        self._submitting = threading.Lock()
        self._problem: UserError | None = None
        # Not kept: the predictor has packed its own weights.
        model = Checkpoint.load(checkpoint, long_side, protocol)
        if model.model_id != model_id:
            # Raised by the first call: what an actor raises while it is made reaches the driver as text alone.
            self._problem = UserError(f"checkpoint {checkpoint}: changed while the run was starting; start it again")
        predictor = self._predicting.submit(model.predictor, device, precision).result()
        self._predictor = with_protocol(predictor, protocol)
        self._palette = model.palette
        self._batch_size = batch_size
        self._max_error_rate = max_error_rate
        self._progress_actor = progress_actor
        self._counts: Any = None  # of the run, as the board has them; on its way
        self._idle_since = time.perf_counter()  # what predicts
        self._processor_since = time.process_time()
        self._counting_processor = threading.Lock()
        # Masks are compressed (outside the interpreter's lock) while the next batch is predicted.
        self._encoders = ThreadPoolExecutor(2)

    def __call__(self, decoded: pa.Table) -> Iterator[pa.Table]:
        if self._problem is not None:
            raise self._problem
        rows = decoded.to_pylist()
        attempt = BlockAttempt("predict", rows, self._progress_actor)
        in_memory = [row for row in rows if not row["by_window"]]
        if in_memory:
            yield self._segment(in_memory, attempt)
        for row in rows:
            if row["by_window"]:
                # Alone in its table: a mask may be as large as a table's column can be.
                yield self._segment_by_window(row, attempt)
        attempt.end()
        with self._counting_processor:
            self._processor_since = prometheus.count_processor("predict", self._processor_since)
        self._progress_actor.add_timing.remote(prometheus.report())

    def _segment(self, rows: list[dict[str, Any]], attempt: BlockAttempt) -> pa.Table:
        self._tell([row for row in rows if row["error_type"]])
        # Of a block few batches are in memory: predictions and masks have the images' own size.
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
                    predicting.append((batch, self._predicting.submit(self._predict, batch, *_inputs(batch))))
                    finish(ahead, behind)
        finish(0, 0)
        return predicted_table(rows)

    def _segment_by_window(self, row: dict[str, Any], attempt: BlockAttempt) -> pa.Table:
        """Read, label and encode one image; whatever goes wrong with it is in its row."""
        if row["error_type"]:
            self._tell([row])
            return predicted_table([row])
        try:
            with attempt.at(row["image_id"]):
                prediction = self._predicting.submit(self._predict_by_window, row).result()
                with prometheus.timed("encode") as work:
                    mask = encode_mask(prediction.class_ids_NHW[0], self._palette)
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
                return large_images.predicted(self._predictor, row, self._telling(row))
        finally:
            row["seconds"] += work.seconds

    @contextmanager
    def _working(self, images: int = 1) -> Iterator[Spent]:
        """Count the block's time as that of predicting so many images, and the time since the last such block."""
        prometheus.count_wait(time.perf_counter() - self._idle_since)
        try:
            with prometheus.timed("predict", images) as work:
                yield work
        finally:
            self._idle_since = time.perf_counter()

    def _telling(self, row: dict[str, Any]) -> Callable[[float], None]:
        """What tells now and then how far a scene has been read: it may take hours."""
        told = time.monotonic()

        def on_read(share: float) -> None:
            nonlocal told
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                size = f"{row['width']:,} x {row['height']:,} pixels"
                self._progress_actor.log.remote(f"{row['image_uri']}: {share:.0%} of {size}")

        return on_read

    def _tell(self, rows: list[dict[str, Any]]) -> None:
        """Tell the board how images ended, and give up a run that goes wrong by what it answered the last time.

        Raises: UserError.
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
                "check the input, leave out what are no images with --include or --exclude, or raise --max-error-rate"
            )

    def _predict(
        self, batch: list[dict[str, Any]], images_NHW3: NDArray[np.uint8], output_sizes: list[tuple[int, int]]
    ) -> list[Any]:
        """For each row of a batch its models.Prediction, or what keeps memory from holding it alone."""
        with self._working(len(batch)) as work:
            predictions = self._predict_what_fits(images_NHW3, output_sizes)
        for row in batch:
            row["seconds"] += work.seconds_per_image
        return predictions

    def _predict_what_fits(self, images_NHW3: NDArray[np.uint8], output_sizes: list[tuple[int, int]]) -> list[Any]:
        try:
            return self._predictor.predict_each(images_NHW3, output_sizes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(output_sizes) == 1:
                return [error.with_traceback(None)]  # which would keep what was computed so far
        half = len(output_sizes) // 2
        parts = slice(half), slice(half, None)
        return [one for part in parts for one in self._predict_what_fits(images_NHW3[part], output_sizes[part])]

    def _finished(
        self, batch: list[dict[str, Any]], predictions: list[Any]
    ) -> list[tuple[dict[str, Any], Future[bytes]]]:
        """Complete the rows of a batch but for their masks, which are on their way."""
        masks = []
        for row, prediction in zip(batch, predictions, strict=True):
            if isinstance(prediction, Exception):
                shape = row["input_height"], row["input_width"], 3
                row |= failure("predict", "OutOfMemory", f"{shape} pixels: {storage.reason(prediction)}")
                continue
            row |= outcome(prediction, 0)
            masks.append((row, self._encoders.submit(encode_mask, prediction.class_ids_NHW[0], self._palette)))
        return masks

    def _encoded(self, masks: list[tuple[dict[str, Any], Future[bytes]]]) -> None:
        with prometheus.timed("encode", len(masks)) as work:
            for row, mask in masks:
                row["mask"] = {"bytes": mask.result(), "path": row["image_id"].hex() + ".png"}
                work.bytes += len(row["mask"]["bytes"])


def _inputs(batch: list[dict[str, Any]]) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """The pixels of a batch, which its rows give away, and the sizes of its masks."""
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
