"""Peak matrix rates of a device: large matrix products with the libraries that torch uses."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

REPEATS = 8


def matrix_rates(device: torch.device) -> dict[str, float]:
    """Return GFLOP/s by precision. The best of several attempts, so a bound rather than an average."""
    return _cuda_rates(device) if device.type == "cuda" else _cpu_rates()


def _cuda_rates(device: torch.device) -> dict[str, float]:
    rates = {}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
        rates[name] = _rate(lambda a=a, b=b: a @ b, 2 * 8192**3, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    return rates


def _cpu_rates() -> dict[str, float]:
    """Return the rates of a CPU: the better of MKL, which is slow on some CPUs, and oneDNN's 1x1 convolutions."""
    device, size = torch.device("cpu"), 2048
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size, dtype=dtype) for _ in range(2))
        x_NCHW, weight = _operands(size, dtype)
        attempts: tuple[Callable[[], Any], ...] = (
            lambda a=a, b=b: a @ b,
            lambda x=x_NCHW, w=weight: torch.nn.functional.conv2d(x, w),
        )
        rates[name] = max(_rate(attempt, 2 * size**3, device) for attempt in attempts)
    if torch.backends.mkldnn.is_available():
        rates["int8"] = _rate(_int8_product(size), 2 * size**3, device)
    return rates


def _operands(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    pixels = torch.randn(1, size, size // 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
    return pixels, torch.randn(size, size, 1, 1, dtype=dtype)


def _int8_product(size: int) -> Callable[[], Any]:
    geometry = [1, 1], [0, 0], [1, 1], 1
    pixels = torch.randint(0, 256, (1, size, size // 32, 32), dtype=torch.uint8)
    pixels = pixels.to(memory_format=torch.channels_last)
    weight = torch.randint(-127, 128, (size, size, 1, 1), dtype=torch.int8)
    scales, zeros = torch.full((size,), 1e-4), torch.zeros(size, dtype=torch.int64)
    packed = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, 0, *geometry, list(pixels.shape))
    return lambda: torch.ops.onednn.qconv2d_pointwise(
        pixels, 1.0, 0, packed, scales, zeros, None, *geometry, 1.0, 0, torch.uint8, "none", [], ""
    )


def _rate(function: Callable[[], Any], operations: int, device: torch.device) -> float:
    with torch.inference_mode():
        function()
        return operations / min(timed(function, device) for _ in range(REPEATS)) / 1e9


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one call, including the work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
