"""Set of the images of an output that need no more work. Memory: 16 bytes per image id, also for 100 million ids."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.errors import EVERY_KIND
from pipeline.output.id_set import IdSet
from pipeline.output.schema import IMAGE_ID_BYTES, image_id


class CompletedImages:
    """Set of the images that have a row, except those that are to be labeled again.

    Args:
        retry_errors: error types whose images are retried; 'all' means every error type.
        relabel_changed: label an image again if its ETag differs from the ETag in its row.
    """

    def __init__(self, retry_errors: Sequence[str] = (), relabel_changed: bool = False) -> None:
        self._retry_errors = tuple(retry_errors)
        self._relabel_changed = relabel_changed
        self._images = IdSet()
        self._settled = IdSet() if retry_errors else self._images  # without the images to retry
        self._versions = IdSet()
        self.num_without_etag = 0  # with `relabel_changed`: listed images with a row but no ETag
        # The columns of masks that `add` needs.
        self.columns = ["image_id"]
        self.columns += ["status", "error_type"] if retry_errors else []
        self.columns += ["etag"] if relabel_changed else []

    def __len__(self) -> int:
        return len(self._settled)

    def add(self, rows: pa.Table) -> pa.BooleanArray:
        """Add rows of masks (at least the `columns`) and return, for each row, True if its image had no row before."""
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
        """Return, for each row of a LISTED table, True if its image needs no more work."""
        known = self._settled.contains(listed["image_id"])
        if not self._relabel_changed:
            return known
        is_unversioned = pc.is_null(listed["etag"])
        self.num_without_etag += pc.sum(pc.and_(known, is_unversioned)).as_py() or 0
        same = pc.or_(is_unversioned, self._versions.contains(_versions(listed)))
        return pc.and_(known, same)


def _versions(images: pa.Table) -> pa.Array:
    """Return one id for each pair of image id and ETag."""
    pairs = zip(images["image_id"].to_pylist(), images["etag"].to_pylist(), strict=True)
    return pa.array([image_id(f"{name.hex()} {etag}") for name, etag in pairs], pa.binary(IMAGE_ID_BYTES))
