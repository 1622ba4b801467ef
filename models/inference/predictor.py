"""Predictor from uint8 images to masks and statistics, the entry point of inference.

Shape suffixes: N batch, H W rows and columns of the output, K classes, h w rows and columns at stride 8. Images are
(N, height, width, 3), uint8, RGB.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.inference.interpolation import Taps, both_taps
from models.inference.masks import label, label_batch
from models.inference.network import InferenceNetwork, compiled
from models.inference.parallel import map_images_in_parallel
from models.inference.prediction import Prediction, concatenate
from models.inference.preprocessing import (
    NetworkInputs,
    ValidMaps,
    checked_images,
    checked_output_size,
    checked_valid,
    padded_size,
)
from models.kernels.int8 import Ranges
from models.kernels.selection import Precision, maker
from models.pspnet import PSPNet, feature_size

Result = TypeVar("Result")

# Memory limit of the last features of images that are computed together; larger images run alone, in strips of rows.
MAX_FEATURE_BYTES_CPU = 128 * 2**20
# Of a GPU's memory. At its peak, a pass takes two to three times as much, and the graphs of other sizes stay.
MAX_FEATURE_SHARE_GPU = 1 / 16
# Images with fewer pixels share a pass on a CPU, since the fixed cost of each layer would dominate.
PASS_PIXELS_CPU = 40_000


@dataclass(frozen=True)
class Calibration:
    """Result of calibrating a model; the default is that of a model that is not calibrated.

    Logits are divided by `temperature`, which changes confidence and entropy but no labels. `activation_ranges`, which
    int8 needs, are a result of `models.inference.activation_ranges`.

    Raises ValueError for a temperature that is not a finite number above zero.
    """

    temperature: float = 1.0
    activation_ranges: Mapping[str, Ranges] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"Calibration: temperature is {self.temperature}; it must be a finite number above zero.")


class Predictor:
    """PSPNet prepared for inference: folded, packed, without auxiliary head. The model itself does not change.

    `mean` and `std` are of RGB in units of 0 to 255. `precision` "auto" is that of `automatic_precision`; logits,
    upsampling and statistics are always float32. Whatever the size of an image, only the 512-channel map of the head
    is stored as a whole.

    Raises ValueError if the device does not support the precision, if int8 has no activation ranges, or for values of
    `mean` and `std` other than three numbers, std above zero.
    """

    def __init__(
        self,
        model: PSPNet,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        calibration: Calibration = Calibration(),
    ) -> None:
        if precision not in get_args(Precision):
            raise ValueError(
                f"Predictor: unknown precision {precision!r}; use one of {', '.join(get_args(Precision))}."
            )
        if precision == "int8" and not has_int8(torch.device(device)):
            raise ValueError("Predictor: int8 needs a CPU with VNNI instructions; use float32 or auto here.")
        if precision == "float16" and torch.device(device).type == "cpu":
            raise ValueError("Predictor: float16 needs a GPU; use float32 or auto here.")
        if precision == "bfloat16" and not has_bfloat16(torch.device(device)):
            raise ValueError(
                "Predictor: bfloat16 needs a CPU with AVX-512 or AVX-NE-CONVERT instructions; use float32 or auto here."
            )
        if precision == "int8" and calibration.activation_ranges is None:
            raise ValueError(
                "Predictor: int8 needs the activation ranges of sample images; calibrate the checkpoint first "
                "(jobs/calibrate.py), or use bfloat16."
            )
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError(f"Predictor: mean {mean}, std {std} must be three numbers each, std above zero.")
        self.device = torch.device(device)
        self.precision = automatic_precision(self.device) if precision == "auto" else precision
        self.architecture = model.architecture
        self.mean_3 = torch.tensor(mean, dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            make = maker(self.precision, self.device, calibration.activation_ranges)
            self.network = InferenceNetwork(model, torch.tensor(std), make, self.device, calibration.temperature)
        self.max_feature_bytes = max_feature_bytes(self.device)
        self._run: Callable[[Tensor], Tensor] = self.network.__call__
        if self.device.type == "cuda":
            # Fuses the operations between convolutions and replays everything as one CUDA graph.
            self._run = compiled(self.network, mode="reduce-overhead")

    @torch.inference_mode()
    def predict(
        self,
        images_NHWC: Tensor | NDArray[np.uint8],
        output_size: tuple[int, int] | None = None,
        with_confidence_map: bool = False,
        valid: ValidMaps | None = None,
    ) -> Prediction:
        """Label every pixel of a batch of RGB images of one size.

        `images_NHWC` is (N, height, width, 3) uint8; the masks have `output_size` (rows, columns), by default that of
        the images. `valid` has for each image the pixels of its mask that enter the statistics, bool (rows, columns),
        or None for all.

        Raises ValueError for images of another shape or type, an empty output, or valid pixels of another size.
        """
        images_NHWC = checked_images(images_NHWC)
        output_size = checked_output_size(output_size, images_NHWC)
        output_sizes = [output_size] * len(images_NHWC)
        valid = checked_valid(valid, output_sizes)
        if self.device.type == "cpu":
            return concatenate(self._side_by_side(images_NHWC, output_sizes, with_confidence_map, valid))
        size = images_NHWC.shape[1], images_NHWC.shape[2]
        logits_NhwK = self.logits(images_NHWC)
        taps = self._taps(logits_NhwK.shape[1:3], size, output_size)
        return label_batch(logits_NhwK, *taps, with_confidence_map, valid)

    @torch.inference_mode()
    def predict_each(
        self,
        images_NHWC: Tensor | NDArray[np.uint8],
        output_sizes: Sequence[tuple[int, int]],
        valid: ValidMaps | None = None,
    ) -> list[Prediction]:
        """Label images of one size with masks of different sizes as one batch; return a batch of one for each.

        `valid` and errors are those of `predict`.
        """
        images_NHWC = checked_images(images_NHWC)
        checked = [checked_output_size(output_size, images_NHWC) for output_size in output_sizes]
        valid = checked_valid(valid, checked)
        if self.device.type == "cpu":
            return self._side_by_side(images_NHWC, checked, False, valid)
        size = images_NHWC.shape[1], images_NHWC.shape[2]
        logits_NhwK = self.logits(images_NHWC)

        def label_some(members: list[int], output_size: tuple[int, int]) -> Prediction:
            taps = self._taps(logits_NhwK.shape[1:3], size, output_size)
            of_members = [valid[n] for n in members]
            return label_batch(logits_NhwK[members], *taps, False, of_members)

        return by_output_size(checked, label_some)

    def _side_by_side(
        self,
        images_NHWC: Tensor,
        output_sizes: Sequence[tuple[int, int]],
        with_confidence_map: bool,
        valid: ValidMaps,
    ) -> list[Prediction]:
        """Label each image, as a batch of one, on a CPU, where the threads that run the network also make masks."""
        size = images_NHWC.shape[1], images_NHWC.shape[2]

        def label_some(images: slice) -> list[Prediction]:
            logits_NhwK = self._one_pass(images_NHWC[images])
            return [
                label(
                    logits_hwK,
                    *self._taps(logits_NhwK.shape[1:3], size, output_size),
                    with_confidence_map,
                    valid_HW,
                )
                for logits_hwK, output_size, valid_HW in zip(
                    logits_NhwK, output_sizes[images], valid[images], strict=True
                )
            ]

        return [each for some in self._map_passes(label_some, images_NHWC) for each in some]

    def _taps(self, cells: Sequence[int], size: tuple[int, int], output_size: tuple[int, int]) -> tuple[Taps, Taps]:
        """Return the interpolation from logits of `cells` to masks of `output_size`, for images of `size`."""
        align_corners = self.architecture.align_corners
        return both_taps(cells, size, padded_size(size, align_corners), output_size, align_corners)

    @torch.inference_mode()
    def logits_at(
        self,
        image_HW3: NDArray[np.uint8],
        output_size: tuple[int, int],
        rows_P: NDArray[np.integer],
        columns_P: NDArray[np.integer],
    ) -> Tensor:
        """Return the upsampled logits at P pixels of an image's mask, (P, K) float32 on the predictor's device.

        The mask has `output_size`; the pixels are at `rows_P` and `columns_P`.
        """
        image_1HW3 = checked_images(image_HW3[None])
        size, align_corners = (image_1HW3.shape[1], image_1HW3.shape[2]), self.architecture.align_corners
        padded = padded_size(size, align_corners)
        logits_hwK = self.logits(image_1HW3)[0]
        ys, xs = both_taps(logits_hwK.shape[:2], size, padded, output_size, align_corners)
        top_P, bottom_P, down_P = ys.part(rows_P).tensors(self.device)
        left_P, right_P, along_P = xs.part(columns_P).tensors(self.device)
        upper_PK, lower_PK = (
            torch.lerp(logits_hwK[y_P, left_P], logits_hwK[y_P, right_P], along_P[:, None]) for y_P in (top_P, bottom_P)
        )
        return torch.lerp(upper_PK, lower_PK, down_P[:, None])

    @torch.inference_mode()
    def logits(self, images_NHWC: Tensor) -> Tensor:
        """Return the logits of the images at their `padded_size`, (N, h, w, K) float32 on the predictor's device.

        `images_NHWC` is RGB from 0 to 255, uint8 or float32. Padding, at the bottom and right, has the mean color.
        """
        if self.device.type == "cpu":
            logits_NhwK = self._map_passes(lambda images: self._one_pass(images_NHWC[images]), images_NHWC)
        else:
            # A power of two, since compiled batches are padded to one.
            at_once = 1 << max(1, self._at_once(images_NHWC)).bit_length() - 1
            logits_NhwK = [self._one_pass(some) for some in images_NHWC.split(at_once)]
        return torch.cat(logits_NhwK) if len(logits_NhwK) > 1 else logits_NhwK[0]

    def _map_passes(self, function: Callable[[slice], Result], images_NHWC: Tensor) -> list[Result]:
        """Call the function, on a CPU, with each slice of images that go through the network together."""
        num_images, height, width, _ = images_NHWC.shape
        at_once = self._at_once(images_NHWC)
        for_each_thread = -(-num_images // torch.get_num_threads())
        step = max(1, min(PASS_PIXELS_CPU // (height * width), for_each_thread, at_once))
        starts = range(0, num_images, step)
        return map_images_in_parallel(
            lambda n: function(slice(starts[n], starts[n] + step)), len(starts), at_once // step
        )

    def _one_pass(self, images_NHWC: Tensor) -> Tensor:
        padded = padded_size((images_NHWC.shape[1], images_NHWC.shape[2]), self.architecture.align_corners)
        inputs = NetworkInputs(images_NHWC, padded, self.mean_3)
        if not self._at_once(images_NHWC):
            return self.network.streamed(inputs)
        return self._run(inputs.rows(0, padded[0]))

    def _at_once(self, images_NHWC: Tensor) -> int:
        """Return the number of images of this size that fit in memory together; 0 if not even one does."""
        padded = padded_size((images_NHWC.shape[1], images_NHWC.shape[2]), self.architecture.align_corners)
        rows, columns = feature_size(*padded)
        return self.max_feature_bytes // (4 * rows * columns * self.network.num_features)


def by_output_size(
    output_sizes: Sequence[tuple[int, int]], label: Callable[[list[int], tuple[int, int]], Prediction]
) -> list[Prediction]:
    """Return a batch of one for each image; `label` labels the images (indices) that have the same output size."""
    members: dict[tuple[int, int], list[int]] = {}
    for n, output_size in enumerate(output_sizes):
        members.setdefault(output_size, []).append(n)
    found: dict[int, Prediction] = {}
    for output_size, indices in members.items():
        batch = label(indices, output_size)
        found |= {n: batch.image(place) for place, n in enumerate(indices)}
    return [found[n] for n in range(len(output_sizes))]


def max_feature_bytes(device: torch.device) -> int:
    """Return the limit of the last features (float32) of images that go through the network together, in bytes."""
    if device.type != "cuda":
        return MAX_FEATURE_BYTES_CPU
    return int(torch.cuda.get_device_properties(device).total_memory * MAX_FEATURE_SHARE_GPU)


def automatic_precision(device: torch.device) -> Precision:
    """Return bfloat16 if the device supports it natively, else float16 on a GPU (such as a T4) and float32 on a CPU."""
    if has_native_bfloat16(device):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


def has_int8(device: torch.device) -> bool:
    """Return True if the device multiplies 8-bit matrices without overflow: a CPU with VNNI, through oneDNN."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    on_cpu = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return on_cpu and supported is not None and supported()


def has_bfloat16(device: torch.device) -> bool:
    """Return True if the device supports convolutions in bfloat16; oneDNN does not support them on older CPUs."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_native_bfloat16(device: torch.device) -> bool:
    """Return True if the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public API for this, and mkldnn's check accepts AVX-512 without bfloat16 instructions.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, question, None) for question in questions]
    return device.type == "cpu" and any(check is not None and check() for check in checks)
