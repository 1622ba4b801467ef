"""Base of all actors that predict.

This module does not import torch at the top level, which would cost seconds in every process that imports the stages.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.config.training import ProtocolConfig
from pipeline.errors import UserError
from pipeline.images.raster import WHITE

# Messages in a RuntimeError of torch's CPU allocator, of oneDNN, and of cuBLAS.
OUT_OF_MEMORY = ("DefaultCPUAllocator: ", "out of memory", "STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class PredictorSpec:
    """Everything that defines the predictor of an actor."""

    checkpoint: str  # absolute URI
    protocol: ProtocolConfig
    gpu: bool
    precision: str  # as `models.Predictor` takes it
    threads: int  # of a CPU predictor
    batch_size: int = 1  # maximum number of images that are predicted together
    long_side: int | None = None  # pixels; None: the checkpoint's
    rendering: Rendering = AS_DECLARED  # options that are not set: the checkpoint's
    model_id: str | None = None  # that the checkpoint must have; None: any
    fill: tuple[float, ...] = WHITE  # R, G, B of pixels without data in images to evaluate: the checkpoint's mean color

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"


class PredictorActor:
    """Base of actors that predict: loads the checkpoint, and owns the one thread that predicts.

    Errors of loading are raised by `require_ready`, because an exception in an actor's constructor reaches the driver
    only as text.
    """

    def __init__(self, spec: PredictorSpec) -> None:
        # A single thread, because torch's number of threads and CUDA graphs are bound to a thread.
        self._predicting = ThreadPoolExecutor(1, "predict", use_threads, (spec.device, spec.threads))
        self._problem: UserError | None = None
        try:
            # Not stored on self, because the predictor holds its own packed copy of the weights.
            model = Checkpoint.load(spec.checkpoint, spec.long_side, spec.protocol, spec.rendering)
            self.check_model(spec, model)
            self.palette, self.rendering, self.mean = model.palette, model.rendering, model.metadata.mean
            self.single = self.submit(model.predictor, spec.device, spec.precision).result()
            self.predictor = with_protocol(self.single, spec.protocol)
        except UserError as error:
            self._problem = error

    def check_model(self, spec: PredictorSpec, model: Checkpoint) -> None:
        """Check that the checkpoint has the model that the driver saw. Raises: UserError."""
        if spec.model_id is not None and model.model_id != spec.model_id:
            raise UserError(
                f"checkpoint {spec.checkpoint}: changed while the run was starting; run the same command again"
            )

    def require_ready(self) -> None:
        """Raise the UserError of the constructor, if there was one."""
        if self._problem is not None:
            raise self._problem

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function in the predicting thread."""
        return self._predicting.submit(function, *arguments)


def use_threads(device: str, threads: int) -> None:
    """Set the number of CPU threads of torch, whatever Ray has set for the process, and limit OpenCV to one thread."""
    import torch

    if device == "cpu":
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
    cv2.setNumThreads(1)


def is_out_of_memory(error: Exception) -> bool:
    """Return True if the error means out of memory, on a GPU or on a CPU, for which torch has no class of its own."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def with_protocol(predictor: Any, protocol: ProtocolConfig) -> Any:
    """Return a predictor that labels whole images by the protocol, with the arguments of `Predictor.predict`."""
    from models import Protocol, SlidingPredictor

    if protocol.is_plain:
        return predictor
    whole = protocol.mode == "whole"
    values = Protocol(
        base_size=None if whole else protocol.base_size,
        crop=None if whole else protocol.crop,
        mirror=protocol.mirror,
        scales=protocol.scales,
        short_side=protocol.short_side,
    )
    return SlidingPredictor(predictor, values)
