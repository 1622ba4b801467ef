"""Stages of an evaluation, each for one block of pairs: tasks load, actors predict and count.

This module does not import torch, which would cost every loading process seconds. The actors import it with the model.
"""

import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.predictor import PredictorActor, PredictorSpec, is_out_of_memory
from pipeline.config.data import DataConfig
from pipeline.datasets import Pair, load_pair
from pipeline.errors import UserError
from pipeline.images.codec import decode_image, decode_label, encode_image, encode_mask, shrink
from pipeline.images.raster import WHITE
from pipeline.metrics.boundary_iou import BoundaryCounts, boundary_counts
from pipeline.metrics.calibration_error import ConfidenceCounts, confidence_counts
from pipeline.metrics.confusion import Metrics, confusion_matrix

# Decoded pixels are yielded in pieces of about this size, so that large images do not pile up in a task.
LOADED_BYTES = 64_000_000
DOWNLOADS = 4  # concurrent downloads per task
SAMPLED_PIXELS = 2000  # per image, to fit the temperature
PICTURE_SIDE = 320  # longer side of the pictures in the report, pixels

LISTED = pa.schema([("number", pa.int64()), ("pair", pa.binary())])  # a pickled Pair
LOADED = pa.schema(
    [
        *LISTED,
        *((name, pa.int32()) for name in ("height", "width", "input_height", "input_width")),
        ("pixels", pa.large_binary()),  # uint8 RGB, input_height x input_width x 3
        ("label", pa.large_binary()),  # uint16 ids, height x width
    ]
)
COUNTED = pa.schema([("part", pa.large_binary())])  # pickled EvalCounts


@dataclass(frozen=True)
class LoadedPair:
    """Row of a LOADED table: a pair with its decoded pixels."""

    number: int  # position among the evaluated pairs
    pair: bytes  # pickled
    height: int
    width: int
    input_height: int
    input_width: int
    pixels: bytes
    label: bytes


@dataclass(frozen=True)
class EvalOptions:
    """Results that an evaluation computes in addition to the confusion matrix."""

    boundary: bool = False  # Boundary IoU
    calibration: bool = True  # expected calibration error
    fit_temperature: bool = False
    panel: int = 0  # number of images, the first by URI, that are kept to look at
    worst: int = 0  # number of images with the lowest mIoU that are kept to look at


@dataclass(frozen=True)
class Picture:
    """Encoded image, ground truth and prediction, shrunk to PICTURE_SIDE."""

    image: bytes
    truth: bytes
    predicted: bytes

    @classmethod
    def of(cls, image_HW3: NDArray[np.uint8], *ids_HW: NDArray[np.integer]) -> "Picture":
        small_HW3 = shrink(image_HW3, PICTURE_SIDE)
        height, width = small_HW3.shape[:2]
        masks = [
            cv2.resize(ids.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST_EXACT) for ids in ids_HW
        ]
        no_palette = np.zeros((0, 3), np.uint8)
        truth, predicted = (encode_mask(np.asarray(mask), no_palette) for mask in masks)
        return cls(encode_image(small_HW3, quality=90), truth, predicted)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the decoded 'image' H x W x 3 uint8, and 'truth' and 'predicted' H x W class ids."""
        return {
            "image": decode_image(self.image),
            "truth": decode_label(self.truth),
            "predicted": decode_label(self.predicted),
        }


@dataclass(frozen=True)
class ImageResult:
    """Results of one image; the ratios are nan if no pixel is annotated."""

    number: int  # position among the evaluated pairs
    pair: Pair
    labelled_pixels: int
    miou: float
    pixel_accuracy: float
    slopes_T: NDArray[np.float64] | None
    picture: Picture | None


@dataclass(frozen=True)
class EvalCounts:
    """Counts of a set of images; those not requested stay zero."""

    confusion_KK: NDArray[np.int64]
    boundary: BoundaryCounts
    confidence: ConfidenceCounts
    images: list[ImageResult] = field(default_factory=list)

    @classmethod
    def none(cls, num_classes: int) -> "EvalCounts":
        confusion_KK = np.zeros((num_classes, num_classes), np.int64)
        return cls(confusion_KK, BoundaryCounts.none(num_classes), ConfidenceCounts.none())

    def __add__(self, other: "EvalCounts") -> "EvalCounts":
        return EvalCounts(
            self.confusion_KK + other.confusion_KK,
            self.boundary + other.boundary,
            self.confidence + other.confidence,
            self.images + other.images,
        )


def listed_block(first: int, pairs: list[Pair]) -> pa.Table:
    """Return a LISTED table of pairs with consecutive numbers from `first` on."""
    rows = [{"number": first + index, "pair": pickle.dumps(pair)} for index, pair in enumerate(pairs)]
    return pa.Table.from_pylist(rows, LISTED)


def load(listed: pa.Table, data: DataConfig, fill: Sequence[float] = WHITE) -> Iterator[pa.Table]:
    """Download and decode a block of LISTED pairs into LOADED rows. Raises UserError that names the file.

    Pixels without data have the color `fill`, R, G, B from 0 to 255, and the label ignore_index.
    """
    cv2.setNumThreads(1)
    loaded: list[LoadedPair] = []
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        numbers, pairs = listed["number"].to_pylist(), listed["pair"].to_pylist()
        for row in pool.map(partial(_loaded, data, fill), numbers, pairs):
            loaded.append(row)
            if sum(len(row.pixels) + len(row.label) for row in loaded) > LOADED_BYTES:
                yield _loaded_table(loaded)
                loaded = []
    if loaded:
        yield _loaded_table(loaded)


def counts_of(counted: pa.Table) -> list[EvalCounts]:
    """Return the counts in a COUNTED table."""
    return [pickle.loads(content) for content in counted["part"].to_pylist()]


class Evaluator(PredictorActor):
    """Actor with one predictor: it predicts LOADED rows and counts them in one COUNTED row per block."""

    def __init__(self, spec: PredictorSpec, data: DataConfig, eval_options: EvalOptions) -> None:
        self._data, self._eval_options = data, eval_options
        super().__init__(spec)

    def check_model(self, spec: PredictorSpec, model: Checkpoint) -> None:
        """Check that the checkpoint has the dataset's classes. Raises: UserError."""
        if model.class_names != [entry.name for entry in self._data.classes]:
            raise UserError(
                f"checkpoint {spec.checkpoint}: its classes differ from data.classes, or their order does; evaluate it "
                "with the classes that it was trained on"
            )

    def __call__(self, loaded: pa.Table) -> pa.Table:
        self.require_ready()
        total = EvalCounts.none(len(self._data.classes))
        for row in loaded.to_pylist():
            total += self._count(LoadedPair(**row))
        return pa.Table.from_pylist([{"part": pickle.dumps(total)}], COUNTED)

    def _count(self, row: LoadedPair) -> EvalCounts:
        eval_options, ignore_index = self._eval_options, self._data.ignore_index
        num_classes = len(self._data.classes)
        pair: Pair = pickle.loads(row.pair)
        image_HW3 = np.frombuffer(row.pixels, np.uint8).reshape(row.input_height, row.input_width, 3)
        truth_HW = np.frombuffer(row.label, np.uint16).reshape(row.height, row.width)
        try:
            # One image at a time: in a batch, the last bits of a result would depend on the other images.
            prediction = self.submit(
                self.predictor.predict, image_HW3[None], truth_HW.shape, eval_options.calibration
            ).result()
            slopes_T = self._slopes(image_HW3, truth_HW) if eval_options.fit_temperature else None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"image {pair.image_uri}: not enough memory to label its {row.input_width} x {row.input_height} "
                f"pixels ({error}); lower data.long_side, or use a larger machine"
            ) from None
        predicted_HW = prediction.class_ids_NHW[0]
        confusion_KK = confusion_matrix(truth_HW, predicted_HW, num_classes, ignore_index)
        metrics = Metrics.of(confusion_KK)
        boundary, confidence = BoundaryCounts.none(num_classes), ConfidenceCounts.none()
        if eval_options.boundary:
            boundary = boundary_counts(truth_HW, predicted_HW, num_classes, ignore_index)
        if eval_options.calibration:
            confidence = confidence_counts(truth_HW, predicted_HW, prediction.confidence_NHW[0], ignore_index)
        shown = eval_options.worst > 0 or row.number < eval_options.panel
        result = ImageResult(
            row.number,
            pair,
            int(confusion_KK.sum()),
            metrics.miou,
            metrics.pixel_accuracy,
            slopes_T,
            Picture.of(image_HW3, truth_HW, predicted_HW) if shown else None,
        )
        return EvalCounts(confusion_KK, boundary, confidence, [result])

    def _slopes(self, image_HW3: NDArray[np.uint8], truth_HW: NDArray[np.uint16]) -> NDArray[np.float64]:
        """Return the slopes of the cross-entropy at a fixed random sample of the annotated pixels."""
        from models.inference.temperature import TEMPERATURES, slopes

        labelled = np.flatnonzero(truth_HW != self._data.ignore_index)
        if not len(labelled):
            return np.zeros(len(TEMPERATURES))
        if len(labelled) > SAMPLED_PIXELS:
            labelled = np.random.default_rng(0).choice(labelled, SAMPLED_PIXELS, replace=False)
        rows_P, columns_P = np.divmod(labelled, truth_HW.shape[1])
        logits_PK = self.submit(self.single.logits_at, image_HW3, truth_HW.shape, rows_P, columns_P).result()
        return slopes(logits_PK, truth_HW[rows_P, columns_P])


def _loaded(data: DataConfig, fill: Sequence[float], number: int, pickled_pair: bytes) -> LoadedPair:
    image_HW3, label_HW = load_pair(pickle.loads(pickled_pair), data, fill)
    small_HW3 = shrink(image_HW3, data.long_side)
    return LoadedPair(
        number=number,
        pair=pickled_pair,
        height=label_HW.shape[0],
        width=label_HW.shape[1],
        input_height=small_HW3.shape[0],
        input_width=small_HW3.shape[1],
        pixels=np.ascontiguousarray(small_HW3).tobytes(),
        label=label_HW.astype(np.uint16).tobytes(),
    )


def _loaded_table(loaded: list[LoadedPair]) -> pa.Table:
    return pa.Table.from_pylist([vars(row) for row in loaded], LOADED)
