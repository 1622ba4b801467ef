"""Conversion of manifest columns to text, to carry them into the output."""

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.schema import CARRIED

NO_TEXT = (ValueError, OverflowError, KeyError, pa.ArrowException)  # from times in unknown zones or out of range


def carried(columns: dict[str, pa.Array]) -> pa.ListArray:
    """Return a list of (key, value) entries for each row, without NULL values; null for rows with only NULLs."""
    texts = [_texts(column) for column in columns.values()]
    count, rows = len(texts), len(texts[0])
    # Interleave the columns: all values of the first row, then those of the second, and so on.
    order = np.arange(count * rows).reshape(count, rows).T.ravel()
    values = pa.concat_arrays(texts).take(pa.array(order))
    keys = pa.array(list(columns), pa.string()).take(pa.array(np.tile(np.arange(count), rows)))
    valid = pc.is_valid(values)
    in_row = np.asarray(valid).reshape(rows, count).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(in_row)]).astype(np.int32)
    is_null = np.append(in_row == 0, False)  # rows without values
    starts = pa.array(offsets, pa.int32(), mask=is_null)
    entries = pa.StructArray.from_arrays([keys.filter(valid), values.filter(valid)], fields=list(CARRIED.value_type))
    return pa.ListArray.from_arrays(starts, entries, type=CARRIED)


def _texts(column: pa.Array) -> pa.StringArray:
    """Convert each value to text.

    Values that as_text cannot convert, such as a time beyond the year 9999 in a list, are formatted by Arrow's
    to_string.
    """
    try:
        return as_text(column)
    except NO_TEXT:
        if len(column) > 1:
            return pa.concat_arrays([_texts(column[n : n + 1]) for n in range(len(column))])
        return pa.array([re.sub(r"\s+", " ", column.to_string()).removeprefix("[ ").removesuffix(" ]")], pa.string())


def as_text(column: pa.Array) -> pa.StringArray:
    """Cast values to strings as Arrow does, but binary as hexadecimal and nested values as JSON."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_text(column.dictionary_decode())
    if pa.types.is_nested(kind):
        return pa.array([None if value is None else _json(value) for value in column.to_pylist()], pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([None if value is None else value.hex() for value in column.to_pylist()], pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # Strings in Parquet files may be invalid UTF-8, which readers of the output could not display.
        content = column.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
        try:
            return content.cast(pa.string())
        except pa.ArrowInvalid:
            texts = [None if value is None else value.decode(errors="replace") for value in content.to_pylist()]
            return pa.array(texts, pa.string())
    return column.cast(pa.string())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda one: one.hex() if isinstance(one, bytes) else str(one))
