"""Sizing of predictor, decode and write stages for a cluster, so that no stage waits forever.

An actor keeps its reservation as long as its dataset runs, and Ray Data does not report a stage that gets no CPU. Two
actor pools that reserve all CPUs of a cluster stall every pipeline that also has tasks. Therefore a run has a single
actor pool, of predictors, and leaves at least one CPU, which decode and write tasks use in turn.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.connection import Resources
from pipeline.config.jobs import PredictConfig
from pipeline.errors import UserError

# Not 1, because Ray Data would fuse decoding into predictors with the same reservation, and they could not overlap.
DECODE_CPUS = 0.99


@dataclass(frozen=True)
class Reservation:
    """Actors or workers of one kind that a job needs all at once."""

    kind: str  # plural, for messages
    count: int
    cpus: int  # of each
    gpu: bool = False


def needed(reservations: Sequence[Reservation]) -> tuple[int, int]:
    """Return the CPUs and GPUs that these reserve together."""
    cpus = sum(each.count * each.cpus for each in reservations)
    return cpus, sum(each.count for each in reservations if each.gpu)


def check_capacity(
    option: str, reservations: Sequence[Reservation], have: Resources, remedy: str, decode_cpus: int = 1
) -> None:
    """Check that the cluster, grown as far as its autoscaler may, can hold these and the CPUs for decoding.

    Raises: UserError that begins with the option and ends with the remedy.
    """
    cpus, gpus = needed(reservations)
    cpus += decode_cpus
    if cpus > have.max_cpus or gpus > have.max_gpus:
        listed = ", ".join(
            f"{each.count} {each.kind} with {each.cpus} CPU(s){' and a GPU' if each.gpu else ''} each"
            for each in reservations
        )
        raise UserError(
            f"{option}: {listed} and {decode_cpus} CPU(s) for decoding need {cpus} CPUs and {gpus} GPUs, but the "
            f"cluster has {have.max_cpus} and {have.max_gpus}; {remedy}"
        )


@dataclass(frozen=True)
class ActorPoolSize:
    """Number of predictors, decode tasks and write tasks, and the CPUs and threads of each predictor."""

    predictors: int
    predictor_cpus: int
    predictor_threads: int
    decode_tasks: int
    write_tasks: int

    def fit(self, have: Resources, gpu: bool) -> bool:
        """Return whether the current nodes can hold the predictors and one more CPU."""
        beside = have.cpus - self.predictors * self.predictor_cpus
        return have.room_for(self.predictor_cpus, gpu) >= self.predictors and beside >= 1


def size_actor_pool(config: PredictConfig, have: Resources, shrink_to_fit: bool = False) -> ActorPoolSize:
    """Size the stages so that each can always run: predictors always leave CPUs for the tasks that feed them.

    By default a CPU predictor reserves half of its node's CPUs but computes on all of them, because decoding needs
    little.

    Args:
        shrink_to_fit: accept fewer predictors than configured if only fewer fit on the current nodes.

    Raises: UserError if the cluster cannot hold the predictors and one more CPU.
    """
    if config.gpu and not have.max_gpus:
        raise UserError("gpu: the cluster has no GPU; add a GPU node or omit --gpu")
    reserved = config.predictor_cpus or (1 if config.gpu else max(1, have.node_cpus // 2))
    # An autoscaling cluster may have no nodes yet.
    most = max(1, min(have.room_for(reserved, config.gpu), (have.cpus - 1) // reserved))
    predictors = config.predictors or min(max(1, have.gpus if config.gpu else have.cpu_nodes), most)
    if shrink_to_fit:
        predictors = min(predictors, most)
    remedy = "lower --predictors or --predictor-cpus, or add nodes"
    check_capacity("predictors", [Reservation("predictors", predictors, reserved, config.gpu)], have, remedy)
    left = have.max_cpus - predictors * reserved
    room = have.room_for(reserved, config.gpu)
    if room < predictors and not have.may_grow:
        raise UserError(
            f"predictors: {predictors} with {reserved} CPU(s){' and a GPU' if config.gpu else ''} each do not "
            f"fit on the cluster's nodes, which have room for {room}; lower --predictors or --predictor-cpus"
        )
    on_a_node = math.ceil(predictors / max(1, have.cpu_nodes))
    threads = config.predictor_cpus or max(1, (os.cpu_count() or 1) // on_a_node)
    # On a CPU, predicting an image takes a hundred times as long as decoding it. More decode tasks would only delay the
    # start.
    decode_tasks = left // 2 if config.gpu else left // 4
    return ActorPoolSize(predictors, reserved, threads, max(1, decode_tasks), write_tasks=max(1, left // 4))
