"""Planning run: survey the listing, label a sample in a temporary folder below the output, and remove the sample."""

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from fsspec.implementations.local import LocalFileSystem

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.cluster import connection
from pipeline.cluster.progress_actor import ProgressUpdate
from pipeline.cluster.sizing import size_actor_pool
from pipeline.config.jobs import SegmentConfig
from pipeline.console import log
from pipeline.errors import UserError
from pipeline.output.completed import CompletedImages
from pipeline.output.lease import hold
from pipeline.output.ownership import is_claimed
from pipeline.output.parquet import read_table
from pipeline.output.reconcile import read_completed
from pipeline.output.schema import MASKS
from pipeline.plan.forecast import Forecast, Machines, SegmentationPlan, Survey, Tried, steady_rate, survey
from pipeline.segment.progress import LINE_EVERY, ProgressBar
from pipeline.segment.rescaling import ClusterChanged
from pipeline.segment.run import opened, run_waves
from pipeline.segment.worklist import FIRST_WAIT, ListingProgress, Worklist

LEAST_TRIED = 32  # minimum images of the sample per predictor


@dataclass(frozen=True)
class Planned:
    """Result of jobs/segment_bucket.py --plan."""

    output: str
    model_id: str
    survey: Survey
    max_error_rate: float  # of the run
    num_hidden: int = 0  # hidden files that the listing skipped
    plan: SegmentationPlan | None = None  # None if there are no images to label
    forecasts: tuple[Forecast, ...] = ()  # for the current cluster and, if requested, for one of another size


@connection.disconnecting_on_error()
def make_plan(config: SegmentConfig) -> Planned:
    """List the inputs, label a sample of the images without a row in the output, and forecast the whole run.

    The sample's parts are in a folder below the output meanwhile. Nothing else in storage changes.

    Raises: UserError, as the run would; also if the cluster changes while the sample is labeled.
    """
    started = time.monotonic()
    output, listing, model = opened(config)
    again = config.retry_errors, config.relabel_changed
    done = read_completed(output, *again) if is_claimed(output, model) else CompletedImages(*again)
    begun = time.monotonic()
    surveyed = survey(_logging_progress(listing), done.contains)
    planned = Planned(output, model.model_id, surveyed, config.max_error_rate, listing.num_hidden)
    if not surveyed.images:
        return planned
    # A run also waits for its listing, but at most FIRST_WAIT.
    before = begun - started + min(FIRST_WAIT, time.monotonic() - begun)
    tried = _try(config, model, surveyed, output, before)
    plan = SegmentationPlan(surveyed, tried)
    return replace(planned, plan=plan, forecasts=tuple(_forecasts(config, plan)))


def _logging_progress(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same tables; log the number of images so far every LINE_EVERY seconds."""
    images, last = 0, time.monotonic()
    for table in tables:
        images += len(table)
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            log(f"Listed {images:,} images so far")
        yield table


class _SampleBar(ProgressBar):
    """Progress bar that also records the progress of the sample."""

    def __init__(self, listed: ListingProgress) -> None:
        super().__init__(listed)
        self.marks: list[tuple[float, int]] = []  # (time.monotonic(), images so far)

    def show(self, update: ProgressUpdate) -> None:
        done = sum(update.counts.values())
        if done and (not self.marks or done > self.marks[-1][1]):
            self.marks.append((time.monotonic(), done))
        super().show(update)


def _try(config: SegmentConfig, model: Checkpoint, surveyed: Survey, output: str, before: float) -> Tried:
    """Label the sample and return the measurements. `before`: seconds that a run takes until it can label an image."""
    started = time.monotonic()
    connection.connect(config.verbose)
    predictors = size_actor_pool(config, connection.resources()).predictors
    sample = surveyed.sample(max(config.plan_images, LEAST_TRIED * predictors))
    log(f"{surveyed.images:,} images to label; labeling a sample of {len(sample):,}")
    # Failed images are a result of the sample and must not stop it.
    config = config.model_copy(update={"max_error_rate": 1.0})
    with _folder_below(output) as folder:
        with hold(folder) as lease, Worklist([sample], lambda listed: pa.array([False] * len(listed))) as worklist:
            bar = _SampleBar(worklist.listed)
            try:
                labeled = run_waves(config, model, worklist, lease, start_bar=lambda: bar)
            except ClusterChanged as change:
                raise UserError(f"plan: {change}; run the same command again") from None
        ended = time.monotonic()
        names = [uri for uri in storage.find(storage.join(folder, "masks")) if uri.endswith(".parquet")]
        rows = pa.concat_tables([read_table(uri, ["size_bytes", "seconds", "mask"], MASKS) for uri in names])
    rows = rows.filter(pc.is_valid(rows["size_bytes"]))
    mask_bytes = pc.fill_null(pc.binary_length(pc.struct_field(rows["mask"], "bytes")), 0)
    return Tried(
        seconds=ended - started,
        seconds_to_first=before + bar.marks[0][0] - started,
        seconds_after_last=ended - bar.marks[-1][0],
        rate=steady_rate(bar.marks),
        outcomes=labeled.outcomes,
        stages=labeled.stage_seconds,
        output_bytes=labeled.stage_seconds.spent["write"].bytes,
        file_bytes=rows["size_bytes"].to_numpy().astype(np.float64),
        image_seconds=rows["seconds"].to_numpy().astype(np.float64),
        mask_bytes=mask_bytes.to_numpy().astype(np.float64),
    )


@contextmanager
def _folder_below(output: str) -> Iterator[str]:
    """Yield a new folder below the output for the run to write to. Remove it afterwards, also after an error."""
    folder = storage.join(output, f".plan-{secrets.token_hex(4)}")
    filesystem, path = storage.open_filesystem(output)
    made: list[str] = []  # parent folders that do not exist yet on a disk, the deepest first
    while isinstance(filesystem, LocalFileSystem) and not filesystem.exists(path):
        made.append(path)
        path = os.path.dirname(path)
    try:
        yield folder
    finally:
        storage.remove_folder(folder)
        for path in made:
            if filesystem.exists(path) and not filesystem.ls(path):
                filesystem.rmdir(path)


def _forecasts(config: SegmentConfig, plan: SegmentationPlan) -> Iterator[Forecast]:
    have = connection.resources()
    # A local Ray may have more logical CPUs than the machine has cores.
    there_are = ray.get(ray.remote(_processors).options(num_cpus=1).remote())
    processors = min(have.node_cpus, there_are)
    price = config.price_per_hour
    yield plan.forecast(_machines(config, have, processors), price)
    if config.plan_nodes is not None:
        share = config.plan_nodes / have.cpu_nodes
        cpus, gpus = (_shared_out(int(share * total), config.plan_nodes) for total in (have.cpus, have.gpus))
        other = connection.Resources(tuple(map(connection.Node, cpus, gpus)))
        yield plan.forecast(_machines(config, other, processors), None if price is None else share * price)


def _shared_out(total: int, nodes: int) -> list[int]:
    """Split `total` into one integer per node, as evenly as possible."""
    return [total * (k + 1) // nodes - total * k // nodes for k in range(nodes)]


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machines(config: SegmentConfig, have: connection.Resources, processors: int) -> Machines:
    """Return the size of such a cluster and the stages that a run would have on it.

    Args:
        processors: usable cores per node.
    """
    stages = size_actor_pool(config, have)
    return Machines(
        nodes=have.cpu_nodes,
        processors=have.cpu_nodes * processors,
        gpus=have.gpus,
        predictors=stages.predictors,
        decode_tasks=stages.decode_tasks,
        write_tasks=stages.write_tasks,
    )
