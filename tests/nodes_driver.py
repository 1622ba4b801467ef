"""A job on a cluster whose GPUs are pretended, which notes on which nodes its stages run.

    python -m tests.nodes_driver segment_bucket|evaluate [options of the job]

What predicts reserves a GPU and computes on a CPU. The folder of NOTES gets an empty file STAGE.NODE_ID for each stage
and each node that has worked on it. A change of the cluster counts after seconds.
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from jobs import evaluate, segment_bucket
from pipeline.checkpoints.predictor import PredictorSpec
from pipeline.console import run_job
from pipeline.evaluate import evaluation
from pipeline.evaluate.stages import Evaluator
from pipeline.segment import rescaling, run
from pipeline.segment.decode_stage import decode
from pipeline.segment.predict_stage import PredictStage

NOTES = "NOTES_OF_STAGES"  # environment variable of all nodes
# So that a run of some hundred small photos is still at work when a test gets to it.
SECONDS_FOR_A_BLOCK = 1.0


def note(stage: str) -> None:
    Path(os.environ[NOTES], f"{stage}.{ray.get_runtime_context().get_node_id()}").touch()


def require_reserved(gpu: bool) -> None:
    reserved = ray.get_runtime_context().get_assigned_resources()
    assert bool(reserved.get("GPU")) == gpu, reserved


def noted_decode(listed: pa.Table, **arguments: Any) -> Iterator[pa.Table]:
    note("decode")
    yield from decode(listed, **arguments)


class NotedSegmenter(PredictStage):
    def __init__(self, spec: PredictorSpec, **arguments: Any) -> None:
        require_reserved(spec.gpu)
        super().__init__(replace(spec, gpu=False), **arguments)
        self._one_at_a_time = threading.Lock()

    def __call__(self, decoded: pa.Table) -> Iterator[pa.Table]:
        note("predict")
        with self._one_at_a_time:
            time.sleep(SECONDS_FOR_A_BLOCK)
        yield from super().__call__(decoded)


class NotedEvaluator(Evaluator):
    def __init__(self, spec: PredictorSpec, **arguments: Any) -> None:
        require_reserved(spec.gpu)
        super().__init__(replace(spec, gpu=False), **arguments)

    def __call__(self, loaded: pa.Table) -> pa.Table:
        note("predict")
        return super().__call__(loaded)


def main(argv: list[str]) -> int | None:
    job, *options = argv
    rescaling.STILL, rescaling.SETTLED, rescaling.WORTH_IT = 10.0, 3.0, 0.0
    run.decode, run.PredictStage = noted_decode, NotedSegmenter  # type: ignore[assignment, misc]
    evaluation.Evaluator = NotedEvaluator  # type: ignore[misc]
    return {"segment_bucket": segment_bucket.main, "evaluate": evaluate.main}[job](options)


if __name__ == "__main__":
    # Workers import these classes by the module's name.
    from tests import nodes_driver

    run_job(nodes_driver.main)
