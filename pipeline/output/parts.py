"""Parts: pairs of Parquet files, one of masks and one of class statistics, that are committed together.

The statistics are written first and the masks last: the masks file is the commit. The parts of masks alone define what
an output holds; there is no other record. Callers of functions that write or delete must hold the output's lease.
"""

import hashlib
import re
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.output.parquet import write_options, write_table
from pipeline.storage.parquet_files import parquet_bytes

PART = re.compile(r"part-[^/]+-(?:[0-9a-f]{32}|[0-9a-f]{16})\.parquet")
EARLIER_PART = re.compile(r"part-[^/]+-[0-9a-f]{16}\.parquet")  # of earlier versions, which hashed the image ids alone
# Columns that differ between two attempts at the same labels.
MEASURED = ("segmented_at", "seconds")
COMMIT_WITHIN = b"sceneparse.commit_within_seconds"


def part_name(run_id: str, masks: pa.Table, kept: bool = False) -> str:
    """Return the name of a part: its run id and a hash of all columns except nested ones and times.

    A task that is retried overwrites its own part. If the retry computes other labels (on another kind of GPU, or
    because an object was replaced), it writes a separate part, so masks are never paired with the statistics of others.

    Args:
        masks: rows of one run.
        kept: True if these rows are what remained of another part.
    """
    rows = masks.sort_by("image_id")
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(rows.column_names):
        column = rows[name].combine_chunks()
        if not pa.types.is_nested(column.type) and name not in MEASURED:
            digest.update(name.encode())
            for values in _canonical(column):
                digest.update(values)
    return f"part-{run_id}-{'kept-' if kept else ''}{digest.hexdigest()}.parquet"


def _canonical(column: pa.Array) -> Iterator[bytes]:
    """Yield a column's values as bytes that do not depend on the layout of its Arrow buffers."""
    yield pc.is_valid(column).to_numpy(zero_copy_only=False).tobytes()
    values = column.drop_null()
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type) or pa.types.is_fixed_size_binary(values.type):
        values = values.cast(pa.binary())
        yield pc.binary_length(values).to_numpy().tobytes()
        yield b"".join(values.to_pylist())
    else:
        yield values.to_numpy().tobytes()


def write_part(
    output: str, name: str, masks: pa.Table, class_stats: pa.Table, before_commit: Callable[[], None] = lambda: None
) -> int:
    """Write one part, its commit last, and return its size in bytes.

    Args:
        before_commit: called between the two files; if it raises, the part stays uncommitted.

    Raises: UserError.
    """
    content = parquet_bytes(masks, **write_options(masks))
    # A run that finds these statistics without masks reads here how long the masks may still take to arrive.
    about = {**(class_stats.schema.metadata or {}), COMMIT_WITHIN: f"{storage.write_seconds(len(content)):.0f}"}
    num_bytes = write_table(storage.join(output, "class_stats", name), class_stats.replace_schema_metadata(about))
    before_commit()
    storage.write_bytes(storage.join(output, "masks", name), content)
    return num_bytes + len(content)


def remove_part(output: str, name: str) -> None:
    """Remove one part, its commit first."""
    storage.remove(storage.join(output, "masks", name))
    storage.remove(storage.join(output, "class_stats", name))
