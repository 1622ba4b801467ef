"""Training losses of upsampled logits: cross-entropy and its variants, Dice and Lovász-softmax.

Each loss is a sum over images, divided by totals of the global batch that are known in advance. However the batch is
split over processes and micro-batches, the shares add up to the same loss and the same gradient.

Shape suffixes: N batch, K classes, H W rows and columns of the labels, h w those of the logits, P labeled pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.training.cross_entropy import upsampled_cross_entropy


@dataclass(frozen=True)
class LossOptions:
    """Options of the loss; the default is the paper's mean cross-entropy over the labeled pixels, on both heads.

    `class_weights`, one per class, and `label_smoothing` are those of torch's cross_entropy. With `ohem_threshold`
    (online hard example mining), only pixels whose true class has a probability below the threshold count, or the
    hardest share `ohem_min_kept` of the image if that is more; cross-entropy is then the mean over the kept pixels of
    an image, averaged over labeled images. With the normalization "all", cross-entropy is always the sum over the
    pixels that count, divided by all pixels of the batch, ignored ones too, as in MMSegmentation. `dice_weight` and
    `lovasz_weight` add `dice_loss` and `lovasz_loss` of the main head, also averaged over labeled images. Pixels whose
    label is `ignore_index` are not labeled.

    Raises ValueError, with the name of the field, if a field is out of range.
    """

    auxiliary_weight: float = 0.4
    normalization: Literal["labeled", "all"] = "labeled"
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    ohem_threshold: float | None = None
    ohem_min_kept: float = 0.0625
    dice_weight: float = 0.0
    lovasz_weight: float = 0.0
    ignore_index: int = 255

    def __post_init__(self) -> None:
        for name in ("auxiliary_weight", "dice_weight", "lovasz_weight"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self._require("normalization", self.normalization in ("labeled", "all"), "labeled or all")
        self._require("class_weights", all(0 < w < math.inf for w in self.class_weights), "positive numbers")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1")
        self._require(
            "ohem_threshold", self.ohem_threshold is None or 0 < self.ohem_threshold <= 1, "above 0 and at most 1"
        )
        self._require("ohem_min_kept", 0 < self.ohem_min_kept <= 1, "above 0 and at most 1")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"LossOptions: {name} is {getattr(self, name)!r}; it must be {allowed}.")


class Objective:
    """Loss of the logits of one head, as this process's share of the loss of the global batch.

    `align_corners` applies to the upsampling.

    Raises ValueError if the number of class weights is neither 0 nor the number of classes.
    """

    def __init__(self, options: LossOptions, num_classes: int, align_corners: bool) -> None:
        if options.class_weights and len(options.class_weights) != num_classes:
            raise ValueError(
                f"LossOptions: class_weights has {len(options.class_weights)} values for {num_classes} classes; give "
                "one value per class, in the order of the class ids."
            )
        self.options = options
        self.num_classes = num_classes
        self.ignore_index = options.ignore_index
        self.align_corners = align_corners
        self._weights_K = torch.tensor(options.class_weights, dtype=torch.float64)
        self._averages_images = options.ohem_threshold is not None and options.normalization == "labeled"
        self._is_plain = not options.class_weights and options.label_smoothing == 0 and options.ohem_threshold is None

    def check(self, labels_NHW: Tensor) -> None:
        """Raise ValueError for labels that are neither a class nor the ignore index. Waits for the labels' device."""
        # At least 32 bits, since a number of classes or an ignore index may not fit the type of the labels.
        ids_NHW = labels_NHW.to(torch.promote_types(labels_NHW.dtype, torch.int32))
        wrong_NHW = (ids_NHW != self.ignore_index) & ((ids_NHW < 0) | (ids_NHW >= self.num_classes))
        if wrong_NHW.any():
            raise ValueError(
                f"Labels: {ids_NHW[wrong_NHW].unique().tolist()[:10]} are neither one of {self.num_classes} classes "
                f"nor the ignore_index {self.ignore_index}; map them to a class or to the ignore_index."
            )

    def totals(self, labels_NHW: Tensor) -> Tensor:
        """Return the divisors of the losses, (2,) float64 on the device of the labels, without waiting for it.

        They are the number of labeled pixels, weighted by class, or of all pixels, depending on the normalization, and
        the number of images with labeled pixels. Sum them over all processes and micro-batches. The labels are those
        that `check` accepts.
        """
        labels_NHW = labels_NHW.long()
        labelled_NHW = labels_NHW != self.ignore_index
        if self.options.normalization == "all":
            pixels = torch.full((), labels_NHW.numel(), dtype=torch.float64, device=labels_NHW.device)
        elif self.options.class_weights:
            weights_K = self._weights_K.to(labels_NHW.device, non_blocking=True)
            pixels = (weights_K[labels_NHW.clamp(0, self.num_classes - 1)] * labelled_NHW).sum()
        else:
            pixels = labelled_NHW.sum().double()
        return torch.stack([pixels, labelled_NHW.flatten(1).any(1).sum().double()])

    def main(self, logits_NKhw: Tensor, labels_NHW: Tensor, totals: Tensor) -> Tensor:
        """Return the main head's loss, a scalar of at least float32; `totals` are those of the global batch."""
        loss = self.cross_entropy(logits_NKhw, labels_NHW, totals)
        if self.options.dice_weight or self.options.lovasz_weight:
            regions = _ImageByImage.apply(_widened(logits_NKhw), labels_NHW, self._region_loss)
            loss = loss + regions * _share(totals[1], regions)
        return loss

    def cross_entropy(self, logits_NKhw: Tensor, labels_NHW: Tensor, totals: Tensor) -> Tensor:
        """Return only the cross-entropy, with class weights, smoothing and hard examples; the auxiliary head's loss."""
        if self._is_plain:
            # The kernel never stores the upsampled logits.
            loss = upsampled_cross_entropy(logits_NKhw, labels_NHW, self.ignore_index, self.align_corners)
        else:
            loss = _ImageByImage.apply(_widened(logits_NKhw), labels_NHW, self._image_cross_entropy)
        return loss * _share(totals[1 if self._averages_images else 0], loss)

    def _image_cross_entropy(self, logits_Khw: Tensor, labels_HW: Tensor) -> Tensor:
        """Return the sum over labeled or kept pixels, or the mean over the kept pixels if images are averaged."""
        options = self.options
        logits_PK, labels_P = self._labelled(logits_Khw, labels_HW)
        weight_K = self._weights_K.to(logits_PK) if options.class_weights else None
        if options.ohem_threshold is None:
            return F.cross_entropy(
                logits_PK, labels_P, weight_K, reduction="sum", label_smoothing=options.label_smoothing
            )
        if not len(labels_P):
            return logits_PK.sum()
        kept_P = hard_pixels(logits_PK.detach(), labels_P, options.ohem_threshold, options.ohem_min_kept)
        return F.cross_entropy(
            logits_PK[kept_P],
            labels_P[kept_P],
            weight_K,
            reduction="mean" if self._averages_images else "sum",
            label_smoothing=options.label_smoothing,
        )

    def _region_loss(self, logits_Khw: Tensor, labels_HW: Tensor) -> Tensor:
        logits_PK, labels_P = self._labelled(logits_Khw, labels_HW)
        if not len(labels_P):
            return logits_PK.sum()
        probabilities_PK = logits_PK.softmax(1)
        loss = logits_PK.new_zeros(())
        if self.options.dice_weight:
            loss = loss + self.options.dice_weight * dice_loss(probabilities_PK, labels_P)
        if self.options.lovasz_weight:
            loss = loss + self.options.lovasz_weight * lovasz_loss(probabilities_PK, labels_P)
        return loss

    def _labelled(self, logits_Khw: Tensor, labels_HW: Tensor) -> tuple[Tensor, Tensor]:
        logits_1KHW = F.interpolate(
            logits_Khw[None], size=labels_HW.shape, mode="bilinear", align_corners=self.align_corners
        )
        labels_P = labels_HW.flatten().long()
        labelled_P = labels_P != self.ignore_index
        return logits_1KHW[0].flatten(1).T[labelled_P], labels_P[labelled_P]


def hard_pixels(logits_PK: Tensor, labels_P: Tensor, threshold: float, min_kept: float) -> Tensor:
    """Select the pixels of an image to learn from (online hard example mining); at least one, (P,) bool.

    These are the pixels whose true class has a probability below `threshold`, and at least the share `min_kept` of all
    pixels (rounded up) where it is lowest. Equally hard pixels are kept or dropped together.
    """
    own_P = -F.cross_entropy(logits_PK, labels_P, reduction="none")
    fewest = math.ceil(min_kept * len(labels_P))
    hardest_P = own_P.topk(fewest, largest=False).values
    return (own_P < math.log(threshold)) | (own_P <= hardest_P[-1])


def dice_loss(probabilities_PK: Tensor, labels_P: Tensor) -> Tensor:
    """Return the mean over present classes of 1 - 2 |X and Y| / (|X| + |Y|) for probabilities X and labels Y.

    Source: Milletari et al. 2016, with sums instead of sums of squares.
    """
    counts_K = torch.bincount(labels_P, minlength=probabilities_PK.shape[1])
    own_P = probabilities_PK.gather(1, labels_P[:, None])[:, 0]
    overlaps_K = torch.zeros_like(probabilities_PK[0]).index_add(0, labels_P, own_P)
    dice_K = 2 * overlaps_K / (probabilities_PK.sum(0) + counts_K)
    return (1 - dice_K[counts_K > 0]).mean()


def lovasz_loss(probabilities_PK: Tensor, labels_P: Tensor) -> Tensor:
    """Return the Lovász-softmax loss: the mean over present classes of the Lovász extension of the Jaccard loss.

    Source: Berman et al. 2018, equation 9 and algorithm 1. The slope of the extension is computed in closed form: as a
    difference of neighboring Jaccard losses, it would keep few digits of float32 in large images.
    """
    losses = []
    for class_id in labels_P.unique().tolist():
        is_class_P = labels_P == class_id
        errors_P = (is_class_P.to(probabilities_PK.dtype) - probabilities_PK[:, class_id]).abs()
        errors_P, order_P = errors_P.sort(descending=True)
        is_class_P = is_class_P[order_P]
        size = is_class_P.sum()
        # Intersection and union if all pixels so far are wrong. A missed pixel leaves the intersection and a false one
        # joins the union, so the loss grows by 1 / union, or by intersection / (union before * union now).
        intersection_P = size - is_class_P.cumsum(0)
        union_P = (size + (~is_class_P).cumsum(0)).to(errors_P.dtype)
        grown_P = intersection_P / (union_P * (union_P - 1).clamp(min=1))
        losses.append(errors_P @ torch.where(is_class_P, 1 / union_P, grown_P))
    return torch.stack(losses).mean()


class _ImageByImage(torch.autograd.Function):
    """Sum over images of `loss(logits_Khw, labels_HW)`.

    The gradient is computed image by image in the forward pass, so only one image's upsampled logits exist at a time.
    """

    @staticmethod
    def forward(ctx: Any, logits_NKhw: Tensor, labels_NHW: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        total, gradients_Khw = logits_NKhw.new_zeros(()), []
        for logits_Khw, labels_HW in zip(logits_NKhw, labels_NHW, strict=True):
            leaf_Khw = logits_Khw.detach().requires_grad_()
            with torch.enable_grad():
                value = loss(leaf_Khw, labels_HW)
            total += value.detach()
            gradients_Khw += torch.autograd.grad(value, leaf_Khw)
        ctx.save_for_backward(torch.stack(gradients_Khw))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradients_NKhw,) = ctx.saved_tensors
        return gradients_NKhw * grad, None, None


def _widened(logits_NKhw: Tensor) -> Tensor:
    return logits_NKhw.to(torch.promote_types(logits_NKhw.dtype, torch.float32))


def _share(total: Tensor, loss: Tensor) -> Tensor:
    """Return 1 / total, or 0 for a batch without labeled pixels, which has no loss."""
    return torch.where(total > 0, 1 / total, 0).to(loss)
