"""The temperature: found where cross-entropy is least, and the same in every way to compute confidences."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import Architecture, Calibration, Metadata, Predictor, PSPNet, load, model_id, save
from models.inference.activation_ranges import activation_ranges
from models.inference.temperature import TEMPERATURES, best_temperature, slopes
from models.weights.export import SegmentationGraph
from tests.requirements import BFLOAT16, INT8

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
NAMES = [f"class {k}" for k in range(7)]


def make_model() -> PSPNet:
    torch.manual_seed(0)
    model = PSPNet(Architecture("resnet18", 7)).eval()
    torch.nn.init.normal_(model.head.classifier.weight, std=0.6)
    torch.nn.init.normal_(model.head.classifier.bias)
    return model


def make_metadata(temperature: float = 1.0) -> Metadata:
    return Metadata(NAMES, [[0, 0, 0]] * 7, mean=MEAN, std=STD, temperature=temperature)


MODEL = make_model()


def make_images(num_images: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (num_images, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width])


def labelled_pixels(temperature: float, num_pixels: int = 20_000) -> tuple[torch.Tensor, np.ndarray]:
    """Logits whose softmax is right about the labels once they are divided by `temperature`."""
    torch.manual_seed(1)
    honest_PK = torch.randn(num_pixels, 7) * 2
    labels_P = torch.distributions.Categorical(logits=honest_PK).sample()
    return honest_PK * temperature, labels_P.numpy()


def cross_entropy(logits_PK: torch.Tensor, labels_P: np.ndarray, temperature: float) -> float:
    return float(F.cross_entropy(logits_PK.double() / temperature, torch.from_numpy(labels_P)))


@pytest.mark.parametrize("truth", [0.2, 0.9, 1.0, 1.7, 5.0])
def test_the_temperature_is_the_one_of_least_cross_entropy(truth: float) -> None:
    logits_PK, labels_P = labelled_pixels(truth)
    found = best_temperature(slopes(logits_PK, labels_P))
    assert found == pytest.approx(truth, rel=0.05)
    least = cross_entropy(logits_PK, labels_P, found)
    for other in (found * 0.985, found * 1.015):
        assert cross_entropy(logits_PK, labels_P, other) > least


def test_slopes_are_the_derivative_and_add_up() -> None:
    logits_PK, labels_P = labelled_pixels(1.5, 500)
    inverse = torch.tensor(1 / TEMPERATURES, requires_grad=True)
    total = sum(F.cross_entropy(logits_PK.double() * b, torch.from_numpy(labels_P), reduction="sum") for b in inverse)
    total.backward()  # type: ignore[union-attr]
    found_T = slopes(logits_PK, labels_P)
    np.testing.assert_allclose(found_T, inverse.grad, rtol=1e-4, atol=1e-2)
    parts_T = slopes(logits_PK[:123], labels_P[:123]) + slopes(logits_PK[123:], labels_P[123:])
    np.testing.assert_allclose(parts_T, found_T, rtol=1e-5, atol=1e-3)


def test_without_a_best_temperature_it_stays_within_bounds() -> None:
    logits_PK = torch.eye(7) * 3
    assert best_temperature(slopes(logits_PK, np.arange(7))) == TEMPERATURES[0]  # nothing wrong
    assert best_temperature(slopes(-logits_PK, np.arange(7))) == TEMPERATURES[-1]  # nothing right
    assert best_temperature(slopes(torch.zeros(5, 7), np.zeros(5, int))) == TEMPERATURES[0]  # nothing to say


def confidences(logits_NKHW: torch.Tensor, temperature: float) -> np.ndarray:
    return (logits_NKHW / temperature).softmax(1).amax(1).numpy()


@torch.no_grad()
def full_logits(images: np.ndarray) -> torch.Tensor:
    """(N, K, H, W) of images that need no padding."""
    x = ((torch.from_numpy(images).float() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    return F.interpolate(MODEL(x), images.shape[1:3], mode="bilinear", align_corners=True)


@pytest.mark.parametrize("temperature", [0.4, 2.5])
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=BFLOAT16.mark)])
def test_a_predictor_divides_logits_by_it_and_keeps_labels(precision: str, temperature: float) -> None:
    images = make_images(2, 81, 97)
    plain = Predictor(MODEL, MEAN, STD, precision=precision)  # type: ignore[arg-type]
    warm = Predictor(MODEL, MEAN, STD, precision=precision, calibration=Calibration(temperature))  # type: ignore[arg-type]
    expected = plain.logits(torch.from_numpy(images)) / temperature
    torch.testing.assert_close(warm.logits(torch.from_numpy(images)), expected, rtol=1e-4, atol=1e-4)
    before, after = (predictor.predict(images, with_confidence_map=True) for predictor in (plain, warm))
    assert (before.class_ids_NHW != after.class_ids_NHW).mean() < 1e-4
    assert abs(before.mean_confidence_N - after.mean_confidence_N).min() > 0.01
    if precision == "float32":
        expected_NHW = confidences(full_logits(images), temperature)
        np.testing.assert_allclose(after.confidence_NHW, expected_NHW, atol=1e-3)


@INT8.mark
def test_it_holds_in_int8_too() -> None:
    images = make_images(1, 81, 97)
    ranges = activation_ranges(MODEL, MEAN, STD, [torch.from_numpy(images)])
    plain, warm = (
        Predictor(MODEL, MEAN, STD, precision="int8", calibration=Calibration(temperature, ranges))
        for temperature in (1.0, 2.5)
    )
    expected = plain.logits(torch.from_numpy(images)) / 2.5
    torch.testing.assert_close(warm.logits(torch.from_numpy(images)), expected, rtol=1e-4, atol=1e-4)
    assert (plain.predict(images).class_ids_NHW != warm.predict(images).class_ids_NHW).mean() < 1e-4


def test_an_exported_graph_has_the_same_confidences() -> None:
    images = make_images(1, 81, 97)
    with torch.no_grad():
        class_ids_NHW, confidence_NHW = SegmentationGraph(MODEL, make_metadata(2.5))(torch.from_numpy(images))
    expected = Predictor(MODEL, MEAN, STD, calibration=Calibration(2.5)).predict(images, with_confidence_map=True)
    np.testing.assert_allclose(confidence_NHW, expected.confidence_NHW, atol=1e-3)
    assert (class_ids_NHW.numpy() != expected.class_ids_NHW).mean() < 1e-4


def test_logits_of_single_pixels_are_those_that_label_them() -> None:
    images = make_images(1, 81, 97)
    predictor = Predictor(MODEL, MEAN, STD, calibration=Calibration(2.5))
    rows_P, columns_P = np.array([0, 80, 40, 13]), np.array([0, 96, 7, 50])
    found_PK = predictor.logits_at(images[0], (81, 97), rows_P, columns_P)
    expected_PK = full_logits(images)[0, :, rows_P, columns_P].T / 2.5
    torch.testing.assert_close(found_PK, expected_PK, rtol=1e-4, atol=1e-4)

    # In a mask of another size, and of an image that has to be padded.
    image = make_images(1, 70, 91)
    prediction = predictor.predict(image, (120, 150), with_confidence_map=True)
    rows_P, columns_P = np.divmod(np.arange(0, 120 * 150, 7), 150)
    logits_PK = predictor.logits_at(image[0], (120, 150), rows_P, columns_P)
    assert (logits_PK.argmax(1).numpy() != prediction.class_ids_NHW[0, rows_P, columns_P]).mean() < 1e-3
    assert prediction.confidence_NHW is not None
    np.testing.assert_allclose(logits_PK.softmax(1).amax(1), prediction.confidence_NHW[0, rows_P, columns_P], atol=1e-3)


def test_it_comes_back_from_a_checkpoint_and_makes_another_model(tmp_path: Path) -> None:
    save(tmp_path, MODEL, make_metadata(1.25))
    loaded, metadata = load(tmp_path)
    assert metadata.temperature == metadata.calibration.temperature == 1.25
    assert model_id(tmp_path) == model_id(loaded, metadata) != model_id(MODEL, make_metadata())
    assert model_id(MODEL, replace(metadata, temperature=1)) == model_id(MODEL, make_metadata())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_divides_nothing_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        Calibration(temperature)
    with pytest.raises(ValueError, match="temperature"):
        make_metadata(temperature)
