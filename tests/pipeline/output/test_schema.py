"""The tables: exact schemas, two that agree, and Parquet that keeps them."""

import io
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.schema import (
    CLASS_STATS,
    CLASSES,
    DECODED,
    LISTED,
    MASKS,
    PREDICTED,
    SCHEMA_VERSION,
    image_id,
    masks_and_class_stats,
    table,
)
from tests.pipeline.samples import CLASS_NAMES, HEIGHT, MADE_AT, WIDTH, failed, segmented

OUTCOMES = [segmented("s3://store/a.jpg"), failed("s3://store/b.jpg"), segmented("s3://store/c.jpg")]


@pytest.fixture(scope="module")
def both() -> tuple[pa.Table, pa.Table]:
    return masks_and_class_stats(table(OUTCOMES, PREDICTED), CLASS_NAMES, "model1", "run1", MADE_AT)


def test_an_image_id_is_the_same_in_every_version() -> None:
    """Outputs of earlier versions hold these; another hash would label everything again."""
    assert image_id("s3://bucket/photos/a.jpg").hex() == "aaf84de9fb4e362a512414cc1e46daa0"
    assert image_id("file:///tmp/ünïcode 猫.jpg").hex() == "6ae60b459cc96c65478d7e7141036ea6"


def test_image_ids_differ_between_names() -> None:
    uris = ["s3://b/a", "s3://b/A", "s3://b/a/", "s3://b/a ", "file:///b/a", "s3://b/ä", "s3://b/a\u0308"]
    ids = [image_id(uri) for uri in uris]
    assert len(set(ids)) == len(uris)
    assert {len(one) for one in ids} == {16}


def test_the_columns_are_those_that_readers_rely_on() -> None:
    """Renaming, reordering or retyping a column breaks queries over existing outputs."""
    assert [f"{column.name} {column.type}{'' if column.nullable else ' not null'}" for column in MASKS] == [
        "image_id fixed_size_binary[16] not null",
        "image_uri string not null",
        "etag string",
        "size_bytes int64",
        "carried list<element: struct<key: string, value: string>>",
        "width int32",
        "height int32",
        "status string not null",
        "error_stage string",
        "error_type string",
        "error_message string",
        "mask struct<bytes: binary, path: string>",
        "mean_confidence float",
        "mean_entropy float",
        "low_confidence_fraction float",
        "low_confidence_boxes list<element: struct<x_min: int32, y_min: int32, x_max: int32, y_max: int32, "
        "pixel_count: int64>>",
        "class_ids list<element: int32>",
        "model_id string not null",
        "run_id string not null",
        "segmented_at timestamp[us, tz=UTC] not null",
        "seconds float",
    ]
    assert [f"{column.name} {column.type}{'' if column.nullable else ' not null'}" for column in CLASS_STATS] == [
        "image_id fixed_size_binary[16] not null",
        "image_uri string not null",
        "class_id int32 not null",
        "class_name string not null",
        "pixel_count int64 not null",
        "pixel_fraction double not null",
        "mean_confidence float",
        "x_min int32",
        "y_min int32",
        "x_max int32",
        "y_max int32",
        "centroid_x float",
        "centroid_y float",
        "model_id string not null",
        "run_id string not null",
    ]


@pytest.mark.parametrize("schema", [MASKS, CLASS_STATS, CLASSES], ids=["masks", "class_stats", "classes"])
def test_every_column_that_is_written_is_described(schema: pa.Schema) -> None:
    assert [column.name for column in schema if not (column.metadata or {}).get(b"description")] == []
    assert schema.metadata[b"sceneparse.schema_version"] == SCHEMA_VERSION.encode()


def test_both_tables_have_exactly_their_schemas(both: tuple[pa.Table, pa.Table]) -> None:
    masks, class_stats = both
    assert masks.schema.equals(MASKS, check_metadata=True)
    assert class_stats.schema.equals(CLASS_STATS, check_metadata=True)


def test_every_image_has_one_row_in_the_order_given(both: tuple[pa.Table, pa.Table]) -> None:
    masks, _ = both
    assert masks["image_uri"].to_pylist() == [row["image_uri"] for row in OUTCOMES]
    assert masks["status"].to_pylist() == ["ok", "error", "ok"]
    assert masks["class_ids"].to_pylist() == [[0, 1], None, [0, 1]]
    assert set(masks["run_id"].to_pylist()) == {"run1"}
    assert set(masks["model_id"].to_pylist()) == {"model1"}
    assert set(masks["segmented_at"].to_pylist()) == {MADE_AT}


def test_pixel_counts_of_an_image_add_up_to_its_size(both: tuple[pa.Table, pa.Table]) -> None:
    masks, class_stats = both
    sums: Counter[bytes] = Counter()
    for row in class_stats.to_pylist():
        sums[row["image_id"]] += row["pixel_count"]
    ok = [row for row in masks.to_pylist() if row["status"] == "ok"]
    assert sums == {row["image_id"]: row["width"] * row["height"] for row in ok}
    assert class_stats.num_rows == sum(len(row["class_ids"]) for row in ok)


def test_class_rows_carry_their_image_their_name_and_their_statistics(both: tuple[pa.Table, pa.Table]) -> None:
    row = both[1].to_pylist()[1]
    assert (row["image_uri"], row["class_id"], row["class_name"]) == ("s3://store/a.jpg", 1, "road")
    assert (row["pixel_count"], row["pixel_fraction"], row["mean_confidence"]) == (2, 0.25, 0.75)
    assert (row["x_min"], row["y_min"], row["x_max"], row["y_max"]) == (2, 1, WIDTH, HEIGHT)
    assert (row["centroid_x"], row["centroid_y"]) == (2.5, 1.0)
    assert (row["model_id"], row["run_id"]) == ("model1", "run1")


def test_a_failed_image_has_a_reason_and_nulls_where_there_is_no_result(both: tuple[pa.Table, pa.Table]) -> None:
    masks, class_stats = both
    row = masks.to_pylist()[1]
    assert (row["error_stage"], row["error_type"], row["error_message"]) == ("decode", "Empty", "the file has no bytes")
    confidence = ("mean_confidence", "mean_entropy", "low_confidence_fraction", "low_confidence_boxes")
    for name in ("width", "height", "mask", "class_ids", *confidence):
        assert row[name] is None, name
    assert row["image_id"] not in class_stats["image_id"].to_pylist()
    assert masks.to_pylist()[0]["error_type"] is None


def test_failures_alone_make_an_empty_statistics_table_of_the_same_schema() -> None:
    predicted = table([failed("s3://store/b.jpg")], PREDICTED)
    masks, class_stats = masks_and_class_stats(predicted, CLASS_NAMES, "model1", "run1", MADE_AT)
    assert (masks.num_rows, class_stats.num_rows) == (1, 0)
    assert class_stats.schema.equals(CLASS_STATS, check_metadata=True)


@pytest.mark.parametrize("name", ["masks", "class_stats", "predicted"])
def test_parquet_keeps_values_types_and_descriptions(both: tuple[pa.Table, pa.Table], name: str) -> None:
    written = {"masks": both[0], "class_stats": both[1], "predicted": table(OUTCOMES, PREDICTED)}[name]
    buffer = io.BytesIO()
    pq.write_table(written, buffer)
    read = pq.read_table(buffer)
    assert read.to_pylist() == written.to_pylist()
    assert read.schema.equals(written.schema)
    assert read.schema.metadata == written.schema.metadata
    assert [column.metadata for column in read.schema] == [column.metadata for column in written.schema]


def test_the_mask_column_tells_hugging_face_datasets_that_it_is_an_image(both: tuple[pa.Table, pa.Table]) -> None:
    assert b'"mask": {"_type": "Image"}' in both[0].schema.metadata[b"huggingface"]


def test_a_key_that_a_row_lacks_is_null_and_one_too_many_is_left_out() -> None:
    made = table([{"image_id": image_id("a"), "image_uri": "a", "color": "red"}], LISTED)
    assert made.schema.equals(LISTED, check_metadata=True)
    given = {"image_id": image_id("a"), "image_uri": "a"}
    assert made.to_pylist() == [dict.fromkeys(LISTED.names) | given]


def test_a_value_of_the_wrong_type_is_an_error() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        table([{"image_id": image_id("a"), "image_uri": "a", "width": "wide"}], DECODED)
