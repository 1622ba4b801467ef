"""A run ends when the cluster has changed enough to need another number of predictors, and only then."""

import math
import time

import pytest

from pipeline.cluster.connection import Node, Resources
from pipeline.cluster.sizing import size_actor_pool
from pipeline.config.jobs import PredictConfig
from pipeline.segment.rescaling import LOOK_EVERY, SETTLED, STILL, STILL_IF_IT_MAY_GROW, WORTH_IT, ClusterChanged, Watch

GPU_NODE = Node(4, gpus=1)


class Line:
    """Of a progress line, what a Watch looks at."""

    def __init__(self, last_update: float, seconds_left: float = math.inf) -> None:
        self.last_update = last_update
        self._seconds_left = seconds_left

    def seconds_left(self, now: float) -> float:
        return self._seconds_left


def watch(have: Resources, line: Line, gpu: bool = True, asked: int | None = None) -> Watch:
    config = PredictConfig.model_construct(
        checkpoint="c", gpu=gpu, predictors=asked, predictor_cpus=None, precision="auto"
    )
    watch = Watch(config, size_actor_pool(config, have, shrink_to_fit=True), line)  # type: ignore[arg-type]
    watch.judge(have, time.monotonic())
    return watch


def test_a_cluster_that_stays_as_it_is_is_let_alone() -> None:
    have, begun = Resources((Node(4), GPU_NODE)), time.monotonic()
    still = watch(have, Line(last_update=begun))
    for seconds in range(0, 3600, int(LOOK_EVERY)):
        still.judge(have, begun + seconds)


def test_a_cluster_that_is_too_small_is_let_alone_while_images_are_labelled() -> None:
    begun = time.monotonic()
    line = Line(last_update=begun)
    lost = watch(Resources((Node(4), GPU_NODE, GPU_NODE)), line)
    smaller = Resources((Node(4), GPU_NODE))
    for seconds in range(0, 3600, int(LOOK_EVERY)):
        line.last_update = begun + seconds
        lost.judge(smaller, begun + seconds)
    lost.judge(smaller, line.last_update + STILL - 1)
    with pytest.raises(ClusterChanged, match=r"too small for 2 predictor\(s\), and no image was labeled for 60 sec"):
        lost.judge(smaller, line.last_update + STILL + 1)


def test_the_seconds_of_stillness_count_from_the_loss() -> None:
    begun = time.monotonic()
    lost = watch(Resources((Node(4), GPU_NODE, GPU_NODE)), Line(last_update=begun))
    smaller = Resources((Node(4), GPU_NODE))
    lost.judge(smaller, begun + 1000)
    lost.judge(smaller, begun + 1000 + STILL - 1)
    with pytest.raises(ClusterChanged):
        lost.judge(smaller, begun + 1000 + STILL + 1)


def test_an_autoscaler_is_given_time_where_nothing_is_left_to_go_on_with() -> None:
    begun = time.monotonic()
    scaled = watch(Resources((Node(4), GPU_NODE), 64, 8), Line(last_update=begun))
    none_left = Resources((Node(4),), 64, 8)
    for seconds in range(0, 3600, int(LOOK_EVERY)):
        scaled.judge(none_left, begun + seconds)


def test_an_autoscaler_is_given_minutes_where_something_is_left() -> None:
    begun = time.monotonic()
    scaled = watch(Resources((Node(4), GPU_NODE, GPU_NODE), 64, 8), Line(last_update=begun))
    one_left = Resources((Node(4), GPU_NODE), 64, 8)
    scaled.judge(one_left, begun)
    scaled.judge(one_left, begun + STILL_IF_IT_MAY_GROW - 1)
    with pytest.raises(ClusterChanged, match="labeled for 600 seconds"):
        scaled.judge(one_left, begun + STILL_IF_IT_MAY_GROW + 1)


def test_what_feeds_cpu_predictors_must_have_a_cpu_of_its_own() -> None:
    begun = time.monotonic()
    lost = watch(Resources((Node(4), Node(4), Node(4))), Line(last_update=begun), gpu=False)
    lost.judge(Resources((Node(4), Node(4))), begun + 1000)  # three predictors of 2 CPUs, and 2 CPUs beside them
    lost.judge(Resources((Node(4), Node(4))), begun + 2000)
    lost.judge(Resources((Node(4), Node(2))), begun + 3000)  # all CPUs
    with pytest.raises(ClusterChanged):
        lost.judge(Resources((Node(4), Node(2))), begun + 4000)


@pytest.mark.parametrize(
    ("seconds", "seconds_left", "ends"),
    [
        (WORTH_IT + SETTLED, WORTH_IT, True),
        (WORTH_IT - 1, math.inf, False),  # soon after the last start
        (WORTH_IT + SETTLED, WORTH_IT - 1, False),  # soon done
    ],
)
def test_new_nodes_are_taken_where_a_new_start_is_worth_it(seconds: float, seconds_left: float, ends: bool) -> None:
    begun = time.monotonic()
    grown = watch(Resources((Node(4), GPU_NODE)), Line(begun, seconds_left))
    more = Resources((Node(4), GPU_NODE, GPU_NODE))
    grown.judge(more, begun + seconds - SETTLED)
    grown.judge(more, begun + seconds - 1)  # another may come
    if not ends:
        grown.judge(more, begun + seconds)
        return
    with pytest.raises(ClusterChanged, match="has grown and now fits 2 predictors instead of 1"):
        grown.judge(more, begun + seconds + 1)


def test_a_run_that_went_on_with_fewer_takes_what_it_was_asked_for_and_no_more() -> None:
    begun = time.monotonic()
    shrunk = watch(Resources((Node(4), GPU_NODE)), Line(begun), asked=2)
    more = Resources((Node(4), *[GPU_NODE] * 8))
    shrunk.judge(more, begun + WORTH_IT)
    with pytest.raises(ClusterChanged, match="has grown and now fits 2 predictors instead of 1"):
        shrunk.judge(more, begun + WORTH_IT + SETTLED + 1)


def test_nodes_that_no_predictor_can_use_change_nothing() -> None:
    begun = time.monotonic()
    grown = watch(Resources((Node(4), GPU_NODE)), Line(begun))
    for seconds in range(0, 3600, int(LOOK_EVERY)):
        grown.judge(Resources((Node(4), GPU_NODE, Node(64))), begun + seconds)
