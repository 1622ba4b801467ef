"""Which images of an output need nothing more. Of a hundred million it holds the ids, 16 bytes each."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.errors import EVERY_KIND
from pipeline.output.id_set import IdSet
from pipeline.output.schema import IMAGE_ID_BYTES, image_id


class CompletedImages:
    """The images that have a row, but for those that are to be labelled again.

    Args:
        retry_errors: kinds of failures to try again; 'all' is every kind.
        relabel_changed: whether an image with another ETag than its row is to be labelled again.
    """

    def __init__(self, retry_errors: Sequence[str] = (), relabel_changed: bool = False) -> None:
        self._retry_errors = tuple(retry_errors)
        self._relabel_changed = relabel_changed
        self._images = IdSet()
        self._settled = IdSet() if retry_errors else self._images  # images without those to try again
        self._versions = IdSet()
        self.num_without_etag = 0  # listed images that have a row and, with `relabel_changed`, no ETag to compare
        # Of masks, what `add` wants to see.
        self.columns = ["image_id"]
        self.columns += ["status", "error_type"] if retry_errors else []
        self.columns += ["etag"] if relabel_changed else []

    def __len__(self) -> int:
        return len(self._settled)

    def add(self, rows: pa.Table) -> pa.BooleanArray:
        """Count rows of masks, at least their `columns`; returns whose image had no row before."""
        is_first = self._images.add(rows["image_id"])
        if self._retry_errors:
            again = pc.equal(rows["status"], "error")
            if EVERY_KIND not in self._retry_errors:
                kinds = pa.array(self._retry_errors, pa.string())
                again = pc.and_(again, pc.is_in(rows["error_type"], value_set=kinds))
            self._settled.add(rows["image_id"].filter(pc.invert(again)))
        if self._relabel_changed:
            self._versions.add(_versions(rows))
        return is_first

    def contains(self, listed: pa.Table) -> pa.Array:
        """Of a LISTED table, which images need nothing more."""
        known = self._settled.contains(listed["image_id"])
        if not self._relabel_changed:
            return known
        is_unversioned = pc.is_null(listed["etag"])
        self.num_without_etag += pc.sum(pc.and_(known, is_unversioned)).as_py() or 0
        same = pc.or_(is_unversioned, self._versions.contains(_versions(listed)))
        return pc.and_(known, same)


def _versions(images: pa.Table) -> pa.Array:
    """An id for each image and ETag together."""
    pairs = zip(images["image_id"].to_pylist(), images["etag"].to_pylist(), strict=True)
    return pa.array([image_id(f"{name.hex()} {etag}") for name, etag in pairs], pa.binary(IMAGE_ID_BYTES))
