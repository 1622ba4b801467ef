"""Activation ranges of a network, which int8 convolutions need."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from models.inference.network import InferenceNetwork
from models.inference.preprocessing import NetworkInputs, padded_size
from models.kernels.convolution import Convolution
from models.kernels.selection import maker
from models.pspnet import PSPNet

# Quantiles of a tensor are computed from about this many of its values.
SAMPLES = 2**20


def activation_ranges(
    model: PSPNet, mean: Sequence[float], std: Sequence[float], images: Iterable[Tensor], share: float = 1.0
) -> dict[str, dict[str, list[float]]]:
    """Measure the range of every convolution's input, output and shortcut on sample images, in float32 on a CPU.

    `images` are batches (N, height, width, 3), uint8 RGB, of any sizes. The range covers about `share` of the values
    of each tensor of a batch.
    """
    recorders: list[_Recorder] = []
    make_float = maker("float32", torch.device("cpu"))

    def make(name: str, conv: nn.Conv2d, relu: bool) -> Convolution:
        recorders.append(_Recorder(name, make_float(name, conv, relu), share))
        return recorders[-1]

    with torch.inference_mode():
        network = InferenceNetwork(model, torch.tensor(std), make, torch.device("cpu"))
        mean_3 = torch.tensor(mean, dtype=torch.float32)
        for images_NHW3 in images:
            size = padded_size((images_NHW3.shape[1], images_NHW3.shape[2]), model.architecture.align_corners)
            # Run the whole batch at once: quantiles need whole tensors, not single images or strips of rows.
            network(NetworkInputs(images_NHW3, size, mean_3).rows(0, size[0]))
    return {recorder.name: recorder.ranges for recorder in recorders}


class _Recorder(Convolution):
    def __init__(self, name: str, convolution: Convolution, share: float) -> None:
        self.__dict__.update(convolution.__dict__)
        self.name = name
        self.ranges: dict[str, list[float]] = {}
        self._convolution, self._share = convolution, share

    def __call__(self, x_NCHW: Tensor, shortcut_NOHW: Tensor | None = None, pad_rows: bool = True) -> Tensor:
        self._record("input", x_NCHW)
        if shortcut_NOHW is not None:
            self._record("shortcut", shortcut_NOHW)
        y_NOHW = self._convolution(x_NCHW, shortcut_NOHW, pad_rows)
        self._record("output", y_NOHW)
        return y_NOHW

    def _record(self, which: str, x: Tensor) -> None:
        if self._share < 1:
            values = x.permute(0, 2, 3, 1).flatten()
            x = values[:: max(1, len(values) // SAMPLES)].quantile(torch.tensor([1 - self._share, self._share]))
        smallest, largest = x.aminmax()
        low, high = self.ranges.get(which, [0.0, 0.0])
        self.ranges[which] = [min(low, smallest.item()), max(high, largest.item())]
