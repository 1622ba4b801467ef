"""The invariants of an output, checked from its files alone."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.output import parts
from pipeline.output.schema import CLASS_STATS, MASKS
from pipeline.verify.verification import Verification


def read(output: str, table: str) -> pa.Table:
    """All parts of a table, in file order."""
    filesystem, _ = storage.open_filesystem(output)
    uris = [uri for uri in storage.find(f"{output}/{table}") if uri.endswith(".parquet")]
    schema = {"masks": MASKS, "class_stats": CLASS_STATS}[table]
    tables = []
    for uri in uris:
        with filesystem.open(uri, "rb") as file:
            tables.append(pq.read_table(file))
        assert tables[-1].schema.equals(schema), uri
        metadata = dict(tables[-1].schema.metadata)
        assert (table == "masks") == (metadata.pop(parts.COMMIT_WITHIN, None) is None), uri
        assert metadata == schema.metadata, uri
    return pa.concat_tables(tables) if tables else schema.empty_table()


def check_invariants(output: str, uris: list[str]) -> dict[str, dict]:
    """Assert that every URI has exactly one row and that nothing is wrong. Returns the masks rows by URI."""
    masks = read(output, "masks").to_pylist()
    assert sorted(row["image_uri"] for row in masks) == sorted(uris)
    read(output, "class_stats")
    # Tests of parts have no model.
    found = Verification(storage.absolute(output), deep=True).findings()
    findings = [finding for finding in found if finding.kind != "no classes.parquet"]
    assert findings == []
    return {row["image_uri"]: row for row in masks}
