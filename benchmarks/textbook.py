"""PSPNet as it is usually written, on the weights of our model: the baseline of the benchmarks.

Shape suffixes: N batch, C channels, H W rows and columns of the image, h w those at stride 8, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.pspnet import PSPNet
from models.pyramid import PyramidHead


def head(head: PyramidHead, features_NChw: Tensor) -> Tensor:
    """Apply the pyramid by concatenation (paper, figure 3)."""
    size = features_NChw.shape[2:]
    maps = [features_NChw]
    for bin_, level in zip(head.bins, head.levels, strict=True):
        pooled = level(F.adaptive_avg_pool2d(features_NChw, bin_))
        maps.append(F.interpolate(pooled, size, mode="bilinear", align_corners=head.align_corners))
    return head.classifier(head.dropout(head.relu(head.bn(head.conv(torch.cat(maps, 1))))))


def logits(model: PSPNet, images_N3HW: Tensor) -> Tensor:
    """Return logits (N, K, h, w) at stride 8."""
    return head(model.head, model.backbone(images_N3HW)[1])


def training_logits(model: PSPNet, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return main and auxiliary logits, (N, K, h, w) each."""
    assert model.auxiliary is not None
    res4_NChw, res5_NChw = model.backbone(images_N3HW)
    return head(model.head, res5_NChw), head(model.auxiliary, res4_NChw)


def upsampled(logits_NKhw: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(logits_NKhw, size, mode="bilinear", align_corners=align_corners)


def labels(model: PSPNet, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return class ids and confidence, (N, H, W) each."""
    size = images_N3HW.shape[2], images_N3HW.shape[3]
    full_NKHW = upsampled(logits(model, images_N3HW), size, model.architecture.align_corners)
    confidence_NHW, ids_NHW = full_NKHW.softmax(1).max(1)
    return ids_NHW, confidence_NHW


def training_step(model: PSPNet, optimizer: torch.optim.Optimizer, images_N3HW: Tensor, labels_NHW: Tensor) -> None:
    """Run forward, main + 0.4 auxiliary cross-entropy, backward, update."""
    align_corners = model.architecture.align_corners
    size = labels_NHW.shape[1], labels_NHW.shape[2]
    main, auxiliary = training_logits(model, images_N3HW)
    loss = F.cross_entropy(upsampled(main, size, align_corners), labels_NHW)
    loss = loss + 0.4 * F.cross_entropy(upsampled(auxiliary, size, align_corners), labels_NHW)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
