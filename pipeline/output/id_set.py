"""A set of image ids that holds tens of millions of them in little more than their 16 bytes each."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.output.schema import IMAGE_ID_BYTES

Numbers = NDArray[np.uint64]

LEAF = 1 << 17  # ids that are rewritten together
FEW = 1 << 16  # ids that wait for the leaves at the least
SHARE = 16  # and at the most: one in so many


class _Run(NamedTuple):
    """Ids as pairs of numbers, sorted by the first; those that share the first are in no order."""

    first: Numbers
    second: Numbers

    def part(self, start: int, stop: int) -> "_Run":
        return _Run(self.first[start:stop], self.second[start:stop])


_EMPTY = _Run(np.empty(0, np.uint64), np.empty(0, np.uint64))


class IdSum(NamedTuple):
    """How many ids there are, and their sum, modulo 2^64: if one is another, or comes twice for it, a different one."""

    num_ids: int = 0
    total: int = 0

    @classmethod
    def of(cls, ids: pa.Array | pa.ChunkedArray) -> "IdSum":
        numbers = _numbers(ids).first
        return cls(len(numbers), int(numbers.sum(dtype=np.uint64)))

    def plus(self, other: "IdSum") -> "IdSum":
        return IdSum(self.num_ids + other.num_ids, (self.total + other.total) % 2**64)


class IdSet:
    """An exact set of 16-byte ids, added and looked up by the array.

    Most ids lie in sorted leaves that divide the range of ids between them; the newest wait in a few sorted runs
    until there are enough to go through all leaves. A leaf is rewritten alone, so nothing is ever held twice.
    Any ids are right; ids that are hashes, which rarely share their first eight bytes, are fast.
    """

    def __init__(self) -> None:
        self._leaves: list[_Run] = []
        self._starts: Numbers = np.empty(0, np.uint64)  # first number of each leaf but the first
        self._new: list[_Run] = []  # each at least four times as long as the next

    def __len__(self) -> int:
        return sum(len(run.first) for run in (*self._leaves, *self._new))

    @property
    def nbytes(self) -> int:
        """Memory of the ids, bytes."""
        return sum(run.first.nbytes + run.second.nbytes for run in (*self._leaves, *self._new))

    def contains(self, ids: pa.Array | pa.ChunkedArray) -> pa.BooleanArray:
        """Which ids are in the set."""
        query = _numbers(ids)
        order = np.argsort(query.first)  # sorted questions go through the leaves once
        found = np.empty(len(order), bool)
        found[order] = self._find(_Run(query.first[order], query.second[order]))
        return pa.array(found)

    def add(self, ids: pa.Array | pa.ChunkedArray) -> pa.BooleanArray:
        """Put ids into the set; returns which were not in it, of equal ones among them the first."""
        given = _numbers(ids)
        order = np.lexsort((given.second, given.first))  # stable: of equal ids the first stays first
        query = _Run(given.first[order], given.second[order])
        fresh = np.ones(len(order), bool)
        fresh[1:] = (query.first[1:] != query.first[:-1]) | (query.second[1:] != query.second[:-1])
        fresh &= ~self._find(query)
        self._append(_Run(query.first[fresh], query.second[fresh]))
        added = np.empty(len(order), bool)
        added[order] = fresh
        return pa.array(added)

    def _find(self, query: _Run) -> NDArray[np.bool_]:
        """Which ids of a sorted query are in the set."""
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
            self._leaves[position] = _EMPTY  # so that the old leaf can go at once
            leaves += _split(_merged(leaf, run.part(start, stop)) if start < stop else leaf)
        self._leaves = leaves
        self._starts = np.array([leaf.first[0] for leaf in leaves[1:]], np.uint64)


def _numbers(ids: pa.Array | pa.ChunkedArray) -> _Run:
    """Ids as two numbers each, in the order given."""
    if ids.type != pa.binary(IMAGE_ID_BYTES):
        raise ValueError(f"ids are {ids.type}, not binary({IMAGE_ID_BYTES})")
    if ids.null_count:
        raise ValueError("an id is null")
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
    # The next one may share the first number, too: nearly never for hashes.
    after = np.minimum(at + 1, last)
    for n in np.flatnonzero(alike & ~found & (after > at) & (run.first[after] == query.first)):
        stop = np.searchsorted(run.first, query.first[n], side="right")
        found[n] = (run.second[place[n] : stop] == query.second[n]).any()
    return found


def _merged(one: _Run, other: _Run) -> _Run:
    """Both in one sorted run."""
    places = np.searchsorted(one.first, other.first) + np.arange(len(other.first))
    first, second = (np.empty(len(one.first) + len(other.first), np.uint64) for _ in range(2))
    from_one = np.ones(len(first), bool)
    from_one[places] = False
    for whole, a, b in ((first, one.first, other.first), (second, one.second, other.second)):
        whole[places] = b
        whole[from_one] = a
    return _Run(first, second)


def _split(leaf: _Run) -> list[_Run]:
    """The leaf, or several that are shorter; ids that share their first number stay in one."""
    if len(leaf.first) <= 2 * LEAF:
        return [leaf]
    wanted = leaf.first[LEAF : len(leaf.first) - LEAF // 2 : LEAF]
    edges = [0, *np.unique(np.searchsorted(leaf.first, wanted)).tolist(), len(leaf.first)]
    # Copies, since a view would keep the whole leaf.
    return [
        _Run(leaf.first[start:stop].copy(), leaf.second[start:stop].copy())
        for start, stop in pairwise(edges)
        if start < stop
    ]
