"""Forecast of a segmentation, computed from a listing and from a sample that went through the real pipeline.

Independent of Ray. The model: a run starts, then processes images at the rate of its bottleneck, then writes the last
parts. The bottleneck is the stage with the lowest rate in images/s, or the processors that all stages share.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.output.schema import LISTED
from pipeline.segment.stage_timing import Spent, StageSeconds
from pipeline.segment.worklist import MAX_WAVE

MAX_TRIED = 20_000  # maximum size of a sample: images whose names a survey keeps
FEW_TO_WEIGH = 16  # minimum images for estimating how costs grow with the file size
CERTAINTY = 1.96  # standard deviations of the normal distribution, for 95% intervals

Numbers = NDArray[np.float64]


@dataclass
class Survey:
    """Statistics of a listing. All except `done_before` cover only the images to label."""

    images: int = 0
    done_before: int = 0
    sized: int = 0  # images whose file size is listed
    bytes: int = 0  # total size of these
    # Histogram of file sizes: bin k counts files of 2**(k-1) to 2**k - 1 bytes, bin 0 empty files.
    by_size: NDArray[np.int64] = field(default_factory=lambda: np.zeros(65, np.int64))
    candidates: pa.Table = field(default_factory=LISTED.empty_table)

    @property
    def mean_bytes(self) -> float | None:
        return self.bytes / self.sized if self.sized else None

    def sample(self, count: int) -> pa.Table:
        """Return `count` LISTED images, or all if there are fewer. The same images give the same sample."""
        return self.candidates.slice(0, count)


def survey(tables: Iterable[pa.Table], is_done: Callable[[pa.Table], pa.Array], most: int = MAX_TRIED) -> Survey:
    """Compute the statistics of LISTED tables, keeping the names of at most `most` images for the sample.

    The sample consists of the images with the smallest ids. Ids are hashes of the names, so this is equivalent to a
    random sample, and it does not depend on the order of the listing.

    Args:
        is_done: returns for a LISTED table a Boolean array that is true for completed images.
        most: maximum size of a sample.
    """
    result = Survey()
    for listed in tables:
        todo = listed.filter(pc.invert(is_done(listed)))
        result.images += len(todo)
        result.done_before += len(listed) - len(todo)
        sizes = pc.drop_null(todo["size_bytes"]).to_numpy()
        result.sized += len(sizes)
        result.bytes += int(sizes.sum())
        result.by_size += np.bincount(np.frexp(sizes.astype(np.float64))[1], minlength=65)
        if len(result.candidates) == most:
            todo = todo.filter(pc.less(todo["image_id"], result.candidates["image_id"][-1]))
        merged = pa.concat_tables([result.candidates, todo])
        result.candidates = merged.take(pc.sort_indices(merged["image_id"])[:most]).combine_chunks()
    return result


@dataclass(frozen=True)
class Tried:
    """Measurements of labeling the sample."""

    seconds: float  # total, from the start of its run
    seconds_to_first: float  # until the first image was predicted
    seconds_after_last: float  # from the last predicted image until the end
    rate: float | None  # images/s from the first tenth of the images to the last; None: too few images
    outcomes: dict[str, int]  # 'ok' or error type -> images
    stages: StageSeconds
    output_bytes: int
    # Per image, of the rows whose file size is known.
    file_bytes: Numbers
    image_seconds: Numbers  # decoding and prediction
    mask_bytes: Numbers

    @property
    def images(self) -> int:
        return sum(self.outcomes.values())


class Machines(NamedTuple):
    """Size of a cluster and of the stages that a run has on it."""

    nodes: int
    processors: int
    gpus: int
    predictors: int
    decode_tasks: int
    write_tasks: int


class Cost(NamedTuple):
    """Cost of one image in seconds, averaged over all images including failed ones."""

    seconds: float
    cpu_seconds: float


class Capacity(NamedTuple):
    """Capacity of a stage."""

    workers: int  # in parallel
    cost: Cost

    @property
    def rate(self) -> float:
        """Images/s; infinite if an image costs nothing."""
        return self.workers / self.cost.seconds if self.cost.seconds else math.inf


class Failures(NamedTuple):
    """Failed images of the sample, and the expected fraction of failures among all images (a 95% interval)."""

    tried: int  # failed images of the sample
    least: float
    most: float


@dataclass(frozen=True)
class Forecast:
    """Forecast for one cluster."""

    machines: Machines
    capacities: dict[str, Capacity]  # by stage, with the shared processors as one more stage
    seconds: float
    price: float | None

    @property
    def rate(self) -> float:
        """Images/s between start and end."""
        return self.capacities[self.limit].rate

    @property
    def limit(self) -> str:
        """Name of the bottleneck stage."""
        return min(self.capacities, key=lambda stage: self.capacities[stage].rate)

    @property
    def node_hours(self) -> float:
        return self.machines.nodes * self.seconds / 3600


class SegmentationPlan:
    """Plan computed from the survey of the listing and the measurements of the sample."""

    def __init__(self, survey: Survey, tried: Tried) -> None:
        self.survey, self.tried = survey, tried
        self.time_factor = size_factor(tried.file_bytes, tried.image_seconds, survey.mean_bytes)
        self.output_factor = size_factor(tried.file_bytes, tried.mask_bytes, survey.mean_bytes)

    @property
    def costs(self) -> dict[str, Cost]:
        """Cost by stage of an image of the listing's mean file size."""
        costs = {stage: _cost(stage, self.tried) for stage in self.tried.stages.spent}
        return {stage: Cost(*(self.time_factor * value for value in cost)) for stage, cost in costs.items()}

    @property
    def output_bytes(self) -> float:
        return self.output_factor * self.tried.output_bytes / self.tried.images * self.survey.images

    @property
    def cpus_for_a_gpu(self) -> float:
        """CPUs that keep one GPU busy: enough to download, decode and write as fast as it predicts."""
        feeding = sum(cost.cpu_seconds for stage, cost in self.costs.items() if stage in ("decode", "write"))
        return feeding / self._predicting if self._predicting else math.inf

    @property
    def predicting_share(self) -> float:
        """Fraction of the CPU time that prediction takes."""
        every = sum(cost.cpu_seconds for cost in self.costs.values())
        return self.costs["predict"].cpu_seconds / every if every and "predict" in self.costs else 0.0

    @property
    def _predicting(self) -> float:
        return self.costs["predict"].seconds if "predict" in self.costs else 0.0

    @property
    def failed(self) -> Failures:
        """Failures of all error types together."""
        count = self.tried.images - self.tried.outcomes.get("ok", 0)
        return Failures(count, *wilson(count, self.tried.images))

    @property
    def failed_by_kind(self) -> dict[str, Failures]:
        """Failures by error type, the most frequent first."""
        counts = Counter({kind: count for kind, count in self.tried.outcomes.items() if kind != "ok"})
        return {kind: Failures(count, *wilson(count, self.tried.images)) for kind, count in counts.most_common()}

    def forecast(self, machines: Machines, price_per_hour: float | None = None) -> Forecast:
        """Forecast all images on these machines. `price_per_hour` is the price of the whole cluster."""
        costs = {stage: Cost(0, 0) for stage in ("download", "decode", "predict", "write")} | self.costs
        # A decode task downloads ahead while it decodes, so downloading is a stage of its own. Encoding is left out,
        # because a predictor encodes the masks of one block while it predicts the next.
        every = sum(cost.cpu_seconds for cost in costs.values())
        capacities = {
            "download": Capacity(machines.decode_tasks, costs["download"]),
            "decode": Capacity(machines.decode_tasks, costs["decode"]),
            "predict": Capacity(machines.predictors, costs["predict"]),
            "write": Capacity(machines.write_tasks, costs["write"]),
            "processors": Capacity(machines.processors, Cost(every, every)),
        }
        starts = math.ceil(self.survey.images / MAX_WAVE)  # a run starts new predictors for each wave
        working = self.survey.images / min(capacity.rate for capacity in capacities.values())
        seconds = starts * self.tried.seconds_to_first + working + self.tried.seconds_after_last
        price = None if price_per_hour is None else price_per_hour * seconds / 3600
        return Forecast(machines, capacities, seconds, price)


def _cost(stage: str, tried: Tried) -> Cost:
    """Return the cost of a stage per image of the sample, from warm processes if there are any."""
    every = tried.stages.spent[stage]
    warm = tried.stages.warm.get(stage, Spent())
    if not warm.images or not every.images:
        return Cost(every.seconds / tried.images, every.cpu_seconds / tried.images)
    reached = every.images / tried.images  # the others failed earlier
    return Cost(warm.seconds_per_image * reached, warm.cpu_seconds_per_image * reached)


def size_factor(file_bytes: Numbers, costs: Numbers, mean_bytes: float | None) -> float:
    """Return the factor that corrects the sample's mean cost for the mean file size of all images.

    Uses the regression estimator of survey sampling: the cost of an image is a constant plus a slope times its bytes.
    The slope is that of least squares, limited to the range from zero to costs proportional to the bytes. Returns 1 if
    sizes are unknown or the sample does not allow an estimate.
    """
    if mean_bytes is None or len(costs) < FEW_TO_WEIGH or not costs.sum() or not np.ptp(file_bytes):
        return 1.0
    slope = np.cov(file_bytes, costs)[0, 1] / file_bytes.var(ddof=1)
    proportional = costs.mean() / file_bytes.mean()
    slope = min(max(slope, 0.0), proportional)
    return float(1 + slope * (mean_bytes - file_bytes.mean()) / costs.mean())


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95% interval of a fraction observed as `count` of `total` (Wilson 1927); (0, 1) if total is 0."""
    if not total:
        return 0.0, 1.0
    share, z2 = count / total, CERTAINTY**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = CERTAINTY * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    # The ends are exactly 0 and 1, without rounding errors.
    return (middle - half if count else 0.0), (middle + half if count < total else 1.0)


def steady_rate(marks: list[tuple[float, int]]) -> float | None:
    """Return the images/s from the first tenth of the images to the last; None if there are too few marks.

    Args:
        marks: (seconds, images so far), ascending.
    """
    if not marks:
        return None
    low = next(mark for mark in marks if mark[1] >= 0.1 * marks[-1][1])
    high = next(mark for mark in marks if mark[1] == marks[-1][1])
    return (high[1] - low[1]) / (high[0] - low[0]) if high[0] > low[0] else None
