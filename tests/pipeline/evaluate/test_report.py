"""The page of an evaluation: its confusion matrix, reliability chart and worst images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.report import confusion_rows, evaluation_page, reliability_figure
from pipeline.metrics.calibration_error import BINS, ConfidenceCounts
from pipeline.metrics.confusion import Metrics
from tests.browser import browser, opened, outside, smallest_chart_text
from tests.pipeline.run_records import prediction

ATTACK = "<script>alert(1)</script>"
CENTERS_B = (np.arange(BINS) + 0.5) / BINS
PIXELS_B = np.full(BINS, 1000)


def confidences(more_correct: float) -> ConfidenceCounts:
    """Counts whose share of correct pixels is off the confidence by this much."""
    return ConfidenceCounts(
        PIXELS_B, (PIXELS_B * np.clip(CENTERS_B + more_correct, 0, 1)).astype(np.int64), PIXELS_B * CENTERS_B
    )


def legend(confidence: ConfidenceCounts) -> set[str]:
    return {text.get_text() for text in reliability_figure(confidence).legends[0].get_texts()}


def write_page(path: Path, num_classes: int, num_worst: int = 0) -> Path:
    """The page of made-up counts, in which class 1 has no true pixels and the last name would like to run."""
    confusion_KK = np.eye(num_classes, dtype=np.int64) * 900 + np.eye(num_classes, k=-1, dtype=np.int64) * 100
    confusion_KK[1] = 0
    worst = [prediction(n, 96) | {"miou": n / 100} for n in range(num_worst)]
    evaluation = Evaluation(
        confusion_KK,
        Metrics.of(confusion_KK),
        confidences(-0.05),
        None,
        None,
        images=[],
        panel=[],
        worst=worst,
        seconds=1,
    )
    names = [*(f"class {k}" for k in range(num_classes - 1)), ATTACK]
    ratios = dict.fromkeys(("iou", "accuracy", "precision", "boundary_iou"), 0.5)
    about: dict[str, Any] = {
        **{"checkpoint": "s3://models/best", "model_id": "0123", "dataset": "s3://b/scenes", "split": "val"},
        **{"images": 9, "labelled_pixels": 1000, "temperature": 1.0, "miou": 0.5, "precision": "float32"},
        **{"protocol": {"mode": "whole", "scales": [1.0], "mirror": False}, "long_side": None},
        **{"finished_at": "2026-01-02T03:04:05+00:00", "seconds": 1.0},
        "classes": [
            {"id": k, "name": name, "color": [k, 0, 0], "true_pixels": 1000, **ratios} for k, name in enumerate(names)
        ],
    }
    palette_K3 = np.random.default_rng(0).integers(0, 256, (num_classes, 3), np.uint8)
    path.write_bytes(evaluation_page(evaluation, about, palette_K3))
    return path


def test_cells_are_shares_of_their_rows_pixels() -> None:
    first, absent, last = confusion_rows(np.array([[750, 250, 0], [0, 0, 0], [1, 0, 99_999]]), ["a", "b", "c"])
    assert first == {"name": "a", "shares": [0.75, 0.25, None]}
    assert absent == {"name": "b", "shares": []}
    assert last["shares"][:2] == [None, None]  # too rare to be visible


def test_the_legend_of_the_reliability_chart_names_both_kinds_of_gaps() -> None:
    over, under = "overconfident: fewer correct", "underconfident: more correct"
    assert legend(confidences(-0.1)) == {"correct", over, "calibrated"}
    assert legend(confidences(0.1)) == {"correct", under, "calibrated"}
    mixed = confidences(0.1)
    mixed.correct_B[-3:] = 0
    assert legend(mixed) == {"correct", over, under, "calibrated"}


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [3, 150])
def test_the_confusion_matrix_is_legible_in_dark_mode_and_on_a_phone(tmp_path: Path, num_classes: int) -> None:
    path = write_page(tmp_path / "evaluation.html", num_classes)
    with browser() as chromium, opened(chromium, path, width=390, dark=True) as page:
        assert outside(page) == []
        assert smallest_chart_text(page) >= 11
        matrix = page.locator(".matrix")
        assert float(matrix.evaluate("e => parseFloat(getComputedStyle(e.querySelector('th')).fontSize)")) >= 11
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert matrix.locator("th").nth(1).evaluate("e => getComputedStyle(e).backgroundColor") == paper
        empty = matrix.locator("tbody tr").first.locator("td").nth(1)
        assert empty.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 114, 178, 0)"
        cells = matrix.locator("td", has_text="90")
        assert cells.count() == (1 if num_classes == 3 else 0)  # of many classes, the color and the title say it
        assert matrix.locator("td[title]").first.get_attribute("title") == "class 0 as class 0: 100.0%"
        assert page.locator("script").count() == 0


@pytest.mark.slow
def test_names_stay_beside_a_large_matrix_that_is_scrolled(tmp_path: Path) -> None:
    path = write_page(tmp_path / "evaluation.html", 150)
    with browser() as chromium, opened(chromium, path) as page:
        page.evaluate("const e = document.querySelector('.tall'); e.scrollIntoView(); e.scrollTo(1000, 1000)")
        row, column = page.get_by_role("rowheader", name="class 75"), page.get_by_role("columnheader", name="class 75")
        expect(row).to_be_in_viewport(ratio=0.9)
        expect(column).to_be_in_viewport(ratio=0.9)


@pytest.mark.slow
def test_worst_images_are_shown_six_at_a_time(tmp_path: Path) -> None:
    path = write_page(tmp_path / "evaluation.html", 11, num_worst=14)
    with browser() as chromium, opened(chromium, path) as page:
        pages = page.locator("summary")
        assert pages.all_inner_texts() == [
            "1 to 6 of 14 · mIoU 0.000 to 0.050",
            "7 to 12 of 14 · mIoU 0.060 to 0.110",
            "13 to 14 of 14 · mIoU 0.120 to 0.130",
        ]
        expect(page.locator("figcaption:visible", has_text="mIoU")).to_have_count(6)
        pages.last.click()
        expect(page.locator("figcaption:visible", has_text="mIoU")).to_have_count(2)  # the others are closed
