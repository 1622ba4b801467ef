"""How the tables lie in their Parquet files; benchmarks/tables.py shows what each choice costs and saves."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

# In memory. What a reader may fetch to have one mask; but each is asked for every column that is wanted of all images.
ROW_GROUP_BYTES = 16 * 2**20
# In masks all their values differ, so a dictionary of them only takes room.
WITHOUT_DICTIONARY = ("image_id", "image_uri", "etag", "mask.bytes", "mask.path")


def write_options(table: pa.Table, row_group_bytes: int = ROW_GROUP_BYTES) -> dict[str, Any]:
    """Options of pyarrow.parquet.write_table for masks, class_stats or classes."""
    columns = [path for field in table.schema for path in _columns(field.name, field.type)]
    is_masks = "mask.bytes" in columns
    return {
        "row_group_size": max(1, len(table) * row_group_bytes // max(1, table.nbytes)),
        "compression": "ZSTD",  # of masks, too: their headers and palettes are the same
        "use_dictionary": [path for path in columns if not (is_masks and path in WITHOUT_DICTIONARY)],
        "write_page_index": True,
    }


def _columns(path: str, kind: pa.DataType) -> Iterator[str]:
    """Paths of the Parquet columns of an Arrow column."""
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _columns(f"{path}.{child.name}", child.type)
    elif pa.types.is_list(kind):
        yield from _columns(f"{path}.list.element", kind.value_type)
    else:
        yield path
