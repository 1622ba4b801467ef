"""Compact set of image ids: tens of millions of ids in little more than their 16 bytes each."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.output.schema import IMAGE_ID_BYTES

Numbers = NDArray[np.uint64]

LEAF = 1 << 17  # ids per sorted leaf, which is rewritten as a whole
FEW = 1 << 16  # new ids are merged into the leaves once there are more than this many
SHARE = 16  # and more than 1/SHARE of the ids in the leaves


class _Run(NamedTuple):
    """Ids as pairs of numbers, sorted by the first; ids with the same first number are in no particular order."""

    first: Numbers
    second: Numbers

    def part(self, start: int, stop: int) -> "_Run":
        return _Run(self.first[start:stop], self.second[start:stop])


_EMPTY = _Run(np.empty(0, np.uint64), np.empty(0, np.uint64))


class IdSum(NamedTuple):
    """Count of ids and their sum modulo 2^64; the sum changes if an id is replaced by another one or by a duplicate."""

    num_ids: int = 0
    total: int = 0

    @classmethod
    def of(cls, ids: pa.Array | pa.ChunkedArray) -> "IdSum":
        numbers = _numbers(ids).first
        return cls(len(numbers), int(numbers.sum(dtype=np.uint64)))

    def plus(self, other: "IdSum") -> "IdSum":
        return IdSum(self.num_ids + other.num_ids, (self.total + other.total) % 2**64)


class IdSet:
    """Exact set of 16-byte ids; ids are added and looked up by the array.

    Most ids are in sorted leaves, each of which covers one range of ids. The newest ids are in a few sorted runs until
    there are enough of them to justify a merge into all leaves. The merge rewrites one leaf at a time, so it never
    holds a second copy of all ids. The set is correct for any ids, and fast for hashes, which rarely share their first
    eight bytes.
    """

    def __init__(self) -> None:
        self._leaves: list[_Run] = []
        self._starts: Numbers = np.empty(0, np.uint64)  # first number of each leaf except the first leaf
        self._new: list[_Run] = []  # each run is at least four times as long as the next

    def __len__(self) -> int:
        return sum(len(run.first) for run in (*self._leaves, *self._new))

    @property
    def nbytes(self) -> int:
        """Memory that the ids take, in bytes."""
        return sum(run.first.nbytes + run.second.nbytes for run in (*self._leaves, *self._new))

    def contains(self, ids: pa.Array | pa.ChunkedArray) -> pa.BooleanArray:
        """Return, for each id, True if it is in the set."""
        query = _numbers(ids)
        order = np.argsort(query.first)  # a sorted query passes over the leaves once
        found = np.empty(len(order), bool)
        found[order] = self._find(_Run(query.first[order], query.second[order]))
        return pa.array(found)

    def add(self, ids: pa.Array | pa.ChunkedArray) -> pa.BooleanArray:
        """Add ids and return, for each, True if it was not in the set; of equal new ids only the first is True."""
        given = _numbers(ids)
        order = np.lexsort((given.second, given.first))  # stable: equal ids keep their order
        query = _Run(given.first[order], given.second[order])
        fresh = np.ones(len(order), bool)
        fresh[1:] = (query.first[1:] != query.first[:-1]) | (query.second[1:] != query.second[:-1])
        fresh &= ~self._find(query)
        self._append(_Run(query.first[fresh], query.second[fresh]))
        added = np.empty(len(order), bool)
        added[order] = fresh
        return pa.array(added)

    def _find(self, query: _Run) -> NDArray[np.bool_]:
        """Return, for each id of a sorted query, True if it is in the set."""
        found = np.zeros(len(query.first), bool)
        edges = [0, *np.searchsorted(query.first, self._starts).tolist(), len(query.first)]
        for leaf, start, stop in zip(self._leaves, edges, edges[1:], strict=False):
            if start < stop:
                found[start:stop] = _find_in(leaf, query.part(start, stop))
        for run in self._new:
            found |= _find_in(run, query)
        return found

    def _append(self, run: _Run) -> None:
        if not len(run.first):
            return
        while self._new and len(self._new[-1].first) < 4 * len(run.first):
            run = _merged(self._new.pop(), run)
        self._new.append(run)
        waiting = sum(len(one.first) for one in self._new)
        if waiting > max(FEW, sum(len(leaf.first) for leaf in self._leaves) // SHARE):
            self._into_leaves()

    def _into_leaves(self) -> None:
        run = self._new.pop()
        while self._new:
            run = _merged(self._new.pop(), run)
        if not self._leaves:
            self._leaves = [_EMPTY]
        edges = [0, *np.searchsorted(run.first, self._starts).tolist(), len(run.first)]
        leaves: list[_Run] = []
        for position, (start, stop) in enumerate(pairwise(edges)):
            leaf = self._leaves[position]
            self._leaves[position] = _EMPTY  # frees the old leaf as soon as it is merged
            leaves += _split(_merged(leaf, run.part(start, stop)) if start < stop else leaf)
        self._leaves = leaves
        self._starts = np.array([leaf.first[0] for leaf in leaves[1:]], np.uint64)


def _numbers(ids: pa.Array | pa.ChunkedArray) -> _Run:
    """Return ids as pairs of numbers, in the given order. Raises: ValueError for another type, or a null id."""
    if ids.type != pa.binary(IMAGE_ID_BYTES):
        raise ValueError(f"ids have the type {ids.type}, not binary({IMAGE_ID_BYTES})")
    if ids.null_count:
        raise ValueError("ids contain a null")
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if not len(ids):
        return _EMPTY
    pairs = np.frombuffer(ids.buffers()[1], np.uint64, 2 * len(ids), IMAGE_ID_BYTES * ids.offset).reshape(-1, 2)
    return _Run(pairs[:, 0], pairs[:, 1])


def _find_in(run: _Run, query: _Run) -> NDArray[np.bool_]:
    if not len(run.first):
        return np.zeros(len(query.first), bool)
    place = np.searchsorted(run.first, query.first)
    last = len(run.first) - 1
    at = np.minimum(place, last)
    alike = run.first[at] == query.first
    found = alike & (run.second[at] == query.second)
    # The next id may have the same first number; for hashes this almost never happens.
    after = np.minimum(at + 1, last)
    for n in np.flatnonzero(alike & ~found & (after > at) & (run.first[after] == query.first)):
        stop = np.searchsorted(run.first, query.first[n], side="right")
        found[n] = (run.second[place[n] : stop] == query.second[n]).any()
    return found


def _merged(one: _Run, other: _Run) -> _Run:
    """Merge two runs into one sorted run."""
    places = np.searchsorted(one.first, other.first) + np.arange(len(other.first))
    first, second = (np.empty(len(one.first) + len(other.first), np.uint64) for _ in range(2))
    from_one = np.ones(len(first), bool)
    from_one[places] = False
    for whole, a, b in ((first, one.first, other.first), (second, one.second, other.second)):
        whole[places] = b
        whole[from_one] = a
    return _Run(first, second)


def _split(leaf: _Run) -> list[_Run]:
    """Split a leaf that is too long; ids with the same first number stay in one leaf."""
    if len(leaf.first) <= 2 * LEAF:
        return [leaf]
    wanted = leaf.first[LEAF : len(leaf.first) - LEAF // 2 : LEAF]
    edges = [0, *np.unique(np.searchsorted(leaf.first, wanted)).tolist(), len(leaf.first)]
    # Copies, because a view would keep the whole leaf in memory.
    return [
        _Run(leaf.first[start:stop].copy(), leaf.second[start:stop].copy())
        for start, stop in pairwise(edges)
        if start < stop
    ]
