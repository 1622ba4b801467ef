"""How many predictors, decoding and writing tasks a run has on a cluster, so that none of them waits for ever.

An actor keeps what it reserves for as long as its dataset runs, and Ray Data says nothing of a stage that gets no CPU:
two pools of actors that reserve all CPUs of a cluster stop every pipeline that has a task besides. So a run has one
pool, of predictors, and it leaves at least one CPU, which decoding and writing tasks take in turn and give back.
"""

import math
import os
from dataclasses import dataclass

from pipeline.cluster.connection import Resources
from pipeline.config.jobs import PredictConfig
from pipeline.errors import UserError

# Not 1: into predictors that reserve the same Ray Data would fuse decoding, which could then not run beside them.
DECODE_CPUS = 0.99


@dataclass(frozen=True)
class ActorPoolSize:
    """How many of each there are, and what each reserves."""

    predictors: int
    predictor_cpus: int
    predictor_threads: int
    decode_tasks: int
    write_tasks: int

    def fit(self, have: Resources, gpu: bool) -> bool:
        """Whether the nodes hold the predictors, and a CPU beside them, now."""
        beside = have.cpus - self.predictors * self.predictor_cpus
        return have.room_for(self.predictor_cpus, gpu) >= self.predictors and beside >= 1


def size_actor_pool(config: PredictConfig, have: Resources, shrink_to_fit: bool = False) -> ActorPoolSize:
    """Size the stages so that each can always run: predictors never reserve the CPUs that feed them.

    A CPU predictor reserves half of its node and computes with all of it: decoding takes little beside it.

    Args:
        shrink_to_fit: fewer predictors than the configuration asks for will do, if no more fit on the nodes now.

    Raises: UserError where the cluster cannot hold the predictors and one CPU beside them.
    """
    if config.gpu and not have.max_gpus:
        raise UserError("gpu: the cluster has no GPU; add a GPU node or leave out --gpu")
    reserved = config.predictor_cpus or (1 if config.gpu else max(1, have.node_cpus // 2))
    # An autoscaling cluster may have no node yet.
    most = max(1, min(have.room_for(reserved, config.gpu), (have.cpus - 1) // reserved))
    predictors = config.predictors or min(max(1, have.gpus if config.gpu else have.cpu_nodes), most)
    if shrink_to_fit:
        predictors = min(predictors, most)
    if config.gpu and predictors > have.max_gpus:
        raise UserError(f"predictors: {predictors} asked for, but the cluster has {have.max_gpus} GPU(s)")
    left = have.max_cpus - predictors * reserved
    if left < 1:
        raise UserError(
            f"predictors: {predictors} with {reserved} CPU(s) each leave none of the cluster's {have.max_cpus} CPUs "
            "for decoding; lower --predictors or --predictor-cpus, or add CPUs"
        )
    room = have.room_for(reserved, config.gpu)
    if room < predictors and not have.may_grow:
        raise UserError(
            f"predictors: {predictors} that reserve {reserved} CPU(s){' and a GPU' * config.gpu} each do not fit on "
            f"the cluster's nodes, which have room for {room}; lower --predictors or --predictor-cpus"
        )
    on_a_node = math.ceil(predictors / max(1, have.cpu_nodes))
    threads = config.predictor_cpus or max(1, (os.cpu_count() or 1) // on_a_node)
    # A CPU takes a hundred times as long to predict an image as to decode it: each task more would only start late.
    decode_tasks = left // 2 if config.gpu else left // 4
    return ActorPoolSize(predictors, reserved, threads, max(1, decode_tasks), write_tasks=max(1, left // 4))
