"""The invariants of an output, checked from its files alone."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.images import decode_label
from pipeline.tables import CLASS_STATS, MASKS, image_id


def read(output: str, table: str) -> pa.Table:
    """All parts of a table, in file order."""
    filesystem, _ = storage.open_filesystem(output)
    uris = [uri for uri in storage.find(f"{output}/{table}") if uri.endswith(".parquet")]
    schema = {"masks": MASKS, "class_stats": CLASS_STATS}[table]
    tables = []
    for uri in uris:
        with filesystem.open(uri, "rb") as file:
            tables.append(pq.read_table(file))
        assert tables[-1].schema.equals(schema, check_metadata=True), uri
    return pa.concat_tables(tables) if tables else schema.empty_table()


def check_invariants(output: str, uris: list[str]) -> dict[str, dict]:
    """Assert that every URI has exactly one row and that both tables agree. Returns the masks rows by URI."""
    masks = read(output, "masks").to_pylist()
    assert sorted(row["image_uri"] for row in masks) == sorted(uris)
    names = {
        table: {uri.rsplit("/", 1)[1] for uri in storage.find(f"{output}/{table}")}
        for table in ("masks", "class_stats")
    }
    assert names["masks"] == names["class_stats"]
    statistics: dict[bytes, list[dict]] = {}
    for row in read(output, "class_stats").to_pylist():
        statistics.setdefault(row["image_id"], []).append(row)
    for row in masks:
        assert row["image_id"] == image_id(row["image_uri"])
        classes = statistics.pop(row["image_id"], [])
        if row["status"] == "ok":
            ids_HW = decode_label(row["mask"]["bytes"])
            assert ids_HW.shape == (row["height"], row["width"])
            counts = {int(k): int(n) for k, n in zip(*np.unique(ids_HW, return_counts=True), strict=True)}
            assert {entry["class_id"]: entry["pixel_count"] for entry in classes} == counts
            assert row["class_ids"] == sorted(counts)
            assert sum(entry["pixel_count"] for entry in classes) == row["width"] * row["height"]
        else:
            assert classes == []
            assert row["mask"] is None
            assert row["error_stage"]
            assert row["error_type"]
            assert row["error_message"]
    assert statistics == {}, "class_stats has images that masks has not"
    return {row["image_uri"]: row for row in masks}
