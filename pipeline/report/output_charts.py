"""Charts of an output's report."""

from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.html.charts import BLUES, COLORS, INK, PAGE_INK, figure, style, svg
from pipeline.report.tables import (
    BINS_PER_DOUBLING,
    CLASS_CONFIDENCE_BINS,
    CONFIDENCE_BINS,
    Row,
)

SHOWN_CLASSES = 24  # rows of a matrix; more would not leave room for their names
SHOWN_RUNS = 12
FEW_DOUBLINGS = 10  # of times; if there are more, only powers of ten are labeled
LONGEST_NAME = 24  # characters
CELL = 0.235  # inches
PIXELS_PER_INCH = 96  # in a browser
STAGES = ("download", "decode", "predict", "encode", "write", "wait")  # in processing order


def confidence_chart(bins: list[Row]) -> Markup:
    """Draw a histogram of the images' mean confidence."""
    with style():
        drawn = figure()
        axes = drawn.subplots()
        images_B = np.zeros(CONFIDENCE_BINS)
        for row in bins:
            images_B[row["bin"]] = row["images"]
        axes.bar((np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS, images_B, 0.92 / CONFIDENCE_BINS)
        axes.set_xlim(0, 1)
        axes.set_xlabel("mean confidence of an image, from 0 to 1")
        _count_images(axes, "Confidence")
        return svg(drawn)


def sizes_chart(bins: list[Row]) -> Markup:
    """Draw a histogram of the images' longer sides, the bins of OutputTables.long_sides."""
    return _doublings_chart(bins, "Sizes", "longer side, pixels (log scale)", LogLocator(2))


def seconds_chart(bins: list[Row]) -> Markup:
    """Draw a histogram of the images' processing times, the bins of OutputTables.seconds."""
    label = "decoding and prediction, seconds (log scale)"
    doublings = (bins[-1]["bin"] + 1 - bins[0]["bin"]) / BINS_PER_DOUBLING
    multiples = (1.0, 2.0, 5.0) if doublings < FEW_DOUBLINGS else (1.0,)
    return _doublings_chart(bins, "Processing time", label, LogLocator(10, multiples))


def _doublings_chart(bins: list[Row], title: str, label: str, ticks: LogLocator) -> Markup:
    """Draw a histogram with BINS_PER_DOUBLING bins per power of two on a log scale."""
    with style():
        drawn = figure()
        axes = drawn.subplots()
        edges_B = 2.0 ** (np.array([row["bin"] for row in bins]) / BINS_PER_DOUBLING)
        width = 2 ** (0.92 / BINS_PER_DOUBLING) - 1
        axes.bar(edges_B, [row["images"] for row in bins], width * edges_B, align="edge")
        axes.set_xscale("log")
        axes.set_xlim(edges_B[0] / 1.5, edges_B[-1] * 2 ** (1 / BINS_PER_DOUBLING) * 1.5)
        axes.xaxis.set_major_locator(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_number(value)))
        axes.set_xlabel(label)
        _count_images(axes, title)
        return svg(drawn)


def class_confidence_matrix(bins: list[Row], classes: list[Row]) -> Markup:
    """Draw a matrix of classes by confidence, in which each row adds up to 1."""
    share_KB = np.zeros((len(classes), CLASS_CONFIDENCE_BINS))
    place = {row["id"]: n for n, row in enumerate(classes)}
    for row in bins:
        share_KB[place[row["class_id"]], row["bin"]] = row["images"]
    share_KB = _of_row(share_KB, share_KB.sum(1))
    with style(), matplotlib.rc_context({"axes.grid": False, "text.parse_math": False}):
        names = [_short(row["name"]) for row in classes]
        drawn = figure(height=0.6 + 0.19 * len(names))
        axes = drawn.subplots()
        axes.imshow(share_KB, BLUES, interpolation="none", aspect="auto", extent=(0, 1, len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("mean confidence of the class, from 0 to 1")
        _without_frame(axes)
        return svg(drawn)


def pairs_matrix(pairs: list[Row], classes: list[Row]) -> tuple[Markup, int]:
    """Draw a matrix of the fraction of a row's images that also contain the column's class.

    Returns: the chart and its width in pixels.
    """
    num_classes = len(classes)
    place = {row["id"]: n for n, row in enumerate(classes)}
    images_KK = np.zeros((num_classes, num_classes))
    for row in pairs:
        images_KK[place[row["class_id"]], place[row["other"]]] = row["images"]
    share_KK = _of_row(images_KK, images_KK.diagonal())
    np.fill_diagonal(share_KK, np.nan)  # always 1
    with style(), matplotlib.rc_context({"axes.grid": False, "text.parse_math": False}):
        names = [_short(row["name"]) for row in classes]
        margin = 0.2 + 0.075 * max(map(len, names))
        drawn = figure(num_classes * CELL + margin, num_classes * CELL + margin)
        axes = drawn.subplots()
        axes.imshow(share_KK, BLUES, interpolation="none", aspect="equal", vmin=0, vmax=1)
        axes.set_xticks(range(num_classes), names, rotation=90)
        axes.set_yticks(range(num_classes), names)
        _without_frame(axes)
        for row, column in np.argwhere(np.nan_to_num(share_KK) >= 0.005):
            share = share_KK[row, column]
            color = "white" if share > 0.6 else PAGE_INK
            axes.text(column, row, f"{100 * share:.0f}", color=color, ha="center", va="center", fontsize=8.3)
        return svg(drawn), _width(drawn)


def stage_chart(runs: list[Row]) -> Markup | None:
    """Draw the seconds of work per image by stage, for runs that recorded them. Return None if no run did."""
    timed = [row for row in runs if row["stages"] and row["images"]][:SHOWN_RUNS][::-1]
    if not timed:
        return None
    with style(), matplotlib.rc_context({"text.parse_math": False}):
        drawn = figure(height=1.3 + 0.4 * len(timed))
        axes = drawn.subplots()
        places = np.arange(len(timed))
        done = np.zeros(len(timed))
        for stage, color in zip(STAGES, COLORS, strict=True):
            width = np.array([row["stages"].get(stage, 0) / row["images"] for row in timed])
            axes.barh(places, width, 0.45, done, color=color, label=stage)
            done += width
        for place, row in zip(places, timed, strict=True):  # above the bar, because beside it is little room on a phone
            axes.text(0, place + 0.27, row["run_id"], va="bottom")
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.set_ylim(-0.4, len(timed) - 0.3)
        axes.set_title("Work by stage")
        axes.set_xlabel("seconds per image, summed over all processes")
        drawn.legend(loc="outside lower left", ncols=3, handlelength=1, columnspacing=1)
        return svg(drawn)


def _count_images(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_ylabel("images")
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: _short_number(count)))


def _without_frame(axes: Axes) -> None:
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
    for edge in np.arange(len(axes.get_yticks()) - 1) + 0.5:
        axes.axhline(edge, color=INK, alpha=0.25, linewidth=0.4)


def _of_row(counts_KX: NDArray[np.float64], whole_K: NDArray[np.float64]) -> NDArray[Any]:
    """Divide each row by its total; nan for rows whose total is 0."""
    whole_K1 = whole_K[:, None]
    return np.divide(counts_KX, whole_K1, out=np.full(counts_KX.shape, np.nan), where=whole_K1 > 0)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _short_number(value: float) -> str:
    """Format a number briefly: 1.5M, 200k, 4,096, 0.12."""
    for unit, letter, least in ((1e9, "G", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e4)):
        if value >= least:
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}" if value >= 1 or value == 0 else f"{value:.2g}"


def _width(drawn: Figure) -> int:
    return round(drawn.get_size_inches()[0] * PIXELS_PER_INCH)
