"""Distributed training on Ray Train: one PSPNet replica a worker, DDP, synchronized batch norm."""

import os
import posixpath
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
import yaml
from torch import Tensor

import models
from models.batch_norm import synchronize
from models.checkpoint import CONFIG, WEIGHTS
from models.checkpoint import IMAGENET_MEAN as MEAN
from models.checkpoint import IMAGENET_STD as STD
from models.training import TrainingStep, poly_rate, sgd
from pipeline import cluster, storage
from pipeline.config import TrainConfig
from pipeline.datasets import Pair, list_pairs, load_pair
from pipeline.errors import UserError, user_error
from pipeline.images import shrink
from pipeline.ingest import Batch, share, training_batches, validation_pairs
from pipeline.metrics import Metrics, confusion_matrix
from pipeline.progress import duration, say, start_board, watched
from pipeline.recipe import WorkersConfig

TRAINING_STATE = "training_state.pt"  # beside the model, for resuming only

# What a resumed run may have otherwise than the interrupted one, beside the workers.
MAY_CHANGE = ("data.root", "optimization.log_every")


@dataclass
class TrainSummary:
    """How a training run ended. Metrics are those of the best checkpoint on the validation split."""

    best: str  # URI of the checkpoint folder
    last: str
    metrics: dict[str, Any]
    images_per_second: float | None  # of the training steps alone; None if nothing was left to train


def train(config: TrainConfig) -> TrainSummary:
    """Train, or go on with a run that was interrupted, on the cluster that this process can reach.

    Raises: UserError for what the user can mend; before any worker starts where that can be known.
    """
    output = storage.absolute(config.output)
    _refuse_another_configuration(output, config)
    train_pairs, val_pairs = (
        list_pairs(config.data, split) for split in (config.data.train_split, config.data.val_split)
    )
    if len(train_pairs) < config.optimization.batch_size:
        raise UserError(
            f"data.root {config.data.root}: {len(train_pairs)} training images are fewer than one batch "
            f"(optimization.batch_size {config.optimization.batch_size}); lower it or add images"
        )
    for pairs in (train_pairs, val_pairs):
        load_pair(pairs[0], config.data)
    resolved = config.model_dump(mode="json")
    storage.write_bytes(storage.join(output, "config.yaml"), yaml.safe_dump(resolved, sort_keys=False).encode())

    cluster.connect(config.verbose)
    _check_capacity(config.workers, cluster.resources())
    say(
        f"Training {config.model.backbone} PSPNet on {len(train_pairs):,} images, validating on {len(val_pairs):,}, "
        f"{config.workers.most} {'GPU' if config.workers.gpu else 'CPU'} worker(s); output {output}"
    )
    board = start_board()
    filesystem, path = storage.arrow_filesystem(output)
    trainer = ray.train.torch.TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray's types know no return value
        train_loop_config={"config": config, "train": train_pairs, "val": val_pairs, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers.most,
            use_gpu=config.workers.gpu,
            resources_per_worker={"CPU": config.workers.cpus, **({"GPU": 1} if config.workers.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=posixpath.basename(path),
            storage_path=posixpath.dirname(path),
            storage_filesystem=filesystem,
            # The best and, as Ray Train always does, the latest.
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="miou"),
            failure_config=ray.train.FailureConfig(max_failures=config.workers.max_failures),
        ),
    )
    try:
        with watched(board, _show):
            result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise user_error(error) or error from None
    outcome: dict[str, Any] = result.return_value or {}
    if "problem" in outcome:
        raise UserError(outcome["problem"])
    return _publish(output, result, outcome.get("images_per_second"))


def train_worker(parameters: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs. Returns {'images_per_second'} or, on the same step of all, {'problem'}."""
    config: TrainConfig = parameters["config"]
    worker = _Worker(config, parameters["train"], parameters["val"], parameters["board"])
    try:
        for epoch in range(worker.first_epoch, config.optimization.epochs):
            worker.train_epoch(epoch)
            worker.finish_epoch(epoch, worker.validate())
    except _Stopped as stopped:
        return {"problem": str(stopped)}
    return {"images_per_second": worker.images_per_second()}


class _Stopped(Exception):
    """Raised by all workers together when one has met something that the user has to mend.

    Were one worker to raise alone, Ray Train would restart them all, only to meet the same again.
    """


class _Worker:
    def __init__(self, config: TrainConfig, train: list[Pair], val: list[Pair], board: Any) -> None:
        self.config = config
        self.train_pairs, self.val_pairs = train, val
        self.board = board
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(config.workers.cpus)
        self.steps_per_epoch = len(train) // config.optimization.batch_size
        self.total_steps = self.steps_per_epoch * config.optimization.epochs
        self.steps_taken = 0
        self.step_seconds = 0.0
        self.first_epoch = 0
        self._build()

    def _build(self) -> None:
        recipe = self.config.optimization
        torch.manual_seed(recipe.seed)  # the same weights on every worker
        model: Any = models.PSPNet(architecture(self.config))
        checkpoint = ray.train.get_checkpoint()
        state: dict[str, Any] | None = None
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                loaded, _ = models.load(folder)
                model.load_state_dict(loaded.state_dict())
                state = torch.load(Path(folder, TRAINING_STATE), map_location="cpu", weights_only=True)
            self.first_epoch = state["epoch"] + 1
            self._say(f"Resuming after epoch {self.first_epoch} of {recipe.epochs}")
        model = model.to(self.device).to(memory_format=torch.channels_last)
        self.model = cast(models.PSPNet, synchronize(model))
        optimizer = sgd(self.model, recipe.learning_rate, recipe.head_rate_factor, recipe.momentum, recipe.weight_decay)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
        self.step = TrainingStep(
            ray.train.torch.prepare_model(self.model) if self.world_size > 1 else self.model,
            optimizer,
            MEAN,
            STD,
            self.device,
            self.config.data.ignore_index,
            self.config.loss.auxiliary_weight,
            recipe.precision,
        )

    def train_epoch(self, epoch: int) -> None:
        recipe = self.config.optimization
        # Dropout differs between workers, and in a resumed run is what it would have been without the interruption.
        torch.manual_seed(int(np.random.SeedSequence([recipe.seed, epoch, self.rank]).generate_state(1)[0]))
        self.step.model.train()
        batches = training_batches(
            self.train_pairs,
            self.config.data,
            self.config.augment,
            MEAN,
            seed=recipe.seed,
            epoch=epoch,
            batch_size=recipe.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            cpus=self.config.workers.ingest_cpus,
        )
        loss = torch.zeros((), device=self.device)
        since, started = 0, time.perf_counter()
        for index in range(self.steps_per_epoch):
            images_NHW3, labels_NHW, labelled = self._next(batches)
            step = epoch * self.steps_per_epoch + index
            rate = poly_rate(step, self.total_steps, recipe.learning_rate, recipe.power)
            loss += self.step(images_NHW3, labels_NHW, labelled, rate)
            since += 1
            if since == recipe.log_every or index + 1 == self.steps_per_epoch:
                mean_loss = float(self._sum(loss)) / since
                seconds = time.perf_counter() - started
                self._log(epoch, index + 1, mean_loss, rate, seconds / since)
                if not np.isfinite(mean_loss):
                    raise _Stopped(
                        f"the loss became {mean_loss} in epoch {epoch + 1} by step {index + 1}; lower "
                        "optimization.learning_rate or set optimization.precision: float32. The last epoch's "
                        "checkpoint is kept; the same command resumes from it"
                    )
                self.steps_taken += since
                self.step_seconds += seconds
                loss.zero_()
                since, started = 0, time.perf_counter()

    def validate(self) -> Metrics:
        """Metrics on the validation split; each worker predicts its share of the images."""
        data = self.config.data
        predictor = models.Predictor(self.model, MEAN, STD, self.device, self.config.optimization.precision)
        num_classes = len(data.classes)
        confusion_KK = np.zeros((num_classes, num_classes), np.int64)
        pairs = self.val_pairs[share(len(self.val_pairs), self.rank, self.world_size)]
        problem = None
        try:
            for images_NHW3, labels_NHW in validation_pairs(pairs, data, cpus=self.config.workers.ingest_cpus):
                image_HW3 = shrink(images_NHW3[0], data.long_side)
                prediction = predictor.predict(image_HW3[None], labels_NHW.shape[1:])
                confusion_KK += confusion_matrix(labels_NHW, prediction.class_ids_NHW, num_classes, data.ignore_index)
        except Exception as error:
            problem = _mendable(error)
        self._stop_together(problem)
        confusion_KK = self._sum(torch.from_numpy(confusion_KK).to(self.device)).cpu().numpy()
        if not confusion_KK.any():
            raise _Stopped(
                f"data.root {data.root}: every pixel of split {data.val_split!r} has the ignore_index "
                f"{data.ignore_index}, so nothing can be validated; check ignore_index and label_map"
            )
        return Metrics.of(confusion_KK)

    def finish_epoch(self, epoch: int, metrics: Metrics) -> None:
        """Report metrics and checkpoint; on return the checkpoint is in storage."""
        self._say(
            f"Epoch {epoch + 1}/{self.config.optimization.epochs} · validation mIoU {metrics.miou:.4f} · "
            f"pixel accuracy {metrics.pixel_accuracy:.4f}"
        )
        report = {"epoch": epoch + 1, "miou": metrics.miou, "pixel_accuracy": metrics.pixel_accuracy}
        if self.rank != 0:
            ray.train.report(report)
            return
        with tempfile.TemporaryDirectory() as folder:
            metadata = checkpoint_metadata(self.config, metrics, epoch)
            try:
                models.save(folder, self.model, metadata)
            except ValueError as error:
                raise UserError(f"epoch {epoch + 1}: {error}") from error
            state = {"epoch": epoch, "optimizer": self.step.optimizer.state_dict()}
            torch.save(state, os.path.join(folder, TRAINING_STATE))
            ray.train.report(report, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def images_per_second(self) -> float | None:
        """Of all workers together, while training; None if this run took no step."""
        images = self.steps_taken * self.config.optimization.batch_size
        return images / self.step_seconds if self.steps_taken else None

    def _next(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch on the device, and the labelled pixels of all workers' batches."""
        problem: str | None = None
        images_NHW3 = labels_NHW = torch.empty(0)
        totals = torch.zeros(2, dtype=torch.int64, device=self.device)  # labelled pixels, workers with a problem
        try:
            batch = next(batches)
            # Copied, since what Ray hands out is read-only.
            images_NHW3, labels_NHW = (torch.from_numpy(array.copy()).to(self.device) for array in batch)
            totals[0] = self.step.count_labelled(labels_NHW)
        except Exception as error:
            problem = _mendable(error)
            totals[1] = 1
        totals = self._sum(totals)
        if totals[1]:
            self._stop_together(problem)
        return images_NHW3, labels_NHW, totals[0]

    def _stop_together(self, problem: str | None) -> None:
        """Raise _Stopped on every worker if any has a problem. All workers have to call this."""
        problems: list[str | None] = [problem]
        if self.world_size > 1:
            problems = [None] * self.world_size
            dist.all_gather_object(problems, problem)
        found = [text for text in problems if text]
        if found:
            raise _Stopped(found[0])

    def _sum(self, value: Tensor) -> Tensor:
        """Sum over all workers."""
        total = value.clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def _log(self, epoch: int, step: int, loss: float, rate: float, seconds_per_step: float) -> None:
        recipe = self.config.optimization
        left = self.total_steps - epoch * self.steps_per_epoch - step
        self._say(
            f"Epoch {epoch + 1}/{recipe.epochs} · step {step}/{self.steps_per_epoch} · loss {loss:.4f} · "
            f"learning rate {rate:.2e} · {recipe.batch_size / seconds_per_step:.1f} images/s · "
            f"{duration(left * seconds_per_step)} left"
        )

    def _say(self, line: str) -> None:
        if self.rank == 0:
            self.board.say.remote(line)


def architecture(config: TrainConfig) -> models.Architecture:
    """The network that a configuration asks for."""
    return models.Architecture(num_classes=len(config.data.classes), **config.model.model_dump())


def checkpoint_metadata(config: TrainConfig, metrics: Metrics, epoch: int) -> models.Metadata:
    """What a checkpoint says about its model."""
    from importlib.metadata import version

    names = [entry.name for entry in config.data.classes]
    return models.Metadata(
        classes=names,
        colors=[list(entry.color) for entry in config.data.classes],
        mean=list(MEAN),
        std=list(STD),
        ignore_index=config.data.ignore_index,
        preprocessing={"long_side": config.data.long_side},
        metrics={"epoch": epoch + 1, **metrics.as_dict(names)},
        code_version=version("sceneparse"),
    )


def _show(counts: dict[str, int], lines: list[str]) -> None:
    for line in lines:
        say(line)


def _mendable(error: Exception) -> str:
    """Message of a failure that the user can mend; any other failure goes on its way."""
    found = user_error(error)
    if found is None:
        raise error
    return str(found)


def _refuse_another_configuration(output: str, config: TrainConfig) -> None:
    """Raise UserError if the output has checkpoints of a run that was configured otherwise."""
    if not any("/checkpoint_" in uri.removeprefix(output) for uri in storage.find(output)):
        return
    before = yaml.safe_load(storage.read_bytes(storage.join(output, "config.yaml")))
    changed = [
        f"{section}.{key}: {before.get(section, {}).get(key)!r} before, {value!r} now"
        for section, keys in config.model_dump(mode="json").items()
        if section in ("data", "model", "augment", "optimization")
        for key, value in keys.items()
        if f"{section}.{key}" not in MAY_CHANGE and before.get(section, {}).get(key) != value
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"output {output} holds a run with another configuration:\n  {listed}\n"
            "Run with the former values to resume it, or choose another --output"
        )


def _check_capacity(workers: WorkersConfig, have: cluster.Resources) -> None:
    needed = workers.fewest * workers.cpus + 1
    if have.max_cpus < needed:
        raise UserError(
            f"workers: {workers.fewest} with {workers.cpus} CPU(s) each and one CPU to decode images need {needed} "
            f"CPUs, the cluster has {have.max_cpus}; lower workers.count or workers.cpus, or add nodes"
        )
    if workers.gpu and have.max_gpus < workers.fewest:
        raise UserError(
            f"workers.count: {workers.fewest} GPU workers asked for, but the cluster has {have.max_gpus} GPU(s); "
            "lower it, add GPU nodes, or set workers.gpu: false"
        )


def _publish(output: str, result: Any, images_per_second: float | None) -> TrainSummary:
    """Copy the best and the latest checkpoint to best/ and last/, without the optimizer's state."""
    scored = result.best_checkpoints or []
    if not scored:
        raise UserError(f"output {output}: the run ended without a checkpoint; see the lines above, then run it again")
    best, _ = max(scored, key=lambda entry: entry[1]["miou"])
    folders = {"best": best, "last": result.checkpoint}
    for name, checkpoint in folders.items():
        source = storage.join(output, posixpath.basename(checkpoint.path.rstrip("/")))
        storage.copy_files(source, storage.join(output, name), (WEIGHTS, CONFIG))
    with storage.local_copy(storage.join(output, "best")) as folder:
        metrics = models.load(folder)[1].metrics
    return TrainSummary(storage.join(output, "best"), storage.join(output, "last"), metrics, images_per_second)
