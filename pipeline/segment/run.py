"""Segmentation run: decode listed images in tasks, predict them in actors and write them as parts, wave by wave.

list_images -> Worklist -> decode (tasks) -> PredictStage (actors) -> PartSink (tasks)
"""

import json
import platform
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.predictor import PredictorSpec
from pipeline.cluster import connection
from pipeline.cluster.packages import packages
from pipeline.cluster.progress_actor import start_progress_actor, watched
from pipeline.cluster.ray_data import map_by_actors, map_tables
from pipeline.cluster.shared_files import check_shared
from pipeline.cluster.sizing import DECODE_CPUS, ActorPoolSize, size_actor_pool
from pipeline.config.jobs import SegmentConfig
from pipeline.console import log
from pipeline.errors import raise_user_error
from pipeline.inputs import ImageListing, list_images
from pipeline.output.errors import check_error_types
from pipeline.output.id_set import IdSum
from pipeline.output.lease import Lease, hold
from pipeline.output.ownership import FailedImage, claim_output, first_failures, is_begun, outcomes_of
from pipeline.output.reconcile import differences, reconcile, remove_strays, remove_superseded, stored_images
from pipeline.segment import large_images
from pipeline.segment.decode_stage import DECODED_BYTES, Limits, Preparation, decode
from pipeline.segment.error_rate import ErrorLimit, sampled_first
from pipeline.segment.predict_stage import CALLS, PredictStage
from pipeline.segment.progress import ProgressBar, SegmentationProgressActor
from pipeline.segment.rescaling import ClusterChanged, Watch, watching
from pipeline.segment.stage_timing import StageSeconds
from pipeline.segment.worklist import ListingProgress, Worklist, blocks_of
from pipeline.segment.write_stage import PartSink, WrittenPart, rows_of_a_part

# Default batch sizes. On a CPU the larger batch takes no more memory, and the threads wait less often.
GPU_BATCH, CPU_BATCH = 8, 32
MAX_REPEATS = 3  # runs that follow one whose rows are not exact
MAX_FAILURES = 10  # failed images that a summary lists


@dataclass(frozen=True)
class Wave:
    """Images that one Ray Data pipeline labels."""

    images: pa.Table  # LISTED
    error_limit: ErrorLimit


@dataclass(frozen=True)
class LabeledWaves:
    """Result of labeling the images of a worklist."""

    parts: frozenset[str] = frozenset()  # names of the parts written
    outcomes: dict[str, int] = field(default_factory=dict)  # 'ok' or error type -> images
    num_few_levels: int = 0  # labeled images whose pixels have few different values
    num_with_nodata: int = 0  # labeled images of which some pixels have no data
    failures: list[FailedImage] = field(default_factory=list)  # the first ones
    seconds_to_first: float | None = None
    stage_seconds: StageSeconds = field(default_factory=StageSeconds)  # over all workers
    is_exact: bool = True  # True if the parts hold each image exactly once


@dataclass(frozen=True)
class SegmentSummary:
    """Result of a run."""

    run_id: str
    output: str
    listed: ListingProgress
    num_hidden: int  # hidden files that the listing skipped
    outcomes: dict[str, int]  # of this run: 'ok' or error type -> images
    num_few_levels: int  # labeled images of this run whose pixels have few different values
    num_with_nodata: int  # labeled images of this run of which some pixels have no data
    failures: list[FailedImage]  # first failed images of this run
    seconds: float
    seconds_to_first: float | None
    stage_seconds: StageSeconds  # of this run, over all workers
    # True if each image has exactly one row in storage. When a node is lost, Ray repeats its work and takes the blocks
    # that are still missing by their number. The images of a block depend on their decoded sizes and on which of them
    # fail. If an image fails in only one of the two attempts, the others shift between blocks and may be lost or
    # duplicated. Also, a part of a run that was taken over may arrive late.
    is_exact: bool

    def following(self, earlier: "SegmentSummary | None") -> "SegmentSummary":
        """Return this run's summary combined with that of the run just before it."""
        if earlier is None:
            return self
        outcomes = Counter(earlier.outcomes) + Counter(self.outcomes)
        done_before = self.listed.done_before - sum(earlier.outcomes.values())
        return replace(
            self,
            listed=replace(self.listed, done_before=done_before),
            outcomes=dict(outcomes),
            num_few_levels=earlier.num_few_levels + self.num_few_levels,
            num_with_nodata=earlier.num_with_nodata + self.num_with_nodata,
            failures=[*earlier.failures, *self.failures][:MAX_FAILURES],
            seconds=earlier.seconds + self.seconds,
            seconds_to_first=earlier.seconds_to_first,
        )


def segment(config: SegmentConfig) -> SegmentSummary:
    """Label every image of the inputs that has no row in the output yet.

    If the cluster changes so that another number of predictors fits, the run ends and a new one continues its work. A
    run whose rows are not exact is followed by up to MAX_REPEATS runs that repair the output.

    Raises: UserError. Problems that can be detected before an actor starts are raised within seconds.
    """
    started = time.monotonic()
    shrink_to_fit, repeats = False, 0
    earlier: SegmentSummary | None = None
    while True:
        try:
            summary = _run(config, shrink_to_fit, time.monotonic() - started).following(earlier)
        except ClusterChanged as change:
            log(f"Restarting with the resources available now: {change}")
            shrink_to_fit = True
            continue
        if summary.is_exact or repeats == MAX_REPEATS:
            return summary
        repeats += 1
        earlier = summary
        config = config.model_copy(update={"retry_errors": ()})  # have been retried by now


@connection.disconnecting_on_error()
def _run(config: SegmentConfig, shrink_to_fit: bool, seconds_before: float) -> SegmentSummary:
    # If the run fails, the decorator disconnects from Ray, which also ends the run's remaining tasks and actors.
    started = time.monotonic()
    output, listing, model = opened(config)
    with hold(output) as lease:
        claim_output(output, model)
        found = reconcile(output, config.retry_errors, config.relabel_changed)
        for line in found.repaired:
            log(f"Repaired: {line}")
        with Worklist(listing, found.completed.contains) as worklist:
            listed = worklist.listed

            def start_bar() -> ProgressBar:
                _log_inputs(model, listed)
                return ProgressBar(listed, config.price_per_hour, seconds_before)

            labeled = run_waves(config, model, worklist, lease, start_bar, shrink_to_fit)
            if not listed.todo:
                _log_inputs(model, listed)
        _wait_for_commits(lease, found.in_doubt)
        lease.require()
        differing = differences(output, found.names | labeled.parts)
        if differing:
            log(f"The output differs from what this run committed ({', '.join(differing[:3])}); repairing it")
        is_exact = labeled.is_exact and not differing
        if config.retry_errors or config.relabel_changed or not is_exact:
            remove_superseded(output)
        outcomes = labeled.outcomes if is_exact else outcomes_of(output, lease.run_id)
        if found.completed.num_without_etag:
            log(
                f"relabel_changed: {found.completed.num_without_etag:,} completed images have no ETag in the listing, "
                "so changes to them cannot be detected; only S3 prefixes and inventories list ETags"
            )
        summary = SegmentSummary(
            run_id=lease.run_id,
            output=output,
            listed=listed,
            num_hidden=listing.num_hidden,
            outcomes=outcomes,
            num_few_levels=labeled.num_few_levels,
            num_with_nodata=labeled.num_with_nodata,
            failures=labeled.failures,
            seconds=time.monotonic() - started,
            seconds_to_first=labeled.seconds_to_first,
            stage_seconds=labeled.stage_seconds,
            is_exact=is_exact,
        )
        _write_run(config, model, summary)
    return summary


def _wait_for_commits(lease: Lease, in_doubt: float) -> None:
    """Wait until no commit of a run that was taken over can arrive any more."""
    rest = lease.since + in_doubt - time.monotonic()
    if in_doubt and rest > 0:
        log(f"Waiting {rest:.0f} s: an earlier run ended during a commit, which may still arrive")
        time.sleep(rest)


def opened(config: SegmentConfig) -> tuple[str, ImageListing, Checkpoint]:
    """Return the output's URI, the listing of the images, and the model. Raises: UserError."""
    check_error_types("retry_errors", config.retry_errors)
    output = config.output
    listing = list_images(config)
    # An input without images fails here, within seconds. A new output has no completed images, so Ray is needed in any
    # case.
    connecting = listing.has_images() and not is_begun(output) and storage.exists(config.checkpoint)
    return output, listing, _loaded(config, connecting)


def _loaded(config: SegmentConfig, connecting: bool) -> Checkpoint:
    """Load the checkpoint and, if `connecting`, connect to Ray meanwhile, since each takes seconds."""
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(Checkpoint.load, config.checkpoint, config.long_side, config.protocol, config.rendering)
        if connecting:
            connection.connect(config.verbose)  # in the main thread, where Ray can install signal handlers
        model = loading.result()
    model.require_precision(config.checkpoint, config.precision)
    return model


def run_waves(
    config: SegmentConfig,
    model: Checkpoint,
    worklist: Worklist,
    lease: Lease,
    start_bar: Callable[[], ProgressBar],
    shrink_to_fit: bool = False,
) -> LabeledWaves:
    """Label the images of the worklist into the output whose lease this is.

    Args:
        start_bar: returns the progress bar; called when the first images are about to be labeled.
        shrink_to_fit: use fewer predictors than requested if only fewer fit on the cluster now.

    Raises: UserError, ClusterChanged.
    """
    progress_actor: Any = None
    bar: ProgressBar | None = None
    written: list[WrittenPart] = []
    handed_out = IdSum()
    for images in worklist.waves():
        if bar is None:
            connection.connect(config.verbose)
            image = images["image_uri"][0].as_py()
            check_shared({"image": image, "checkpoint": config.checkpoint, "output": config.output})
            progress_actor = start_progress_actor(SegmentationProgressActor)
            bar = start_bar()
        handed_out = handed_out.plus(IdSum.of(images["image_id"]))
        wave = Wave(sampled_first(images), ErrorLimit(config.max_error_rate, handed_out.num_ids))
        stages = size_actor_pool(config, connection.resources(), shrink_to_fit)
        watch = Watch(config, stages, bar)
        with watched(progress_actor, bar.show), watching(lease.look, watch.look):
            written += _run_wave(config, model, wave, stages, progress_actor, lease)
    if bar is None:
        return LabeledWaves()
    stage_seconds: StageSeconds = ray.get(progress_actor.stage_seconds.remote())
    outcomes: Counter[str] = Counter()
    for part in written:
        stage_seconds.add(part.report)
        outcomes.update(part.outcomes)
    output, names = lease.claim.output, {part.name for part in written}
    lease.require()
    remove_strays(output, lease.run_id, names)
    is_exact = stored_images(output, names) == handed_out and handed_out.num_ids == worklist.listed.todo
    if not is_exact:
        log("Images were duplicated or lost when a lost node's work was repeated; repairing the output")
    with_failures = [part.name for part in written if set(part.outcomes) != {"ok"}]
    return LabeledWaves(
        parts=frozenset(names),
        outcomes=dict(outcomes),
        num_few_levels=sum(part.num_few_levels for part in written),
        num_with_nodata=sum(part.num_with_nodata for part in written),
        failures=first_failures(output, with_failures, MAX_FAILURES),
        seconds_to_first=bar.seconds_to_first,
        stage_seconds=stage_seconds,
        is_exact=is_exact,
    )


def _log_inputs(model: Checkpoint, listed: ListingProgress) -> None:
    so_far = "" if listed.ended else " so far; the listing continues"
    log(
        f"{listed.images:,} images in the input, {listed.done_before:,} already completed{so_far}; "
        f"model {model.model_id}"
    )


def _run_wave(
    config: SegmentConfig, model: Checkpoint, wave: Wave, stages: ActorPoolSize, progress_actor: Any, lease: Lease
) -> list[WrittenPart]:
    rows_per_part = config.rows_per_part or rows_of_a_part(wave.images)
    sink = PartSink(lease.claim, model.class_names, model.model_id, lease.run_id, rows_per_part)
    ray.data.DataContext.get_current().target_max_block_size = DECODED_BYTES
    blocks = blocks_of(wave.images, stages.decode_tasks)
    decoded = map_tables(
        decode,
        blocks,
        num_cpus=DECODE_CPUS,
        concurrency=min(stages.decode_tasks, len(blocks)),  # Ray warns if this exceeds the number of blocks
        verbose=config.verbose,
        limits=Limits(config.max_pixels, config.max_bytes, config.decode_seconds),
        preparation=Preparation(
            model.long_side,
            model.rendering,
            large_images.applies(config.protocol, model.long_side),
            model.metadata.mean,
        ),
        progress_actor=progress_actor,
    )
    spec = PredictorSpec(
        checkpoint=config.checkpoint,
        protocol=config.protocol,
        gpu=config.gpu,
        precision=config.precision,
        threads=stages.predictor_threads,
        batch_size=config.batch_size or (GPU_BATCH if config.gpu else CPU_BATCH),
        long_side=config.long_side,
        rendering=config.rendering,
        model_id=model.model_id,
    )
    predicted = map_by_actors(
        decoded,
        PredictStage,
        {"spec": spec, "error_limit": wave.error_limit, "progress_actor": progress_actor},
        # One more block than the actor works on waits in its queue.
        ray.data.ActorPoolStrategy(
            size=stages.predictors, max_concurrent_calls_per_actor=CALLS, max_tasks_in_flight_per_actor=CALLS + 1
        ),
        num_cpus=stages.predictor_cpus,
        gpu=config.gpu,
    )
    try:
        predicted.write_datasink(sink, ray_remote_args={"num_cpus": 1}, concurrency=stages.write_tasks)
    except Exception as error:
        raise_user_error(error)
    return sink.written


def _write_run(config: SegmentConfig, model: Checkpoint, summary: SegmentSummary) -> None:
    run = {
        "run_id": summary.run_id,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_id": model.model_id,
        "configuration": {**config.model_dump(mode="json"), **model.rendering.options},
        "images": summary.listed.images,
        "done_before": summary.listed.done_before,
        "outcomes": summary.outcomes,
        "few_levels": summary.num_few_levels,
        "with_nodata": summary.num_with_nodata,
        "seconds": round(summary.seconds, 2),
        "seconds_to_first": summary.seconds_to_first,
        "stage_seconds": summary.stage_seconds.as_json(),
        "versions": {"python": platform.python_version(), **packages()},
    }
    uri = storage.join(summary.output, "runs", f"{summary.run_id}.json")
    storage.write_bytes(uri, json.dumps(run, indent=1).encode())
