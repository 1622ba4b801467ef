"""Filter of hidden files, which are no images although they lie among them."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.storage.hidden_files import HIDDEN


class HiddenFiles:
    """Filter that drops hidden files from listings, and counts them.

    Args:
        are_included: drop nothing.
    """

    def __init__(self, are_included: bool) -> None:
        self.are_included = are_included
        self.num_skipped = 0

    def skipped(self, tables: Iterator[pa.Table], folder: str, source: str) -> Iterator[pa.Table]:
        """Yield the NAMED tables of a listing without the files that are hidden by their path below `folder`.

        Rows with an error are kept.

        Args:
            folder: URI of a folder that may itself be hidden; a bucket if the listing may name files elsewhere.
            source: option and URI, for messages.

        Raises: UserError if all files are hidden.
        """
        if self.are_included:
            yield from tables
            return
        folder = storage.absolute(folder).rstrip("/")
        num_kept = num_hidden = 0
        for table in tables:
            uris = table["image_uri"]
            paths = pc.if_else(pc.starts_with(uris, folder), pc.utf8_slice_codeunits(uris, len(folder)), uris)
            is_hidden = pc.and_(pc.match_substring_regex(paths, HIDDEN), pc.is_null(table["error_type"]))
            kept = table.filter(pc.invert(is_hidden))
            num_kept += len(kept)
            num_hidden += len(table) - len(kept)
            self.num_skipped += len(table) - len(kept)
            yield kept
        if num_hidden and not num_kept:
            raise UserError(f"{source}: its {num_hidden:,} files are all hidden; --hidden includes them")
