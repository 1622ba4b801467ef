"""Metrics: exact counts, checked against counting pixel by pixel, torchmetrics and scikit-learn."""

import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.metrics.confusion import Metrics, confusion_matrix

IGNORE = 255


def pixels(seed: int, num_classes: int, ignored: float = 0.2) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A truth with some pixels to ignore, and a prediction that is right about half the time."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, (13, 17)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, num_classes, truth.shape))
    return np.where(rng.random(truth.shape) < ignored, IGNORE, truth).astype(np.uint8), predicted.astype(np.uint8)


@pytest.mark.parametrize("num_classes", [2, 5, 19])
def test_counts_and_ratios_equal_those_counted_pixel_by_pixel(num_classes: int) -> None:
    truth, predicted = pixels(0, num_classes)
    pairs = [(int(t), int(p)) for t, p in zip(truth.flat, predicted.flat, strict=True) if t != IGNORE]
    confusion_KK = confusion_matrix(truth, predicted, num_classes, IGNORE)
    assert confusion_KK.dtype == np.int64
    for true_class in range(num_classes):
        for predicted_class in range(num_classes):
            assert confusion_KK[true_class, predicted_class] == pairs.count((true_class, predicted_class))
    ious = []
    for k in range(num_classes):
        intersection = sum(t == k and p == k for t, p in pairs)
        union = sum(t == k or p == k for t, p in pairs)
        ious.append(intersection / union)
    metrics = Metrics.of(confusion_KK)
    np.testing.assert_allclose(metrics.iou_K, ious, rtol=1e-12)
    assert metrics.miou == pytest.approx(sum(ious) / num_classes)
    assert metrics.pixel_accuracy == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))


def test_matrices_of_parts_add_up_to_the_matrix_of_the_whole() -> None:
    truth, predicted = pixels(1, 4)
    rows = [confusion_matrix(*row, 4, IGNORE) for row in zip(truth, predicted, strict=True)]
    np.testing.assert_array_equal(sum(rows), confusion_matrix(truth, predicted, 4, IGNORE))


def test_what_is_predicted_where_the_truth_is_ignored_does_not_count() -> None:
    truth, predicted = pixels(2, 4)
    changed = np.where(truth == IGNORE, 3 - predicted, predicted)
    expected = confusion_matrix(truth, predicted, 4, IGNORE)
    np.testing.assert_array_equal(confusion_matrix(truth, changed, 4, IGNORE), expected)
    assert expected.sum() == (truth != IGNORE).sum()


@pytest.mark.parametrize(
    ("truth_type", "predicted_type"), [(np.uint8, np.uint16), (np.int32, np.uint8), (np.int64, np.int64)]
)
def test_ids_may_be_of_any_integer_type(truth_type: type, predicted_type: type) -> None:
    """200 * 200 classes overflow the types that masks are kept in."""
    truth, predicted = pixels(3, 200)
    np.testing.assert_array_equal(
        confusion_matrix(truth.astype(truth_type), predicted.astype(predicted_type), 200, IGNORE),
        confusion_matrix(truth, predicted, 200, IGNORE),
    )
    assert confusion_matrix(truth, predicted, 200, IGNORE).sum() == (truth != IGNORE).sum()


def test_a_perfect_prediction_scores_one_and_a_wrong_one_zero() -> None:
    truth = np.arange(6) % 3
    perfect = Metrics.of(confusion_matrix(truth, truth, 3, IGNORE))
    assert (perfect.miou, perfect.pixel_accuracy) == (1.0, 1.0)
    wrong = Metrics.of(confusion_matrix(truth, (truth + 1) % 3, 3, IGNORE))
    assert (wrong.miou, wrong.pixel_accuracy) == (0.0, 0.0)


def test_a_class_that_never_occurs_is_left_out_of_the_mean() -> None:
    metrics = Metrics.of(confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), 4, IGNORE))
    np.testing.assert_allclose(metrics.iou_K, [2 / 3, 1 / 2, math.nan, math.nan])
    assert metrics.miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics.pixel_accuracy == 0.75


def test_a_class_that_is_predicted_but_never_true_counts_as_zero() -> None:
    metrics = Metrics.of(confusion_matrix(np.array([0, 0]), np.array([0, 2]), 3, IGNORE))
    np.testing.assert_allclose(metrics.iou_K, [0.5, math.nan, 0.0])
    assert metrics.miou == 0.25


def test_nothing_to_count_is_no_number_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    truth, predicted = np.full((4, 4), IGNORE), np.zeros((4, 4), np.int64)
    confusion_KK = confusion_matrix(truth, predicted, 3, IGNORE)
    np.testing.assert_array_equal(confusion_KK, np.zeros((3, 3)))
    metrics = Metrics.of(confusion_KK)
    assert math.isnan(metrics.miou)
    assert math.isnan(metrics.pixel_accuracy)
    assert math.isnan(metrics.mean_accuracy)
    assert math.isnan(metrics.frequency_weighted_iou)
    for ratios_K in (metrics.iou_K, metrics.accuracy_K, metrics.precision_K):
        assert np.isnan(ratios_K).all()
    assert len(recwarn) == 0


def test_as_a_dictionary_classes_have_names_and_absent_ones_are_left_out() -> None:
    metrics = Metrics.of(confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), 3, IGNORE))
    assert metrics.as_dict(["sky", "road", "car"]) == {
        "miou": 0.5833,
        "mean_accuracy": 0.75,
        "pixel_accuracy": 0.75,
        "frequency_weighted_iou": 0.5833,
        "iou": {"sky": 0.6667, "road": 0.5},
    }


def test_as_a_dictionary_metrics_of_nothing_are_valid_json() -> None:
    """A checkpoint's config.json is read by programs that know no NaN."""
    metrics = Metrics.of(np.zeros((2, 2), np.int64))
    written = json.dumps(metrics.as_dict(["sky", "road"]))
    json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def random_case(seed: int) -> tuple[NDArray[np.integer], NDArray[np.integer], int]:
    """Truth, prediction and number of classes: of many or few classes, absent ones among them, many ignored."""
    rng = np.random.default_rng(seed)
    num_classes = int(rng.choice([2, 3, 7, 150]))
    true_classes, predicted_classes = (
        rng.choice(num_classes, rng.integers(1, num_classes + 1), replace=False) for _ in range(2)
    )
    truth, predicted = rng.choice(true_classes, (40, 50)), rng.choice(predicted_classes, (40, 50))
    predicted = np.where(rng.random(truth.shape) < rng.random(), truth, predicted)
    return np.where(rng.random(truth.shape) < rng.choice([0, 0.3, 0.99]), IGNORE, truth), predicted, num_classes


FLAT = np.zeros((4, 5), np.int64)
CASES = {
    **{f"random {seed}": random_case(seed) for seed in range(12)},
    "one class alone": (FLAT, FLAT, 1),
    "one of two classes": (FLAT, FLAT, 2),
    "predicted but never true": (FLAT, FLAT + np.arange(5), 5),
    "true but never predicted": (FLAT + np.arange(5), FLAT, 5),
    "nothing right": (FLAT, FLAT + 1, 3),
    "one pixel": (np.where(np.arange(20).reshape(4, 5) == 7, 2, IGNORE), FLAT, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_torchmetrics_says_the_same(case: str) -> None:
    from torchmetrics.functional.classification import (  # takes seconds
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_jaccard_index,
        multiclass_precision,
    )

    truth, predicted, num_classes = CASES[case]
    confusion_KK = confusion_matrix(truth, predicted, num_classes, IGNORE)
    metrics = Metrics.of(confusion_KK)
    if num_classes == 1:  # which torchmetrics refuses: as one of two
        num_classes = 2
        confusion_KK = np.pad(confusion_KK, ((0, 1), (0, 1)))
    pair = torch.from_numpy(predicted), torch.from_numpy(truth)
    options = {"num_classes": num_classes, "ignore_index": IGNORE}
    np.testing.assert_array_equal(multiclass_confusion_matrix(*pair, **options), confusion_KK)

    # It says 0 where nothing was counted.
    for ratios_K, theirs in (
        (metrics.iou_K, multiclass_jaccard_index(*pair, average="none", **options)),
        (metrics.accuracy_K, multiclass_accuracy(*pair, average="none", **options)),
        (metrics.precision_K, multiclass_precision(*pair, average="none", **options)),
    ):
        np.testing.assert_allclose(np.nan_to_num(ratios_K), theirs.numpy()[: len(ratios_K)], rtol=1e-5)
    assert metrics.miou == pytest.approx(float(multiclass_jaccard_index(*pair, average="macro", **options)), rel=1e-5)
    assert metrics.pixel_accuracy == pytest.approx(float(multiclass_accuracy(*pair, average="micro", **options)))
    weighted = float(multiclass_jaccard_index(*pair, average="weighted", **options))
    assert metrics.frequency_weighted_iou == pytest.approx(weighted, rel=1e-5)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("case", CASES)
def test_scikit_learn_says_the_same(case: str) -> None:
    import sklearn.metrics  # takes seconds

    truth, predicted, num_classes = CASES[case]
    confusion_KK = confusion_matrix(truth, predicted, num_classes, IGNORE)
    metrics = Metrics.of(confusion_KK)
    counted = truth != IGNORE
    pair, labels = (truth[counted], predicted[counted]), list(range(num_classes))
    np.testing.assert_array_equal(sklearn.metrics.confusion_matrix(*pair, labels=labels), confusion_KK)
    assert metrics.pixel_accuracy == pytest.approx(sklearn.metrics.accuracy_score(*pair))
    options = {"labels": labels, "average": None, "zero_division": np.nan}
    np.testing.assert_allclose(metrics.accuracy_K, sklearn.metrics.recall_score(*pair, **options))
    np.testing.assert_allclose(metrics.precision_K, sklearn.metrics.precision_score(*pair, **options))
    jaccard_K = sklearn.metrics.jaccard_score(*pair, labels=labels, average=None, zero_division=0)
    np.testing.assert_allclose(np.nan_to_num(metrics.iou_K), jaccard_K)
    true_classes = np.unique(pair[0])
    recall = sklearn.metrics.recall_score(*pair, labels=true_classes, average="macro")
    assert metrics.mean_accuracy == pytest.approx(recall)
    # Its average over all labels counts 0 for those that never occur.
    present = sorted(set(np.unique(pair[0])) | set(np.unique(pair[1])))
    assert metrics.miou == pytest.approx(sklearn.metrics.jaccard_score(*pair, labels=present, average="macro"))
