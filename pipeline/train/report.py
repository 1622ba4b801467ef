"""HTML report of a training run, OUTPUT/report.html, built from the files in its output."""

from dataclasses import dataclass, field, replace
from itertools import count, cycle
from math import ceil
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline import storage
from pipeline.console import duration
from pipeline.html.charts import COLORS, INK, figure, style, svg
from pipeline.html.page import render
from pipeline.train.history import History, Record, finite, read_history, read_pictures
from pipeline.train.provenance import read_starts
from pipeline.train.verdict import RunFacts, judge

REPORT = "report.html"
CONFIG = "config.yaml"
POINTS = 400  # maximum per curve; longer curves are averaged
SMOOTHING = 0.04  # window of the running mean, as a share of the curve's points
LONGEST_VALUE = 160  # characters; longer settings are truncated
ROWS_IN_ONE_COLUMN = 24
CHART_HEIGHT = 2.75  # inches, with a legend below

ROWS_OF_LEGEND, ROW_HEIGHT = 2, 0.2  # rows in CHART_HEIGHT; inches of each further row
LONGEST_IN_TWO_COLUMNS, LONGEST_LABEL = 22, 44  # characters of a legend's labels; longer ones lose their beginning
FEW = 40  # points that are drawn as they are
LINES = ("-", "--", ":", "-.")  # of other runs, which are all gray

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # x, y


@dataclass(frozen=True)
class Chart:
    """Curves of a run, by label, and those of other runs."""

    title: str
    curves: dict[str, Curve]
    others: dict[str, Curve] = field(default_factory=dict)
    smoothed: bool = False
    dots: bool = False
    from_zero: bool = False

    def recorded(self) -> "Chart":
        """Return the chart without empty curves."""
        curves, others = (
            {label: drawn for label, drawn in each.items() if len(drawn[0])} for each in (self.curves, self.others)
        )
        return replace(self, curves=curves, others=others)


def build_report(output: str) -> str:
    """Write OUTPUT/report.html from the run's history, configuration and environment, and return its URI.

    This works at any time, even before the first validation. Raises UserError.
    """
    history = read_history(output)
    best = history.best()
    config_uri = storage.join(output, CONFIG)
    config_text = storage.read_bytes(config_uri).decode() if storage.exists(config_uri) else ""
    config: dict[str, Any] = yaml.safe_load(config_text) or {}
    starts = read_starts(output)
    uri = storage.join(output, REPORT)
    page = render(
        "training.html",
        name=output.rpartition("/")[2],
        output=output,
        tiles=_tiles(history, best, config),
        charts=_charts(history, read_compared(config)),
        best=best,
        findings=judge(history, RunFacts.of(config)) if config else [],
        classes=_columns(_class_rows(best, config)),
        pictures=read_pictures(output, best["step"] if best else None),
        sections=_sections(config),
        config_text=config_text,
        start=starts[-1] if starts else None,
        num_starts=len(starts),
    )
    storage.write_bytes(uri, page)
    return uri


def _tiles(history: History, best: Record | None, config: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (value, name, details) of each tile."""
    metrics = best["metrics"] if best else {}
    last = history.steps[-1] if history.steps else None
    rates = finite(record["images_per_second"] for record in history.steps)
    epochs = RunFacts.of(config).epochs if config else None
    return [
        (_ratio(metrics.get("miou")), "best mIoU", f"epoch {best['epoch']}, step {best['step']:,}" if best else ""),
        (_ratio(metrics.get("pixel_accuracy")), "pixel accuracy", "best checkpoint" if best else ""),
        (_ratio(metrics.get("mean_accuracy")), "mean accuracy", "best checkpoint" if best else ""),
        (f"{last['step']:,}" if last else "0", "steps", _epochs(last, epochs)),
        (duration(history.elapsed), "training time", f"{len(history.validations):,} validations"),
        (f"{np.median(rates):,.1f}" if rates else "–", "images/s", "in training, median" if rates else ""),
    ]


def _epochs(last: Record | None, epochs: float | None) -> str:
    if last is None:
        return ""
    return f"{last['epoch']:.4g} of {epochs:.4g} epochs" if epochs else f"{last['epoch']:.4g} epochs"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def read_compared(config: dict[str, Any]) -> dict[str, History]:
    """Return the histories of the runs in `tracking.compare`, by the shortest ends of their URIs that differ.

    The history of a run that was deleted is empty. Raises UserError.
    """
    outputs = dict.fromkeys(config.get("tracking", {}).get("compare", []))
    parts = [output.split("/") for output in outputs]
    num_parts = next(n for n in count(1) if len({tuple(each[-n:]) for each in parts}) == len(parts))
    return {"/".join(each[-num_parts:]): read_history("/".join(each)) for each in parts}


def _charts(history: History, compared: dict[str, History]) -> list[tuple[str, Markup]]:
    """Return (title for screen readers, chart over epochs) of each quantity that has been recorded."""
    steps = history.steps
    metrics = _metrics(history)
    end = max(
        (record["epoch"] for each in (history, *compared.values()) for record in [*each.steps, *each.validations]),
        default=0.0,
    )
    candidates = [
        Chart(
            "Training loss",
            {"main": curve(steps, "loss"), "auxiliary": curve(steps, "auxiliary_loss")},
            {f"{name}: main": curve(other.steps, "loss") for name, other in compared.items()},
            smoothed=True,
        ),
        Chart(
            "Validation",
            {
                label: curve(metrics, key)
                for label, key in (
                    ("mIoU", "miou"),
                    ("pixel accuracy", "pixel_accuracy"),
                    ("mean accuracy", "mean_accuracy"),
                    ("frequency-weighted IoU", "frequency_weighted_iou"),
                )
            },
            {f"{name}: mIoU": curve(_metrics(other), "miou") for name, other in compared.items()},
            dots=True,
        ),
        Chart("Learning rate", {"": curve(steps, "learning_rate")}),
        Chart("Images/s in training", {"": curve(steps, "images_per_second")}, smoothed=True, from_zero=True),
        Chart("Norm of all gradients", {"": curve(steps, "gradient_norm")}, smoothed=True),
    ]
    return [(chart.title, _draw(chart, end)) for each in candidates if (chart := each.recorded()).curves]


def _metrics(history: History) -> list[Record]:
    """Return the metrics of each validation with its epoch."""
    return [{"epoch": record["epoch"], **record["metrics"]} for record in history.validations]


def _draw(chart: Chart, end: float) -> Markup:
    """Draw curves over the epochs from 0 to `end`, which all charts of a report share."""
    labels = [*chart.curves, *map(_shortened, chart.others)]
    num_columns = 2 if max(map(len, labels)) <= LONGEST_IN_TWO_COLUMNS else 1
    more_rows = max(0, ceil(len(labels) / num_columns) - ROWS_OF_LEGEND)
    with style():
        drawn = figure(height=CHART_HEIGHT + more_rows * ROW_HEIGHT)
        axes = drawn.subplots()
        for (label, points), color in zip(chart.curves.items(), COLORS, strict=False):
            if chart.smoothed and len(points[0]) > FEW:
                axes.plot(*points, color=color, alpha=0.25, linewidth=0.8)
            _plot(axes, chart, points, color=color, label=label, linewidth=1.6)
        for (label, points), line in zip(chart.others.items(), cycle(LINES)):
            look = {"color": INK, "linewidth": 1.2, "linestyle": line, "zorder": 1.9}  # below the run's own
            _plot(axes, chart, points, label=_shortened(label), **look)
        axes.set_title(chart.title)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, 1.02 * end)
        axes.locator_params(nbins=6)
        if chart.from_zero:
            axes.set_ylim(bottom=0)
        if len(labels) > 1:
            drawn.legend(loc="outside lower center", ncols=num_columns)  # not over a curve
        return svg(drawn)


def _plot(axes: Any, chart: Chart, points: Curve, **look: Any) -> None:
    x, y = points
    is_long = len(x) > FEW
    marker = "o" if len(x) == 1 or (chart.dots and not is_long) else None
    axes.plot(x, smooth(y) if chart.smoothed and is_long else y, marker=marker, markersize=3, **look)


def _shortened(label: str) -> str:
    """Return the label, or its end if it is longer than a legend is wide."""
    return label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}"


def curve(records: list[Record], key: str) -> Curve:
    """Return the records' values over epochs. More than POINTS values are averaged in POINTS groups."""
    points = [(record["epoch"], record[key]) for record in records if record.get(key) is not None]
    x, y = np.array(points, float).reshape(-1, 2).T
    if len(x) <= POINTS:
        return x, y
    starts = np.linspace(0, len(x), POINTS, endpoint=False).astype(int)
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the running mean over a centered window, which is shorter at the ends."""
    half = max(1, round(len(y) * SMOOTHING / 2))
    sums = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    reach = np.minimum(half, np.minimum(index, index[::-1]))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def _class_rows(best: Record | None, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the name, color and IoU of each class, the best first; classes without an IoU come last."""
    ious = best["metrics"]["iou"] if best else {}
    rows = [
        {"id": index, "name": entry["name"], "color": f"rgb{tuple(entry['color'])}", "iou": None}
        for index, entry in enumerate(config.get("data", {}).get("classes", []))
    ]
    for row in rows:
        row["iou"] = ious.get(row["name"])
    return sorted(rows, key=lambda row: -1.0 if row["iou"] is None else row["iou"], reverse=True)


def _columns(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the rows as one table, or as two side by side if there are many."""
    if len(rows) <= ROWS_IN_ONE_COLUMN:
        return [rows] if rows else []
    half = (len(rows) + 1) // 2
    return [rows[:half], rows[half:]]


def _sections(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (section, its keys and values), without the classes, which have their own table."""
    sections: dict[str, list[tuple[str, str]]] = {"run": []}
    for key, value in config.items():
        if isinstance(value, dict):
            sections[key] = [(name, _value(item)) for name, item in _flat(value) if name != "classes"]
        else:
            sections["run"].append((key, _value(value)))
    return [(name, rows) for name, rows in sections.items() if rows]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        is_section = isinstance(value, dict) and value and all(str(inner).isidentifier() for inner in value)
        flat += _flat(value, f"{prefix}{key}.") if is_section else [(f"{prefix}{key}", value)]
    return flat


def _value(value: Any) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        text = ", ".join(str(item) for item in value)
    elif isinstance(value, dict):
        text = ", ".join(f"{key} → {item}" for key, item in value.items())
    else:
        text = str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
