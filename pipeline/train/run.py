"""Driver of distributed training on Ray Train: run checks, start workers, publish the best and last model."""

import posixpath
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch

from models.weights.checkpoint import IMAGENET_MEAN as MEAN
from pipeline import storage
from pipeline.cluster import connection, ray_internals
from pipeline.cluster.progress_actor import ProgressUpdate, start_progress_actor, watched
from pipeline.cluster.reservation import reserve_resources
from pipeline.cluster.shared_files import check_shared
from pipeline.cluster.sizing import Reservation, check_capacity
from pipeline.config.jobs import TrainConfig
from pipeline.config.training import ValidationConfig, WorkersConfig
from pipeline.console import log
from pipeline.datasets import Pair, check_no_shared_images, fingerprint, list_pairs, load_pair
from pipeline.datasets.sample_check import check_sample
from pipeline.errors import UserError, raise_user_error
from pipeline.train.batches import BatchSchedule, put_pairs
from pipeline.train.history import read_history
from pipeline.train.provenance import describe_run, read_starts
from pipeline.train.rare_classes import repeated_pairs
from pipeline.train.report import REPORT
from pipeline.train.run_folder import claim_run, publish, remove_orphans
from pipeline.train.tracking import Tracker
from pipeline.train.validation import Validator, predictors_of
from pipeline.train.verdict import Finding, RunFacts, judge
from pipeline.train.worker import train_worker
from pipeline.train.worker_spec import WorkerSpec

NUM_KEPT = 2  # best checkpoints to keep; Ray Train also keeps the latest one and those being validated


@dataclass(frozen=True)
class TrainSummary:
    """Result of a training run. Metrics are those of the best checkpoint on the validation split."""

    best: str  # URI of the checkpoint folder
    last: str
    report: str
    metrics: dict[str, Any]
    images_per_second: float | None  # during training steps only; None if no steps were left
    findings: tuple[Finding, ...] = ()


def train(config: TrainConfig, command: Sequence[str] = ()) -> TrainSummary:
    """Train, or resume an interrupted run, on the Ray cluster that this process connects to.

    `command`, the job's command-line options, is recorded with the run.

    Raises: UserError for errors that the user can fix, if possible before any worker starts.
    """
    output = config.output
    train_pairs, val_pairs = (
        list_pairs(config.data, split) for split in (config.data.train_split, config.data.val_split)
    )
    check_no_shared_images(config.data, train_pairs, val_pairs)
    _check_images(config, train_pairs, val_pairs)
    resolved = claim_run(output, config, {"train": len(train_pairs), "val": len(val_pairs)})
    connection.connect(config.verbose)
    check_shared({"output": output, "weights": config.weights, **train_pairs[0].files})
    workers = Reservation("workers", config.workers.fewest, config.workers.cpus, config.workers.gpu)
    remedy = "lower workers.count or workers.cpus, or add nodes"
    check_capacity("workers", [workers, predictors_of(config.validation)], connection.resources(), remedy)
    log(
        f"Training {config.model.backbone} PSPNet on {len(train_pairs):,} images, validating on {len(val_pairs):,}, "
        f"{_number_of(config.workers)}; output {output}"
    )
    _describe(output, command, [*train_pairs, *val_pairs])
    progress_actor = start_progress_actor()
    validator = Validator(config, val_pairs, len(train_pairs), output, progress_actor)
    with Tracker(output, config) as tracker:

        def show(update: ProgressUpdate) -> None:
            for line in update.lines:
                log(line)
            tracker.add(update.records)

        with watched(progress_actor, show):
            result = _fit(config, output, train_pairs, validator, progress_actor)
            outcome: dict[str, Any] = result.return_value or {}
            problem = outcome.get("problem") or ray.get(progress_actor.problem.remote())
            if problem:
                raise UserError(problem)
            remove_orphans(output)
            summary = _publish(output, result, validator, outcome.get("images_per_second"))
    # The tracker has written the history by now.
    return replace(summary, findings=tuple(judge(read_history(output), RunFacts.of(resolved))))


def _fit(config: TrainConfig, output: str, pairs: list[Pair], validator: Validator, progress_actor: Any) -> Any:
    """Run the workers until they finish and return Ray Train's result."""
    workers = config.workers
    entries = repeated_pairs(pairs, config.data)
    number: Any = workers.most if workers.fewest == workers.most else (workers.fewest, workers.most)
    schedule = BatchSchedule(
        num_pairs=len(pairs),
        batch_size=config.optimization.batch_size,
        seed=config.optimization.seed,
        data=config.data,
        augment=config.augment,
        fill=MEAN,
        num_entries=len(entries),
    )
    filesystem, path = storage.arrow_filesystem(output)
    trainer_class: Any = ray.train.torch.TorchTrainer  # its type hints are those of Ray Train V1
    trainer = trainer_class(
        train_worker,
        train_loop_config={"spec": WorkerSpec(config, schedule, put_pairs(entries), output, progress_actor)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=number,
            use_gpu=workers.gpu,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": 1} if workers.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=posixpath.basename(path),
            storage_path=posixpath.dirname(path),
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=NUM_KEPT, checkpoint_score_attribute="miou"),
            # Ray Train does not count restarts after a preempted node as failures.
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
        ),
        validation_config=ray.train.ValidationConfig(fn=validator, ray_remote_kwargs={"num_cpus": 0}),
    )
    ray_internals.let_ctrl_c_interrupt(trainer)
    is_elastic = workers.fewest < workers.most
    log("Starting the workers and preparing the first batch")
    try:
        with reserve_resources(_beside(config.validation)) if is_elastic else nullcontext():
            return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise_user_error(error)


def _beside(validation: ValidationConfig) -> list[dict[str, float]]:
    """Return the resources needed in addition to the workers: predictors that validate, and one decoding task."""
    predictor = {"CPU": float(validation.predictor_cpus), **({"GPU": 1.0} if validation.gpu else {})}
    return [*[predictor] * validation.predictors, {"CPU": 1.0}]


def _describe(output: str, command: Sequence[str], pairs: list[Pair]) -> None:
    earlier = read_starts(output)
    start = describe_run(output, list(command), fingerprint(pairs))
    if earlier and earlier[-1]["dataset"] != start["dataset"]:
        log("The dataset's files have changed since this run last started. Training continues with the new files")


def _check_images(config: TrainConfig, train_pairs: list[Pair], val_pairs: list[Pair]) -> None:
    recipe = config.optimization
    if len(train_pairs) < recipe.batch_size:
        raise UserError(
            f"data.root {config.data.root}: {len(train_pairs)} training images are fewer than one batch "
            f"(optimization.batch_size {recipe.batch_size}); lower it or add images"
        )
    total_steps = recipe.total_steps(len(train_pairs))
    if recipe.warmup_steps >= total_steps:
        raise UserError(
            f"optimization.warmup_steps {recipe.warmup_steps:,} does not end before the run, which has {total_steps:,} "
            "steps; lower it, or train for more epochs or steps"
        )
    for pairs in (train_pairs, val_pairs):
        check_sample(pairs, config.data)
        load_pair(pairs[0], config.data)


def _number_of(workers: WorkersConfig) -> str:
    kind = "GPU" if workers.gpu else "CPU"
    if workers.fewest == workers.most:
        return f"{workers.most} {kind} worker(s)"
    return f"{workers.fewest} to {workers.most} {kind} workers"


def _publish(output: str, result: Any, validator: Validator, images_per_second: float | None) -> TrainSummary:
    """Copy the best and the latest model with their metrics to best/ and last/."""
    kept = {posixpath.basename(one.path.rstrip("/")): metrics for one, metrics in result.best_checkpoints or []}
    if not kept:
        raise UserError(f"output {output}: the run ended without a checkpoint; see the log above, then run it again")
    last = max(kept)
    for name in kept:
        if name == last and kept[name]["miou"] < 0:  # its validation failed earlier
            kept[name] |= validator.validate(name)
    best = max(kept, key=lambda name: kept[name]["miou"])
    summary = TrainSummary(
        best=storage.join(output, "best"),
        last=storage.join(output, "last"),
        report=storage.join(output, REPORT),
        metrics=metrics_of(kept[best]),
        images_per_second=images_per_second,
    )
    for name, target in ((best, summary.best), (last, summary.last)):
        publish(storage.join(output, name), target, metrics_of(kept[name]))
    return summary


def metrics_of(reported: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the values reported to Ray Train that belongs in a checkpoint's config.json."""
    return {key: value for key, value in reported.items() if key not in ("steps",)}
