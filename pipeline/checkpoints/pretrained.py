"""Initial weights of a training run from another checkpoint."""

from typing import Any

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config.data import DataConfig
from pipeline.errors import UserError

# Settings with which the same parameters compute a different function.
OF_BACKBONE = ("backbone", "width", "stem", "stem_channels")
OF_DILATION = ("contract_dilation", "dilate_second")
OF_HEADS = ("bins", "pooling", "reduce", "align_corners")


def take_weights(network: Any, uri: str, data: DataConfig) -> list[str]:
    """Load a checkpoint's backbone into a network, and its heads if they are trained and their classes are the same.

    A backbone alone, such as an ImageNet ResNet's, was trained without dilation, so any is accepted.

    Returns: names of the loaded parts: 'backbone', 'head', 'auxiliary'.
    Raises: UserError if the checkpoint has a different backbone, with the keys to change.
    """
    found = Checkpoint.load(uri, long_side=None, needs_heads=False)
    has_heads = found.metadata.has_trained_heads
    differing = _differing(network, found.network, OF_BACKBONE + (OF_DILATION if has_heads else ()))
    if differing:
        listed = "\n  ".join(f"model.{key}: {theirs!r} in weights, {ours!r} here" for key, theirs, ours in differing)
        raise UserError(f"weights {uri}: has a different backbone:\n  {listed}\nset these keys to match the weights")
    network.backbone.load_state_dict(found.network.backbone.state_dict())
    taken = ["backbone"]
    if not has_heads or found.class_names != [entry.name for entry in data.classes]:
        return taken
    if not _differing(network, found.network, OF_HEADS):
        network.head.load_state_dict(found.network.head.state_dict())
        taken.append("head")
    if network.auxiliary is not None and found.network.auxiliary is not None:
        network.auxiliary.load_state_dict(found.network.auxiliary.state_dict())
        taken.append("auxiliary")
    return taken


def _differing(network: Any, other: Any, fields: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """Return (field, the other's value, the network's) for fields that differ; a plain stem ignores stem_channels."""
    ours, theirs = network.architecture.to_dict(), other.architecture.to_dict()
    if ours["stem"] == theirs["stem"] == "plain":
        theirs["stem_channels"] = ours["stem_channels"]
    if int(ours["backbone"].removeprefix("resnet")) >= 50:
        theirs["dilate_second"] = ours["dilate_second"]
    return [(field, theirs[field], ours[field]) for field in fields if theirs[field] != ours[field]]
