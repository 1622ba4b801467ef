from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.training import cross_entropy
from models.training.cross_entropy import upsampled_cross_entropy
from tests.requirements import C_COMPILER

needs_kernel = C_COMPILER.mark


def by_torch(logits: torch.Tensor, labels: torch.Tensor, align_corners: bool) -> torch.Tensor:
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(full, labels, ignore_index=255, reduction="sum")


def make(num_classes: int, cells: tuple[int, int], size: tuple[int, int], batch: int = 2) -> tuple[Any, Any]:
    torch.manual_seed(0)
    labels = torch.randint(0, num_classes, (batch, *size))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return 3 * torch.randn(batch, num_classes, *cells), labels


@needs_kernel
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("num_classes", "cells", "size"),
    [
        (2, (8, 8), (64, 64)),
        (19, (9, 13), (65, 97)),
        (150, (17, 17), (129, 129)),
        (16, (70, 3), (65, 70)),
        (5, (1, 1), (3, 2)),
    ],
)
def test_the_kernel_is_interpolation_and_cross_entropy(
    num_classes: int, cells: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> None:
    logits, labels = make(num_classes, cells, size)
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    result, expected = (
        upsampled_cross_entropy(logits, labels, 255, align_corners),
        by_torch(exact, labels, align_corners),
    )
    (result / 7).backward()
    (expected / 7).backward()
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=0)
    assert (logits.grad - exact.grad).abs().max() < 1e-6 * exact.grad.abs().max()


@needs_kernel
def test_the_number_of_threads_changes_nothing() -> None:
    logits, labels = make(11, (17, 17), (129, 129))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaf = logits.clone().requires_grad_()
            total = upsampled_cross_entropy(leaf, labels, 255, True)
            total.backward()
            results.append((total, leaf.grad))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_other_precisions_are_torchs() -> None:
    logits, labels = make(7, (9, 9), (65, 65))
    exact = upsampled_cross_entropy(logits.double(), labels, 255, True)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, by_torch(logits.double(), labels, True), rtol=1e-14, atol=0)
    half = upsampled_cross_entropy(logits.bfloat16(), labels, 255, True)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-2, atol=0)


def test_without_a_compiler_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = make(7, (9, 9), (65, 65))
    expected = upsampled_cross_entropy(logits, labels, 255, True)
    monkeypatch.setattr(cross_entropy, "library", lambda: None)
    torch.testing.assert_close(upsampled_cross_entropy(logits, labels, 255, True), expected)


def test_nothing_labelled_is_no_loss() -> None:
    logits, labels = make(7, (9, 9), (65, 65))
    logits.requires_grad_()
    upsampled_cross_entropy(logits, torch.full_like(labels, 255), 255, True).backward()
    assert not logits.grad.any()


def test_a_diverged_network_shows_in_the_loss() -> None:
    logits, labels = make(7, (9, 9), (65, 65))
    logits[0, 3, 4, 4] = torch.nan
    assert upsampled_cross_entropy(logits, labels, 255, True).isnan()


@needs_kernel
def test_a_label_that_is_no_class_is_refused() -> None:
    logits, labels = make(7, (9, 9), (65, 65))
    labels[0, 0, 0] = 9
    with pytest.raises(IndexError, match=r"7 classes nor the ignore_index 255.*9"):
        upsampled_cross_entropy(logits, labels, 255, True)
