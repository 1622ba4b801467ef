"""Labelling a bucket: listed images are decoded by tasks, predicted by actors and written as parts.

list_images -> decode (tasks) -> Segmenter (actors) -> PartSink (tasks)
"""

import json
import math
import os
import platform
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from pipeline import cluster, parts, storage
from pipeline.checkpoint import Checkpoint
from pipeline.config import PredictConfig, SegmentConfig
from pipeline.errors import UserError, user_error
from pipeline.manifest import list_images, refuse_output_inside_input
from pipeline.output import claim_output, first_failures
from pipeline.progress import SegmentationLine, say, start_board, watched
from pipeline.sink import PartSink
from pipeline.stages import Segmenter, decode

IMAGES_PER_BLOCK = 16


@dataclass
class Summary:
    """How a run ended."""

    run_id: str
    output: str
    total: int  # images in the input
    done_before: int
    outcomes: dict[str, int] = field(default_factory=dict)  # of this run: 'ok' or kind of failure -> images
    failures: list[dict[str, str]] = field(default_factory=list)  # the first of this run's failed images
    seconds: float = 0.0
    seconds_to_first: float | None = None

    @property
    def missing(self) -> int:
        """Images that have no row yet."""
        return self.total - self.done_before - sum(self.outcomes.values())


def segment(config: SegmentConfig) -> Summary:
    """Label every image of the input that the output does not hold yet.

    Raises: UserError, for everything that can be known before an actor starts within seconds.
    """
    started = time.monotonic()
    output = storage.absolute(config.output)
    refuse_output_inside_input(config.input, output)
    model = Checkpoint.load(config.checkpoint, config.long_side)
    model.require_precision(config.checkpoint, config.precision)
    images = list_images(config.input)
    claim_output(output, model)
    reconciled = parts.reconcile(output)
    for line in reconciled.mended:
        say(f"mended: {line}")
    todo = images.filter(pc.invert(pc.is_in(images["image_id"], value_set=reconciled.image_ids)))
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    summary = Summary(run_id, output, len(images), len(images) - len(todo))
    say(f"{len(images):,} images in {config.input}, {summary.done_before:,} of them done; model {model.model_id}")
    if len(todo):
        _run(config, model, todo, summary)
    summary.seconds = time.monotonic() - started
    _write_run(config, model, summary)
    return summary


def _run(config: SegmentConfig, model: Checkpoint, todo: pa.Table, summary: Summary) -> None:
    cluster.connect(config.verbose)
    stages = plan_stages(config, cluster.resources())
    board = start_board()
    sink = PartSink(summary.output, model.class_names, model.model_id, summary.run_id, config.rows_per_part)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.verbose_progress = config.verbose
    context.print_on_execution_start = False
    blocks = [todo.slice(start, IMAGES_PER_BLOCK) for start in range(0, len(todo), IMAGES_PER_BLOCK)]
    pipeline = (
        ray.data.from_arrow(blocks)
        .map_batches(
            decode,  # type: ignore[arg-type]  # Ray's types know no extra arguments
            fn_kwargs={"max_pixels": config.max_pixels, "long_side": model.long_side},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            concurrency=min(stages.decode_tasks, len(blocks)),  # Ray warns of tasks that cannot be
        )
        .map_batches(
            Segmenter,
            fn_constructor_kwargs={
                "checkpoint": storage.absolute(config.checkpoint),
                "model_id": model.model_id,
                "long_side": config.long_side,
                "device": "cuda" if config.gpu else "cpu",
                "precision": config.precision,
                "batch_size": config.batch_size,
                "threads": stages.predictor_threads,
                "board": board,
            },
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=stages.predictor_cpus,
            num_gpus=1 if config.gpu else 0,
            compute=ray.data.ActorPoolStrategy(size=stages.predictors),
        )
    )
    line = SegmentationLine(len(todo))
    try:
        with watched(board, line.show):
            pipeline.write_datasink(sink, ray_remote_args={"num_cpus": 1}, concurrency=stages.write_tasks)
    except Exception as error:
        raise user_error(error) or error from None
    summary.seconds_to_first = line.seconds_to_first
    summary.outcomes = dict(sum((Counter(part.outcomes) for part in sink.written), Counter()))
    names = {part.name for part in sink.written}
    parts.remove_strays(summary.output, summary.run_id, names)
    failed = [part.name for part in sink.written if set(part.outcomes) != {"ok"}]
    summary.failures = first_failures(summary.output, failed)


@dataclass(frozen=True)
class Stages:
    """How many of each there are, and what each reserves."""

    predictors: int
    predictor_cpus: int
    predictor_threads: int
    decode_tasks: int
    write_tasks: int


def plan_stages(config: PredictConfig, have: cluster.Resources) -> Stages:
    """Size the stages so that each can always run: predictors never reserve the CPUs that feed them.

    A CPU predictor reserves half of its node and computes with all of it: decoding takes little beside it.

    Raises: UserError where the cluster cannot hold the predictors and one CPU beside them.
    """
    if config.gpu and not have.max_gpus:
        raise UserError("gpu: the cluster has no GPU; add a GPU node or leave out --gpu")
    # An autoscaling cluster may have no node yet.
    predictors = config.predictors or max(1, have.gpus if config.gpu else have.cpu_nodes)
    if config.gpu and predictors > have.max_gpus:
        raise UserError(f"predictors: {predictors} asked for, but the cluster has {have.max_gpus} GPU(s)")
    reserved = config.predictor_cpus or (1 if config.gpu else max(1, have.node_cpus // 2))
    left = have.max_cpus - predictors * reserved
    if left < 1:
        raise UserError(
            f"predictors: {predictors} with {reserved} CPU(s) each leave none of the cluster's {have.max_cpus} CPUs "
            "for decoding; lower --predictors or --predictor-cpus, or add CPUs"
        )
    on_a_node = math.ceil(predictors / max(1, have.cpu_nodes))
    threads = config.predictor_cpus or max(1, (os.cpu_count() or 1) // on_a_node)
    return Stages(predictors, reserved, threads, decode_tasks=max(1, left // 2), write_tasks=max(1, left // 4))


def _write_run(config: SegmentConfig, model: Checkpoint, summary: Summary) -> None:
    run = {
        "run_id": summary.run_id,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_id": model.model_id,
        "configuration": config.model_dump(mode="json"),
        "images": summary.total,
        "done_before": summary.done_before,
        "outcomes": summary.outcomes,
        "seconds": round(summary.seconds, 2),
        "seconds_to_first": summary.seconds_to_first,
        "versions": {"python": platform.python_version(), "ray": ray.__version__, "pyarrow": pa.__version__},
    }
    uri = storage.join(summary.output, "runs", f"{summary.run_id}.json")
    storage.write_bytes(uri, json.dumps(run, indent=1).encode())
