"""Predict stage: the actor that predicts decoded images.

Imports torch only when the actor is created, because the driver imports this module, too.
"""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.checkpoints.predictor import PredictorActor, PredictorSpec, is_out_of_memory
from pipeline.images.codec import ImageError, encode_mask
from pipeline.output.schema import PREDICTED
from pipeline.segment import large_images, prometheus
from pipeline.segment.crash_isolation import BlockAttempt
from pipeline.segment.error_rate import ErrorLimit, is_sampled
from pipeline.segment.image_rows import DecodedImage, PredictedImage, decoded_images, to_table
from pipeline.segment.prediction_rows import outcome, with_ignored
from pipeline.segment.stage_timing import Spent

SECONDS_BETWEEN_LINES = 30.0  # between the progress lines of a large image
CALLS = 2  # concurrent calls of one actor


class BatchPrediction(NamedTuple):
    """Result of predicting a batch."""

    predictions: list[Any]  # a models.Prediction for each image, or the error if memory is too small for it alone
    seconds_per_image: float


class Encoding(NamedTuple):
    """Row of a predicted image whose mask is still being compressed."""

    row: PredictedImage
    mask: Future[bytes] | None  # None: the image has an error


class PredictStage(PredictorActor):
    """Actor that turns DECODED rows into PREDICTED rows; holds one Predictor.

    Ray calls it with CALLS blocks concurrently, from its own threads: one block is predicted while Ray transfers the
    next input and the previous output. A single thread runs all predictions, in the order of the calls.
    """

    def __init__(self, spec: PredictorSpec, error_limit: ErrorLimit, progress_actor: Any) -> None:
        super().__init__(spec)
        # One block at a time: if two blocks took turns, both would finish late.
        self._submitting = threading.Lock()
        self._batch_size = spec.batch_size
        self._error_limit = error_limit
        self._progress_actor = progress_actor
        self._counts: Any = None  # ObjectRef of the run's counts, as of the last update of the progress actor
        self._idle_since = time.perf_counter()  # end of the last prediction
        self._processor_since = time.process_time()
        self._counting_processor = threading.Lock()
        # Masks are compressed, without holding the GIL, while the next batch is predicted.
        self._encoders = ThreadPoolExecutor(2)

    def __call__(self, decoded: pa.Table) -> Iterator[pa.Table]:
        self.require_ready()
        images = decoded_images(decoded)
        attempt = BlockAttempt("predict", images, self._progress_actor)
        images = attempt.without_given_up(images)
        in_memory = [image for image in images if not image.by_window]
        if in_memory:
            rows = self._predict_in_memory(in_memory, attempt)
            self._judge_sample(rows)
            yield to_table(rows, PREDICTED)
        for image in images:
            if image.by_window:
                predicted = self._predict_by_window(image, attempt)
                self._report([predicted])
                self._judge_sample([predicted])
                # One table per image, because a single mask may reach the size limit of a table's column.
                yield to_table([predicted], PREDICTED)
        attempt.end()
        with self._counting_processor:
            self._processor_since = prometheus.count_processor("predict", self._processor_since)
        self._progress_actor.add_timing.remote(prometheus.report())

    def _predict_in_memory(self, images: list[DecodedImage], attempt: BlockAttempt) -> list[PredictedImage]:
        """Label images whose pixels are in the block, in batches, and encode their masks. Keeps their order."""
        rows = [PredictedImage(**vars(image)) for image in images]
        self._report([row for row in rows if row.error_type])
        # Keep only a few batches of a block in memory, because predictions and masks have the images' original size.
        # Images are identified by their position in the block.
        predicting: deque[tuple[list[int], Future[BatchPrediction]]] = deque()
        encoding: deque[tuple[list[int], list[Encoding]]] = deque()
        batch_size, ahead, behind = (1, 0, 0) if attempt.one_by_one else (self._batch_size, 1, 1)

        def finish(max_predicting: int, max_encoding: int) -> None:
            while len(predicting) > max_predicting:
                positions, prediction = predicting.popleft()
                batch = self._start_encoding([rows[position] for position in positions], prediction.result())
                self._report([row for row, _ in batch])
                encoding.append((positions, batch))
            while len(encoding) > max_encoding:
                positions, batch = encoding.popleft()
                for position, row in zip(positions, self._finish_encoding(batch), strict=True):
                    rows[position] = row

        with self._submitting:
            for positions in _batches_of_one_size(rows, batch_size):
                batch = [rows[position] for position in positions]
                with attempt.at(batch[0].image_id):
                    predicting.append((positions, self._start_predicting(batch)))
                    finish(ahead, behind)
        finish(0, 0)
        return rows

    def _predict_by_window(self, image: DecodedImage, attempt: BlockAttempt) -> PredictedImage:
        """Read, label and encode one image by window. A failure of this image becomes an error row."""
        row = PredictedImage(**vars(image))
        if row.error_type:
            return row
        try:
            with attempt.at(row.image_id):
                row, prediction = self.submit(self._read_and_predict, row).result()
                if prediction is None:
                    return row
                with prometheus.timed("encode") as work:
                    mask = encode_mask(prediction.class_ids_NHW[0], self.palette)
                    work.bytes = len(mask)
            row = replace(row, seconds=row.seconds + work.seconds)
            if len(mask) > large_images.MAX_MASK_BYTES:
                limit = large_images.MAX_MASK_BYTES
                raise ImageError("TooLarge", f"its mask has {len(mask)} bytes as PNG; the limit is {limit}")
        except Exception as error:
            failed = _with_error(row, error)
            if failed is None:
                raise
            return failed
        return replace(row, **outcome(prediction, 0)).with_mask(mask)

    def _read_and_predict(self, row: PredictedImage) -> tuple[PredictedImage, Any]:
        """Return the row with the seconds that it took, and its models.Prediction; None: the row has an error."""
        try:
            with self._working() as work:
                on_read = self._reading_reporter(row)
                row, prediction = large_images.predict_windows(self.predictor, row, on_read, self.rendering, self.mean)
        except Exception as error:
            # Handled here and not by the caller, because the traceback keeps the tensors of its frames alive.
            failed = _with_error(row, error)
            if failed is None:
                raise
            return replace(failed, seconds=row.seconds + work.seconds), None
        return replace(row, seconds=row.seconds + work.seconds), prediction

    @contextmanager
    def _working(self, images: int = 1) -> Iterator[Spent]:
        """Record the time of the `with` block as predicting `images`, and the idle time before it as waiting."""
        prometheus.count_wait(time.perf_counter() - self._idle_since)
        try:
            with prometheus.timed("predict", images) as work:
                yield work
        finally:
            self._idle_since = time.perf_counter()

    def _reading_reporter(self, image: DecodedImage) -> Callable[[float], None]:
        """Return a callback that logs the progress of a large image every 30 seconds: one may take hours."""
        last_logged = time.monotonic()

        def on_read(share: float) -> None:
            nonlocal last_logged
            if time.monotonic() - last_logged >= SECONDS_BETWEEN_LINES:
                last_logged = time.monotonic()
                size = f"{image.width:,} x {image.height:,} pixels"
                self._progress_actor.log.remote(f"{image.image_uri}: read {share:.0%} of {size}")

        return on_read

    def _report(self, rows: list[PredictedImage]) -> None:
        """Report the outcomes of images to the progress actor, and check the error rate of the run.

        The check uses the counts that the previous report returned, so that it need not wait for an answer.

        Raises: UserError if more images of the run have failed than its limit allows.
        """
        import ray

        if not rows:
            return
        counts = ray.get(self._counts) if self._counts is not None else {}
        outcomes = _outcomes(rows)
        self._counts = self._progress_actor.add.remote(**outcomes)
        prometheus.count_images(outcomes)
        self._error_limit.check(counts)

    def _judge_sample(self, rows: list[PredictedImage]) -> None:
        """Report the outcomes of completed images that are in the sample, and check its error rate.

        Only images of completed blocks count, because failures are known before predictions. Raises: UserError.
        """
        import ray

        if outcomes := _outcomes([row for row in rows if is_sampled(row.image_id)]):
            self._error_limit.check_sample(ray.get(self._progress_actor.add_sampled.remote(**outcomes)))

    def _start_predicting(self, batch: list[PredictedImage]) -> Future[BatchPrediction]:
        images_NHW3 = np.stack([image.input_HW3 for image in batch])
        return self.submit(self._predict_batch, images_NHW3, batch)

    def _predict_batch(self, images_NHW3: NDArray[np.uint8], batch: list[PredictedImage]) -> BatchPrediction:
        with self._working(len(images_NHW3)) as work:
            predictions = self._predict_what_fits(images_NHW3, batch)
        return BatchPrediction(predictions, work.seconds_per_image)

    def _predict_what_fits(self, images_NHW3: NDArray[np.uint8], batch: list[PredictedImage]) -> list[Any]:
        try:
            return self.predictor.predict_each(
                images_NHW3, [image.size for image in batch], [image.valid_HW for image in batch]
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                return [error.with_traceback(None)]  # the traceback would keep the tensors of its frames alive
        half = len(batch) // 2
        parts = slice(half), slice(half, None)
        return [one for part in parts for one in self._predict_what_fits(images_NHW3[part], batch[part])]

    def _start_encoding(self, batch: list[PredictedImage], predicted: BatchPrediction) -> list[Encoding]:
        """Return the rows of a batch without their masks, which the encoding threads compress meanwhile."""
        encoding = []
        for image, prediction in zip(batch, predicted.predictions, strict=True):
            row = replace(image, seconds=image.seconds + predicted.seconds_per_image)
            if isinstance(prediction, Exception):
                shape = row.input_height, row.input_width, 3
                row = row.failed("predict", "OutOfMemory", f"{shape} pixels: {storage.reason(prediction)}")
                encoding.append(Encoding(row, None))
            else:
                if row.valid is not None:
                    prediction = with_ignored(prediction, row.valid_rows)
                mask = self._encoders.submit(encode_mask, prediction.class_ids_NHW[0], self.palette)
                encoding.append(Encoding(replace(row, **outcome(prediction, 0)), mask))
        return encoding

    def _finish_encoding(self, batch: list[Encoding]) -> list[PredictedImage]:
        """Wait for the masks of a batch, and return its rows with them."""
        rows = []
        num_masks = sum(mask is not None for _, mask in batch)
        with prometheus.timed("encode", num_masks) as work:
            for row, mask in batch:
                if mask is None:
                    rows.append(row)
                else:
                    png = mask.result()
                    work.bytes += len(png)
                    rows.append(row.with_mask(png))
        return rows


def _outcomes(rows: list[PredictedImage]) -> Counter[str]:
    return Counter(row.error_type or "ok" for row in rows)


def _with_error(row: PredictedImage, error: Exception) -> PredictedImage | None:
    """Return the row of an image labeled by window with this error; None if the error does not concern it alone."""
    if isinstance(error, ImageError | large_images.ReadFault):
        return large_images.with_error(row, error)
    if is_out_of_memory(error):
        size = f"{row.width} x {row.height} pixels by window"
        return row.failed("predict", "OutOfMemory", f"{size}: {storage.reason(error)}")
    return None


def _batches_of_one_size(rows: list[PredictedImage], batch_size: int) -> Iterator[list[int]]:
    """Yield the positions of images without an error, in batches of one input size."""
    groups: dict[tuple[int | None, int | None], list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        if row.error_type is None:
            groups[row.input_height, row.input_width].append(position)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
