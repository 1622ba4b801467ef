"""C kernels versus the same operations in torch, on the CPU of this machine: medians of alternating rounds.

python benchmarks/kernels.py
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rates import timed
from models.inference import masks
from models.inference.interpolation import both_taps
from models.kernels.convolution import OneDnnConvolution
from models.kernels.winograd import WinogradConvolution
from models.training.cross_entropy import upsampled_cross_entropy

CPU = torch.device("cpu")
ROUNDS = 7
SIDE, CELLS, NUM_CLASSES = 473, 60, 150
# Input and output channels, dilation, and side of the feature map in PSPNet50 at 473 x 473.
CONVOLUTIONS = {
    "layer2, 3x3, 128 channels": (128, 128, 1, CELLS),
    "layer3, 3x3, 256 channels, dilation 2": (256, 256, 2, CELLS),
    "layer4, 3x3, 512 channels, dilation 4": (512, 512, 4, CELLS),
    "head, 3x3, 2048 to 512 channels": (2048, 512, 1, CELLS),
}


def compare(name: str, calls: dict[str, Callable[[], Any]]) -> None:
    """Print the median milliseconds of each call."""
    for call in calls.values():
        call()
    seconds = {label: [] for label in calls}
    for _ in range(ROUNDS):
        for label, call in calls.items():
            seconds[label].append(timed(call, CPU))
    medians = (f"{label} {1e3 * statistics.median(times):.1f} ms" for label, times in seconds.items())
    print(f"{name}: {', '.join(medians)}", flush=True)


def labels() -> None:
    logits_hwK = torch.randn(CELLS, CELLS, NUM_CLASSES)
    size = SIDE, SIDE
    taps = both_taps((CELLS, CELLS), size, size, size, True)
    rows, columns = (axis.tensors(CPU) for axis in taps)
    compiled = torch.compile(masks._reduce_strip, dynamic=True)
    start = time.perf_counter()
    compiled(logits_hwK[None], rows, columns)
    print(f"torch.compile: {time.perf_counter() - start:.1f} s for its first call (less from inductor's cache)")
    compare(
        "class, confidence and statistics of 473 x 473 x 150",
        {
            "kernel": lambda: masks.label(logits_hwK, *taps, True),
            "torch in strips": lambda: masks.label_in_strips(logits_hwK[None], *taps, True),
            "torch.compile, without statistics": lambda: compiled(logits_hwK[None], rows, columns),
        },
    )


def convolutions() -> None:
    for name, (in_channels, out_channels, dilation, side) in CONVOLUTIONS.items():
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        x_NCHW = torch.randn(1, in_channels, side, side).relu().to(memory_format=torch.channels_last)
        evaluations = {
            "Winograd": partial(WinogradConvolution(conv, True, torch.float32, CPU), x_NCHW),
            "oneDNN": partial(OneDnnConvolution(conv, True, torch.float32, CPU), x_NCHW),
            "oneDNN bfloat16": partial(OneDnnConvolution(conv, True, torch.bfloat16, CPU), x_NCHW.bfloat16()),
        }
        exact = F.conv2d(x_NCHW.double(), conv.weight.double(), conv.bias.double(), 1, dilation, dilation).relu()
        error = (evaluations["Winograd"]() - exact).abs().max() / exact.abs().max()
        compare(f"{name} (Winograd's error {error:.0e})", evaluations)


def loss() -> None:
    logits_NKhw = 3 * torch.randn(2, NUM_CLASSES, CELLS, CELLS)
    labels_NHW = torch.randint(0, NUM_CLASSES, (2, SIDE, SIDE))

    def by_torch(leaf_NKhw: Tensor) -> Tensor:
        logits_NKHW = F.interpolate(leaf_NKhw, (SIDE, SIDE), mode="bilinear", align_corners=True)
        return F.cross_entropy(logits_NKHW, labels_NHW, reduction="sum")

    def by_kernel(leaf_NKhw: Tensor) -> Tensor:
        return upsampled_cross_entropy(leaf_NKhw, labels_NHW, 255, True)

    def step(function: Callable[[Tensor], Tensor]) -> None:
        function(logits_NKhw.clone().requires_grad_()).backward()

    compare("loss and gradient of two crops", {"kernel": partial(step, by_kernel), "torch": partial(step, by_torch)})


def main() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        labels()
        convolutions()
    loss()


if __name__ == "__main__":
    main()
