"""Log lines and records of training steps."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.training.step import StepResult
from pipeline.console import duration
from pipeline.train.batches import get_pairs
from pipeline.train.speed import SpeedMeter
from pipeline.train.worker_group import TrainingAborted, WorkerGroup
from pipeline.train.worker_spec import WorkerSpec

URIS_SHOWN = 16


class StepLog:
    """Log of losses and speed: one line and one record for all steps since the last line."""

    def __init__(self, spec: WorkerSpec, workers: WorkerGroup) -> None:
        self._spec, self._workers = spec, workers
        self._losses: list[Tensor] = []  # main and auxiliary loss of each step since the last line
        self.speed = SpeedMeter(spec.schedule.batch_size)

    @property
    def is_due(self) -> bool:
        return len(self._losses) == self._spec.log_every

    def add(self, result: StepResult) -> None:
        """Add a step. Does not wait for the device."""
        auxiliary = result.main if result.auxiliary is None else result.auxiliary
        self._losses.append(torch.stack([result.main, auxiliary]))
        self.speed.step()

    def write(self, steps_taken: int, rate: float, gradient_norm: Tensor | None, last_checkpoint: str | None) -> None:
        """Log and record the mean losses since the last line. All workers must call this.

        Raises: TrainingAborted, which names `last_checkpoint`, if a loss is not finite.
        """
        main_and_auxiliary_S2 = self._workers.sum(torch.stack(self._losses)).double().cpu().numpy()
        self._losses.clear()
        images_per_second = self.speed.lap()
        mean_loss, auxiliary_loss = main_and_auxiliary_S2.mean(0).tolist()
        self._workers.log(self._line(steps_taken, mean_loss, rate, images_per_second))
        require_finite(main_and_auxiliary_S2, steps_taken, self._spec, last_checkpoint)
        self._workers.record(
            kind="step",
            step=steps_taken,
            epoch=steps_taken / self._spec.schedule.steps_per_epoch,
            loss=mean_loss,
            auxiliary_loss=auxiliary_loss if self._spec.config.model.auxiliary else None,
            learning_rate=rate,
            images_per_second=images_per_second,
            gradient_norm=None if gradient_norm is None else float(gradient_norm),
        )

    def _line(self, steps_taken: int, loss: float, rate: float, images_per_second: float) -> str:
        schedule = self._spec.schedule
        per_epoch = schedule.steps_per_epoch
        epoch = (steps_taken - 1) // per_epoch
        num_epochs = math.ceil(self._spec.num_epochs)
        left = (self._spec.total_steps - steps_taken) * schedule.batch_size / images_per_second
        return (
            f"Epoch {epoch + 1}/{num_epochs} · step {steps_taken - epoch * per_epoch}/{per_epoch} · "
            f"loss {loss:.4f} · learning rate {rate:.2e} · {images_per_second:.1f} images/s · {duration(left)} left"
        )


def require_finite(
    main_and_auxiliary_S2: NDArray[np.float64], steps_taken: int, spec: WorkerSpec, last_checkpoint: str | None
) -> None:
    """Raise TrainingAborted if a loss of the last S steps is not finite."""
    finite_S = np.isfinite(main_and_auxiliary_S2).all(1)
    if finite_S.all():
        return
    first = int(np.flatnonzero(~finite_S)[0])
    main, auxiliary = main_and_auxiliary_S2[first].tolist()
    step = steps_taken - len(main_and_auxiliary_S2) + first
    pairs = get_pairs(spec.pairs, spec.schedule.indices(step))
    uris = [pair.image_uri for pair in pairs[:URIS_SHOWN]]
    if len(pairs) > URIS_SHOWN:
        uris.append("...")
    kept = "there is no checkpoint yet"
    if last_checkpoint:
        kept = f"the last good checkpoint is {last_checkpoint}, from which the same command resumes"
    raise TrainingAborted(
        f"the loss became {main} (auxiliary {auxiliary}) in step {step + 1:,}, epoch "
        f"{step // spec.schedule.steps_per_epoch + 1}; lower optimization.learning_rate, set "
        "optimization.clip_norm or optimization.precision: float32, and check the images of the batch; "
        f"{kept}. Images:\n  " + "\n  ".join(uris)
    )
