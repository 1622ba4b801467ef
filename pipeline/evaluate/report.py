"""HTML report of an evaluation, OUTPUT/evaluation.html, and its charts."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.evaluate.evaluation import Evaluation
from pipeline.html.charts import BLUES, COLORS, INK, PAGE_INK, figure, style, svg
from pipeline.html.page import data_uri, png_uri, render
from pipeline.html.pictures import VIEWS, views
from pipeline.images.codec import encode_png
from pipeline.metrics.calibration_error import BINS, ConfidenceCounts

PAGE = "evaluation.html"
NUMBERED = 24  # maximum number of classes for which the cells of a confusion matrix show numbers
LEAST_SHARE = 0.0005  # of a row's pixels, for a cell of the page's confusion matrix to be colored
LARGEST_CELL, SMALLEST_CELL = 0.42, 0.16  # inches; labels of the smallest cells are still 8 points high
CONFUSIONS = 12  # rows of the table of the most frequent mistakes

Row = dict[str, Any]


def evaluation_page(
    evaluation: Evaluation, about: dict[str, Any], palette: NDArray[np.uint8], before: ConfidenceCounts | None = None
) -> bytes:
    """Render the page as HTML. `about` is the content of metrics.json; `before`, the confidences before calibration."""
    names = [row["name"] for row in about["classes"]]
    confidence = evaluation.confidence
    return render(
        PAGE,
        about=about,
        tiles=_tiles(about),
        classes=sorted(about["classes"], key=lambda row: -1.0 if row["iou"] is None else row["iou"], reverse=True),
        has_boundary=evaluation.boundary is not None,
        confusions=frequent_confusions(evaluation.confusion_KK, names),
        confusion=confusion_rows(evaluation.confusion_KK, names),
        has_numbers=len(names) <= NUMBERED,
        reliability=svg(reliability_figure(confidence, before)) if confidence is not None else None,
        worst=[_worst(entry, palette) for entry in evaluation.worst],
    )


def _worst(entry: dict[str, Any], palette: NDArray[np.uint8]) -> Row:
    """Return an image as the page shows it. Masks are PNG files, which are smaller than JPEG for few flat colors."""
    image_HW3, *masks = (views(entry, palette)[view] for view in VIEWS)
    truth, predicted = (png_uri(encode_png(mask_HW3)) for mask_HW3 in masks)
    return {
        "image_uri": entry["image_uri"],
        "miou": entry["miou"],
        "image": data_uri(image_HW3),
        "truth": truth,
        "predicted": predicted,
    }


def confusion_rows(confusion_KK: NDArray[np.int64], names: list[str]) -> list[Row]:
    """Return the rows of the page's confusion matrix: the true class, and each cell's share of its pixels.

    A share below LEAST_SHARE is None, and the shares of a class without true pixels are an empty list.
    """
    return [
        {
            "name": name,
            "shares": [share if share >= LEAST_SHARE else None for share in share_K] if pixels else [],
        }
        for name, pixels, share_K in zip(names, confusion_KK.sum(1), _shares(confusion_KK).tolist(), strict=True)
    ]


def confusion_figure(confusion_KK: NDArray[np.int64], names: list[str]) -> Figure:
    """Draw the confusion matrix. A cell is a share of its row's true pixels; rows without any are gray.

    The color scale follows the square root of the share, so that rare errors are visible.
    """
    num_classes = len(names)
    cell = float(np.clip(8 / num_classes, SMALLEST_CELL, LARGEST_CELL))
    margin = (0.8 + 0.075 * min(24, max(map(len, names)))) * (2 if num_classes > NUMBERED else 1)
    share_KK = _shares(confusion_KK)
    with style(), matplotlib.rc_context({"axes.grid": False, "font.size": min(9, 0.7 * 72 * cell)}):
        drawn = figure(num_classes * cell + margin + 0.6, num_classes * cell + margin)
        axes = drawn.subplots()
        # Without interpolation, cells keep sharp edges at any size.
        image = axes.imshow(share_KK, BLUES, PowerNorm(0.5, 0, 1), interpolation="none", aspect="equal")
        short = [name if len(name) <= 24 else name[:23] + "…" for name in names]
        axes.set_xticks(range(num_classes), short, rotation=90)
        axes.set_yticks(range(num_classes), short)
        axes.set_xlabel("predicted class", fontsize=9)
        axes.set_ylabel("true class", fontsize=9)
        axes.tick_params(length=0, pad=3, labeltop=num_classes > NUMBERED, labelright=num_classes > NUMBERED)
        axes.spines[:].set_visible(False)
        for edge in np.arange(num_classes + 1) - 0.5:
            for line in (axes.axhline, axes.axvline):
                line(edge, color=INK, alpha=0.25, linewidth=0.4)
        if num_classes <= NUMBERED:
            for row, column in np.argwhere(np.nan_to_num(share_KK) >= 0.005):
                share = share_KK[row, column]
                color = "white" if share > 0.6 else PAGE_INK
                axes.text(column, row, f"{100 * share:.0f}", color=color, ha="center", va="center", fontsize=7.5)
        bar = drawn.colorbar(image, ax=axes, shrink=min(1.0, 3 / (num_classes * cell)), aspect=24, pad=0.02)
        bar.set_ticks([0, 0.01, 0.1, 0.5, 1], labels=["0", "1%", "10%", "50%", "100%"], fontsize=8)
        bar.outline.set_visible(False)
    return drawn


def reliability_figure(confidence: ConfidenceCounts, before: ConfidenceCounts | None = None) -> Figure:
    """Draw accuracy over confidence (calibrated confidences lie on the diagonal), and the pixels' distribution."""
    centers_B, width = (np.arange(BINS) + 0.5) / BINS, 1 / BINS
    mean_B = np.divide(
        confidence.confidence_B, confidence.pixels_B, out=centers_B.copy(), where=confidence.pixels_B > 0
    )
    accuracy_B = confidence.accuracy_B
    over_B, under_B = np.maximum(mean_B - accuracy_B, 0), np.maximum(accuracy_B - mean_B, 0)
    with style():
        drawn = figure(height=4.2)
        axes, below = drawn.subplots(2, sharex=True, height_ratios=[3, 1])
        axes.bar(centers_B, accuracy_B - under_B, 0.92 * width, color=COLORS[0], label="correct")
        for gap_B, bottom_B, color, label in (
            (over_B, accuracy_B, COLORS[4], "overconfident: fewer correct"),
            (under_B, mean_B, COLORS[5], "underconfident: more correct"),
        ):
            if np.nansum(gap_B):
                axes.bar(centers_B, gap_B, 0.92 * width, bottom_B, color=color, alpha=0.55, label=label)
        if before is not None:
            label = f"before calibration, error {before.error:.4f}"
            axes.plot(centers_B, before.accuracy_B, color=COLORS[1], marker="o", markersize=3, label=label)
        axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="calibrated")
        axes.set_ylim(0, 1)
        axes.set_ylabel("share of correct pixels")
        axes.set_title(f"Expected calibration error {confidence.error:.4f}")
        drawn.legend(loc="outside lower left")  # not over the bars
        below.bar(centers_B, confidence.pixels_B / max(1, confidence.pixels_B.sum()), 0.92 * width, color=INK)
        below.set_ylabel("of pixels")
        below.set_xlabel("confidence")
        below.set_xlim(0, 1)
    return drawn


def frequent_confusions(confusion_KK: NDArray[np.int64], names: list[str]) -> list[Row]:
    """Return the confusions with the most pixels, the most frequent first."""
    mistakes_KK = confusion_KK.copy()
    np.fill_diagonal(mistakes_KK, 0)
    share_KK = _shares(confusion_KK)
    order = np.argsort(-mistakes_KK, axis=None, kind="stable")[:CONFUSIONS]
    return [
        {
            "true": names[row],
            "predicted": names[column],
            "pixels": int(mistakes_KK[row, column]),
            "share": float(share_KK[row, column]),
        }
        for row, column in zip(*np.unravel_index(order, mistakes_KK.shape), strict=True)
        if mistakes_KK[row, column]
    ]


def _shares(confusion_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Normalize each row to a sum of 1; nan for a class without true pixels."""
    true_K1 = confusion_KK.sum(1, keepdims=True)
    return np.divide(confusion_KK, true_K1, out=np.full(confusion_KK.shape, np.nan), where=true_K1 > 0)


def _tiles(about: dict[str, Any]) -> list[tuple[str, str]]:
    ratios = [
        ("miou", "mIoU"),
        ("mean_accuracy", "mean class accuracy"),
        ("pixel_accuracy", "pixel accuracy"),
        ("frequency_weighted_iou", "frequency-weighted IoU"),
        ("boundary_iou", "boundary IoU"),
        ("expected_calibration_error", "expected calibration error"),
    ]
    tiles = [(f"{about[key]:.4f}", label) for key, label in ratios if about.get(key) is not None]
    return [*tiles, (f"{about['images']:,}", "images"), (f"{about['labelled_pixels']:,}", "labeled pixels")]
