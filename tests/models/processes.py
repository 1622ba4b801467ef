"""Run a function in several processes that a torch.distributed group can join."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp

# Imported once, in the process that forks all others: importing it takes longer than what most tests compute.
multiprocessing.set_forkserver_preload(["torch._dynamo", "torch.distributed", "tests.models.training_samples"])


def run_processes(function: Callable[[int, str], None], folder: Path, count: int) -> None:
    """Call `function(rank, str(folder))` in `count` processes and wait for them.

    Raises:
        torch.multiprocessing.ProcessRaisedException: the function raised in one of them.
    """
    mp.start_processes(function, args=(str(folder),), nprocs=count, start_method="forkserver")
