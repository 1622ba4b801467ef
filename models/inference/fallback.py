"""Functions that torch compiles where it can, and that run as they are where it cannot."""

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

MAX_REASON = 300  # characters
# Of this process: a missing Triton, C compiler or Python header fails every function.
_can_compile = True


def reason(error: Exception) -> str:
    """Return the first paragraph of a compiler's error, in one line."""
    return " ".join(str(error).strip().split("\n\n")[0].split()) or type(error).__name__


def or_uncompiled(
    compiled: Callable[Parameters, Result], function: Callable[Parameters, Result]
) -> Callable[Parameters, Result]:
    """Return a function that calls `compiled`, or, once torch has failed to compile in this process, `function`.

    The failure is reported by one RuntimeWarning.

    Raises torch.OutOfMemoryError, which smaller batches avoid, as `compiled` does.
    """

    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        global _can_compile
        if _can_compile:
            try:
                return compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # torch, Triton and the C compiler raise dozens of unrelated types
                _can_compile = False
                warnings.warn(
                    f"labeling: torch.compile failed, so images take longer ({reason(error)[:MAX_REASON]}); install "
                    "Triton, a C compiler and Python's headers (Debian: gcc libc6-dev python3-dev).",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return function(*args, **kwargs)

    return call
