"""Removal of what training frameworks add to the state dict of a network: prefixes, losses and moving averages.

`_orig_mod.` comes from torch.compile, `module.` from DistributedDataParallel, and `model.` or `net.` from the attribute
of a LightningModule that holds the network. mmcv's EMAHook (MMSegmentation 0.x) stores the moving average of a.b as
ema_a_b.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from models.weights.safe_loading import listed

COMPILED = "_orig_mod"
WRAPPERS = ("module.", "model.", "net.")
# Class weights of CrossEntropyLoss, NLLLoss and BCEWithLogitsLoss, and of modules that contain one of these.
LOSS_WEIGHT = re.compile(r"(criterion|loss|loss_fn)\.(.+\.)?(weight|pos_weight)")
AVERAGE = "ema_"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Unwrapped:
    """Tensors under the network's own names, and the file's names of the tensors that were dropped."""

    tensors: dict[str, Tensor]
    dropped: list[str]
    has_averages: bool


def unwrap(tensors: Mapping[str, Tensor], ema: bool = False) -> Unwrapped:
    """Return a network's tensors without prefixes, class weights of losses, and moving averages.

    With `ema`, the moving averages replace the parameters, which are dropped instead.

    Raises ValueError if two tensors have the same name without prefixes, or if `ema` is set and a parameter has no
    moving average.
    """
    in_file = _without_prefixes(tensors)
    own = {name: tensors[theirs] for name, theirs in in_file.items()}
    losses = [name for name, tensor in own.items() if _is_loss_weight(name, tensor)]
    averages = {name: average for name in own if (average := AVERAGE + name.replace(".", "_")) in own}
    outside = {*losses, *averages.values()}
    network = {name: tensor for name, tensor in own.items() if name not in outside}
    if not ema:
        return Unwrapped(network, [in_file[name] for name in own if name in outside], bool(averages))

    missing = [name for name in network if name not in averages and not name.endswith(BUFFERS)]
    if missing:
        raise ValueError(f"{listed(missing)} without a moving average ({AVERAGE}*); import the file without ema.")
    averaged = {name: own[averages.get(name, name)] for name in network}
    return Unwrapped(averaged, [in_file[name] for name in [*losses, *averages]], has_averages=True)


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names in the file by names without prefixes. A wrapper's prefix must precede the whole network."""
    names = {name: ".".join(part for part in name.split(".") if part != COMPILED) for name in tensors}
    while True:
        network = [own for theirs, own in names.items() if not _is_loss_weight(own, tensors[theirs])]
        wrapper = next((start for start in WRAPPERS if all(own.startswith(start) for own in network)), None)
        if not network or wrapper is None:
            break
        names = {theirs: own.removeprefix(wrapper) for theirs, own in names.items()}
    in_file: dict[str, str] = {}
    for theirs, own in names.items():
        if own in in_file:
            raise ValueError(
                f"{in_file[own]} and {theirs} are both {own} without the prefixes of wrappers; save the state dict of "
                "one network."
            )
        in_file[own] = theirs
    return in_file


def _is_loss_weight(name: str, tensor: Tensor) -> bool:
    """Return True for one weight per class; a loss with other tensors is not known, so these stay as left over."""
    return bool(LOSS_WEIGHT.fullmatch(name)) and tensor.shape.numel() == max(tensor.shape, default=1)
