"""Weights and images that are a pure function of name and shape, the same on every machine and in every version."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def seeded_state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Float32 weights under these names, of a scale that keeps a deep network's activations within range."""
    return {name: _seeded(name, tuple(shape)) for name, shape in shapes.items()}


def seeded_image(height: int, width: int) -> Tensor:
    """A normalised image, (1, 3, height, width)."""
    return _normal("image", (1, 3, height, width))


def _seeded(name: str, shape: tuple[int, ...]) -> Tensor:
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.tensor(0)
    values = _normal(name, shape)
    if kind == "running_var":
        return 0.5 + values.abs()
    if kind == "weight" and len(shape) == 1:
        return 0.5 + 0.1 * values
    scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) == 4 else 0.1
    return scale * values


def _normal(name: str, shape: tuple[int, ...]) -> Tensor:
    # RandomState, since numpy promises that its numbers never change; default_rng's may.
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
