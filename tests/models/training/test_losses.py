"""The losses against their definitions, written out plainly, and against themselves when the batch is cut."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.training import losses
from models.training.losses import LossOptions, Objective, dice_loss, hard_pixels, lovasz_loss

K, IGNORED = 4, 255
WEIGHTS = (0.5, 2.0, 1.0, 3.0)

OPTIONS = {
    "plain": LossOptions(),
    "weights": LossOptions(class_weights=WEIGHTS),
    "smoothing": LossOptions(label_smoothing=0.1),
    "weights and smoothing": LossOptions(class_weights=WEIGHTS, label_smoothing=0.2),
    "ohem": LossOptions(ohem_threshold=0.3, ohem_min_kept=0.25),
    "ohem, weights, smoothing": LossOptions(ohem_threshold=0.3, class_weights=WEIGHTS, label_smoothing=0.1),
    "regions": LossOptions(dice_weight=0.5, lovasz_weight=2.0),
    "over all pixels": LossOptions(normalization="all", class_weights=WEIGHTS),
    "ohem over all pixels": LossOptions(normalization="all", ohem_threshold=0.3, ohem_min_kept=0.25),
    "all": LossOptions(class_weights=WEIGHTS, ohem_threshold=0.5, dice_weight=1.0, lovasz_weight=1.0),
}


def batch() -> tuple[Tensor, Tensor]:
    """Five images: all classes, one class, two classes, all ignored, a single labelled pixel."""
    torch.manual_seed(0)
    labels = torch.randint(0, K, (5, 17, 25))
    labels[1] = 2
    labels[2] = (labels[2] > 1).long()
    labels[torch.rand(labels.shape) < 0.2] = IGNORED
    labels[3:] = IGNORED
    labels[4, 3, 5] = 1
    return 2 * torch.randn(5, K, 3, 4, dtype=torch.float64), labels


def upsampled(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)


def make(options: LossOptions) -> Objective:
    return Objective(options, K, align_corners=True)


def value_and_gradient(options: LossOptions, parts: list[int]) -> tuple[Tensor, Tensor]:
    """The main loss of the batch cut into parts of so many images, and its gradient."""
    criterion, (logits, labels) = make(options), batch()
    totals = torch.stack([criterion.totals(part) for part in labels.split(parts)]).sum(0)
    logits.requires_grad_()
    pairs = zip(logits.split(parts), labels.split(parts), strict=True)
    loss = torch.stack([criterion.main(*pair, totals) for pair in pairs]).sum()
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


@pytest.mark.parametrize("name", OPTIONS)
def test_any_cut_of_the_batch_has_the_same_loss_and_gradient(name: str) -> None:
    whole, gradient = value_and_gradient(OPTIONS[name], [5])
    for parts in ([2, 3], [1, 1, 1, 1, 1]):
        loss, other = value_and_gradient(OPTIONS[name], parts)
        torch.testing.assert_close(loss, whole, rtol=1e-13, atol=0)
        torch.testing.assert_close(other, gradient, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", ["plain", "weights", "smoothing", "weights and smoothing"])
def test_cross_entropy_is_torchs_mean_over_the_whole_batch(name: str) -> None:
    loss, gradient = value_and_gradient(OPTIONS[name], [5])
    logits, labels = batch()
    logits.requires_grad_()
    weights = OPTIONS[name].class_weights
    expected = F.cross_entropy(
        upsampled(logits, labels),
        labels,
        torch.tensor(weights, dtype=torch.float64) if weights else None,
        ignore_index=IGNORED,
        label_smoothing=OPTIONS[name].label_smoothing,
    )
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-10, atol=1e-15)


def test_over_all_pixels_ignored_ones_count_in_the_divisor_and_class_weights_do_not() -> None:
    """MMSegmentation's CrossEntropyLoss: its losses of single pixels, 0 where ignored, are averaged over all."""
    loss, _ = value_and_gradient(OPTIONS["over all pixels"], [5])
    logits, labels = batch()
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    pixels = F.cross_entropy(upsampled(logits, labels), labels, weights, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(loss, pixels.mean(), rtol=1e-12, atol=0)


def test_hard_examples_over_all_pixels_are_summed_and_divided_by_all_pixels() -> None:
    """MMSegmentation's OHEMPixelSampler gives pixels weight 0 or 1; its loss is then averaged over all pixels."""
    loss, _ = value_and_gradient(OPTIONS["ohem over all pixels"], [5])
    logits, labels = batch()
    expected = 0.0
    for pixels, truth in labelled_images(logits, labels):
        kept = hard_pixels(pixels, truth, 0.3, 0.25)
        expected += float(F.cross_entropy(pixels[kept], truth[kept], reduction="sum"))
    assert float(loss) == pytest.approx(expected / labels.numel(), rel=1e-12)


def labelled_images(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Logits P x K and labels P of each image's labelled pixels, where there are any."""
    full = upsampled(logits, labels)
    pairs = [(full[n][:, labels[n] != IGNORED].T, labels[n][labels[n] != IGNORED]) for n in range(len(labels))]
    return [pair for pair in pairs if len(pair[1])]


def test_hard_examples_are_those_below_the_threshold_and_at_least_the_hardest() -> None:
    loss, gradient = value_and_gradient(OPTIONS["ohem"], [5])
    logits, labels = batch()
    logits.requires_grad_()
    means, kept_by_share = [], 0
    for pixels, truth in labelled_images(logits, labels):
        own = pixels.softmax(1)[range(len(truth)), truth]
        below = [i for i in range(len(truth)) if own[i] < 0.3]
        fewest = math.ceil(0.25 * len(truth))
        hardest = sorted(range(len(truth)), key=own.tolist().__getitem__)[:fewest]
        kept = below if len(below) > fewest else hardest
        kept_by_share += len(below) < fewest
        means.append(-own[kept].log().mean())
    assert 0 < kept_by_share < len(means), "both rules have to be met"
    expected = sum(means) / len(means)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-10, atol=1e-15)


def test_hard_examples_of_equal_pixels_are_all_or_none() -> None:
    logits, labels = torch.zeros(10, K), torch.zeros(10, dtype=torch.long)
    assert hard_pixels(logits, labels, threshold=0.2, min_kept=0.01).all()
    logits[0, 0] = -1
    assert hard_pixels(logits, labels, threshold=0.2, min_kept=0.01).tolist() == [True] + [False] * 9


def plain_dice(probabilities: Tensor, labels: Tensor) -> Tensor:
    losses = []
    for k in range(probabilities.shape[1]):
        truth = (labels == k).to(probabilities.dtype)
        if truth.any():
            overlap = (probabilities[:, k] * truth).sum()
            losses.append(1 - 2 * overlap / (probabilities[:, k].sum() + truth.sum()))
    return torch.stack(losses).mean()


def plain_lovasz(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Berman et al. 2018, equations 3, 5, 8 and 9, with sets of pixels."""
    losses = []
    for k in range(probabilities.shape[1]):
        truth = {i for i, label in enumerate(labels.tolist()) if label == k}
        if not truth:
            continue
        errors = [1 - p if i in truth else p for i, p in enumerate(probabilities[:, k])]
        order = sorted(range(len(errors)), key=lambda i: -errors[i].item())
        wrong: set[int] = set()
        jaccard_loss, total = 0.0, torch.zeros((), dtype=probabilities.dtype)
        for pixel in order:
            wrong.add(pixel)
            grown = len(wrong) / len(truth | wrong)
            total = total + errors[pixel] * (grown - jaccard_loss)
            jaccard_loss = grown
        losses.append(total)
    return torch.stack(losses).mean()


def test_region_losses_of_a_batch_are_means_over_its_labelled_images() -> None:
    loss, gradient = value_and_gradient(OPTIONS["regions"], [5])
    logits, labels = batch()
    logits.requires_grad_()
    images = [(pixels.softmax(1), truth) for pixels, truth in labelled_images(logits, labels)]
    assert len(images) == 4
    regions = [0.5 * plain_dice(*image) + 2 * plain_lovasz(*image) for image in images]
    cross_entropy = F.cross_entropy(upsampled(logits, labels), labels, ignore_index=IGNORED)
    expected = cross_entropy + sum(regions) / len(regions)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("loss", "plain"), [(dice_loss, plain_dice), (lovasz_loss, plain_lovasz)])
@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [1, 3], [2]], ids=str)
def test_region_losses_and_their_gradients_are_the_definitions(loss: Any, plain: Any, classes: list[int]) -> None:
    torch.manual_seed(1)
    labels = torch.tensor(classes)[torch.randint(0, len(classes), (40,))]
    logits = torch.randn(40, K, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(loss(logits.softmax(1), labels), plain(logits.softmax(1), labels), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: loss(x.softmax(1), labels), logits)


@pytest.mark.parametrize("loss", [dice_loss, lovasz_loss])
def test_region_losses_run_from_0_to_1(loss: Any) -> None:
    labels = torch.tensor([0, 0, 1, 3])
    assert loss(F.one_hot(labels, K).double(), labels) == 0
    assert loss(F.one_hot((labels + 1) % K, K).double(), labels) == 1


def test_lovasz_of_a_large_image_keeps_its_digits_in_float32() -> None:
    torch.manual_seed(2)
    probabilities = torch.rand(200_000, 2).softmax(1).requires_grad_()
    labels = (torch.rand(200_000) < 0.5).long()
    exact = probabilities.detach().double().requires_grad_()
    lovasz_loss(probabilities, labels).backward()
    lovasz_loss(exact, labels).backward()
    assert probabilities.grad is not None
    assert exact.grad is not None
    assert (probabilities.grad - exact.grad).norm() < 1e-5 * exact.grad.norm()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_without_any_label_has_no_loss_and_no_gradient(name: str) -> None:
    criterion, (logits, labels) = make(OPTIONS[name]), batch()
    logits.requires_grad_()
    labels[:] = IGNORED
    loss = criterion.main(logits, labels, criterion.totals(labels))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("name", OPTIONS)
def test_any_other_ignore_index_has_the_same_loss(name: str) -> None:
    (logits, labels), expected = batch(), value_and_gradient(OPTIONS[name], [5])[0]
    criterion = make(replace(OPTIONS[name], ignore_index=-7))
    labels[labels == IGNORED] = -7
    assert criterion.main(logits, labels, criterion.totals(labels)) == expected


def test_the_auxiliary_head_has_no_region_losses() -> None:
    criterion, (logits, labels) = make(OPTIONS["regions"]), batch()
    totals = criterion.totals(labels)
    expected = make(OPTIONS["plain"]).main(logits, labels, totals)
    assert criterion.cross_entropy(logits, labels, totals) == expected
    assert criterion.main(logits, labels, totals) > expected


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_taken_in_float32_at_the_least(name: str, dtype: torch.dtype) -> None:
    criterion, (logits, labels) = make(OPTIONS[name]), batch()
    totals = criterion.totals(labels)
    exact = criterion.main(logits.to(dtype).double(), labels, totals)
    loss = criterion.main(logits.to(dtype).requires_grad_(), labels.to(torch.uint8), totals)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


def test_upsampled_logits_of_one_image_exist_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    interpolate = F.interpolate

    def watched(logits: Tensor, *arguments: Any, **options: Any) -> Tensor:
        sizes.append(len(logits))
        return interpolate(logits, *arguments, **options)

    monkeypatch.setattr(losses.F, "interpolate", watched)
    criterion, (logits, labels) = make(LossOptions(label_smoothing=0.1, dice_weight=1)), batch()
    criterion.main(logits.requires_grad_(), labels, criterion.totals(labels))
    assert sizes == [1] * 10


def test_labels_that_are_no_classes_are_refused() -> None:
    _, labels = batch()
    labels[0, 0, :3] = torch.tensor([4, 77, -1])
    with pytest.raises(ValueError, match=r"\[-1, 4, 77\] are neither one of 4 classes nor the ignore_index 255"):
        make(LossOptions()).check(labels)


def test_any_integer_type_of_labels_is_checked_as_it_is() -> None:
    criterion = Objective(LossOptions(), 300, True)
    criterion.check(torch.arange(256, dtype=torch.uint8)[None, None])
    criterion.check(torch.arange(300, dtype=torch.int16)[None, None])
    with pytest.raises(ValueError, match=r"\[-1, 300\] are neither one of 300 classes"):
        criterion.check(torch.tensor([[[-1, 300, 255]]]))


@pytest.mark.parametrize("name", OPTIONS)
def test_totals_do_not_wait_for_the_device_of_the_labels(name: str) -> None:
    # On the meta device, reading a value raises.
    totals = make(OPTIONS[name]).totals(torch.zeros(2, 9, 9, dtype=torch.uint8, device="meta"))
    assert (totals.shape, totals.dtype, totals.device.type) == ((2,), torch.float64, "meta")


def test_class_weights_must_be_one_for_each_class() -> None:
    with pytest.raises(ValueError, match="class_weights has 3 values for 4 classes"):
        make(LossOptions(class_weights=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"auxiliary_weight": -0.1},
        {"class_weights": (1.0, 0.0)},
        {"class_weights": (1.0, math.nan)},
        {"label_smoothing": 1.0},
        {"normalization": "image"},
        {"ohem_threshold": 0.0},
        {"ohem_threshold": 1.1},
        {"ohem_min_kept": 0.0},
        {"dice_weight": -1.0},
        {"lovasz_weight": math.inf},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is .*; it must be"):
        LossOptions(**wrong)
