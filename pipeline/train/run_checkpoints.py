"""Checkpoints of a training run: each holds a model, and the training state to resume from it."""

import tempfile
from pathlib import Path

import ray.train
import torch

import models
from models.training.step import TrainingStep
from models.weights.checkpoint import IMAGENET_MEAN as MEAN
from models.weights.checkpoint import IMAGENET_STD as STD
from pipeline import storage
from pipeline.checkpoints.checkpoint import code_version
from pipeline.config.data import DataConfig
from pipeline.errors import UserError
from pipeline.train.history import epochs_of
from pipeline.train.run_folder import checkpoint_name
from pipeline.train.worker_group import WorkerGroup
from pipeline.train.worker_spec import WorkerSpec

TRAINING_STATE = "training_state.pt"  # next to the model; only needed to resume


class RunCheckpoints:
    """Reader and writer of a run's checkpoints. All workers must call its methods."""

    def __init__(self, spec: WorkerSpec, workers: WorkerGroup) -> None:
        self._spec, self._workers = spec, workers
        self.latest: str | None = None  # URI

    def resume(self, checkpoint: ray.train.Checkpoint | None, training_step: TrainingStep) -> int:
        """Load a checkpoint, if the run has one, into the training step, and return the number of steps taken."""
        steps_taken = 0
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                state = torch.load(Path(folder, TRAINING_STATE), map_location=self._workers.device, weights_only=True)
            steps_taken = state["steps"]
            training_step.load_state_dict(state["step"])
            self.latest = self._uri(steps_taken)
            total, epoch = self._spec.total_steps, self._epoch(steps_taken)
            self._workers.log(f"Resumed after step {steps_taken:,} of {total:,} (epoch {epoch:.2f})")
        self._workers.record(kind="resume", step=steps_taken)
        return steps_taken

    def save(self, training_step: TrainingStep, steps_taken: int, validate: bool) -> None:
        """Write a checkpoint to storage and report it to Ray Train, which validates it if `validate` is set.

        Raises: TrainingAborted if the validation of an earlier checkpoint failed, UserError if the model is not finite.
        """
        self._workers.abort_on_reported_problem()
        is_writer = self._workers.rank == 0
        with tempfile.TemporaryDirectory() as folder:
            if is_writer:
                self._write(folder, training_step, steps_taken)
            ray.train.report(
                {"steps": steps_taken, "miou": -1.0},  # until it is validated, it ranks below every validated one
                checkpoint=ray.train.Checkpoint.from_directory(folder) if is_writer else None,
                checkpoint_dir_name=checkpoint_name(steps_taken),
                validation=validate and is_writer,
            )
        self.latest = self._uri(steps_taken)

    def _write(self, folder: str, training_step: TrainingStep, steps_taken: int) -> None:
        metadata = checkpoint_metadata(self._spec.schedule.data, self._epoch(steps_taken))
        try:
            models.save(folder, training_step.averaged, metadata)
        except ValueError as error:
            raise UserError(f"step {steps_taken:,}: {error}") from error
        torch.save({"steps": steps_taken, "step": training_step.state_dict()}, Path(folder, TRAINING_STATE))

    def _epoch(self, steps_taken: int) -> int | float:
        return epochs_of(steps_taken, self._spec.schedule.steps_per_epoch)

    def _uri(self, steps_taken: int) -> str:
        return storage.join(self._spec.output, checkpoint_name(steps_taken))


def checkpoint_metadata(data: DataConfig, epoch: int | float) -> models.Metadata:
    """Return the metadata of a checkpoint that is not validated yet."""
    return models.Metadata(
        classes=[entry.name for entry in data.classes],
        colors=[list(entry.color) for entry in data.classes],
        mean=list(MEAN),
        std=list(STD),
        ignore_index=data.ignore_index,
        preprocessing={"long_side": data.long_side, **data.rendering.options},
        metrics={"epoch": epoch},
        code_version=code_version(),
    )
