"""Selection of the images to label, each once, from those that the sources name."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.inputs import InputConfig
from pipeline.errors import UserError
from pipeline.output.id_set import IdSet
from pipeline.output.schema import IMAGE_ID_BYTES, LISTED, image_id
from pipeline.storage.patterns import expression, matches


class ImageSelection:
    """Stateful filter that applies --include, --exclude, --sample, --shard and --limit, and drops repeated images.

    Args:
        may_repeat: remember the id of each image to drop repeated ones; otherwise nothing is stored per image.
    """

    def __init__(self, config: InputConfig, may_repeat: bool) -> None:
        self._include = [expression(pattern, "--include") for pattern in config.include]
        self._exclude = [expression(pattern, "--exclude") for pattern in config.exclude]
        self._sample, self._shard = config.sample, config.shard
        self._seen = IdSet() if may_repeat else None
        self._left = config.limit
        self.named = self.matched = 0

    @property
    def is_complete(self) -> bool:
        """True once --limit is reached."""
        return self._left == 0

    def of(self, named: pa.Table) -> pa.Table:
        """Return the selected NAMED rows as LISTED rows."""
        self.named += len(named)
        named = named.filter(self._matches(named))
        self.matched += len(named)
        ids = image_ids(named["image_uri"])
        listed = pa.Table.from_arrays([pa.chunked_array([ids]), *named.columns], schema=LISTED)
        listed = listed.filter(chosen(ids, self._sample, self._shard))
        if self._seen is not None:
            listed = listed.filter(self._seen.add(listed["image_id"]))
        if self._left is not None:
            listed = listed.slice(0, min(self._left, len(listed)))  # slice only takes 64-bit integers
            self._left -= len(listed)
        return listed

    def check_not_empty(self) -> None:
        """Raise UserError if there were images, but none matched the patterns."""
        if self.named and not self.matched:
            raise UserError(f"include, exclude: none of the {self.named:,} images matches; check the patterns")

    def _matches(self, named: pa.Table) -> pa.BooleanArray | pa.ChunkedArray:
        uris = named["image_uri"].combine_chunks()
        kept = pa.repeat(True, len(uris))
        if self._include:
            kept = matches(uris, self._include)
        if self._exclude:
            kept = pc.and_(kept, pc.invert(matches(uris, self._exclude)))
        # BadURI rows have no name to match. Keep them, so that they are reported.
        return pc.or_(kept, pc.fill_null(pc.equal(named["error_type"], "BadURI"), False))


def image_ids(uris: pa.ChunkedArray) -> pa.FixedSizeBinaryArray:
    """Return the image ids of many URIs."""
    content = b"".join(map(image_id, uris.to_pylist()))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(IMAGE_ID_BYTES), len(uris), [None, pa.py_buffer(content)])


def chosen(ids: pa.FixedSizeBinaryArray, sample: float | None, shard: str | None) -> pa.BooleanArray:
    """Return True for each image in both the sample (by the first half of its id) and the shard (by the second)."""
    halves = np.frombuffer(ids.buffers()[1], ">u8", 2 * len(ids)).reshape(-1, 2)
    kept = np.ones(len(ids), bool)
    if sample is not None and sample < 1:
        kept &= halves[:, 0] < np.uint64(sample * 2**64)
    if shard is not None:
        k, n = map(int, shard.split("/"))
        kept &= halves[:, 1] % np.uint64(n) == k - 1
    return pa.array(kept)
