"""Charts of an output's report."""

import math
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipeline.html.charts import COLORS, INK, figure, style, svg
from pipeline.report.tables import (
    BINS_PER_DOUBLING,
    CLASS_CONFIDENCE_BINS,
    CONFIDENCE_BINS,
    Row,
)

SHOWN_CLASSES = 24  # rows of a matrix; more would not leave room for their names
SHOWN_RUNS = 12
LONGEST_NAME = 24  # characters
CELL = 0.36  # inches
PIXELS_PER_INCH = 96  # in a browser
# Starts fully transparent, so that it fits the page's light and dark themes.
BLUES = LinearSegmentedColormap.from_list("blues", [to_rgba(COLORS[0], 0), to_rgba(COLORS[0])]).with_extremes(
    bad=to_rgba(INK, 0.3)
)
PAGE_INK = "#010203"  # placeholder for the page's text color
STAGES = ("download", "decode", "predict", "encode", "write", "wait")  # in processing order


def confidence_chart(bins: list[Row]) -> Markup:
    """Draw a histogram of the images' mean confidence."""
    with style():
        drawn = figure(6.0, 2.8)
        axes = drawn.subplots()
        images_B = np.zeros(CONFIDENCE_BINS)
        for row in bins:
            images_B[row["bin"]] = row["images"]
        axes.bar((np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS, images_B, 0.92 / CONFIDENCE_BINS)
        axes.set_xlim(0, 1)
        axes.set_xlabel("mean confidence of an image")
        _count_images(axes, "Confidence")
        return svg(drawn)


def doublings_chart(bins: list[Row], title: str, label: str) -> Markup:
    """Draw a histogram with logarithmic bins, those of OutputTables.long_sides and seconds."""
    with style():
        drawn = figure(6.0, 2.8)
        axes = drawn.subplots()
        first, last = bins[0]["bin"], bins[-1]["bin"] + 1
        # Base-2 logarithms make all bars equally wide.
        left_B = np.array([row["bin"] / BINS_PER_DOUBLING for row in bins])
        axes.bar(left_B, [row["images"] for row in bins], 0.92 / BINS_PER_DOUBLING, align="edge")
        low, high = math.floor(first / BINS_PER_DOUBLING), math.ceil(last / BINS_PER_DOUBLING)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda power, _: _short_number(2.0**power)))
        axes.set_xlabel(label)
        _count_images(axes, title)
        return svg(drawn)


def class_confidence_matrix(bins: list[Row], classes: list[Row]) -> tuple[Markup, int]:
    """Draw a matrix of classes by confidence, in which each row adds up to 1. Return it and its width in pixels."""
    share_KB = np.zeros((len(classes), CLASS_CONFIDENCE_BINS))
    place = {row["id"]: n for n, row in enumerate(classes)}
    for row in bins:
        share_KB[place[row["class_id"]], row["bin"]] = row["images"]
    share_KB = _of_row(share_KB, share_KB.sum(1))
    with style(), matplotlib.rc_context({"axes.grid": False, "text.parse_math": False}):
        names = [_short(row["name"]) for row in classes]
        drawn = figure(1.0 + 0.075 * max(map(len, names)) + 5.2, 0.9 + 0.22 * len(names))
        axes = drawn.subplots()
        axes.imshow(share_KB, BLUES, interpolation="none", aspect="auto", extent=(0, 1, len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("mean confidence of the class in an image")
        _without_frame(axes)
        return svg(drawn), _width(drawn)


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
        margin = 0.8 + 0.075 * max(map(len, names))
        drawn = figure(num_classes * CELL + margin, num_classes * CELL + margin)
        axes = drawn.subplots()
        axes.imshow(share_KK, BLUES, interpolation="none", aspect="equal", vmin=0, vmax=1)
        axes.set_xticks(range(num_classes), names, rotation=90)
        axes.set_yticks(range(num_classes), names)
        axes.set_xlabel("… also contain")
        axes.set_ylabel("images with …")
        _without_frame(axes)
        for row, column in np.argwhere(np.nan_to_num(share_KK) >= 0.005):
            share = share_KK[row, column]
            color = "white" if share > 0.6 else PAGE_INK
            axes.text(column, row, f"{100 * share:.0f}", color=color, ha="center", va="center", fontsize=7.5)
        return Markup(svg(drawn).replace(PAGE_INK, "currentColor")), _width(drawn)


def stage_chart(runs: list[Row]) -> Markup | None:
    """Draw the seconds of work per image by stage, for runs that recorded them. Return None if no run did."""
    timed = [row for row in runs if row["stages"] and row["images"]][:SHOWN_RUNS][::-1]
    if not timed:
        return None
    with style(), matplotlib.rc_context({"text.parse_math": False}):
        drawn = figure(6.0, 1.3 + 0.3 * len(timed))
        axes = drawn.subplots()
        done = np.zeros(len(timed))
        for stage, color in zip(STAGES, COLORS, strict=True):
            width = np.array([row["stages"].get(stage, 0) / row["images"] for row in timed])
            axes.barh([row["run_id"] for row in timed], width, 0.7, done, color=color, label=stage)
            done += width
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds per image, summed over all processes")
        drawn.legend(loc="outside upper left", ncols=len(STAGES), fontsize=8, handlelength=1, columnspacing=1)
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
