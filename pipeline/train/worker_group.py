"""Communication of a training worker: with the other workers, and with the driver."""

from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor


class TrainingAborted(Exception):
    """Error that the user has to fix, raised by all workers together.

    If only one worker raised it, Ray Train would restart all workers, and they would fail again.
    """


@dataclass(frozen=True)
class WorkerGroup:
    """All workers of a run, as one of them sees them. `sum`, `any` and `abort_*` must be called by all workers."""

    rank: int
    world_size: int
    device: torch.device
    progress_actor: Any
    flag_group: Any = None  # torch.distributed process group for flags and messages; None for the default one

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all workers."""
        total = value.clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Return True if the flag of any worker is True."""
        num_true = torch.tensor(int(flag))
        if self.world_size > 1:
            dist.all_reduce(num_true, group=self.flag_group)
        return bool(num_true)

    def abort_on_problem(self, problem: str | None) -> None:
        """Raise TrainingAborted on every worker if any has a problem."""
        problems: list[str | None] = [problem]
        if self.world_size > 1:
            problems = [None] * self.world_size
            dist.all_gather_object(problems, problem, group=self.flag_group)
        found = [text for text in problems if text]
        if found:
            raise TrainingAborted(found[0])

    def abort_on_reported_problem(self) -> None:
        """Raise TrainingAborted on every worker if a validation has reported a problem to the progress actor."""
        self.abort_on_problem(ray.get(self.progress_actor.problem.remote()) if self.rank == 0 else None)

    def log(self, line: str) -> None:
        """Let the driver print a line; only that of rank 0 is sent."""
        if self.rank == 0:
            self.progress_actor.log.remote(line)

    def record(self, **entry: Any) -> None:
        """Add an entry to the run's history; only that of rank 0 is sent."""
        if self.rank == 0:
            self.progress_actor.record.remote(**entry)


def join_workers(progress_actor: Any) -> WorkerGroup:
    """Return the group of this Ray Train worker. All workers must call this."""
    context = ray.train.get_context()
    world_size, device = context.get_world_size(), ray.train.torch.get_device()
    # Flags use their own gloo group, so that they do not wait for work on the GPU.
    on_gpus = world_size > 1 and device.type == "cuda"
    flag_group = dist.new_group(backend="gloo") if on_gpus else None
    return WorkerGroup(context.get_world_rank(), world_size, device, progress_actor, flag_group)
