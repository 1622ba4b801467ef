"""Plans: what a listing comes to, which images are tried, and what the sample says of all images."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.output.schema import LISTED, image_id, table
from pipeline.plan.forecast import Machines, SegmentationPlan, Survey, Tried, size_factor, steady_rate, survey, wilson
from pipeline.plan.run import Planned
from pipeline.plan.text import num_bytes, plan_lines
from pipeline.segment.stage_timing import Report, Spent, StageSeconds

HERE = Machines(nodes=1, processors=4, gpus=0, predictors=1, decode_tasks=2, write_tasks=1)
SIZES = [0, 1, 2, 3, 4, 1023, 1024, 1025, None]


def listed(names: list[str], sizes: list[int | None] | None = None) -> pa.Table:
    sizes = sizes or [1000] * len(names)
    rows = [
        {"image_id": image_id(name), "image_uri": name, "size_bytes": size}
        for name, size in zip(names, sizes, strict=True)
    ]
    return table(rows, LISTED)


def nothing_done(images: pa.Table) -> pa.Array:
    return pa.array([False] * len(images))


def names(count: int) -> list[str]:
    return [f"s3://bucket/{number}.jpg" for number in range(count)]


def uris(sample: pa.Table) -> list[str]:
    return sample["image_uri"].to_pylist()


def stage_seconds(first: dict[str, Spent], later: dict[str, Spent] | None = None) -> StageSeconds:
    """Of one process that has reported twice."""
    total = StageSeconds()
    total.add(Report(first, set(first)))
    total.add(Report(later or {}, set()))
    return total


def tried(outcomes: dict[str, int], stages: StageSeconds, **changes: Any) -> Tried:
    """A sample whose files have 1000 bytes each."""
    images = sum(outcomes.values())
    files = {"file_bytes": np.full(images, 1000.0), "image_seconds": np.ones(images), "mask_bytes": np.ones(images)}
    times = {"seconds": 30.0, "seconds_to_first": 10.0, "seconds_after_last": 2.0, "rate": 5.0}
    return Tried(**{"outcomes": outcomes, "stages": stages, "output_bytes": 100 * images, **times, **files, **changes})


WORK = {
    "download": Spent(seconds=2.0, images=100),
    "decode": Spent(seconds=1.0, cpu_seconds=1.5, images=100),
    "predict": Spent(seconds=10.0, cpu_seconds=36.0, images=100),
    "encode": Spent(seconds=2.0, images=100),
    "write": Spent(seconds=0.5, cpu_seconds=0.5, images=100),
}


def plan_of(images: int, sample: Tried) -> SegmentationPlan:
    return SegmentationPlan(Survey(images=images, sized=images, bytes=1000 * images), sample)


# The survey.


def test_a_survey_counts_images_bytes_and_sizes_in_powers_of_two() -> None:
    found = survey([listed(names(9), SIZES)], nothing_done)
    assert (found.images, found.done_before, found.sized) == (9, 0, 8)
    assert found.bytes == 0 + 1 + 2 + 3 + 4 + 1023 + 1024 + 1025
    # 0 | 1 | 2 to 3 | 4 to 7 | 512 to 1023 | 1024 to 2047
    assert {k: int(found.by_size[k]) for k in found.by_size.nonzero()[0]} == {0: 1, 1: 1, 2: 2, 3: 1, 10: 1, 11: 2}


def test_what_is_done_costs_nothing_and_is_not_tried() -> None:
    everything = listed(names(10))
    done = set(uris(everything)[:4])
    found = survey([everything], lambda images: pa.array([uri in done for uri in uris(images)]))
    assert (found.images, found.done_before, found.bytes) == (6, 4, 6000)
    assert not done & set(uris(found.sample(100)))


def test_the_same_images_are_tried_however_they_are_listed() -> None:
    everything = listed(names(500))
    backwards = everything.take(list(range(499, -1, -1)))
    pieces = [everything.slice(start, 7) for start in range(0, 500, 7)]
    samples = [uris(survey(tables, nothing_done, most=40).sample(30)) for tables in ([everything], [backwards], pieces)]
    assert samples[0] == samples[1] == samples[2]
    assert len(set(samples[0])) == 30


def test_the_images_tried_are_spread_over_the_input() -> None:
    sample = survey([listed(names(10_000))], nothing_done).sample(1000)
    places = np.array([int(uri.split("/")[-1].removesuffix(".jpg")) for uri in uris(sample)])
    by_tenth = np.bincount(places // 1000, minlength=10)
    assert by_tenth.min() > 60
    assert by_tenth.max() < 140


def test_a_sample_of_a_small_input_is_all_of_it() -> None:
    found = survey([listed(names(3))], nothing_done)
    assert sorted(uris(found.sample(256))) == names(3)


def test_an_empty_listing_is_a_survey_of_nothing() -> None:
    found = survey([], nothing_done)
    assert (found.images, found.mean_bytes, len(found.sample(256))) == (0, None, 0)


# The forecast.


def test_the_slowest_stage_sets_the_rate_and_start_and_end_are_added() -> None:
    forecast = plan_of(1000, tried({"ok": 100}, stage_seconds(WORK))).forecast(HERE, price_per_hour=36)
    rates = {stage: capacity.rate for stage, capacity in forecast.capacities.items()}
    # Masks are encoded beside predicting; the processors' seconds are 1.5 + 36 + 0.5 of 100 images, on 4 of them.
    expected = {"download": 100, "decode": 200, "predict": 10, "write": 200, "processors": 4 / 0.38}
    assert rates == pytest.approx(expected)
    assert forecast.limit == "predict"
    assert forecast.seconds == pytest.approx(10 + 1000 * 0.1 + 2)
    assert forecast.node_hours == pytest.approx(112 / 3600)
    assert forecast.price == pytest.approx(36 * 112 / 3600)


def test_where_decoding_was_done_ahead_of_the_sample_the_processors_set_the_rate() -> None:
    busy = WORK | {"decode": Spent(seconds=10.0, cpu_seconds=30.0, images=100)}
    forecast = plan_of(1000, tried({"ok": 100}, stage_seconds(busy))).forecast(HERE)
    assert forecast.limit == "processors"
    assert forecast.rate == pytest.approx(4 / 0.665)


def test_ten_times_the_nodes_take_a_tenth_of_the_time_but_start_as_slowly() -> None:
    plan = plan_of(100_000, tried({"ok": 100}, stage_seconds(WORK)))
    ten = plan.forecast(Machines(10, 40, 0, 10, 20, 10))
    assert ten.seconds == pytest.approx(12 + 100_000 * 0.01)
    assert ten.node_hours == pytest.approx(10 * ten.seconds / 3600)


def test_the_first_report_of_a_process_is_left_out_where_there_are_later_ones() -> None:
    first = {"decode": Spent(seconds=50.0, cpu_seconds=40.0, images=50)}
    later = {"decode": Spent(seconds=1.0, cpu_seconds=0.5, images=50)}
    warm = plan_of(1000, tried({"ok": 100}, stage_seconds(first, later))).costs["decode"]
    assert warm == pytest.approx((0.02, 0.01))
    cold = plan_of(1000, tried({"ok": 50}, stage_seconds(first))).costs["decode"]
    assert cold == pytest.approx((1.0, 0.8))


def test_images_that_fail_early_cost_only_the_stages_that_they_reached() -> None:
    one_report = {"download": Spent(2.0, 0, 100), "decode": Spent(1.0, 1.0, 50), "predict": Spent(5.0, 10.0, 50)}
    sample = tried({"ok": 100, "NotFound": 100}, stage_seconds(one_report, one_report))
    costs = {stage: cost.seconds for stage, cost in plan_of(1000, sample).costs.items()}
    # Decoding takes 0.02 s, of half of the images.
    assert costs == pytest.approx({"download": 0.02, "decode": 0.01, "predict": 0.05})


def test_one_image_and_one_that_fails_make_a_plan() -> None:
    one = {stage: Spent(work.seconds / 100, work.cpu_seconds / 100, 1) for stage, work in WORK.items()}
    forecast = plan_of(1, tried({"ok": 1}, stage_seconds(one), rate=None)).forecast(HERE)
    assert forecast.seconds == pytest.approx(10 + 0.1 + 2)

    failed = {stage: one[stage] for stage in ("download", "write")}
    failing = plan_of(1, tried({"NotFound": 1}, stage_seconds(failed), rate=None))
    assert failing.forecast(HERE).limit == "download"  # nothing was decoded or predicted
    assert failing.failed.least == pytest.approx(0.2065, abs=1e-4)
    assert failing.failed.most == 1
    assert failing.predicting_share == 0


def test_the_cpus_for_a_gpu_are_what_feeds_it_over_what_it_takes() -> None:
    plan = plan_of(1000, tried({"ok": 100}, stage_seconds(WORK)))
    assert plan.cpus_for_a_gpu == pytest.approx((1.5 + 0.5) / 10)
    assert plan.predicting_share == pytest.approx(36 / 38)


def test_output_grows_with_the_images() -> None:
    assert plan_of(1000, tried({"ok": 100}, stage_seconds(WORK))).output_bytes == pytest.approx(100_000)


# What the sample's files say of all files.


def test_costs_that_grow_with_the_file_are_weighed_by_its_size() -> None:
    sizes = np.linspace(1000.0, 3000.0, 50)
    assert size_factor(sizes, 2 * sizes, 3000.0) == pytest.approx(1.5)  # proportional
    assert size_factor(sizes, 2000 + sizes, 3000.0) == pytest.approx(1.25)  # half of it is a constant
    assert size_factor(sizes, np.full(50, 7.0), 3000.0) == pytest.approx(1.0)  # not at all


def test_costs_are_not_weighed_beyond_proportion_nor_against_it() -> None:
    sizes = np.linspace(1000.0, 3000.0, 50)
    assert size_factor(sizes, sizes**3, 1000.0) == pytest.approx(0.5)
    assert size_factor(sizes, 5000 - sizes, 1000.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sizes", "costs", "mean"),
    [
        ([1000.0, 3000.0] * 20, [1.0, 3.0] * 20, None),
        ([1000.0, 3000.0] * 2, [1.0, 3.0] * 2, 3000.0),
        ([1000.0] * 40, [1.0, 3.0] * 20, 3000.0),
        ([1000.0, 3000.0] * 20, [0.0] * 40, 3000.0),
        ([], [], 3000.0),
    ],
    ids=["no sizes listed", "too few", "one size", "nothing labelled", "no rows"],
)
def test_costs_are_left_alone_where_sizes_say_nothing(
    sizes: list[float], costs: list[float], mean: float | None
) -> None:
    assert size_factor(np.array(sizes), np.array(costs), mean) == 1.0


# Wilson's interval, against the values of Newcombe (1998), table I, method 3.


@pytest.mark.parametrize(
    ("count", "total", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_of_failures_is_wilsons(count: int, total: int, interval: tuple[float, float]) -> None:
    assert wilson(count, total) == pytest.approx(interval, abs=1e-4)


def test_the_interval_ends_at_nothing_and_at_everything() -> None:
    assert wilson(0, 50)[0] == 0
    assert wilson(50, 50)[1] == 1
    assert wilson(0, 0) == (0, 1)


def test_the_rate_is_that_after_the_first_tenth() -> None:
    assert steady_rate([(100.0, 5), (103.0, 10), (104.0, 20), (121.0, 100)]) == pytest.approx(90 / 18)
    assert steady_rate([(100.0, 8)]) is None
    assert steady_rate([]) is None


# As it is printed.


def test_a_plan_is_printed_in_a_hundred_columns_with_what_limits_it() -> None:
    surveyed = survey([listed(names(3000), [700, 90_000, 5_000_000] * 1000)], nothing_done)
    plan = SegmentationPlan(surveyed, tried({"ok": 95, "Corrupt": 4, "NotAnImage": 1}, stage_seconds(WORK)))
    forecasts = (plan.forecast(HERE, 3.6), plan.forecast(Machines(20, 80, 0, 20, 40, 20), 72.0))
    printed = list(plan_lines(Planned("s3://bucket/labels", "0" * 32, surveyed, 0.02, 0, plan, forecasts)))
    assert max(map(len, printed)) <= 100
    text = "\n".join(printed)
    assert "3,000 to label, 0 already completed" in text
    assert "5.09 GB, 1.70 MB per image" in text
    (limit,) = [line.split()[:5] for line in printed if "bottleneck" in line]
    assert limit == ["predict", "100.0", "360.0", "1", "10.0"]
    assert "prediction takes 95% of the CPU time" in text
    cluster = [line.split() for line in printed if "node" in line and line[0] != "C"]
    assert cluster == [
        ["current", "1", "node", "10.0", "0:05:12", "0.09", "0.31"],
        ["requested", "20", "nodes", "200", "0:00:27", "0.15", "0.54"],
    ]
    assert "64 to 336 images (2.2% to 11.2%); 5 of 100 in the sample" in text
    assert "Corrupt             4 in the sample" in text
    assert "the run would stop: more than --max-error-rate 0.02" in text


def test_with_gpus_the_plan_tells_how_many_cpus_each_needs() -> None:
    plan = plan_of(1000, tried({"ok": 100}, stage_seconds(WORK)))
    forecast = plan.forecast(Machines(nodes=1, processors=16, gpus=2, predictors=2, decode_tasks=7, write_tasks=3))
    printed = "\n".join(plan_lines(Planned("out", "m", plan.survey, 0.5, 0, plan, (forecast,))))
    assert "0.2 : 1 keeps the GPUs busy, plus one CPU per predictor; this cluster has 7.0 : 1" in printed


def test_with_nothing_to_do_it_says_so() -> None:
    surveyed = survey([listed(names(5))], lambda images: pa.array([True] * len(images)))
    printed = "\n".join(plan_lines(Planned("s3://bucket/labels", "0" * 32, surveyed, 0.5)))
    assert "0 to label, 5 already completed" in printed
    assert "nothing to do" in printed
    assert "Hidden" not in printed


def test_hidden_files_that_were_skipped_are_counted() -> None:
    surveyed = survey([listed(names(5))], lambda images: pa.array([True] * len(images)))
    printed = list(plan_lines(Planned("s3://bucket/labels", "0" * 32, surveyed, 0.5, num_hidden=1234)))
    assert "Hidden      1,234 hidden files skipped; --hidden includes them" in printed


def test_a_listing_without_sizes_is_said_to_have_none() -> None:
    surveyed = survey([listed(names(5), [None] * 5)], nothing_done)
    plan = SegmentationPlan(surveyed, tried({"ok": 5}, stage_seconds(WORK)))
    printed = "\n".join(plan_lines(Planned("out", "m", surveyed, 0.5, 0, plan, (plan.forecast(HERE),))))
    assert "the listing has no file sizes" in printed


def test_bytes_have_three_figures() -> None:
    assert [num_bytes(count) for count in (0, 999, 1000, 12_345, 1_234_567, 5e15)] == [
        *("0 B", "999 B", "1.00 kB", "12.3 kB", "1.23 MB", "5.00 PB")
    ]
