"""Rows between the stages have the columns of their tables."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.output.schema import DECODED, LISTED, PREDICTED, image_id
from pipeline.segment.image_rows import (
    DecodedImage,
    ListedImage,
    PredictedImage,
    decoded_images,
    listed_images,
    to_table,
)
from tests.pipeline.samples import random_image

IMAGE_HW3 = random_image()
URI = "s3://store/a.jpg"
LISTED_IMAGE = ListedImage(image_id(URI), URI, etag='"1"', size_bytes=3, carried=[{"key": "city", "value": "Ulm"}])
DECODED_IMAGE = DecodedImage(
    **vars(LISTED_IMAGE),
    width=10,
    height=12,
    seconds=0.5,
    input_width=10,
    input_height=12,
    pixels=IMAGE_HW3.tobytes(),
)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (ListedImage, {*LISTED.names}),
        (DecodedImage, {*DECODED.names}),
        (PredictedImage, {*DECODED.names, *PREDICTED.names}),
    ],
)
def test_a_row_has_the_columns_of_its_table(row: type[Any], columns: set[str]) -> None:
    assert {field.name for field in fields(row)} == columns


def test_rows_come_back_from_their_tables_as_they_were() -> None:
    failed = LISTED_IMAGE.failed("list", "BadURI", "no file")
    assert listed_images(to_table([LISTED_IMAGE, failed], LISTED)) == [LISTED_IMAGE, failed]
    # In several chunks, as tables that were put together are.
    broken = DecodedImage(**vars(failed))
    tables = [to_table([DECODED_IMAGE, broken], DECODED), to_table([DECODED_IMAGE], DECODED)]
    rows = decoded_images(pa.concat_tables(tables))
    assert [replace(row, pixels=None) for row in rows] == [
        replace(row, pixels=None) for row in (DECODED_IMAGE, broken, DECODED_IMAGE)
    ]
    assert [row.pixels is None for row in rows] == [False, True, False]
    np.testing.assert_array_equal(rows[2].input_HW3, IMAGE_HW3)


def test_a_row_that_has_no_labels_is_null_in_their_columns() -> None:
    (row,) = to_table([PredictedImage(**vars(DECODED_IMAGE))], PREDICTED).to_pylist()
    assert row == dict.fromkeys(PREDICTED.names) | {
        name: value for name, value in vars(DECODED_IMAGE).items() if name in PREDICTED.names
    }
