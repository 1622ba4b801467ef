"""Training loop of a Ray Train worker: one PSPNet replica, trained from the last checkpoint to the last step.

All randomness is a function of (seed, step, worker), so a resumed run ends with the same weights as an uninterrupted
one. A checkpoint therefore needs only the parameters and the state of optimizer and step, no random state.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

import models
from models.training.losses import LossOptions
from models.training.step import StepOptions, TrainingStep, learning_rate_at, sgd
from models.weights.checkpoint import IMAGENET_MEAN as MEAN
from models.weights.checkpoint import IMAGENET_STD as STD
from pipeline import storage
from pipeline.checkpoints.checkpoint import code_version
from pipeline.checkpoints.pretrained import take_weights
from pipeline.config.data import DataConfig
from pipeline.config.jobs import TrainConfig
from pipeline.config.training import ModelConfig
from pipeline.console import duration
from pipeline.errors import UserError, user_error
from pipeline.train.batches import Batch, BatchSchedule, get_pairs, training_batches

TRAINING_STATE = "training_state.pt"  # next to the model; only needed to resume
CHECKPOINT = "checkpoint_{steps:08d}"
URIS_SHOWN = 16


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


def train_worker(parameters: dict[str, Any]) -> dict[str, Any]:
    """Run one Ray Train worker.

    Returns: {'images_per_second'}, or {'problem'} on all workers at the same step.
    """
    try:
        worker = _Worker(parameters["spec"])
        worker.train()
    except (TrainingAborted, UserError) as stopped:
        return {"problem": str(stopped)}
    return {"images_per_second": worker.speed.overall()}


class TrainingAborted(Exception):
    """Error that the user has to fix, raised by all workers together.

    If only one worker raised it, Ray Train would restart all workers, and they would fail again.
    """


class _Speed:
    """Training speed in images per second, over all workers."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._steps, self._seconds = 0, 0.0
        self._since, self._started = 0, time.perf_counter()

    def restart(self) -> None:
        """Restart the clock, to exclude time that was not spent training, such as writing a checkpoint."""
        self._since, self._started = 0, time.perf_counter()

    def step(self) -> None:
        self._since += 1

    def lap(self) -> float:
        """Return the speed since the last lap or restart, and start a new lap."""
        seconds = time.perf_counter() - self._started
        self._steps, self._seconds = self._steps + self._since, self._seconds + seconds
        rate = self._since * self._batch_size / seconds
        self.restart()
        return rate

    def overall(self) -> float | None:
        """Return the speed over all laps; None if no step was taken."""
        return self._steps * self._batch_size / self._seconds if self._steps else None


class _Worker:
    def __init__(self, spec: WorkerSpec) -> None:
        self.spec, self.config, self.schedule = spec, spec.config, spec.schedule
        self.total_steps = spec.total_steps
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(self.config.workers.cpus)
        else:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        # Flags use their own gloo group, so that they do not wait for work on the GPU.
        on_gpus = self.world_size > 1 and self.device.type == "cuda"
        self.flags: Any = dist.new_group(backend="gloo") if on_gpus else None
        self.speed = _Speed(self.schedule.batch_size)
        self.steps_taken = 0
        self.last_checkpoint: str | None = None
        self.going_nodes: set[str] = set()  # about to be preempted
        self._build()

    def _build(self) -> None:
        recipe, loss = self.config.optimization, self.config.loss
        torch.manual_seed(recipe.seed)  # the same weights on every worker
        network: Any = models.PSPNet(architecture(self.config.model, self.schedule.data))
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None and self.config.weights is not None:
            take_weights(network, self.config.weights, self.schedule.data)
        optimizer = sgd(network, recipe.learning_rate, recipe.head_rate_factor, recipe.momentum, recipe.weight_decay)
        try:
            options = StepOptions(
                loss=LossOptions(**loss.model_dump()),
                batch_norm=recipe.batch_norm,
                batch_norm_processes=recipe.batch_norm_workers,
                precision=recipe.precision,
                micro_batch=recipe.micro_batch,
                clip_norm=recipe.clip_norm,
                ema_decay=recipe.ema_decay,
                activation_checkpointing=recipe.activation_checkpointing,
                compile=recipe.compile,
            )
            self.step = TrainingStep(
                network, optimizer, MEAN, STD, self.device, self.schedule.data.ignore_index, options
            )
        except ValueError as error:
            raise TrainingAborted(str(error)) from error
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                state = torch.load(Path(folder, TRAINING_STATE), map_location=self.device, weights_only=True)
            self.steps_taken = state["steps"]
            self.step.load_state_dict(state["step"])
            self.last_checkpoint = self._uri(CHECKPOINT.format(steps=self.steps_taken))
            epoch = self.steps_taken / self.schedule.steps_per_epoch
            self._say(f"Resumed after step {self.steps_taken:,} of {self.total_steps:,} (epoch {epoch:.2f})")
        if self.rank == 0:
            self.spec.progress_actor.record.remote(kind="resume", step=self.steps_taken)

    def train(self) -> None:
        """Run all remaining steps."""
        recipe = self.config.optimization
        every = self.config.checkpoint_every or self.schedule.steps_per_epoch
        batches = training_batches(
            self.schedule,
            self.spec.pairs,
            first_step=self.steps_taken,
            total_steps=self.total_steps,
            rank=self.rank,
            world_size=self.world_size,
            cpus=self.config.workers.ingest_cpus,
        )
        losses: list[Tensor] = []  # main and auxiliary loss of each step since the last log line
        for step in range(self.steps_taken, self.total_steps):
            batch = self._next(batches)
            # Dropout differs between workers and steps, but is the same again in a resumed run.
            torch.manual_seed(int(np.random.SeedSequence([recipe.seed, step, self.rank]).generate_state(1)[0]))
            rate = learning_rate_at(step, self.total_steps, recipe.learning_rate, recipe.power, recipe.warmup_steps)
            try:
                result = self.step(*self._tensors(batch), rate)
            except ValueError as error:  # raised on all workers, because all batches have the same shape
                raise TrainingAborted(f"step {step + 1:,}: {error}") from error
            losses.append(torch.stack([result.main, result.main if result.auxiliary is None else result.auxiliary]))
            self.steps_taken = step + 1
            self.speed.step()
            ends_epoch = self.steps_taken % self.schedule.steps_per_epoch == 0
            checkpoints = ends_epoch or self.steps_taken % every == 0
            if len(losses) == recipe.log_every or checkpoints or self.steps_taken == self.total_steps:
                self._log(losses, rate, result.gradient_norm)
                losses.clear()
                checkpoints |= self._is_preempted()
            if checkpoints:
                self._checkpoint(validate=ends_epoch and self._is_validated(self.steps_taken))
                self.speed.restart()

    def _is_validated(self, steps: int) -> bool:
        epoch = steps // self.schedule.steps_per_epoch
        return epoch % self.config.validation.every == 0 or steps == self.total_steps

    def _log(self, losses: list[Tensor], rate: float, gradient_norm: Tensor | None) -> None:
        """Log and record the mean losses since the last log line. Raises TrainingAborted if a loss is not finite."""
        main_and_auxiliary_S2 = self._sum(torch.stack(losses)).double().cpu().numpy()
        images_per_second = self.speed.lap()
        mean_loss, auxiliary_loss = main_and_auxiliary_S2.mean(0).tolist()
        recipe, per_epoch = self.config.optimization, self.schedule.steps_per_epoch
        epoch = (self.steps_taken - 1) // per_epoch
        left = (self.total_steps - self.steps_taken) * recipe.batch_size / images_per_second
        self._say(
            f"Epoch {epoch + 1}/{recipe.epochs} · step {self.steps_taken - epoch * per_epoch}/{per_epoch} · "
            f"loss {mean_loss:.4f} · learning rate {rate:.2e} · {images_per_second:.1f} images/s · "
            f"{duration(left)} left"
        )
        finite_S = np.isfinite(main_and_auxiliary_S2).all(1)
        if not finite_S.all():
            bad = int(np.flatnonzero(~finite_S)[0])
            self._stop_for_loss(self.steps_taken - len(losses) + bad, main_and_auxiliary_S2[bad].tolist())
        if self.rank == 0:
            self.spec.progress_actor.record.remote(
                kind="step",
                step=self.steps_taken,
                epoch=self.steps_taken / per_epoch,
                loss=mean_loss,
                auxiliary_loss=auxiliary_loss if self.config.model.auxiliary else None,
                learning_rate=rate,
                images_per_second=images_per_second,
                gradient_norm=None if gradient_norm is None else float(gradient_norm),
            )

    def _stop_for_loss(self, step: int, losses: list[float]) -> None:
        pairs = get_pairs(self.spec.pairs, self.schedule.indices(step))
        uris = [pair.image_uri for pair in pairs[:URIS_SHOWN]] + ["..."] * (len(pairs) > URIS_SHOWN)
        kept = f"the last good checkpoint is {self.last_checkpoint}, from which the same command resumes"
        raise TrainingAborted(
            f"the loss became {losses[0]} (auxiliary {losses[1]}) in step {step + 1:,}, epoch "
            f"{step // self.schedule.steps_per_epoch + 1}; lower optimization.learning_rate, set "
            "optimization.clip_norm or optimization.precision: float32, and check the images of the batch; "
            f"{kept if self.last_checkpoint else 'there is no checkpoint yet'}. Images:\n  " + "\n  ".join(uris)
        )

    def _is_preempted(self) -> bool:
        """Return True, once per node, if a node is about to be preempted, so that a checkpoint is due immediately."""
        info = ray.train.get_preemption_info()
        going = set(info.preempted_node_ids) if info else set()
        is_news = not going <= self.going_nodes
        self.going_nodes |= going
        if is_news:
            self._say("A node is about to be preempted: writing a checkpoint now")
        return is_news

    def _checkpoint(self, validate: bool) -> None:
        """Write a checkpoint to storage and report it to Ray Train."""
        self._stop_together(ray.get(self.spec.progress_actor.problem.remote()) if self.rank == 0 else None)
        name = CHECKPOINT.format(steps=self.steps_taken)
        # Until it is validated, a checkpoint ranks below every validated one.
        report = {"steps": self.steps_taken, "miou": -1.0}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                metadata = checkpoint_metadata(self.schedule.data, self.steps_taken / self.schedule.steps_per_epoch)
                try:
                    models.save(folder, self.step.averaged, metadata)
                except ValueError as error:
                    raise UserError(f"step {self.steps_taken:,}: {error}") from error
                torch.save({"steps": self.steps_taken, "step": self.step.state_dict()}, Path(folder, TRAINING_STATE))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(
                report, checkpoint=checkpoint, checkpoint_dir_name=name, validation=validate and self.rank == 0
            )
        self.last_checkpoint = self._uri(name)
        if validate and not self.config.validation.asynchronous:
            ray.train.get_all_reported_checkpoints()  # blocks until all are validated

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch. Raises TrainingAborted on all workers if one of them gets a UserError."""
        problem, batch = None, None
        try:
            batch = next(batches)
        except Exception as error:
            found = user_error(error)
            if found is None:
                raise
            problem = str(found)
        with_problem = torch.tensor(int(problem is not None))
        if self.world_size > 1:
            dist.all_reduce(with_problem, group=self.flags)
        if with_problem:
            self._stop_together(problem)
        assert batch is not None
        return batch

    def _tensors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Copy images and labels, because Ray's arrays are read-only; for a GPU, into pinned memory."""
        copies = []
        for array in batch:
            shape, kind = array.shape, torch.from_numpy(np.empty(0, array.dtype)).dtype
            copies.append(torch.empty(shape, dtype=kind, pin_memory=self.device.type == "cuda"))
            copies[-1].numpy()[...] = array
        return copies[0], copies[1]

    def _stop_together(self, problem: str | None) -> None:
        """Raise TrainingAborted on every worker if any has a problem. All workers must call this."""
        problems: list[str | None] = [problem]
        if self.world_size > 1:
            problems = [None] * self.world_size
            dist.all_gather_object(problems, problem, group=self.flags)
        found = [text for text in problems if text]
        if found:
            raise TrainingAborted(found[0])

    def _sum(self, value: Tensor) -> Tensor:
        """Return the sum over all workers."""
        total = value.clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def _uri(self, name: str) -> str:
        return storage.join(self.spec.output, name)

    def _say(self, line: str) -> None:
        if self.rank == 0:
            self.spec.progress_actor.log.remote(line)


def architecture(model: ModelConfig, data: DataConfig) -> models.Architecture:
    """Return the architecture for a configuration."""
    return models.Architecture(num_classes=len(data.classes), **model.model_dump())


def checkpoint_metadata(data: DataConfig, epoch: float) -> models.Metadata:
    """Return the metadata of a checkpoint that is not validated yet."""
    return models.Metadata(
        classes=[entry.name for entry in data.classes],
        colors=[list(entry.color) for entry in data.classes],
        mean=list(MEAN),
        std=list(STD),
        ignore_index=data.ignore_index,
        preprocessing={"long_side": data.long_side},
        metrics={"epoch": int(epoch) if epoch == int(epoch) else round(epoch, 3)},
        code_version=code_version(),
    )
