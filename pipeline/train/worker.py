"""Training loop of a Ray Train worker: one PSPNet replica, trained from the last checkpoint to the last step.

All randomness is a function of (seed, step, worker), so a resumed run ends with the same weights as an uninterrupted
one; on GPUs, whose sums have no fixed order, up to rounding. A checkpoint therefore needs only the parameters and the
state of optimizer and step, no random state.
"""

from typing import Any

import numpy as np
import ray.train
import torch

from pipeline.errors import UserError
from pipeline.train.batch_loader import load_batches
from pipeline.train.build import build_training_step, set_backend_options
from pipeline.train.preemption import PreemptionNotices
from pipeline.train.run_checkpoints import RunCheckpoints
from pipeline.train.step_log import StepLog
from pipeline.train.worker_group import TrainingAborted, join_workers
from pipeline.train.worker_spec import WorkerSpec


def train_worker(parameters: dict[str, Any]) -> dict[str, Any]:
    """Run one Ray Train worker.

    Returns: {'images_per_second'}, or {'problem'} on all workers at the same step.
    """
    try:
        return {"images_per_second": train_remaining_steps(parameters["spec"])}
    except (TrainingAborted, UserError) as stopped:
        return {"problem": str(stopped)}


def train_remaining_steps(spec: WorkerSpec) -> float | None:
    """Train to the last step, and return the speed in images per second; None if no steps were left."""
    config, recipe = spec.config, spec.config.optimization
    workers = join_workers(spec.progress_actor)
    log, checkpoints, preemption = StepLog(spec, workers), RunCheckpoints(spec, workers), PreemptionNotices(workers)
    set_backend_options(workers.device, config.workers.cpus)
    checkpoint = ray.train.get_checkpoint()
    training_step = build_training_step(config, spec.schedule.data, workers.device, is_resumed=checkpoint is not None)
    first_step = checkpoints.resume(checkpoint, training_step)
    batches = load_batches(spec, workers, first_step)
    for step in range(first_step, spec.total_steps):
        images_NHW3, labels_NHW = next(batches)
        if step == first_step:
            log.speed.restart()  # the start of the input pipeline is not training
        torch.manual_seed(step_seed(recipe.seed, step, workers.rank))
        rate = spec.learning_rate(step)
        try:
            result = training_step(images_NHW3, labels_NHW, rate)
        except ValueError as error:  # raised on all workers, because all batches have the same shape
            raise TrainingAborted(f"step {step + 1:,}: {error}") from error
        log.add(result)
        steps_taken = step + 1
        is_checkpoint_due = spec.is_checkpoint_due(steps_taken)
        if log.is_due or is_checkpoint_due or steps_taken == spec.total_steps:
            log.write(steps_taken, rate, result.gradient_norm, checkpoints.latest)
            is_checkpoint_due = preemption.has_new() or is_checkpoint_due
        if is_checkpoint_due:
            is_validated = spec.is_validation_due(steps_taken)
            checkpoints.save(training_step, steps_taken, validate=is_validated)
            if is_validated and not config.validation.asynchronous:
                ray.train.get_all_reported_checkpoints()  # blocks until all are validated
            log.speed.restart()
    return log.speed.overall()


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of dropout, which differs between workers and steps, but is the same in a resumed run."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
