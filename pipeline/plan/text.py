"""Text output of a plan for a terminal, at most 100 columns wide."""

import math
from collections.abc import Iterator

from pipeline.console import duration
from pipeline.plan.forecast import Failures, Forecast, SegmentationPlan, Survey
from pipeline.plan.run import Planned

LABEL = 11  # width of the labels left of the text, in characters
BAR = 30  # maximum length of a histogram bar, in characters


def plan_lines(planned: Planned) -> Iterator[str]:
    """Yield the lines of the plan."""
    survey, plan = planned.survey, planned.plan
    yield _row("Plan", f"for {planned.output} (output unchanged)")
    yield _row("", f"model {planned.model_id}")
    yield _row("Images", f"{survey.images:,} to label, {survey.done_before:,} already completed")
    if planned.num_hidden:
        yield _row("Hidden", f"{planned.num_hidden:,} hidden files skipped; --hidden includes them")
    if plan is None:
        yield _row("", "nothing to do: all listed images are completed")
        return
    yield from _sizes(survey)
    yield from _sample(plan)
    yield ""
    yield from _stages(planned.forecasts[0])
    yield from _balance(plan, planned.forecasts[0])
    yield ""
    yield from _forecasts(planned.forecasts)
    yield from _output(plan)
    yield from _failures(plan, planned.max_error_rate)


def _row(label: str, text: str) -> str:
    return f"{label:{LABEL}} {text}".rstrip()


def _sizes(survey: Survey) -> Iterator[str]:
    if survey.mean_bytes is None:
        yield _row("Bytes", "unknown, because the listing has no file sizes")
        return
    of = "" if survey.sized == survey.images else f" in the {survey.sized:,} images with a listed size"
    yield _row("Bytes", f"{num_bytes(survey.bytes)}{of}, {num_bytes(survey.mean_bytes)} per image")
    for k in survey.by_size.nonzero()[0].tolist():
        count = int(survey.by_size[k])
        bar = "█" * math.ceil(BAR * count / survey.by_size.max())
        yield _row("", f"{_power(k - 1) if k else '0 B':>9} to {_power(k):>8} {count:>15,}  {bar}")


def _sample(plan: SegmentationPlan) -> Iterator[str]:
    tried = plan.tried
    rate = "" if tried.rate is None else f", then {_figures(tried.rate)} images/s"
    took = f"{duration(tried.seconds)}; the first after {tried.seconds_to_first:.1f} s{rate}"
    yield _row("Sample", f"{tried.images:,} images in {took}")
    if plan.survey.mean_bytes is not None and len(tried.file_bytes):
        mean = num_bytes(tried.file_bytes.mean())
        factors = f"time x {plan.time_factor:.2f} and output x {plan.output_factor:.2f}"
        yield _row("", f"{mean} per image; scaled to the mean of all images: {factors}")


def _stages(here: Forecast) -> Iterator[str]:
    yield f"{'Stage':{LABEL}}{'ms/image':>13}{'CPU ms':>10}{'workers':>10}{'images/s':>12}"
    for stage, capacity in here.capacities.items():
        milliseconds = "" if stage == "processors" else f"{1000 * capacity.cost.seconds:,.1f}"
        # The CPU time of downloads is included in decoding, because the same processes do both.
        cpu = "" if stage == "download" else f"{1000 * capacity.cost.cpu_seconds:,.1f}"
        rate = "" if math.isinf(capacity.rate) else _figures(capacity.rate)
        limits = "   bottleneck" if stage == here.limit else ""
        yield f"{stage:{LABEL}}{milliseconds:>13}{cpu:>10}{capacity.workers:>10,}{rate:>12}{limits}"


def _balance(plan: SegmentationPlan, here: Forecast) -> Iterator[str]:
    if here.machines.gpus:
        feeding = (here.machines.processors - here.machines.predictors) / here.machines.gpus
        needed = f"{plan.cpus_for_a_gpu:.1f} : 1 keeps the GPUs busy, plus one CPU per predictor"
        yield _row("CPU : GPU", f"{needed}; this cluster has {feeding:.1f} : 1")
    else:
        yield _row("CPU", f"prediction takes {plan.predicting_share:.0%} of the CPU time")


def _forecasts(forecasts: tuple[Forecast, ...]) -> Iterator[str]:
    has_price = forecasts[0].price is not None
    cost = f"{'cost':>13}" if has_price else ""
    yield f"{'Cluster':{LABEL}}{'':14}{'images/s':>12}{'time':>14}{'node-hours':>13}{cost}"
    for forecast, name in zip(forecasts, ("current", "requested"), strict=False):
        nodes = f"{forecast.machines.nodes:,} {'node' if forecast.machines.nodes == 1 else 'nodes'}"
        price = "" if forecast.price is None else f"{forecast.price:>13,.2f}"
        times = f"{_figures(forecast.rate):>12}{duration(forecast.seconds):>14}{forecast.node_hours:>13,.2f}"
        yield f"{name:{LABEL}}{nodes:>14}{times}{price}"


def _output(plan: SegmentationPlan) -> Iterator[str]:
    each = plan.output_bytes / plan.survey.images
    yield _row("Output", f"{num_bytes(plan.output_bytes)}, {num_bytes(each)} per image")


def _failures(plan: SegmentationPlan, max_error_rate: float) -> Iterator[str]:
    images, failed = plan.survey.images, plan.failed
    expected = f"{math.floor(failed.least * images):,} to {math.ceil(failed.most * images):,}"
    yield _row(
        "Failures", f"{expected} images ({_share(failed)}); {failed.tried:,} of {plan.tried.images:,} in the sample"
    )
    for kind, of_kind in plan.failed_by_kind.items():
        yield _row("", f"{kind:14} {of_kind.tried:>6,} in the sample  {_share(of_kind):>16} of all images")
    if failed.tried > max_error_rate * plan.tried.images:
        yield _row("", f"the run would stop: more than --max-error-rate {max_error_rate} of the images fail")


def _share(failures: Failures) -> str:
    return f"{failures.least:.1%} to {failures.most:.1%}"


def num_bytes(count: float) -> str:
    """Format a number of bytes with three significant digits: `1234567` -> `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{_figures(count)} {unit}"
        count /= 1000
    return f"{_figures(count)} PB"


def _power(exponent: int) -> str:
    """Format 2**exponent bytes with a binary unit: `14` -> `16 KiB`."""
    thousands, rest = divmod(exponent, 10)
    return f"{2**rest} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')[thousands]}"


def _figures(number: float) -> str:
    """Format a number with three significant digits, or with all digits before the decimal point if there are more."""
    decimals = max(0, 2 - math.floor(math.log10(number))) if number > 0 else 0
    return f"{number:,.{decimals}f}"
