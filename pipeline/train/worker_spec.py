"""Inputs of the training workers, and the steps at which they checkpoint and validate."""

from dataclasses import dataclass
from typing import Any

from pipeline.config.jobs import TrainConfig
from pipeline.train.batches import BatchSchedule

MIN_LINES = 10  # of progress in a run with as many steps, for curves that show its course


@dataclass(frozen=True)
class WorkerSpec:
    """Inputs that the driver passes to every worker."""

    config: TrainConfig
    schedule: BatchSchedule
    pairs: Any  # reference to the `put_pairs` of the training pairs
    output: str
    progress_actor: Any

    @property
    def total_steps(self) -> int:
        return self.schedule.steps_per_epoch * self.config.optimization.epochs

    @property
    def log_every(self) -> int:
        """Steps between progress lines: the option's, or fewer in a short run, so that it has at least MIN_LINES."""
        return min(self.config.optimization.log_every, max(1, self.total_steps // MIN_LINES))

    def is_checkpoint_due(self, steps_taken: int) -> bool:
        """Return True at the end of each epoch, and every `checkpoint_every` steps if that is set."""
        every = self.config.checkpoint_every or self.schedule.steps_per_epoch
        return self._ends_epoch(steps_taken) or steps_taken % every == 0

    def is_validation_due(self, steps_taken: int) -> bool:
        """Return True at the end of every `validation.every`-th epoch, and of the last one."""
        epoch = steps_taken // self.schedule.steps_per_epoch
        is_due = epoch % self.config.validation.every == 0 or steps_taken == self.total_steps
        return self._ends_epoch(steps_taken) and is_due

    def _ends_epoch(self, steps_taken: int) -> bool:
        return steps_taken % self.schedule.steps_per_epoch == 0
