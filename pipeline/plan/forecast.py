"""What labelling would take, worked out from a listing and a sample that went through the real pipeline.

Knows no Ray. The model: a run starts, then goes at the rate of what limits it, then writes its last parts. What limits
it is the stage that can do the fewest images per second or, over all stages, the processors that they share.
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

MAX_TRIED = 20_000  # images whose names a survey keeps, for a sample of at most so many
FEW_TO_WEIGH = 16  # images; the costs of fewer say nothing about how they grow with the file
CERTAINTY = 1.96  # standard deviations of the normal distribution: intervals hold 95 times in 100

Numbers = NDArray[np.float64]


@dataclass
class Survey:
    """A listing in numbers; all but `done_before` is of the images that are to be labelled."""

    images: int = 0
    done_before: int = 0
    sized: int = 0  # images whose file size the listing tells
    bytes: int = 0  # of these
    # Files by size: number k counts those of 2**(k-1) bytes to just below 2**k, number 0 the empty ones.
    by_size: NDArray[np.int64] = field(default_factory=lambda: np.zeros(65, np.int64))
    candidates: pa.Table = field(default_factory=LISTED.empty_table)

    @property
    def mean_bytes(self) -> float | None:
        return self.bytes / self.sized if self.sized else None

    def sample(self, count: int) -> pa.Table:
        """So many LISTED images, or all if there are fewer; always the same ones of the same images."""
        return self.candidates.slice(0, count)


def survey(tables: Iterable[pa.Table], is_done: Callable[[pa.Table], pa.Array], most: int = MAX_TRIED) -> Survey:
    """Go through LISTED tables, holding no more names than a sample may need.

    The sample is the images of the smallest ids, which are hashes of the names: as good as drawn at random, and no
    matter in which order or how often the input is listed.
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
    """How the sample fared."""

    seconds: float  # from the start of its run
    seconds_to_first: float  # image
    seconds_after_last: float  # image was predicted
    rate: float | None  # images/s between the first tenth of them and the last; None: too few to tell
    outcomes: dict[str, int]  # 'ok' or kind of failure -> images
    stages: StageSeconds
    output_bytes: int
    # By image, those with a row that tells its size.
    file_bytes: Numbers
    image_seconds: Numbers  # decoding and predicting it
    mask_bytes: Numbers

    @property
    def images(self) -> int:
        return sum(self.outcomes.values())


class Machines(NamedTuple):
    """A cluster, and how many of each stage it runs."""

    nodes: int
    processors: int
    gpus: int
    predictors: int
    decode_tasks: int
    write_tasks: int


class Cost(NamedTuple):
    """Of one image, on average over all of them, failed ones included; seconds."""

    seconds: float
    cpu_seconds: float


class Capacity(NamedTuple):
    """How much of a stage there is."""

    workers: int  # at once
    cost: Cost

    @property
    def rate(self) -> float:
        """Images/s that it can do."""
        return self.workers / self.cost.seconds if self.cost.seconds else math.inf


class Failures(NamedTuple):
    """Images of the sample that failed, and the share of all images that is to be expected to."""

    tried: int
    least: float
    most: float


@dataclass(frozen=True)
class Forecast:
    """What labelling takes on some machines."""

    machines: Machines
    capacities: dict[str, Capacity]  # by stage; the processors, which all of them share, are one too
    seconds: float
    price: float | None

    @property
    def rate(self) -> float:
        """Images/s once it is going."""
        return self.capacities[self.limit].rate

    @property
    def limit(self) -> str:
        return min(self.capacities, key=lambda stage: self.capacities[stage].rate)

    @property
    def node_hours(self) -> float:
        return self.machines.nodes * self.seconds / 3600


class SegmentationPlan:
    """The survey and the sample put together."""

    def __init__(self, survey: Survey, tried: Tried) -> None:
        self.survey, self.tried = survey, tried
        self.time_factor = size_factor(tried.file_bytes, tried.image_seconds, survey.mean_bytes)
        self.output_factor = size_factor(tried.file_bytes, tried.mask_bytes, survey.mean_bytes)

    @property
    def costs(self) -> dict[str, Cost]:
        """By stage, of an image of the listing's mean size."""
        costs = {stage: _cost(stage, self.tried) for stage in self.tried.stages.spent}
        return {stage: Cost(*(self.time_factor * value for value in cost)) for stage, cost in costs.items()}

    @property
    def output_bytes(self) -> float:
        return self.output_factor * self.tried.output_bytes / self.tried.images * self.survey.images

    @property
    def cpus_for_a_gpu(self) -> float:
        """CPUs that keep one GPU busy: those that download, decode and write as fast as it predicts."""
        feeding = sum(cost.cpu_seconds for stage, cost in self.costs.items() if stage in ("decode", "write"))
        return feeding / self._predicting if self._predicting else math.inf

    @property
    def predicting_share(self) -> float:
        """Of the processors' time."""
        every = sum(cost.cpu_seconds for cost in self.costs.values())
        return self.costs["predict"].cpu_seconds / every if every and "predict" in self.costs else 0.0

    @property
    def _predicting(self) -> float:
        return self.costs["predict"].seconds if "predict" in self.costs else 0.0

    @property
    def failed(self) -> Failures:
        """Of whatever kind."""
        count = self.tried.images - self.tried.outcomes.get("ok", 0)
        return Failures(count, *wilson(count, self.tried.images))

    @property
    def failed_by_kind(self) -> dict[str, Failures]:
        """The most frequent first."""
        counts = Counter({kind: count for kind, count in self.tried.outcomes.items() if kind != "ok"})
        return {kind: Failures(count, *wilson(count, self.tried.images)) for kind, count in counts.most_common()}

    def forecast(self, machines: Machines, price_per_hour: float | None = None) -> Forecast:
        """What all images would take on these machines, at a price for all of them together."""
        costs = {stage: Cost(0, 0) for stage in ("download", "decode", "predict", "write")} | self.costs
        # A decoding task downloads some images while it decodes others; a predictor encodes masks of the last block.
        every = sum(cost.cpu_seconds for cost in costs.values())
        capacities = {
            "download": Capacity(machines.decode_tasks, costs["download"]),
            "decode": Capacity(machines.decode_tasks, costs["decode"]),
            "predict": Capacity(machines.predictors, costs["predict"]),
            "write": Capacity(machines.write_tasks, costs["write"]),
            "processors": Capacity(machines.processors, Cost(every, every)),
        }
        starts = math.ceil(self.survey.images / MAX_WAVE)  # a run starts its predictors anew for each wave
        working = self.survey.images / min(capacity.rate for capacity in capacities.values())
        seconds = starts * self.tried.seconds_to_first + working + self.tried.seconds_after_last
        price = None if price_per_hour is None else price_per_hour * seconds / 3600
        return Forecast(machines, capacities, seconds, price)


def _cost(stage: str, tried: Tried) -> Cost:
    """Of the stage for one image of the sample, from warm processes if there were some."""
    every = tried.stages.spent[stage]
    warm = tried.stages.warm.get(stage, Spent())
    if not warm.images or not every.images:
        return Cost(every.seconds / tried.images, every.cpu_seconds / tried.images)
    reached = every.images / tried.images  # the others failed before
    return Cost(warm.seconds_per_image * reached, warm.cpu_seconds_per_image * reached)


def size_factor(file_bytes: Numbers, costs: Numbers, mean_bytes: float | None) -> float:
    """What to multiply the sample's mean cost by, since its files are not of the mean size of all files.

    The regression estimator of survey sampling: the cost of an image is a constant plus a slope times its bytes, the
    slope that of least squares, kept between none and proportional to the bytes.
    """
    if mean_bytes is None or len(costs) < FEW_TO_WEIGH or not costs.sum() or not np.ptp(file_bytes):
        return 1.0
    slope = np.cov(file_bytes, costs)[0, 1] / file_bytes.var(ddof=1)
    proportional = costs.mean() / file_bytes.mean()
    slope = min(max(slope, 0.0), proportional)
    return float(1 + slope * (mean_bytes - file_bytes.mean()) / costs.mean())


def wilson(count: int, total: int) -> tuple[float, float]:
    """Interval of a share of which `count` of `total` were seen (Wilson 1927); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    share, z2 = count / total, CERTAINTY**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = CERTAINTY * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    # At the ends it is exact, but for rounding.
    return (middle - half if count else 0.0), (middle + half if count < total else 1.0)


def steady_rate(marks: list[tuple[float, int]]) -> float | None:
    """Images/s between the first tenth of the images and the last, of [seconds, images so far]; None: too few marks."""
    if not marks:
        return None
    low = next(mark for mark in marks if mark[1] >= 0.1 * marks[-1][1])
    high = next(mark for mark in marks if mark[1] == marks[-1][1])
    return (high[1] - low[1]) / (high[0] - low[0]) if high[0] > low[0] else None
