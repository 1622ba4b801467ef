"""Helpers that the tests of inputs share."""

from typing import Any

import pyarrow as pa

from pipeline.config.jobs import SegmentConfig
from pipeline.config.loading import load_settings
from pipeline.inputs import list_images
from pipeline.output.schema import LISTED


def config(*flags: str, output: str = "/nowhere/output", **options: Any) -> SegmentConfig:
    """A job's settings, from the command line that the options are on it."""
    argv = [*flags, "--output", output, "--checkpoint", "/nowhere/checkpoint"]
    for name, values in options.items():
        for value in [values] if isinstance(values, str | int | float) else values:
            argv += [f"--{name.replace('_', '-')}", str(value)]
    return load_settings(SegmentConfig, argv, prog="jobs/segment_bucket.py")


def listed(**options: Any) -> pa.Table:
    """All tables of the listing as one; each of them as it has to be."""
    tables = list(list_images(config(**options)))
    for table in tables:
        assert table.schema.equals(LISTED, check_metadata=True)
        assert 0 < len(table) <= 10_000
    return pa.concat_tables([LISTED.empty_table(), *tables])


def uris(table: pa.Table) -> list[str]:
    return table["image_uri"].to_pylist()


def errors(table: pa.Table) -> dict[str, str]:
    """URI -> kind of error, of the rows that have one."""
    rows = [row for row in table.to_pylist() if row["error_stage"] is not None]
    assert all(row["error_stage"] == "list" and row["error_type"] and row["error_message"] for row in rows)
    return {row["image_uri"]: row["error_type"] for row in rows}
