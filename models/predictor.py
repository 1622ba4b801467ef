"""From uint8 images to masks and statistics, in memory that does not grow with classes x pixels.

The logits, at stride 8, are upsampled, normalised and reduced strip by strip of output rows. Upsampling is
separable, and each output row (column) mixes two rows (columns) of logits: one matrix with two entries per
row for either axis, which composes three maps of pixel centres. Output pixel u of `out` goes to the input
image with half-pixel centres,

    x = clamp((u + 1/2) * size / out - 1/2, 0, size - 1)

x is a pixel of the padded image too (padding is at the bottom and right), and from there to the logit grid
with the network's own convention: x * (cells - 1) / (padded - 1) with align_corners, (x + 1/2) * cells /
padded - 1/2, clamped, without. At the input's own size that is F.interpolate to the padded size, cropped.

Shape suffixes: N batch, H W rows and columns of the output, K classes, h w rows and columns of the logits, S
rows of one strip. Images are at rest: (N, height, width, 3), uint8, RGB.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch_norm import fold_batch_norm
from models.pspnet import MIN_SIZE, PSPNet

Precision = Literal["float32", "bfloat16", "auto"]

# On a CPU a strip should stay in the last-level cache; on a GPU it should fill the device.
STRIP_BYTES_CPU = 8 * 2**20
STRIP_BYTES_GPU = 512 * 2**20
LOW_CONFIDENCE = 0.5


@dataclass(frozen=True)
class Prediction:
    """The masks of N images and what is known about them; pixels are those of the output.

    Confidence is a pixel's largest softmax probability, entropy that of its softmax in nats, low confidence
    below 0.5. Per class: `box_NK4` is x_min, y_min, x_max, y_max, half open, zeros where the class is absent;
    `centroid_NK2` the mean (x, y) of its pixels' indices, NaN where it is absent. `class_ids_NHW` is uint8 up
    to 256 classes, uint16 beyond; `confidence_NHW` is float16, None unless asked for.
    """

    class_ids_NHW: NDArray[np.uint8] | NDArray[np.uint16]
    confidence_NHW: NDArray[np.float16] | None
    mean_confidence_N: NDArray[np.float64]
    mean_entropy_N: NDArray[np.float64]
    low_confidence_fraction_N: NDArray[np.float64]
    pixel_count_NK: NDArray[np.int64]
    confidence_sum_NK: NDArray[np.float64]
    box_NK4: NDArray[np.int32]
    centroid_NK2: NDArray[np.float64]


class Predictor:
    """A PSPNet made ready for inference: its own copy, without auxiliary head and BatchNorm, channels last.

    `mean` and `std` are of RGB in units of 0 to 255. `precision` "auto" is bfloat16 where the device computes
    in it natively, else float32; upsampling and statistics are float32 always. `max_strip_bytes` bounds the
    memory of the upsampled logits, down to one output row; by default it suits the device.
    """

    def __init__(
        self,
        model: PSPNet,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        max_strip_bytes: int | None = None,
    ) -> None:
        if precision not in ("float32", "bfloat16", "auto"):
            raise ValueError(f"Predictor: unknown precision {precision!r}; use float32, bfloat16 or auto.")
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError(f"Predictor: mean {mean}, std {std} must be three numbers each, std above zero.")
        self.device = torch.device(device)
        native = precision == "auto" and has_native_bfloat16(self.device)
        self.dtype = torch.bfloat16 if native or precision == "bfloat16" else torch.float32
        default_strip = STRIP_BYTES_CPU if self.device.type == "cpu" else STRIP_BYTES_GPU
        self.max_strip_bytes = default_strip if max_strip_bytes is None else max_strip_bytes
        self.architecture = model.architecture
        self.mean_3 = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self.std_3 = torch.tensor(std, dtype=torch.float32, device=self.device)

        model = copy.deepcopy(model).eval().requires_grad_(False)
        model.auxiliary = None
        model = fold_batch_norm(model).to(self.device, self.dtype)  # type: ignore[assignment]
        self.model = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(
        self,
        images_NHWC: Tensor | NDArray[np.uint8],
        output_size: tuple[int, int] | None = None,
        with_confidence_map: bool = False,
    ) -> Prediction:
        """Label every pixel of a batch of RGB images of one size.

        `images_NHWC` is (N, height, width, 3) uint8; the masks have `output_size` (rows, columns), by default
        the images' own. Raises ValueError for images of another shape or type, or an empty output.
        """
        images_NHWC = _checked_images(images_NHWC)
        size = images_NHWC.shape[1], images_NHWC.shape[2]
        output_size = size if output_size is None else output_size
        if min(output_size) < 1:
            raise ValueError(f"Predictor: output_size {output_size} must be at least one row and one column.")

        padded = padded_size(size, self.architecture.align_corners)
        logits_NhwK = self._logits(images_NHWC, padded)
        align_corners = self.architecture.align_corners
        rows, columns = (
            _taps(size[i], padded[i], logits_NhwK.shape[1 + i], output_size[i], align_corners).to(self.device)
            for i in (0, 1)
        )
        masks = [self._label(logits_hwK, rows, columns, with_confidence_map) for logits_hwK in logits_NhwK]
        stacked: dict[str, Any] = {name: _stack([mask[name] for mask in masks]) for name in masks[0]}
        return Prediction(**stacked)

    def _logits(self, images_NHWC: Tensor, padded: tuple[int, int]) -> Tensor:
        num_images, height, width, _ = images_NHWC.shape
        # The padding is zero after normalisation, which is the mean colour.
        inputs_NHWC = torch.zeros(num_images, *padded, 3, dtype=self.dtype, device=self.device)
        inputs_NHWC[:, :height, :width] = (images_NHWC.to(self.device).float() - self.mean_3) / self.std_3
        logits_NKhw = self.model(inputs_NHWC.permute(0, 3, 1, 2))
        return logits_NKhw.permute(0, 2, 3, 1).float().contiguous()

    def _label(
        self,
        logits_hwK: Tensor,
        rows: "_Taps",
        columns: "_Taps",
        with_confidence_map: bool,
    ) -> dict[str, Any]:
        """Return the fields of Prediction for one image."""
        height, width, num_classes = len(rows), len(columns), logits_hwK.shape[-1]
        ids_HW = torch.empty(height, width, dtype=torch.int32, device=self.device)
        confidence_HW = torch.empty(height, width, device=self.device)
        entropy_H = torch.empty(height, dtype=torch.float64, device=self.device)

        # Two planes of K floats per pixel are alive at a time: both neighbours, then logits and exponentials.
        strip_rows = max(1, self.max_strip_bytes // (2 * 4 * width * num_classes))
        for start in range(0, height, strip_rows):
            strip = slice(start, start + strip_rows)
            logits_SWK = columns.mix(rows.part(strip).mix(logits_hwK, dim=0), dim=1)
            ids_HW[strip], confidence_HW[strip], entropy_SW = _reduce_classes(logits_SWK)
            entropy_H[strip] = entropy_SW.sum(1, dtype=torch.float64)

        return {
            "class_ids_NHW": ids_HW.cpu().numpy().astype(np.uint8 if num_classes <= 256 else np.uint16),
            "confidence_NHW": confidence_HW.half().cpu().numpy() if with_confidence_map else None,
            "mean_confidence_N": _numpy(confidence_HW.mean(dtype=torch.float64)),
            "mean_entropy_N": _numpy(entropy_H.sum() / (height * width)),
            "low_confidence_fraction_N": _numpy((confidence_HW < LOW_CONFIDENCE).double().mean()),
            **_class_statistics(ids_HW, confidence_HW, num_classes),
        }


def padded_size(size: tuple[int, int], align_corners: bool) -> tuple[int, int]:
    """Return the smallest (rows, columns) of 64 or more that cover `size`, with logits 8 pixels apart.

    With align_corners these are 8n + 1, where the corners of n + 1 cells fall on pixels; without it 8n.
    """
    extra = 1 if align_corners else 0
    height, width = (max(MIN_SIZE + extra, -(-(length - extra) // 8) * 8 + extra) for length in size)
    return height, width


def has_native_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this, and mkldnn's says yes to AVX-512 without the instructions.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, question, None) for question in questions]
    return device.type == "cpu" and any(check is not None and check() for check in checks)


@dataclass(frozen=True)
class _Taps:
    """A 1-D interpolation matrix by its two entries per row: 1 - weight at `low`, weight at `high`."""

    low: Tensor
    high: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.weight)

    def to(self, device: torch.device) -> "_Taps":
        return _Taps(self.low.to(device), self.high.to(device), self.weight.to(device))

    def part(self, rows: slice) -> "_Taps":
        return _Taps(self.low[rows], self.high[rows], self.weight[rows])

    def mix(self, x: Tensor, dim: int) -> Tensor:
        weight = self.weight.view([-1 if axis == dim else 1 for axis in range(x.dim())])
        return x.index_select(dim, self.low).lerp_(x.index_select(dim, self.high), weight)


def _taps(size: int, padded: int, cells: int, output_size: int, align_corners: bool) -> _Taps:
    """Return the matrix (output_size, cells) of the module docstring, for one axis."""
    x = (torch.arange(output_size, dtype=torch.float64) + 0.5) * size / output_size - 0.5
    x = x.clamp(0, size - 1)
    cell = x * (cells - 1) / (padded - 1) if align_corners else (x + 0.5) * cells / padded - 0.5
    cell = cell.clamp(0, cells - 1)
    low = cell.long()
    return _Taps(low, (low + 1).clamp(max=cells - 1), (cell - low).float())


def _reduce_classes(logits_SWK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the class ids, their probabilities and the entropies, each (S, W). Overwrites the logits."""
    top_SW, ids_SW = logits_SWK.max(-1)
    logits_SWK -= top_SW[..., None]
    exponentials_SWK = logits_SWK.exp()
    total_SW = exponentials_SWK.sum(-1)
    mean_logit_SW = exponentials_SWK.mul_(logits_SWK).sum(-1) / total_SW
    return ids_SW, total_SW.reciprocal(), total_SW.log() - mean_logit_SW


def _class_statistics(ids_HW: Tensor, confidence_HW: Tensor, num_classes: int) -> dict[str, NDArray[Any]]:
    """Return the per-class fields of Prediction for one image, from histograms of its rows and columns."""
    height, width = ids_HW.shape
    offsets_H1, offsets_1W = (
        torch.arange(length, device=ids_HW.device).mul(num_classes).view(shape)
        for length, shape in ((height, (-1, 1)), (width, (1, -1)))
    )
    rows_HK = torch.bincount((ids_HW + offsets_H1).view(-1), minlength=height * num_classes).view(height, -1)
    columns_WK = torch.bincount((ids_HW + offsets_1W).view(-1), minlength=width * num_classes).view(width, -1)
    count_K = rows_HK.sum(0)
    weights = confidence_HW.view(-1).double()
    confidence_K = torch.bincount(ids_HW.view(-1), weights, minlength=num_classes)
    (x_min_K, x_max_K, x_mean_K), (y_min_K, y_max_K, y_mean_K) = (
        _extent(columns_WK, count_K),
        _extent(rows_HK, count_K),
    )
    return {
        "pixel_count_NK": count_K.cpu().numpy(),
        "confidence_sum_NK": confidence_K.cpu().numpy(),
        "box_NK4": torch.stack([x_min_K, y_min_K, x_max_K, y_max_K], -1).int().cpu().numpy(),
        "centroid_NK2": torch.stack([x_mean_K, y_mean_K], -1).cpu().numpy(),
    }


def _extent(histogram_LK: Tensor, count_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each class's first index, last index + 1 and mean index along one axis of length L."""
    length = len(histogram_LK)
    occupied_LK = (histogram_LK > 0).byte()
    present_K = count_K > 0
    first_K = occupied_LK.argmax(0) * present_K
    end_K = (length - occupied_LK.flip(0).argmax(0)) * present_K
    indices_L = torch.arange(length, dtype=torch.float64, device=histogram_LK.device)
    return first_K, end_K, (indices_L @ histogram_LK.double()) / count_K


def _checked_images(images_NHWC: Tensor | NDArray[np.uint8]) -> Tensor:
    shape, dtype = tuple(images_NHWC.shape), str(images_NHWC.dtype).removeprefix("torch.")
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or dtype != "uint8":
        raise ValueError(
            f"Predictor expects uint8 RGB images of shape (N, height, width, 3), not {dtype} {shape}; "
            "add the batch axis, drop alpha, and leave pixels in 0 to 255."
        )
    # A copy, since torch warns of the read-only arrays that Arrow and Ray hand out.
    return images_NHWC if isinstance(images_NHWC, Tensor) else torch.from_numpy(np.array(images_NHWC))


def _stack(arrays: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    return None if arrays[0] is None else np.stack([array for array in arrays if array is not None])


def _numpy(scalar: Tensor) -> NDArray[np.float64]:
    return scalar.double().cpu().numpy()
