"""Images under a prefix, or all matches of a glob."""

from collections.abc import Iterator

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.inputs.uris import named_table
from pipeline.storage.patterns import absolute_pattern, expression, folder_of, is_glob, matches


def read(uri: str) -> Iterator[pa.Table]:
    """Yield NAMED tables of every file under a prefix, or of every match of a glob, in name order, as storage lists.

    Every file counts as an image, so that none is skipped silently: a file that is not an image becomes an error row
    later. Only folder markers of object stores are skipped; hidden files are skipped, and counted, by the caller.
    """
    pattern = [expression(absolute_pattern(uri), "--input")] if is_glob(uri) else []
    for page in storage.listed(folder_of(uri)):
        uris, sizes, etags = zip(*page, strict=True)
        columns = {
            "image_uri": pa.array(uris, pa.string()),
            "size_bytes": pa.array(sizes, pa.int64()),
            "etag": pa.array(etags, pa.string()),
        }
        table = named_table(columns, len(page))
        yield table.filter(matches(columns["image_uri"], pattern)) if pattern else table


def check_no_bare_scheme(uri: str) -> None:
    """Raise UserError for `s3://` without a bucket."""
    if uri.startswith("s3") and storage.open_filesystem(uri)[1] == "/":
        raise UserError(f"input {uri}: the bucket is missing; use s3://BUCKET or s3://BUCKET/PREFIX")


def check_no_output_inside_input(input_uri: str, output_uri: str) -> None:
    """Raise UserError if the output is inside the input, where the next run would list it as images."""
    prefix = storage.absolute(folder_of(input_uri)).rstrip("/") + "/"
    if f"{output_uri}/".startswith(prefix):
        raise UserError(f"output {output_uri} is inside input {input_uri}; choose an output outside of it")
