"""What a process of a segmentation run counts: for Prometheus at once, and for the run's totals when it reports.

Prometheus reads the exporter that every node of a Ray cluster has; Ray puts `ray_` before a metric's name.
deploy/grafana/sceneparse.json is a dashboard of them.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from ray.util.metrics import Counter, Histogram

from pipeline.segment.stage_timing import Report, Spent

IMAGES = "sceneparse_images_total"  # by outcome: 'ok' or a kind of failure
STAGE_SECONDS = "sceneparse_stage_seconds"  # by stage
PREDICTOR_WAIT_SECONDS = "sceneparse_predictor_wait_seconds_total"  # in which predictors had nothing to predict
# Of `stage`: what one observation is.
STAGES = {
    "download": "a group of files",
    "decode": "an image",
    "predict": "a batch",
    "encode": "what is left of compressing a batch's masks once the next one is predicted",
    "write": "a part",
}
WAIT = "wait"  # of predictors for something to predict; among the run's totals a stage of its own
BOUNDARIES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]

# Of this process, since its last report: it works for one run at a time, in several threads.
_lock = threading.Lock()
_spent: defaultdict[str, Spent] = defaultdict(Spent)
_reported: set[str] = set()


def count_images(outcomes: dict[str, int]) -> None:
    """Count images by 'ok' or their kind of failure."""
    for outcome, count in outcomes.items():
        _images().inc(count, tags={"outcome": outcome})


def count_wait(seconds: float) -> None:
    """Count time in which a predictor had nothing to predict."""
    if seconds > 0:
        _wait().inc(seconds)
        _add(WAIT, Spent(seconds))


@contextmanager
def timed(stage: str, images: int = 1) -> Iterator[Spent]:
    """Observe how long the block takes, as one of STAGES; it may set the bytes of what it is given."""
    work = Spent(images=images)
    start = time.perf_counter()
    try:
        yield work
    finally:
        work.seconds = time.perf_counter() - start
        _stage_seconds().observe(work.seconds, tags={"stage": stage})
        _add(stage, work)


def count_processor(stage: str, since: float) -> float:
    """Count this process's time on processors since then, all threads together; returns time.process_time() of now."""
    now = time.process_time()
    _add(stage, Spent(cpu_seconds=now - since))
    return now


def report() -> Report:
    """What this process has counted by stage since it was asked the last time."""
    with _lock:
        spent = dict(_spent)
        _spent.clear()
        first = spent.keys() - _reported
        _reported.update(first)
    return Report(spent, first)


def _add(stage: str, work: Spent) -> None:
    with _lock:
        _spent[stage].add(work)


# Made where they are first used: a process that only imports this module has none.


@cache
def _images() -> Counter:
    return Counter(IMAGES, "Images labelled or failed", tag_keys=("outcome",))


@cache
def _wait() -> Counter:
    return Counter(PREDICTOR_WAIT_SECONDS, "Seconds in which predictors had nothing to predict")


@cache
def _stage_seconds() -> Histogram:
    return Histogram(STAGE_SECONDS, "Seconds of a stage's work", boundaries=BOUNDARIES, tag_keys=("stage",))
