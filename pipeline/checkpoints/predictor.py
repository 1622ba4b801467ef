"""What the actors that predict have in common.

Does not import torch, which would cost every process that imports the stages seconds.
"""

import os
from typing import Any

import cv2

from pipeline.config.training import ProtocolConfig

# In a RuntimeError of torch's CPU allocator, of oneDNN, and of cuBLAS.
OUT_OF_MEMORY = ("DefaultCPUAllocator: ", "out of memory", "STATUS_ALLOC_FAILED")


def use_threads(device: str, threads: int) -> None:
    """Let torch compute with so many threads on a CPU, whatever Ray has set for the process, and OpenCV with one."""
    import torch

    if device == "cpu":
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
    cv2.setNumThreads(1)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not hold what was computed: on a GPU, or on a CPU, for which torch has no class of its own."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def with_protocol(predictor: Any, protocol: ProtocolConfig) -> Any:
    """What labels whole images as the protocol says, with the arguments of `Predictor.predict`."""
    from models import SlidingPredictor

    if protocol.is_plain:
        return predictor
    whole = protocol.mode == "whole"
    return SlidingPredictor(
        predictor,
        base_size=None if whole else protocol.base_size,
        crop=None if whole else protocol.crop,
        mirror=protocol.mirror,
        scales=protocol.scales,
    )
