"""Small training set in the memory of a device, augmented there: one batched affine warp, jitter, blur.

For data that fits: CamVid is 240 MB. The random changes are those of pipeline/train/augmentation.py. Nothing but the
training step runs between two batches.

Shape suffixes: N batch, H W rows and columns of an image, h w those of a crop.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
KINDS = ("images", "annotations")
BLUR_SIGMA = 1.1  # the value that OpenCV derives for 5 x 5 pixels


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W), uint8 RGB, and labels (N, H, W), uint8, on one device, sorted by name."""

    images_N3HW: Tensor
    labels_NHW: Tensor
    names: list[str]


def load_split(root: Path, split: str, num_classes: int, ignore_index: int, device: torch.device) -> Split:
    """Read ROOT/images/SPLIT and ROOT/annotations/SPLIT, matched by name without extension.

    Raises: ValueError if a file has no counterpart, another size, or an id that is not a class; the message names it.
    """
    images, labels = ({path.stem: path for path in sorted((root / kind / split).glob("[!.]*"))} for kind in KINDS)
    if not images or images.keys() != labels.keys():
        lonely = sorted(images.keys() ^ labels.keys())[:5]
        raise ValueError(
            f"{root}: images/{split} has {len(images)} files, annotations/{split} has {len(labels)}; each image needs "
            f"an annotation of the same name{': ' + ', '.join(lonely) if lonely else ''}"
        )
    with ThreadPoolExecutor() as threads:
        images_HW3 = list(threads.map(lambda path: np.array(Image.open(path).convert("RGB")), images.values()))
        labels_HW = list(threads.map(lambda path: np.array(Image.open(path)), labels.values()))
    for name, image_HW3, label_HW in zip(images, images_HW3, labels_HW, strict=True):
        _check(labels[name], image_HW3, label_HW, images_HW3[0].shape, num_classes, ignore_index)
    return Split(
        torch.from_numpy(np.stack(images_HW3)).permute(0, 3, 1, 2).contiguous().to(device),
        torch.from_numpy(np.stack(labels_HW).astype(np.uint8)).to(device),
        list(images),
    )


def _check(
    path: Path,
    image_HW3: NDArray[np.uint8],
    label_HW: NDArray[np.integer],
    shape: tuple[int, ...],
    num_classes: int,
    ignore_index: int,
) -> None:
    if image_HW3.shape != shape or label_HW.shape != shape[:2]:
        raise ValueError(
            f"{path}: the annotation is {label_HW.shape}, its image {image_HW3.shape}, the first image {shape}; "
            "all must have the same size"
        )
    wrong = [int(i) for i in np.unique(label_HW) if not 0 <= i < num_classes and i != ignore_index]
    if wrong:
        raise ValueError(
            f"{path}: label ids {wrong[:5]} are neither below {num_classes} nor the ignore index {ignore_index}"
        )


def median_frequency_weights(labels_NHW: Tensor, num_classes: int, exponent: float) -> list[float]:
    """Return class weights: (median frequency / frequency) ** exponent (Eigen and Fergus 2015, section 6.3.2).

    The frequency of a class is its share of the pixels of the images in which it occurs. Absent classes get weight 1.
    """
    counts_NK = torch.stack([(labels_NHW == k).sum((1, 2)) for k in range(num_classes)], 1).double().cpu()
    present_NK = counts_NK > 0
    frequency_K = counts_NK.sum(0) / (present_NK.sum(0).clamp(min=1) * labels_NHW[0].numel())
    occurs_K = frequency_K > 0
    weights_K = torch.ones(num_classes, dtype=torch.float64)
    weights_K[occurs_K] = (frequency_K[occurs_K].median() / frequency_K[occurs_K]) ** exponent
    return weights_K.tolist()


@dataclass(frozen=True)
class Augment:
    """Random changes of each image; sizes in pixels, rotation in degrees in both directions, chances from 0 to 1."""

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    rotation: float = 10.0
    mirror: float = 0.5
    blur: float = 0.0
    jitter: float = 0.0  # largest relative change of brightness, contrast and saturation
    padding: Literal["mean", "reflect"] = "mean"


def training_batches(
    split: Split, augment: Augment, fill: tuple[float, float, float], ignore_index: int, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of crops without end: images (N, h, w, 3) and labels (N, h, w), uint8, on the device of the split.

    Each pass visits every image once; a batch may span two passes.
    """
    rng = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(len(split.names))])
        picked, order = order[:batch_size], order[batch_size:]
        yield augmented(split, picked, augment, fill, ignore_index, rng)


def augmented(
    split: Split,
    picked: NDArray[np.int64],
    augment: Augment,
    fill: tuple[float, float, float],
    ignore_index: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Return one random crop of each picked image, in the format of `training_batches`."""
    device = split.images_N3HW.device
    indices = _to(device, picked)
    images_N3HW = split.images_N3HW[indices].float()
    labels_N1HW = split.labels_NHW[indices, None].float()
    if augment.jitter > 0:
        factors = rng.uniform(1 - augment.jitter, 1 + augment.jitter, (3, len(picked), 1, 1, 1))
        images_N3HW = jittered(images_N3HW, *_to(device, factors.astype(np.float32)))

    theta_N23 = _to(device, random_theta(augment, (images_N3HW.shape[2], images_N3HW.shape[3]), len(picked), rng))
    grid_Nhw2 = sampling_grid(theta_N23, augment.crop)
    # Shifted so that the zeros that grid_sample pads with become the fill color and the ignore index.
    fill_311 = torch.tensor(fill, device=device).view(3, 1, 1)
    outside = "reflection" if augment.padding == "reflect" else "zeros"
    crops_N3hw = F.grid_sample(images_N3HW - fill_311, grid_Nhw2, "bilinear", outside, align_corners=False) + fill_311
    labels_N1hw = F.grid_sample(labels_N1HW - ignore_index, grid_Nhw2, "nearest", "zeros", align_corners=False)

    if augment.blur > 0:
        chosen = _to(device, rng.random((len(picked), 1, 1, 1)) < augment.blur)
        crops_N3hw = torch.where(chosen, blurred(crops_N3hw), crops_N3hw)
    images_Nhw3 = crops_N3hw.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images_Nhw3, (labels_N1hw[:, 0] + ignore_index).to(torch.uint8)


def random_theta(augment: Augment, size: tuple[int, int], num: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return matrices (N, 2, 3) from crop to image coordinates, both from -1 to 1 between the outer pixel edges.

    Scales, rotates about the center, mirrors, then places a crop uniformly, like `affine` in
    pipeline/train/augmentation.py.
    """
    sides, crop_sides = np.array(size[::-1]), np.array(augment.crop[::-1])  # x, y
    scale = rng.uniform(*augment.scale, num)
    angle = np.radians(rng.uniform(-augment.rotation, augment.rotation, num))
    mirror = np.where(rng.random(num) < augment.mirror, -1.0, 1.0)
    free_N2 = np.maximum(0, sides * scale[:, None] - crop_sides)
    shift_N2 = rng.uniform(-0.5, 0.5, (num, 2)) * free_N2

    cosine, sine = np.cos(angle), np.sin(angle)
    rows = [[mirror * cosine, mirror * -sine], [sine, cosine]]
    inverse_N22 = np.array(rows).transpose(2, 1, 0) / scale[:, None, None]  # the inverse of a rotation is its transpose
    to_image_21, to_crop_12 = 2 / sides[:, None], crop_sides / 2
    linear_N22 = to_image_21 * inverse_N22 * to_crop_12
    moved_N21 = to_image_21 * (inverse_N22 @ shift_N2[..., None])
    return np.concatenate([linear_N22, moved_N21], 2).astype(np.float32)


def sampling_grid(theta_N23: Tensor, crop: tuple[int, int]) -> Tensor:
    """Return positions (N, h, w, 2) for grid_sample. affine_grid would be imprecise: its matrix product uses TF32."""
    height, width = crop
    y_h1, x_1w = (
        ((2 * torch.arange(n, device=theta_N23.device) + 1) / n - 1).view(shape)
        for n, shape in ((height, (-1, 1)), (width, (1, -1)))
    )
    theta_N2311 = theta_N23[..., None, None]
    return torch.stack([t[:, 0] * x_1w + t[:, 1] * y_h1 + t[:, 2] for t in theta_N2311.unbind(1)], 3)


def jittered(images_N3HW: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale the brightness, the contrast about the mean and the saturation of each image by factors (N, 1, 1, 1)."""
    luma_311 = torch.tensor(LUMA, device=images_N3HW.device).view(3, 1, 1)
    images_N3HW = images_N3HW * brightness
    mean_N111 = (images_N3HW * luma_311).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images_N3HW = mean_N111 + (images_N3HW - mean_N111) * contrast
    gray_N1HW = (images_N3HW * luma_311).sum(1, keepdim=True)
    return (gray_N1HW + (images_N3HW - gray_N1HW) * saturation).clamp(0, 255)


def blurred(images_N3HW: Tensor) -> Tensor:
    """Apply a Gaussian blur of 5 x 5 pixels."""
    taps_5 = torch.exp(-(torch.arange(-2.0, 3.0, device=images_N3HW.device) ** 2) / (2 * BLUR_SIGMA**2))
    taps_5 = taps_5 / taps_5.sum()
    padded = F.pad(images_N3HW, (2, 2, 2, 2), mode="reflect")
    across = sum(taps_5[i] * padded[..., i : i + images_N3HW.shape[3]] for i in range(5))
    assert isinstance(across, Tensor)
    down = sum(taps_5[i] * across[..., i : i + images_N3HW.shape[2], :] for i in range(5))
    assert isinstance(down, Tensor)
    return down


def _to(device: torch.device, array: NDArray) -> Tensor:
    """Copy a small array to the device without waiting for its queued work."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
