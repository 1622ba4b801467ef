"""Ends a run's work when the cluster is no longer the one that its stages were sized for, so that it starts anew.

Ray starts a lost node's predictors again, on the CPUs and GPUs that are left. Where those do not do, it waits for ever;
and an execution that has begun gets no predictor more when nodes come.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.cluster import connection
from pipeline.cluster.sizing import ActorPoolSize, size_actor_pool
from pipeline.config.jobs import PredictConfig
from pipeline.segment.progress import ProgressBar

LOOK_EVERY = 5.0  # seconds
# Seconds without an image more before a cluster that is too small is believed to stay so; an autoscaler may take
# minutes to bring a node.
STILL, STILL_IF_IT_MAY_GROW = 60.0, 600.0
# Seconds after the last change before new nodes count: they come one after the other.
SETTLED = 30.0
# A new start costs the loading of models and what was not written yet: seconds from one to the next at the least,
# and that must be left to do.
WORTH_IT = 600.0


class ClusterChanged(ExecutionTimeoutError):
    """The cluster has lost nodes without which the run does not go on, or got some that it can use.

    Of an ExecutionTimeoutError Ray Data prints no traceback.
    """


class Watch:
    """Judges a cluster by what a run was sized for."""

    def __init__(self, config: PredictConfig, stages: ActorPoolSize, line: ProgressBar) -> None:
        self._config, self._stages, self._line = config, stages, line
        self._begun = time.monotonic()
        self._next_look = 0.0
        self._nodes: tuple[connection.Node, ...] = ()
        self._changed = self._begun

    def look(self) -> None:
        """Look at the cluster if it is time to.

        Raises: ClusterChanged.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self.judge(connection.resources(), now)

    def judge(self, have: connection.Resources, now: float) -> None:
        """Raises: ClusterChanged."""
        if have.nodes != self._nodes:
            self._nodes, self._changed = have.nodes, now
        stages, gpu = self._stages, self._config.gpu
        if not stages.fit(have, gpu):
            # Where no predictor has room and the autoscaler may bring nodes, a new start would only wait for it, too.
            waits_for_nodes = have.may_grow and not have.room_for(stages.predictor_cpus, gpu)
            patience = STILL_IF_IT_MAY_GROW if have.may_grow else STILL
            if now - max(self._line.last_update, self._changed) >= patience and not waits_for_nodes:
                raise ClusterChanged(
                    f"the cluster has become too small for {stages.predictors} predictor(s), and nothing was labelled "
                    f"for {patience:g} seconds"
                )
            return
        if now - self._changed < SETTLED or now - self._begun < WORTH_IT or self._line.seconds_left(now) < WORTH_IT:
            return
        predictors = size_actor_pool(self._config, have, shrink_to_fit=True).predictors
        if predictors > stages.predictors:
            raise ClusterChanged(f"the cluster has grown and holds {predictors} predictors, not {stages.predictors}")


class _Steps(ExecutionCallback):
    """Ray Data makes one for each execution, and calls it at each step: some ten times a second."""

    # Of this process: workers get the class by its name.
    looks: ClassVar[tuple[Callable[[], None], ...]] = ()

    def on_execution_step(self, executor: object) -> None:
        for look in _Steps.looks:
            look()


@contextmanager
def watching(*looks: Callable[[], None]) -> Iterator[None]:
    """While the block runs, call each of these now and then for executions that begin in it.

    What they raise ends the executions.
    """
    context = ray.data.DataContext.get_current()
    before = context.custom_execution_callback_classes
    context.custom_execution_callback_classes = [*before, _Steps]
    _Steps.looks = looks
    try:
        yield
    finally:
        _Steps.looks = ()
        context.custom_execution_callback_classes = before
