"""The predictor against brute force: full-size logits, softmax, numpy."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import Architecture, Prediction, Predictor, Protocol, PSPNet, SlidingPredictor
from models.inference import predictor as predictor_module
from models.inference.predictor import automatic_precision, max_feature_bytes
from models.inference.preprocessing import padded_size
from models.kernels.convolution import Convolution
from tests.requirements import BFLOAT16, INT8

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]


def make_model(num_classes: int = 7, align_corners: bool = True) -> PSPNet:
    torch.manual_seed(0)
    model = PSPNet(Architecture("resnet18", num_classes, align_corners=align_corners)).eval()
    # Logits with enough spread for confident and for doubtful pixels.
    torch.nn.init.normal_(model.head.classifier.weight, std=0.6)
    return model


MODELS = {align_corners: make_model(align_corners=align_corners) for align_corners in (True, False)}


def make_images(num_images: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (num_images, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width])


def source_positions(size: int, output_size: int) -> np.ndarray:
    return np.clip((np.arange(output_size) + 0.5) * size / output_size - 0.5, 0, size - 1)


def sample(plane_KHW: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate bilinearly at the positions y (rows) and x (columns)."""
    for axis, position in ((1, y), (2, x)):
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, plane_KHW.shape[axis] - 1)
        shape = [-1 if i == axis else 1 for i in range(3)]
        weight = (position - low).reshape(shape)
        plane_KHW = plane_KHW.take(low, axis) * (1 - weight) + plane_KHW.take(high, axis) * weight
    return plane_KHW


@torch.no_grad()
def brute_force(model: PSPNet, images: np.ndarray, output_size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the logits of every output pixel, (N, K, H, W), as the predictor's docstring defines them."""
    height, width = images.shape[1:3]
    align_corners = model.architecture.align_corners
    padded = padded_size((height, width), align_corners)
    x = (torch.from_numpy(images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    x = F.pad(x.permute(0, 3, 1, 2), (0, padded[1] - width, 0, padded[0] - height))
    logits = model(x)
    if output_size is None:
        full = F.interpolate(logits, padded, mode="bilinear", align_corners=align_corners)
        return full[:, :, :height, :width].numpy()
    cells = []
    for axis, num_cells in enumerate(logits.shape[2:]):
        pixel = source_positions((height, width)[axis], output_size[axis])
        cell = (pixel + 0.5) * num_cells / padded[axis] - 0.5
        if align_corners:
            cell = pixel * (num_cells - 1) / (padded[axis] - 1)
        cells.append(np.clip(cell, 0, num_cells - 1))
    return np.stack([sample(plane, *cells) for plane in logits.double().numpy()])


def assert_matches(prediction: Prediction, logits: np.ndarray) -> None:
    """Check every field of `prediction` against full-size logits."""
    logits = logits.astype(np.float64)
    num_images, num_classes, height, width = logits.shape
    ids = prediction.class_ids_NHW
    assert ids.shape == (num_images, height, width)
    ordered = np.sort(logits, axis=1)
    differs = logits.argmax(1) != ids
    assert (ordered[:, -1] - ordered[:, -2])[differs].max(initial=0) < 1e-4, "differs where it is no tie"

    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    confidence = probability.max(1)
    entropy = -(probability * np.log(np.maximum(probability, 1e-300))).sum(1)
    if prediction.confidence_NHW is not None:
        assert prediction.confidence_NHW.dtype == np.float16
        np.testing.assert_allclose(prediction.confidence_NHW, confidence, atol=1e-3)
    np.testing.assert_allclose(prediction.mean_confidence_N, confidence.mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(prediction.mean_entropy_N, entropy.mean((1, 2)), rtol=1e-3, atol=1e-5)
    border = (np.abs(confidence - 0.5) < 1e-4).mean()
    low = (confidence < 0.5).mean((1, 2))
    np.testing.assert_allclose(prediction.low_confidence_fraction_N, low, atol=border + 1e-12)

    for n in range(num_images):
        for k in range(num_classes):
            ys, xs = np.nonzero(ids[n] == k)
            assert prediction.pixel_count_NK[n, k] == len(ys)
            total = confidence[n][ids[n] == k].sum()
            np.testing.assert_allclose(prediction.confidence_sum_NK[n, k], total, rtol=1e-4)
            if len(ys):
                box, centroid = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], [xs.mean(), ys.mean()]
            else:
                box, centroid = [0, 0, 0, 0], [np.nan, np.nan]
            assert prediction.box_NK4[n, k].tolist() == box
            np.testing.assert_allclose(prediction.centroid_NK2[n, k], centroid, rtol=1e-12)


def assert_equal(a: Prediction, b: Prediction) -> None:
    for field in fields(Prediction):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(65, 65), (64, 64), (70, 131), (131, 70), (1, 1), (3, 90)])
def test_at_the_images_size_it_is_interpolate_crop_and_argmax(size, align_corners: bool) -> None:
    model, images = MODELS[align_corners], make_images(1, *size)
    prediction = Predictor(model, MEAN, STD).predict(images, with_confidence_map=True)
    assert prediction.class_ids_NHW.dtype == np.uint8
    assert_matches(prediction, brute_force(model, images))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("output_size", [(40, 31), (150, 171), (81, 300), (1, 1)])
def test_at_another_size_pixel_centres_correspond(output_size: tuple[int, int], align_corners: bool) -> None:
    model, images = MODELS[align_corners], make_images(1, 81, 97)
    prediction = Predictor(model, MEAN, STD).predict(images, output_size, with_confidence_map=True)
    assert_matches(prediction, brute_force(model, images, output_size))


def test_the_test_images_have_several_classes_and_both_confidences() -> None:
    prediction = Predictor(MODELS[True], MEAN, STD).predict(make_images(1, 131, 70))
    assert (prediction.pixel_count_NK > 0).sum() >= 3
    assert 0 < prediction.low_confidence_fraction_N[0] < 1


def test_a_batch_gives_what_its_images_give_alone() -> None:
    predictor, images = Predictor(MODELS[True], MEAN, STD), make_images(3, 70, 90)
    batch = predictor.predict(images)
    assert batch.confidence_NHW is None
    for n in range(3):
        alone = predictor.predict(images[n : n + 1])
        assert (batch.class_ids_NHW[n] != alone.class_ids_NHW[0]).mean() < 1e-3
        np.testing.assert_allclose(batch.mean_confidence_N[n], alone.mean_confidence_N[0], rtol=1e-4)
        np.testing.assert_allclose(batch.mean_entropy_N[n], alone.mean_entropy_N[0], rtol=1e-4)


@pytest.mark.parametrize("sliding", [False, True])
def test_images_of_one_batch_may_have_masks_of_several_sizes(sliding: bool) -> None:
    images, sizes = make_images(4, 65, 73), [(80, 91), (65, 73), (80, 91), (33, 37)]
    predictor = Predictor(MODELS[True], MEAN, STD)
    made = SlidingPredictor(predictor, Protocol(base_size=None, crop=65)) if sliding else predictor
    for image, size, prediction in zip(images, sizes, made.predict_each(images, sizes), strict=True):
        alone = made.predict(image[None], size)
        assert prediction.class_ids_NHW.shape == (1, *size)
        assert (prediction.class_ids_NHW != alone.class_ids_NHW).mean() < 1e-3
        np.testing.assert_allclose(prediction.mean_confidence_N, alone.mean_confidence_N, rtol=1e-4)
        assert prediction.pixel_count_NK.sum() == size[0] * size[1]


@pytest.mark.parametrize("sliding", [False, True])
def test_images_of_one_batch_may_have_pixels_that_are_not_valid(sliding: bool) -> None:
    images, sizes = make_images(3, 65, 73), [(80, 91), (65, 73), (80, 91)]
    valid = [None, np.arange(65 * 73).reshape(65, 73) % 3 > 0, np.arange(80 * 91).reshape(80, 91) % 2 > 0]
    predictor = Predictor(MODELS[True], MEAN, STD)
    made = SlidingPredictor(predictor, Protocol(base_size=None, crop=65)) if sliding else predictor
    for image, valid_HW, size, found in zip(images, valid, sizes, made.predict_each(images, sizes, valid), strict=True):
        alone = made.predict(image[None], size, valid=[valid_HW])
        assert found.pixel_count_NK.sum() == (size[0] * size[1] if valid_HW is None else valid_HW.sum())
        np.testing.assert_allclose(found.mean_confidence_N, alone.mean_confidence_N, rtol=1e-4)
        np.testing.assert_array_equal(found.valid_count_NRG, alone.valid_count_NRG)
        share = found.low_count_NRG.sum() / found.pixel_count_NK.sum()
        np.testing.assert_allclose(found.low_confidence_fraction_N, share)


@pytest.mark.parametrize(
    "valid", [[], [np.ones((65, 64), bool)], [np.ones((65, 65))], [None, None]], ids=["none", "size", "type", "number"]
)
def test_valid_pixels_of_other_masks_are_refused(valid: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"for each of the masks \[\(65, 65\)\], give bool"):
        Predictor(MODELS[True], MEAN, STD).predict(make_images(1, 65, 65), valid=valid)


def test_more_than_256_classes_make_16_bit_masks() -> None:
    model = make_model(num_classes=300)
    images = make_images(1, 65, 80)
    prediction = Predictor(model, MEAN, STD).predict(images)
    assert prediction.class_ids_NHW.dtype == np.uint16
    assert prediction.class_ids_NHW.max() > 255
    assert_matches(prediction, brute_force(model, images))


def test_read_only_arrays_and_tensors_are_accepted(recwarn: pytest.WarningsRecorder) -> None:
    predictor, images = Predictor(MODELS[True], MEAN, STD), make_images(1, 65, 65)
    expected = predictor.predict(torch.from_numpy(images.copy()))
    images.flags.writeable = False
    result = predictor.predict(images)
    assert not recwarn.list
    assert_equal(replace(result, confidence_NHW=np.zeros(1)), replace(expected, confidence_NHW=np.zeros(1)))


def test_the_callers_model_is_left_as_it_was() -> None:
    model = make_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Predictor(model, MEAN, STD).predict(make_images(1, 65, 65))
    assert model.training
    assert model.auxiliary is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@BFLOAT16.mark
def test_bfloat16_mostly_agrees_with_float32() -> None:
    images = make_images(1, 131, 131)
    full = Predictor(MODELS[True], MEAN, STD).predict(images)
    half = Predictor(MODELS[True], MEAN, STD, precision="bfloat16").predict(images)
    assert (full.class_ids_NHW == half.class_ids_NHW).mean() > 0.95
    np.testing.assert_allclose(half.mean_confidence_N, full.mean_confidence_N, rtol=0.05)
    assert Predictor(MODELS[True], MEAN, STD, precision="auto").precision in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((65, 65, 3), np.uint8), "batch axis"),
        (np.zeros((1, 65, 65, 4), np.uint8), "alpha"),
        (np.zeros((1, 65, 65, 3), np.float32), "float32"),
        (np.zeros((0, 65, 65, 3), np.uint8), r"\(0, 65, 65, 3\)"),
    ],
)
def test_unusable_images_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(MODELS[True], MEAN, STD).predict(images)


def test_unusable_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="precision 'int4'"):
        Predictor(MODELS[True], MEAN, STD, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="calibrate" if INT8.is_met() else "needs a CPU with VNNI"):
        Predictor(MODELS[True], MEAN, STD, precision="int8")
    with monkeypatch.context() as patch:
        patch.setattr("models.inference.predictor.has_bfloat16", lambda device: False)
        with pytest.raises(ValueError, match="bfloat16 needs a CPU with AVX-512 or AVX-NE-CONVERT"):
            Predictor(MODELS[True], MEAN, STD, precision="bfloat16")
    with pytest.raises(ValueError, match="std"):
        Predictor(MODELS[True], MEAN, [1, 0, 1])
    with pytest.raises(ValueError, match="output_size"):
        Predictor(MODELS[True], MEAN, STD).predict(make_images(1, 65, 65), (0, 5))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 66, 72, 73, 74, 1000])
def test_padding_is_the_least_that_puts_logits_on_the_pixel_grid(length: int) -> None:
    aligned, plain = padded_size((length, 64), True)[0], padded_size((length, 64), False)[0]
    assert aligned == next(s for s in range(65, 2000) if s >= length and s % 8 == 1)
    assert plain == next(s for s in range(64, 2000) if s >= length and s % 8 == 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A pretended GPU, of 16 GiB and without native bfloat16, like a T4."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    return torch.device("cuda")


def test_passes_on_a_gpu_stay_within_their_share_of_its_memory(gpu: torch.device) -> None:
    predictor = Predictor(MODELS[True], MEAN, STD)
    predictor.device = gpu  # the tensors stay where they are
    predictor.max_feature_bytes = max_feature_bytes(gpu)
    assert predictor.max_feature_bytes == 2**30
    images, passes = torch.from_numpy(make_images(21, 65, 65)), []

    def run(images_N3HW: torch.Tensor) -> torch.Tensor:
        passes.append(len(images_N3HW))
        return predictor.network(images_N3HW)

    predictor._run = run
    whole = predictor.logits(images)
    assert passes == [21]
    passes.clear()
    predictor.max_feature_bytes = 11 * 4 * 9 * 9 * 512  # batches of 9 to 11 would be padded to 16
    assert torch.allclose(predictor.logits(images), whole, atol=1e-4)
    assert passes == [8, 8, 5]


def test_a_gpu_without_native_bfloat16_predicts_in_float16(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert automatic_precision(gpu) == "float16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert automatic_precision(gpu) == "bfloat16"


def test_in_float16_the_labels_are_almost_those_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, images = torch.device("cpu"), make_images(2, 65, 81)

    def make_half(_: str, conv: torch.nn.Conv2d, relu: bool) -> Convolution:
        return Convolution(conv, relu, torch.float16, cpu)

    whole = Predictor(MODELS[True], MEAN, STD).predict(images)
    monkeypatch.setattr(predictor_module, "maker", lambda *_: make_half)
    found = Predictor(MODELS[True], MEAN, STD).predict(images)
    assert (whole.class_ids_NHW == found.class_ids_NHW).mean() > 0.99
    np.testing.assert_allclose(found.mean_confidence_N, whole.mean_confidence_N, rtol=1e-2)


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="float16 needs a GPU; use float32 or auto"):
        Predictor(MODELS[True], MEAN, STD, precision="float16")
