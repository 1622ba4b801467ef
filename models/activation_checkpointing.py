"""Activation checkpointing: activations are recomputed in the backward pass instead of stored."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, x: Tensor) -> Tensor:
    """Return `module(x)`, storing only x for the backward pass (Chen et al. 2016).

    BatchNorm's running statistics are updated once, as without checkpointing. The module must not use random numbers.
    """
    return checkpoint(
        module,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _running_statistics_kept(module)),
    )


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Protect the buffers of BatchNorm layers by letting them update copies."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    kept = [layer._buffers for layer in layers]
    for layer in layers:
        layer._buffers = {name: None if b is None else b.clone() for name, b in layer._buffers.items()}
    try:
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            layer._buffers = buffers
