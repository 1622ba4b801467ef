"""The set of image ids: right for any ids, and no larger than it says."""

import random

import numpy as np
import pyarrow as pa
import pytest

from pipeline.output import id_set
from pipeline.output.id_set import IdSet, IdSum


def ids(values: list[bytes]) -> pa.Array:
    return pa.array(values, pa.binary(16))


def hashes(seed: int, count: int) -> pa.Array:
    content = np.random.default_rng(seed).bytes(16 * count)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(content)])


@pytest.fixture
def small_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few ids make many leaves and splits."""
    monkeypatch.setattr(id_set, "LEAF", 8)
    monkeypatch.setattr(id_set, "FEW", 16)


def drawn(choose: random.Random, kind: str) -> bytes:
    if kind == "hashes":
        return choose.randbytes(16)
    if kind == "few":
        return choose.choice([b"\0", b"\1", b"\xff"]) * 15 + choose.choice([b"\0", b"\xff"])
    if kind == "one first half":
        return b"\0" * 8 + choose.randrange(200).to_bytes(8, "big")
    if kind == "one second half":
        return choose.randrange(200).to_bytes(8, "big") + b"\0" * 8
    return choose.randbytes(choose.randrange(16)).ljust(16, b"\0")  # ends in zeros


@pytest.mark.parametrize("kind", ["hashes", "few", "one first half", "one second half", "ends in zeros"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("small_leaves")
def test_it_agrees_with_a_python_set_whatever_the_ids(kind: str, seed: int) -> None:
    choose = random.Random(f"{kind}{seed}")
    ours, theirs = IdSet(), set[bytes]()
    for _ in range(60):
        batch = [drawn(choose, kind) for _ in range(choose.randrange(40))]
        batch += choose.choices(batch, k=len(batch) // 3)
        asked = [drawn(choose, kind) for _ in range(20)]
        assert ours.contains(ids(asked)).to_pylist() == [one in theirs for one in asked]
        expected = [one not in theirs and one not in batch[:n] for n, one in enumerate(batch)]
        assert ours.add(ids(batch)).to_pylist() == expected
        theirs |= set(batch)
        assert len(ours) == len(theirs)
    everything = sorted(theirs)
    choose.shuffle(everything)
    assert all(ours.contains(ids(everything)).to_pylist())


def test_slices_and_chunks_of_arrays_are_taken_as_they_are() -> None:
    some = hashes(0, 100)
    ours = IdSet()
    assert all(ours.add(pa.chunked_array([some[10:20], some[50:60]])).to_pylist())
    expected = [10 <= n < 20 or 50 <= n < 60 for n in range(100)]
    assert ours.contains(some).to_pylist() == expected
    assert ours.contains(some[15:55]).to_pylist() == expected[15:55]


def test_an_empty_set_and_an_empty_question() -> None:
    assert IdSet().contains(hashes(0, 3)).to_pylist() == [False] * 3
    assert IdSet().contains(hashes(0, 0)).to_pylist() == []
    assert IdSet().add(pa.chunked_array([], pa.binary(16))).to_pylist() == []


@pytest.mark.parametrize("wrong", [pa.array([b"short"]), pa.array(["x" * 16]), pa.array([None], pa.binary(16))])
def test_what_is_no_id_is_refused(wrong: pa.Array) -> None:
    with pytest.raises(ValueError, match="id"):
        IdSet().add(wrong)


def test_a_million_ids_take_sixteen_bytes_each() -> None:
    ours = IdSet()
    for seed in range(100):
        assert ours.add(hashes(seed, 10_000)).true_count == 10_000
    assert len(ours) == 1_000_000
    assert ours.nbytes == 16_000_000
    assert ours.contains(hashes(7, 10_000)).true_count == 10_000
    assert ours.contains(hashes(1_000, 10_000)).true_count == 0
    assert ours.add(hashes(7, 10_000)).true_count == 0


def test_the_sum_of_ids_tells_of_one_that_is_missing_or_comes_twice() -> None:
    some = hashes(0, 1000)
    total = IdSum.of(some)
    assert total.num_ids == 1000
    in_parts = IdSum()
    for part in (some[700:], some[:0], some[:700]):
        in_parts = in_parts.plus(IdSum.of(part))
    assert in_parts == total
    twice = pa.concat_arrays([some[:999], some[3:4]])  # one is missing, another there twice
    assert IdSum.of(twice).num_ids == 1000
    assert IdSum.of(twice) != total
    assert IdSum.of(pa.chunked_array([some[:999]])) != total
