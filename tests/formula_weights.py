"""Weights by a formula: the same bytes in every version of the program and on every processor."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def set_weights(model: nn.Module) -> None:
    """Give every parameter and buffer values that depend on its name and shape alone."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(_values(name, tensor))


def _values(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor)
    # Integer arithmetic and divisions by powers of two, since floating-point functions differ between processors.
    mixed = np.arange(tensor.numel(), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # of the generator splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(multiplier)
    spread = torch.from_numpy((mixed >> np.uint64(48)).astype(np.float32) / 65536 - 0.5).reshape(tensor.shape)
    if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
        return 1 + spread / 4
    fan_in = tensor[0].numel() if tensor.dim() > 1 else 64
    return spread * 2.0 ** round(float(1.5 - np.log2(fan_in) / 2))
