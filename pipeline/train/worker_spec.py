"""Inputs of the training workers, and the steps at which they checkpoint and validate."""

from dataclasses import dataclass
from typing import Any

from models.training.step import learning_rate_at
from pipeline.config.jobs import TrainConfig
from pipeline.train.batches import BatchSchedule
from pipeline.train.history import epochs_of

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
        return self.config.optimization.total_steps(self.schedule.num_pairs)

    @property
    def num_epochs(self) -> int | float:
        return epochs_of(self.total_steps, self.schedule.steps_per_epoch)

    def learning_rate(self, step: int) -> float:
        """Return the backbone's learning rate of a step, counted from 0."""
        recipe = self.config.optimization
        lowest = recipe.min_learning_rate
        decaying = recipe.learning_rate - lowest
        return lowest + learning_rate_at(step, self.total_steps, decaying, recipe.power, recipe.warmup_steps)

    @property
    def log_every(self) -> int:
        """Steps between progress lines: the option's, or fewer in a short run, so that it has at least MIN_LINES."""
        return min(self.config.optimization.log_every, max(1, self.total_steps // MIN_LINES))

    def is_checkpoint_due(self, steps_taken: int) -> bool:
        """Return True at the end of each epoch and of the run, and every `checkpoint_every` steps if that is set."""
        every = self.config.checkpoint_every or self.schedule.steps_per_epoch
        return self._ends_epoch(steps_taken) or steps_taken % every == 0 or steps_taken == self.total_steps

    def is_validation_due(self, steps_taken: int) -> bool:
        """Return True at the end of every `validation.every`-th epoch, and of the run."""
        epoch = steps_taken // self.schedule.steps_per_epoch
        is_due = self._ends_epoch(steps_taken) and epoch % self.config.validation.every == 0
        return is_due or steps_taken == self.total_steps

    def _ends_epoch(self, steps_taken: int) -> bool:
        return steps_taken % self.schedule.steps_per_epoch == 0
