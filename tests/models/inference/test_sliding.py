"""The sliding predictor against the protocol written plainly, with full-size tensors."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import Architecture, Prediction, Predictor, PSPNet
from models.inference import sliding
from models.inference.preprocessing import padded_size
from models.inference.sliding import Protocol, SlidingPredictor
from tests.models.low_counts import assert_low_counts, assert_valid_counts
from tests.requirements import C_COMPILER

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
SIX_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


class SmallNetwork(torch.nn.Conv2d):
    """Logits at stride 8 of normalised images, as PSPNet's in all that matters here."""

    def __init__(self, align_corners: bool, num_classes: int = 7) -> None:
        torch.manual_seed(0)
        super().__init__(3, num_classes, 11, stride=8, padding=5)
        self.architecture = Architecture("resnet18", num_classes, align_corners=align_corners)
        self.weight.data *= 8


MODELS = {align_corners: SmallNetwork(align_corners) for align_corners in (True, False)}


def make_images(num_images: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (num_images, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width])


def crop_probabilities(model: SmallNetwork | PSPNet, crop_3PQ: Tensor, mirror: bool) -> Tensor:
    (height, width), align_corners = crop_3PQ.shape[1:], model.architecture.align_corners
    padded = padded_size((height, width), align_corners)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    x = F.pad((crop_3PQ - mean) / std, (0, padded[1] - width, 0, padded[0] - height))
    logits = F.interpolate(model(x[None]), padded, mode="bilinear", align_corners=align_corners)
    probabilities = logits[0, :, :height, :width].softmax(0)
    if mirror:
        probabilities = (probabilities + crop_probabilities(model, crop_3PQ.flip(2), False).flip(2)) / 2
    return probabilities


@torch.no_grad()
def plain_protocol(
    model: SmallNetwork | PSPNet,
    image: np.ndarray,
    base_size: int | None,
    crop: int | None,
    mirror: bool,
    scales: Any,
    output: Any,
    short_side: int | None = None,
) -> np.ndarray:
    """Return the averaged probabilities (K, H, W) of one image."""
    image_3HW = torch.from_numpy(image).permute(2, 0, 1).float()
    height, width = image.shape[:2]
    average = torch.zeros(())
    for scale in scales:
        own = min(height, width) if short_side else max(height, width)
        reached = round(scale * (short_side or base_size or own))
        size = [max(1, round(reached * side / own)) for side in (height, width)]
        scaled = F.interpolate(image_3HW[None], size, mode="bilinear", align_corners=False)[0]
        if crop is None:
            probabilities = crop_probabilities(model, scaled, mirror)
            average = average + F.interpolate(probabilities[None], output, mode="bilinear", align_corners=False)[0]
            continue
        stride = math.ceil(crop * 2 / 3)
        extra = [max(0, crop - side) for side in size]
        padded = torch.tensor(MEAN).view(3, 1, 1).repeat(1, size[0] + extra[0], size[1] + extra[1])
        top, left = extra[0] // 2, extra[1] // 2
        padded[:, top : top + size[0], left : left + size[1]] = scaled
        total = torch.zeros(model.architecture.num_classes, *padded.shape[1:])
        count = torch.zeros(padded.shape[1:])
        starts = [sorted({min(i, side - crop) for i in range(0, side, stride)}) for side in padded.shape[1:]]
        for y in starts[0]:
            for x in starts[1]:
                window = (slice(y, y + crop), slice(x, x + crop))
                total[:, *window] += crop_probabilities(model, padded[:, *window], mirror)
                count[window] += 1
        probabilities = (total / count)[:, top : top + size[0], left : left + size[1]]
        average = average + F.interpolate(probabilities[None], output, mode="bilinear", align_corners=False)[0]
    return (average / len(scales)).double().numpy()


def assert_matches(
    prediction: Prediction, probabilities: np.ndarray, n: int = 0, valid_HW: np.ndarray | None = None
) -> None:
    """Check all fields of image `n` against probabilities (K, H, W), at the valid pixels."""
    ids, confidence = prediction.class_ids_NHW[n], probabilities.max(0)
    valid_HW = np.ones(ids.shape, bool) if valid_HW is None else valid_HW
    assert ids.shape == confidence.shape
    ordered = np.sort(probabilities, axis=0)
    differs = (probabilities.argmax(0) != ids) & valid_HW
    assert (ordered[-1] - ordered[-2])[differs].max(initial=0) < 2e-5, "differs where it is no tie"
    if prediction.confidence_NHW is not None:
        np.testing.assert_allclose(prediction.confidence_NHW[n][valid_HW], confidence[valid_HW], rtol=1e-3)
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(0)
    np.testing.assert_allclose(prediction.mean_confidence_N[n], confidence[valid_HW].mean(), rtol=1e-5)
    np.testing.assert_allclose(prediction.mean_entropy_N[n], entropy[valid_HW].mean(), rtol=1e-4)
    assert_low_counts(prediction.low_count_NRG[n], np.where(valid_HW, confidence, 1), 1e-5)
    assert_valid_counts(prediction.valid_count_NRG[n], valid_HW)
    for k in range(len(probabilities)):
        is_class_HW = (ids == k) & valid_HW
        ys, xs = np.nonzero(is_class_HW)
        assert prediction.pixel_count_NK[n, k] == len(ys)
        np.testing.assert_allclose(prediction.confidence_sum_NK[n, k], confidence[is_class_HW].sum(), rtol=1e-4)
        if len(ys):
            assert prediction.box_NK4[n, k].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_allclose(prediction.centroid_NK2[n, k], [xs.mean(), ys.mean()])


def assert_same(a: Prediction, b: Prediction) -> None:
    for field in fields(Prediction):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


needs_compiler = C_COMPILER.mark


@pytest.fixture(params=[pytest.param("kernel", marks=needs_compiler), "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(sliding, "library", lambda: None)
        monkeypatch.setattr(sliding, "STRIP_BYTES_CPU", 4 * 4 * 150 * 7 * 11)
    return request.param


class PlainNetwork:
    """Stand-in for a Predictor, with the methods that the protocol calls."""

    device = torch.device("cpu")

    def __init__(self, model: SmallNetwork) -> None:
        self._model, self.architecture = model, model.architecture
        self.mean_3 = torch.tensor(MEAN)

    def logits(self, images_NHWC: Tensor) -> Tensor:
        height, width = images_NHWC.shape[1:3]
        padded = padded_size((height, width), self.architecture.align_corners)
        x_N3HW = ((images_NHWC - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
        logits_NKhw = self._model(F.pad(x_N3HW, (0, padded[1] - width, 0, padded[0] - height)))
        return logits_NKhw.permute(0, 2, 3, 1).contiguous()


def predictor(align_corners: bool = True, max_batch: int | None = None, **settings: Any) -> SlidingPredictor:
    protocol = Protocol(**{"base_size": None, "crop": 73} | settings)
    return SlidingPredictor(PlainNetwork(MODELS[align_corners]), protocol, max_batch)  # type: ignore[arg-type]


CASES = {
    "one scale": {},
    "mirrored": {"mirror": True},
    "a base size": {"base_size": 130},
    "one crop, larger than the image": {"crop": 180},
    "wider than the crop, not higher": {"base_size": 90, "crop": 80, "mirror": True},
    "six scales": {"scales": SIX_SCALES, "base_size": 100, "mirror": True},
    "a scale of one pixel": {"scales": (0.01,)},
    "a short side, which replaces the base size": {"base_size": 130, "short_side": 120},
    "whole at a short side and two scales": {"crop": None, "short_side": 80, "scales": (0.75, 1.0)},
    "whole": {"crop": None},
    "whole and mirrored, at a base size": {"crop": None, "mirror": True, "base_size": 131},
    "whole at six scales": {"crop": None, "scales": SIX_SCALES, "mirror": True},
}


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_protocol(way: str, case: str, align_corners: bool) -> None:
    settings, images = CASES[case], make_images(1, 100, 150)
    prediction = predictor(align_corners, **settings).predict(images, with_confidence_map=True)
    expected = {"base_size": None, "crop": 73, "mirror": False, "scales": (1.0,)} | settings
    assert_matches(prediction, plain_protocol(MODELS[align_corners], images[0], **expected, output=(100, 150)))


def test_it_stands_on_a_predictor() -> None:
    torch.manual_seed(0)
    model = PSPNet(Architecture("resnet18", 7)).eval()
    torch.nn.init.normal_(model.head.classifier.weight, std=0.6)
    images = make_images(1, 60, 80)
    sliding = SlidingPredictor(Predictor(model, MEAN, STD), Protocol(None, crop=73, mirror=True))
    assert_matches(sliding.predict(images), plain_protocol(model, images[0], None, 73, True, (1.0,), (60, 80)))


@pytest.mark.parametrize("output_size", [(33, 170), (250, 64), (1, 1)])
def test_the_output_may_have_another_size(way: str, output_size: tuple[int, int]) -> None:
    images, scales = make_images(1, 150, 100), (0.75, 1.5)
    prediction = predictor(scales=scales, base_size=120).predict(images, output_size)
    assert prediction.confidence_NHW is None
    assert_matches(prediction, plain_protocol(MODELS[True], images[0], 120, 73, False, scales, output_size))


def test_pixels_that_are_not_valid_enter_no_statistic(way: str) -> None:
    images, sliding = make_images(2, 97, 130), predictor(scales=(0.75, 1.25))
    valid_HW = np.random.default_rng(0).random((97, 130)) < 0.5
    found = sliding.predict(images, with_confidence_map=True, valid=[None, valid_HW])
    for n, valid in enumerate((None, valid_HW)):
        expected = plain_protocol(MODELS[True], images[n], None, 73, False, (0.75, 1.25), (97, 130))
        assert_matches(found, expected, n, valid)


def test_a_batch_gives_what_its_images_give_alone(way: str) -> None:
    images = make_images(3, 100, 150)
    sliding = predictor(mirror=True, max_batch=5)
    batch = sliding.predict(images)
    for n in range(3):
        alone = sliding.predict(images[n : n + 1])
        assert (batch.class_ids_NHW[n] != alone.class_ids_NHW[0]).mean() < 1e-3
        np.testing.assert_allclose(batch.mean_entropy_N[n], alone.mean_entropy_N[0], rtol=1e-4)


def test_crops_of_several_images_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sliding, sizes = predictor(mirror=True, max_batch=5), []
    original = sliding.predictor.logits
    monkeypatch.setattr(sliding.predictor, "logits", lambda x: (sizes.append(len(x)), original(x))[1])
    sliding.predict(make_images(3, 80, 150))
    assert sizes == [5] * 7 + [1]  # 3 images, 2 x 3 crops, 2 mirrors


def test_whole_images_share_batches_with_those_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sliding, sizes = predictor(crop=None, scales=(0.5, 1.0), mirror=True, max_batch=4), []
    original = sliding.predictor.logits
    monkeypatch.setattr(sliding.predictor, "logits", lambda x: (sizes.append(tuple(x.shape[:3])), original(x))[1])
    sliding.predict(make_images(3, 80, 150))
    assert sizes == [(4, 40, 75), (2, 40, 75), (4, 80, 150), (2, 80, 150)]


def test_one_whole_image_without_mirror_is_what_the_predictor_says() -> None:
    torch.manual_seed(0)
    model = PSPNet(Architecture("resnet18", 7)).eval()
    torch.nn.init.normal_(model.head.classifier.weight, std=0.6)
    single, images = Predictor(model, MEAN, STD), make_images(2, 70, 101)
    averaged = SlidingPredictor(single, Protocol(base_size=None, crop=None)).predict(images)
    expected = single.predict(images)
    assert (averaged.class_ids_NHW != expected.class_ids_NHW).mean() < 1e-3
    np.testing.assert_allclose(averaged.mean_confidence_N, expected.mean_confidence_N, rtol=1e-5)


def test_large_images_keep_few_crops_and_change_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(2, 700, 90)
    over_crops = predictor(scales=(0.5, 1.0), max_batch=1)
    whole = over_crops.predict(images, with_confidence_map=True)

    alive, passes = [], []
    mask = sliding._KernelMask if way == "kernel" else sliding._TorchMask
    original, network = mask.label, over_crops.predictor.logits
    monkeypatch.setattr(mask, "label", lambda self, band, x: (alive.append(len(x)), original(self, band, x))[1])
    monkeypatch.setattr(over_crops.predictor, "logits", lambda x: (passes.append(1), network(x))[1])
    over_crops.logits_bytes = 1
    banded = over_crops.predict(images, with_confidence_map=True)
    assert_same(whole, banded)
    crops_per_image = 7 + 14 * 2
    assert len(passes) == 2 * crops_per_image  # none twice
    assert max(alive) < crops_per_image / 3


@needs_compiler
def test_the_number_of_threads_changes_no_label() -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(predictor(scales=(0.5, 1.25)).predict(make_images(1, 100, 150)))
    torch.set_num_threads(before)
    assert (results[0].class_ids_NHW != results[1].class_ids_NHW).mean() < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_size": 0}, "base_size is 0"),
        ({"short_side": 0}, "short_side is 0"),
        ({"crop": 63}, "at least 64"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": 1.5}, "stride is 1.5"),
        ({"scales": ()}, r"scales is \(\); it must be one or more numbers above 0"),
        ({"scales": (1.0, -1.0)}, "scales"),
        ({"max_batch": 0}, "max_batch is 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(**settings)


def test_unusable_images_and_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="batch axis"):
        predictor().predict(np.zeros((65, 65, 3), np.uint8))
    with pytest.raises(ValueError, match="output_size"):
        predictor().predict(make_images(1, 65, 65), (0, 5))
