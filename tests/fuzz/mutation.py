"""Ways to damage a file or a value: what each kind of case is made with."""

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

SEPARATOR = b"\n=====\n"  # between the files of a case
NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)
SHAPES = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
# What is no number, no name, no text of its kind.
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "..",
        "../..",
        "/",
        "//",
        "~",
        "*",
        "[",
        "%00",
        "%zz",
        "\ufeff",
        "\u202e",
        "é",
        "\U0001f600",
    ),
    *(
        "-1",
        "1e999",
        "nan",
        "0x_",
        "1" * 5000,
        "a" * 70_000,
        "file://",
        "s3://",
        "s3:///x",
        "http://[",
        "no/such",
        "\\",
    ),
    *(
        "none",
        "null",
        "true",
        "{",
        "[]",
        '"',
        "'",
        ",",
        "\n",
        "\r",
        "\t",
        "a,b",
        '"a"b',
        "#",
        "-",
        "--",
        "=",
        "{}",
        "${x}",
    ),
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 256, 65536, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 10**5000),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *TEXTS,
    *([], {}, [[]], [None], {"": None}, {"a": {"a": []}}, [0, 0, 0], ["a", "b"], [1] * 3000, "\ud800", "a\udcff"),
)


def joined(*files: bytes) -> bytes:
    """The files of a case as one."""
    return SEPARATOR.join(files)


def split(content: bytes, count: int) -> list[bytes]:
    """The files of a case; those that are missing are empty."""
    files = content.split(SEPARATOR, count - 1)
    return files + [b""] * (count - len(files))


def damaged(content: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with a few changes, mostly small ones, and mostly near the beginning or the end."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        content = rng.choice(_CHANGES)(bytearray(content), rng, others)
    return content


def _place(content: bytearray, rng: random.Random) -> int:
    near = rng.choice((32, 256, 4096, len(content)))
    offset = rng.randrange(max(1, min(near, len(content))))
    return offset if rng.random() < 0.7 else max(0, len(content) - 1 - offset)


def _span(content: bytearray, rng: random.Random) -> tuple[int, int]:
    start = _place(content, rng)
    return start, min(len(content), start + rng.choice((1, 2, 4, 12, 64, rng.randrange(1, 4096))))


def _flip(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    if content:
        content[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _number(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    shape = rng.choice(SHAPES)
    size = struct.calcsize(shape)
    if len(content) > size:
        start = min(_place(content, rng), len(content) - size)
        struct.pack_into(shape, content, start, rng.choice(NUMBERS) & ((1 << 8 * size) - 1))
    return bytes(content)


def _cut(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return bytes(content[: rng.randrange(len(content) + 1)])


def _remove(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, end = _span(content, rng)
    return bytes(content[:start] + content[end:])


def _repeat(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, end = _span(content, rng)
    return bytes(content[:start] + content[start:end] * rng.choice((2, 2, 3, 50)) + content[end:])


def _swap(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    (start, middle), (other, end) = sorted((_span(content, rng), _span(content, rng)))
    if middle > other:
        return bytes(content)
    return bytes(content[:start] + content[other:end] + content[middle:other] + content[start:middle] + content[end:])


def _fill(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, end = _span(content, rng)
    content[start:end] = rng.choice((bytes(end - start), b"\xff" * (end - start), rng.randbytes(end - start)))
    return bytes(content)


def _insert(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(content, rng)
    text = rng.choice(TEXTS).encode("utf-8", "surrogatepass") if rng.random() < 0.5 else rng.randbytes(rng.randrange(9))
    return bytes(content[:start] + text + content[start:])


def _splice(content: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    if not others:
        return bytes(content)
    other = rng.choice(others)
    start, end = sorted((rng.randrange(len(other) + 1), rng.randrange(len(other) + 1)))
    place = _place(content, rng)
    return bytes(content[:place] + other[start:end] + content[place + rng.choice((0, end - start)) :])


Change = Callable[[bytearray, random.Random, Sequence[bytes]], bytes]
_CHANGES: tuple[Change, ...] = (_flip, _flip, _number, _number, _cut, _remove, _repeat, _swap, _fill, _insert, _splice)


def changed(tree: Any, rng: random.Random) -> Any:
    """A tree of JSON's types with something in it replaced, removed, repeated or put elsewhere."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        name = rng.choice(list(tree))
        way = rng.random()
        if way < 0.7:
            return tree | {name: changed(tree[name], rng)}
        rest = {key: value for key, value in tree.items() if key != name}
        if way < 0.8:
            return rest
        return rest | {rng.choice((*TEXTS, *tree)): tree[name]}
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        place = rng.randrange(len(tree))
        way = rng.random()
        inside = [changed(tree[place], rng)] if way < 0.7 else [] if way < 0.8 else [tree[place]] * rng.choice((2, 300))
        return tree[:place] + inside + tree[place + 1 :]
    if isinstance(tree, str) and rng.random() < 0.3:
        return damaged(tree.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")
    return nested(tree, rng) if rng.random() < 0.1 else rng.choice(ODD)


def nested(tree: Any, rng: random.Random) -> Any:
    """The tree deep inside of others, but not so deep that json could not write it."""
    for _ in range(rng.choice((1, 2, 30, 400))):
        tree = [tree] if rng.random() < 0.5 else {"a": tree}
    return tree
