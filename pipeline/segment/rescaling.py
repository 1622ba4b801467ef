"""Detection of changes of the cluster that require a run to restart with stages of another size.

Ray restarts the predictors of a lost node on the remaining CPUs and GPUs. If these do not suffice, it waits forever.
And when nodes join, a running execution gets no additional predictors.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.cluster import connection
from pipeline.cluster.ray_internals import ExecutionCallback
from pipeline.cluster.sizing import ActorPoolSize, size_actor_pool
from pipeline.config.jobs import PredictConfig
from pipeline.segment.progress import ProgressBar

LOOK_EVERY = 5.0  # seconds
# Seconds without a completed image after which a cluster that is too small is assumed to stay too small. An autoscaler
# may take minutes to add a node.
STILL, STILL_IF_IT_MAY_GROW = 60.0, 600.0
# Seconds without another change before new nodes count, because they join one after another.
SETTLED = 30.0
# Minimum seconds between restarts, and minimum seconds of remaining work. A restart loads the models again and loses
# what has not been written yet.
WORTH_IT = 600.0


class ClusterChanged(ExecutionTimeoutError):
    """Loss of nodes without which the run cannot continue, or arrival of nodes that it can use.

    Derived from ExecutionTimeoutError, because Ray Data prints no traceback for that.
    """


class Watch:
    """Monitor that compares the cluster with the stage sizes that a run was started with."""

    def __init__(self, config: PredictConfig, stages: ActorPoolSize, line: ProgressBar) -> None:
        self._config, self._stages, self._line = config, stages, line
        self._begun = time.monotonic()
        self._next_look = 0.0
        self._nodes: tuple[connection.Node, ...] = ()
        self._changed = self._begun

    def look(self) -> None:
        """Check the cluster, at most every LOOK_EVERY seconds.

        Raises: ClusterChanged if the run should restart.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self.judge(connection.resources(), now)

    def judge(self, have: connection.Resources, now: float) -> None:
        """Compare these resources with the stage sizes. `now` is a time.monotonic().

        Raises: ClusterChanged if the run should restart.
        """
        if have.nodes != self._nodes:
            self._nodes, self._changed = have.nodes, now
        stages, gpu = self._stages, self._config.gpu
        if not stages.fit(have, gpu):
            # If no predictor fits and the autoscaler may add nodes, a restarted run would only wait for them, too.
            waits_for_nodes = have.may_grow and not have.room_for(stages.predictor_cpus, gpu)
            patience = STILL_IF_IT_MAY_GROW if have.may_grow else STILL
            if now - max(self._line.last_update, self._changed) >= patience and not waits_for_nodes:
                raise ClusterChanged(
                    f"the cluster has become too small for {stages.predictors} predictor(s), and no image was labeled "
                    f"for {patience:g} seconds"
                )
            return
        if now - self._changed < SETTLED or now - self._begun < WORTH_IT or self._line.seconds_left(now) < WORTH_IT:
            return
        predictors = size_actor_pool(self._config, have, shrink_to_fit=True).predictors
        if predictors > stages.predictors:
            raise ClusterChanged(
                f"the cluster has grown and now fits {predictors} predictors instead of {stages.predictors}"
            )


class _Steps(ExecutionCallback):
    """Callback that Ray Data creates for each execution and calls at each step, about ten times a second."""

    # Set only in the driver's process, because workers import the class by its name.
    looks: ClassVar[tuple[Callable[[], None], ...]] = ()

    def on_execution_step(self, executor: object) -> None:
        for look in _Steps.looks:
            look()


@contextmanager
def watching(*looks: Callable[[], None]) -> Iterator[None]:
    """Call each of these functions at every step of the executions that start in the `with` block.

    An exception that one of them raises ends the execution.
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
