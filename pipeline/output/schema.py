"""Schemas of the tables that a segmentation run writes, and of the blocks between its stages."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA_VERSION = "3"
IMAGE_ID_BYTES = 16


def image_id(uri: str) -> bytes:
    """Return the 16-byte hash that identifies an image URI."""
    return hashlib.blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=IMAGE_ID_BYTES).digest()


def ignore_index_of(num_classes: int) -> int:
    """Return the value of pixels without a class in a mask: 255, or 65535 if 255 is a class."""
    return 255 if num_classes < 256 else 65535


def _field(name: str, kind: pa.DataType, description: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable, {"description": description})


def _metadata() -> dict[str, str]:
    # Tells Hugging Face datasets that `mask` is an image; it reads the other columns by their Arrow types.
    features = {"info": {"features": {"mask": {"_type": "Image"}}}}
    return {"sceneparse.schema_version": SCHEMA_VERSION, "huggingface": json.dumps(features)}


# A list of entries instead of an Arrow map, because Hugging Face datasets does not support maps.
CARRIED = pa.list_(pa.field("element", pa.struct([("key", pa.string()), ("value", pa.string())])))
_BOX = [pa.field(name, pa.int32()) for name in ("x_min", "y_min", "x_max", "y_max")]
_ID = pa.binary(IMAGE_ID_BYTES)
_TIME = pa.timestamp("us", tz="UTC")

MASKS = pa.schema(
    [
        _field("image_id", _ID, "16-byte BLAKE2b hash of image_uri", nullable=False),
        _field("image_uri", pa.string(), "URI of the input image", nullable=False),
        _field("etag", pa.string(), "ETag of the object when read, or when listed if never read; null for local files"),
        _field("size_bytes", pa.int64(), "size of the image file when it was read, in bytes"),
        _field("carried", CARRIED, "columns carried from the manifest: name and text of each; null if none"),
        _field("width", pa.int32(), "image width in pixels, after applying the EXIF orientation"),
        _field("height", pa.int32(), "image height in pixels, after applying the EXIF orientation"),
        _field("status", pa.string(), "'ok' or 'error'", nullable=False),
        _field("error_stage", pa.string(), "stage that failed: 'list', 'download', 'decode' or 'predict'; null if ok"),
        _field("error_type", pa.string(), "kind of failure, from a fixed list; null if ok"),
        _field("error_message", pa.string(), "error message; null if ok"),
        _field(
            "mask",
            pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]),
            "PNG of class ids at the full size of the image, and a file name for it; null if error",
        ),
        _field("mean_confidence", pa.float32(), "mean over the pixels with data of the largest class probability"),
        _field(
            "mean_entropy",
            pa.float32(),
            "mean over the pixels with data of the entropy of the class probabilities, in nats",
        ),
        _field(
            "low_confidence_fraction",
            pa.float32(),
            "fraction of the pixels with data whose largest probability is below 0.5",
        ),
        _field(
            "low_confidence_boxes",
            pa.list_(pa.field("element", pa.struct([*_BOX, pa.field("pixel_count", pa.int64())]))),
            "largest regions of low confidence, most pixels first: box (max exclusive), number of pixels below 0.5",
        ),
        _field("class_ids", pa.list_(pa.field("element", pa.int32())), "ids of the classes in the mask, ascending"),
        _field("model_id", pa.string(), "hash of weights, architecture and preprocessing", nullable=False),
        _field("run_id", pa.string(), "run that wrote this row", nullable=False),
        _field("segmented_at", _TIME, "time at which the row was created", nullable=False),
        _field("seconds", pa.float32(), "time spent on decoding and predicting this image, in seconds"),
    ],
    _metadata(),
)

_CLASS_STATISTICS = [
    _field("class_id", pa.int32(), "class id, as in classes.parquet", nullable=False),
    _field("pixel_count", pa.int64(), "number of pixels of the class", nullable=False),
    _field("pixel_fraction", pa.float64(), "pixel_count / number of pixels with data", nullable=False),
    _field("mean_confidence", pa.float32(), "mean over the pixels of the class of the largest class probability"),
    _field("x_min", pa.int32(), "bounding box: first column"),
    _field("y_min", pa.int32(), "bounding box: first row"),
    _field("x_max", pa.int32(), "bounding box: last column + 1"),
    _field("y_max", pa.int32(), "bounding box: last row + 1"),
    _field("centroid_x", pa.float32(), "mean column of the pixels of the class"),
    _field("centroid_y", pa.float32(), "mean row of the pixels of the class"),
]

CLASS_STATS = pa.schema(
    [
        _field("image_id", _ID, "16-byte BLAKE2b hash of image_uri", nullable=False),
        _field("image_uri", pa.string(), "URI of the input image", nullable=False),
        _CLASS_STATISTICS[0],
        _field("class_name", pa.string(), "class name", nullable=False),
        *_CLASS_STATISTICS[1:],
        _field("model_id", pa.string(), "hash of weights, architecture and preprocessing", nullable=False),
        _field("run_id", pa.string(), "run that wrote this row", nullable=False),
    ],
    {"sceneparse.schema_version": SCHEMA_VERSION},
)

CLASSES = pa.schema(
    [
        _field("class_id", pa.int32(), "class id: the pixel value in masks", nullable=False),
        _field("class_name", pa.string(), "class name", nullable=False),
        _field("red", pa.int32(), "red component of the color of the class", nullable=False),
        _field("green", pa.int32(), "green component of the color of the class", nullable=False),
        _field("blue", pa.int32(), "blue component of the color of the class", nullable=False),
    ],
    {"sceneparse.schema_version": SCHEMA_VERSION},
)

# Blocks that pass between the stages: listed, decoded and predicted images. An image may fail in any stage.
_IDENTITY = [MASKS.field(name) for name in ("image_id", "image_uri", "etag", "size_bytes", "carried")]
_ERROR = [MASKS.field(name) for name in ("error_stage", "error_type", "error_message")]
_OUTCOME = [*(MASKS.field(name) for name in ("width", "height")), *_ERROR, MASKS.field("seconds")]

LISTED = pa.schema([*_IDENTITY, *_ERROR])

_FEW_LEVELS = pa.field("few_levels", pa.bool_())  # true: the pixels have few different values; null: not decoded

DECODED = pa.schema(
    [
        *_IDENTITY,
        *_OUTCOME,
        pa.field("input_width", pa.int32()),  # of `pixels`, which may be smaller than the image
        pa.field("input_height", pa.int32()),
        pa.field("pixels", pa.large_binary()),  # RGB, row-major; null after an error, and if by_window
        # Bits of the full-size image's pixels, 1 if a pixel has data, each row padded to bytes; null: all have.
        pa.field("valid", pa.large_binary()),
        pa.field("by_window", pa.bool_()),  # true: the predictor reads the image, window by window; null: false
        _FEW_LEVELS,
    ]
)

_OF_PIXELS = ("mask", "mean_confidence", "mean_entropy", "low_confidence_fraction", "low_confidence_boxes")

PREDICTED = pa.schema(
    [
        *_IDENTITY,
        *_OUTCOME,
        *[MASKS.field(name) for name in _OF_PIXELS],
        pa.field("classes", pa.list_(pa.struct(_CLASS_STATISTICS))),
        _FEW_LEVELS,
        pa.field("has_nodata", pa.bool_()),  # true: some pixels have no data; null: not predicted
    ]
)


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as an Arrow table of exactly `schema`; keys missing in a row become null."""
    return pa.Table.from_pylist(rows, schema=schema)


def masks_and_class_stats(
    predicted: pa.Table, class_names: list[str], model_id: str, run_id: str, segmented_at: Any
) -> tuple[pa.Table, pa.Table]:
    """Split PREDICTED rows into a masks table and the matching class_stats table."""
    # Column by column, because row by row would take as long as decoding the images.
    stamp = {"model_id": model_id, "run_id": run_id, "segmented_at": segmented_at}
    has_failed = pc.is_valid(predicted["error_type"]).combine_chunks()
    classes = predicted["classes"].combine_chunks()
    entries, image = pc.list_flatten(classes), pc.list_parent_indices(classes)
    class_id = pc.struct_field(entries, "class_id")
    ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(classes), 0))
    starts_and_end = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    made = {
        "status": pc.if_else(has_failed, "error", "ok"),
        "class_ids": pa.ListArray.from_arrays(starts_and_end, class_id, MASKS.field("class_ids").type, mask=has_failed),
    }
    masks = _columns(MASKS, len(predicted), stamp, made, lambda name: predicted[name])
    made = {name: predicted[name].take(image) for name in ("image_id", "image_uri")}
    made["class_name"] = pa.array(class_names, pa.string()).take(class_id)
    return masks, _columns(CLASS_STATS, len(entries), stamp, made, lambda name: pc.struct_field(entries, name))


def _columns(
    schema: pa.Schema, num_rows: int, same: dict[str, Any], made: dict[str, Any], other: Callable[[str], Any]
) -> pa.Table:
    """Build a table of columns that are the `same` value in each row, or in `made`, or returned by `other(name)`."""
    columns = [
        pa.repeat(pa.scalar(same[field.name], field.type), num_rows)
        if field.name in same
        else made[field.name]
        if field.name in made
        else other(field.name)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
