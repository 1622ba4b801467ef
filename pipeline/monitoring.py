"""What a segmentation run tells Prometheus, through the exporter that every node of a Ray cluster has.

Ray puts `ray_` before a metric's name. deploy/grafana/sceneparse.json is a dashboard of them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from ray.util.metrics import Counter, Histogram

IMAGES = "sceneparse_images_total"  # by outcome: 'ok' or a kind of failure
STAGE_SECONDS = "sceneparse_stage_seconds"  # by stage
PREDICTOR_WAIT_SECONDS = "sceneparse_predictor_wait_seconds_total"  # in which predictors had nothing to predict
# Of `stage`: what one observation is.
STAGES = {
    "download": "a group of files",
    "decode": "an image",
    "predict": "a batch",
    "write": "a part",
}
BOUNDARIES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


def count_images(outcomes: dict[str, int]) -> None:
    """Count images by 'ok' or their kind of failure."""
    for outcome, count in outcomes.items():
        _images().inc(count, tags={"outcome": outcome})


def count_wait(seconds: float) -> None:
    """Count time in which a predictor had nothing to predict."""
    if seconds > 0:
        _wait().inc(seconds)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Observe how long the block takes, as one of STAGES."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _stage_seconds().observe(time.perf_counter() - start, tags={"stage": stage})


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
