"""Metrics of a segmentation process: exported to Prometheus, and reported for the run's totals.

Prometheus scrapes the exporter of each node of the Ray cluster; Ray prefixes the metric names with `ray_`.
deploy/grafana/sceneparse.json is a dashboard of these metrics.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from ray.util.metrics import Counter, Histogram

from pipeline.segment.stage_timing import Report, Spent

IMAGES = "sceneparse_images_total"  # tagged by outcome: 'ok' or an error type
STAGE_SECONDS = "sceneparse_stage_seconds"  # histogram, tagged by stage
PREDICTOR_WAIT_SECONDS = "sceneparse_predictor_wait_seconds_total"  # time in which predictors had no input
# Stages, and the unit of one observation.
STAGES = {
    "download": "a group of files",
    "decode": "an image",
    "predict": "a batch",
    "encode": "remaining time to compress a batch's masks after the next batch is predicted",
    "write": "a part",
}
WAIT = "wait"  # waiting of predictors for input; a stage of its own in the run's totals
BOUNDARIES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]

# Totals of this process since its last report. A process works for one run at a time, in several threads.
_lock = threading.Lock()
_spent: defaultdict[str, Spent] = defaultdict(Spent)
_reported: set[str] = set()


def count_images(outcomes: dict[str, int]) -> None:
    """Count images by outcome: 'ok' or an error type."""
    for outcome, count in outcomes.items():
        _images().inc(count, tags={"outcome": outcome})


def count_wait(seconds: float) -> None:
    """Count time in which a predictor had no input."""
    if seconds > 0:
        _wait().inc(seconds)
        _add(WAIT, Spent(seconds))


@contextmanager
def timed(stage: str, images: int = 1) -> Iterator[Spent]:
    """Record the duration of the `with` block for one of STAGES. The block may change the yielded images and bytes."""
    work = Spent(images=images)
    start = time.perf_counter()
    try:
        yield work
    finally:
        work.seconds = time.perf_counter() - start
        _stage_seconds().observe(work.seconds, tags={"stage": stage})
        _add(stage, work)


def count_processor(stage: str, since: float) -> float:
    """Count this process's CPU time, of all threads, since `since`. Returns the current time.process_time()."""
    now = time.process_time()
    _add(stage, Spent(cpu_seconds=now - since))
    return now


def report() -> Report:
    """Return what this process has counted by stage since the last report, and reset it."""
    with _lock:
        spent = dict(_spent)
        _spent.clear()
        first = spent.keys() - _reported
        _reported.update(first)
    return Report(spent, first)


def _add(stage: str, work: Spent) -> None:
    with _lock:
        _spent[stage].add(work)


# Created on first use, so that importing this module creates no metrics.


@cache
def _images() -> Counter:
    return Counter(IMAGES, "Images labeled or failed", tag_keys=("outcome",))


@cache
def _wait() -> Counter:
    return Counter(PREDICTOR_WAIT_SECONDS, "Seconds in which predictors had no input")


@cache
def _stage_seconds() -> Histogram:
    return Histogram(STAGE_SECONDS, "Seconds of a stage's work", boundaries=BOUNDARIES, tag_keys=("stage",))
