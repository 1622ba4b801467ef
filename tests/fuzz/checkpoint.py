"""Cases for checkpoint folders: a config.json, and a model.safetensors of the smallest network that there is.

The weights of a case are the header of model.safetensors, or `whole` for those that fit the first config.json; so that
a case is small. What follows a header is zeros, of which there are as many as the whole file has.
"""

import json
import random
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import models
from models import Architecture, Metadata, PSPNet
from tests.fuzz.mutation import changed, damaged, joined, split

WHOLE = b"whole"
INT8 = {"ranges": {}, "images": 1, "agreement": 0.9, "miou": {"float32": 0.5, "int8": 0.5}}


def seeds() -> list[bytes]:
    """A checkpoint, one that says that it is calibrated, and the first with its header spelt out."""
    config, weights = _saved()
    calibrated = json.loads(config) | {"int8": INT8, "temperature": 1.5, "preprocessing": {"long_side": 512}}
    header = weights[: 8 + struct.unpack("<Q", weights[:8])[0]]
    return [joined(config, WHOLE), joined(json.dumps(calibrated).encode(), WHOLE), joined(config, header)]


def mutated(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another config.json, or another header of the weights."""
    config, weights = split(content, 2)
    way = rng.random()
    if weights != WHOLE and way < 0.6:
        return joined(config, _other_header(weights, rng))
    if way < 0.8:
        try:
            tree = json.loads(config)
            if isinstance(tree, dict) and isinstance(tree.get("architecture"), dict) and rng.random() < 0.4:
                tree["architecture"] = changed(tree["architecture"], rng)
            else:
                tree = changed(tree, rng)
            return joined(json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"), weights)
        except (ValueError, RecursionError):
            pass
    if way < 0.85:
        return joined(config.replace(b"1", b"[" * rng.choice((10, 1000, 100_000)), 1), weights)
    return joined(damaged(config, rng), weights)


def check(content: bytes) -> str:
    """Load the folder. Raises whatever is neither a model nor what `models.load` says that it raises."""
    config, weights = split(content, 2)
    folder = Path(_folders().name, "whole" if weights == WHOLE else "other")
    (folder / "config.json").write_bytes(config)
    if weights != WHOLE:
        with (folder / "model.safetensors").open("wb") as file:
            file.write(weights)
            file.truncate(len(_saved()[1]))  # a hole, which costs nothing
    try:
        network, metadata = models.load(folder)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    models.model_id(network, metadata)
    json.dumps(asdict(metadata), ensure_ascii=False).encode()  # as it is saved
    return "loaded"


@cache
def _folders() -> "tempfile.TemporaryDirectory[str]":
    folder = tempfile.TemporaryDirectory(prefix="sceneparse-fuzz-")
    for name in ("whole", "other"):
        Path(folder.name, name).mkdir()
    Path(folder.name, "whole", "model.safetensors").write_bytes(_saved()[1])
    return folder


@cache
def _saved() -> tuple[bytes, bytes]:
    network = PSPNet(Architecture("resnet18", 2, bins=(), auxiliary=False))
    with tempfile.TemporaryDirectory(prefix="sceneparse-fuzz-") as folder:
        models.save(folder, network, Metadata(["road", "sky"], [[0, 0, 0], [1, 2, 3]]))
        return Path(folder, "config.json").read_bytes(), Path(folder, "model.safetensors").read_bytes()


def _other_header(weights: bytes, rng: random.Random) -> bytes:
    """Other tensors, types, shapes or places."""
    if rng.random() < 0.3:
        return damaged(weights, rng)
    try:
        tree = json.loads(weights[8:])
        if isinstance(tree, dict) and tree and rng.random() < 0.3:
            name = rng.choice(list(tree))
            tree = {name: tree[name], "__metadata__": rng.choice(({}, {"a": "b"}, {"a": 1}, None, []))}
        header = json.dumps(changed(tree, rng)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return damaged(weights, rng)
    for before in (b"F32", b"I64"):
        kind = rng.choice((b"F16", b"BF16", b"F64", b"BOOL", b"U8", b"I4", b"F8_E8M0", b"F4", b"C64", b"U64", b"X"))
        if rng.random() < 0.1:
            header = header.replace(before, kind, rng.choice((1, 1000)))
    return struct.pack("<Q", len(header)) + header
