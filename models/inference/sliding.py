"""Test protocol of the PSPNet paper: sliding crops, mirroring and several scales.

At every scale, the image is resized bilinearly so that its long side is scale * base_size, padded with the mean
color on both sides if it is smaller than the crop, and covered by square crops that overlap by a third. The network
predicts every crop and its mirror image. The softmax of the logits, upsampled to the crop, is averaged over both, over
the crops that cover a pixel and, resized bilinearly to the output, over the scales. The class with the largest
probability wins. Source: Zhao et al. 2017, section 5.1, and the authors' evaluation code, hszhao/semseg.
Without crops, the network predicts each scaled image and its mirror image as a whole; the rest is the same.

A 12-megapixel image has 7 GB of probabilities at 150 classes. They are never stored: only the logits, at stride 8,
of the crops that the current band of output rows needs are kept. A few rows of a scaled image at a time are computed
from them and mixed to rows of the output: on a CPU by the kernel in masks.c, else by torch in strips.
The pixels of a gigapixel image are not stored together either: it is read window by window (`predict_windows`).

Shape suffixes: N batch, H W rows and columns of the output, K classes, h w rows and columns of the logits, S rows
of a strip, R rows of a scaled image that the strip needs, V columns of a scaled image, P Q rows and columns of a crop.
"""

import functools
import math
import operator
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.inference.crop_grid import Axis, CropKey, CropRow, Grid, ScaleStruct, span_of, within
from models.inference.image_source import HeldRows, ImageWindows, WholeImage
from models.inference.interpolation import mix
from models.inference.label_statistics import KernelStatistics, StripStatistics, ValidRows, library, rows_of
from models.inference.malloc import return_large_blocks
from models.inference.prediction import Prediction, concatenate
from models.inference.predictor import Predictor, by_output_size
from models.inference.preprocessing import ValidMaps, checked_images, checked_output_size, checked_valid
from models.pspnet import MIN_SIZE

# On a CPU, each thread has its own crop (parallel.py), or several small ones with as many pixels as one of the paper's.
CPU_BATCH_PIXELS, GPU_BATCH, GPU_BATCH_PIXELS = 473**2, 16, 16 * 473**2
# Logits of whole images are kept up to this size; beyond it, only those of the current band of one image.
LOGITS_BYTES_CPU, LOGITS_BYTES_GPU = 128 * 2**20, 4 * 2**30
STRIP_BYTES_CPU, STRIP_BYTES_GPU = 128 * 2**20, 2 * 2**30


@dataclass(frozen=True)
class Protocol:
    """Values of a test protocol; the defaults are the paper's sizes for ADE20K, at one scale.

    `base_size` is the image's long side at scale 1 in pixels (None: unchanged), `crop` the side of the crops (None:
    one crop, the whole scaled image), and `stride` the step between crops as a share of their side. `short_side`
    replaces `base_size`: it is the image's short side at scale 1, as in MMSegmentation. Results are averaged over
    `scales` and, with `mirror`, over mirror images.

    Raises ValueError, with the name of the field, if a field is out of range.
    """

    base_size: int | None = 512
    crop: int | None = 473
    stride: float = 2 / 3
    mirror: bool = False
    scales: tuple[float, ...] = (1.0,)
    short_side: int | None = None

    def __post_init__(self) -> None:
        self._require("base_size", self.base_size is None or self.base_size >= 1, "at least 1, or None")
        self._require("short_side", self.short_side is None or self.short_side >= 1, "at least 1, or None")
        self._require("crop", self.crop is None or self.crop >= MIN_SIZE, f"at least {MIN_SIZE} pixels, or None")
        self._require("stride", 0 < self.stride <= 1, "a share of the crop, above 0 and up to 1")
        valid = len(self.scales) > 0 and all(0 < scale < math.inf for scale in self.scales)
        self._require("scales", valid, "one or more numbers above 0")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"Protocol: {name} is {getattr(self, name)!r}; it must be {allowed}.")


class SlidingPredictor:
    """Replacement for Predictor that follows a test protocol, with many forward passes per image.

    Up to `max_batch` crops of one size, of all images and scales, go through the network together; the default depends
    on the device.

    Raises ValueError if `max_batch` is below 1.
    """

    def __init__(self, predictor: Predictor, protocol: Protocol = Protocol(), max_batch: int | None = None) -> None:
        _require(max_batch is None or max_batch >= 1, f"max_batch is {max_batch}; it must be at least 1, or None")
        on_cpu = predictor.device.type == "cpu"
        self.predictor = predictor
        self.protocol = protocol
        self.max_batch = max_batch
        self.logits_bytes = LOGITS_BYTES_CPU if on_cpu else LOGITS_BYTES_GPU

    @torch.inference_mode()
    def predict(
        self,
        images_NHWC: Tensor | NDArray[np.uint8],
        output_size: tuple[int, int] | None = None,
        with_confidence_map: bool = False,
        valid: ValidMaps | None = None,
    ) -> Prediction:
        """Label every pixel of a batch of RGB images of one size; arguments are those of `Predictor.predict`.

        Confidence and entropy are those of the averaged probabilities.
        """
        return_large_blocks()
        images_NHWC = checked_images(images_NHWC).to(self.predictor.device)
        output_size = checked_output_size(output_size, images_NHWC)
        size = images_NHWC.shape[1], images_NHWC.shape[2]
        grid = self._grid(size, output_size)
        valid = checked_valid(valid, [output_size] * len(images_NHWC))

        num_classes, device = self.predictor.architecture.num_classes, self.predictor.device
        crops = grid.crops_in(grid.crop_rows_of(range(output_size[0])))
        cells = sum(math.prod(grid.cells_of(key)) for key in crops)
        image_bytes = cells * 4 * num_classes
        fits = image_bytes <= self.logits_bytes
        together = self.logits_bytes // image_bytes if fits else 1
        masks = [
            _new_mask(grid, output_size, num_classes, with_confidence_map, device, rows_of([valid_HW], output_size))
            for valid_HW in valid
        ]
        for start in range(0, len(masks), together):
            group = slice(start, start + together)
            self._label(grid, [*map(WholeImage, images_NHWC[group])], masks[group], in_one_band=fits)
        return concatenate([mask.statistics.prediction() for mask in masks])

    def predict_each(
        self,
        images_NHWC: Tensor | NDArray[np.uint8],
        output_sizes: Sequence[tuple[int, int]],
        valid: ValidMaps | None = None,
    ) -> list[Prediction]:
        """Label images of one size with masks of different sizes, like `Predictor.predict_each`."""
        images_NHWC = checked_images(images_NHWC)
        of_each = checked_valid(valid, output_sizes)
        return by_output_size(
            output_sizes,
            lambda members, size: self.predict(images_NHWC[members], size, valid=[of_each[n] for n in members]),
        )

    @torch.inference_mode()
    def predict_windows(self, image: ImageWindows, valid: ValidRows | None = None) -> Prediction:
        """Label every pixel of one image that is read on demand; return a batch of one, like `predict`.

        Every row of pixels is read once, from the top down. Apart from the mask, memory grows with the width of the
        image but not with its height. The labels are those of `predict`, and bitwise equal with batches of one crop.
        `valid` is called for rows that have been read.

        Raises ValueError if a crop would need the whole image: without crops, or with a base size. Exceptions of `read`
        are passed on.
        """
        protocol = self.protocol
        sliding = protocol.crop is not None and protocol.base_size is None and protocol.short_side is None
        _require(
            sliding,
            "reading an image by window requires crops at its own size; set crop, and base_size and short_side to None",
        )
        return_large_blocks()
        size, device = (image.height, image.width), self.predictor.device
        _require(min(size) >= 1, f"the image has {image.height} rows and {image.width} columns")
        grid = self._grid(size, size)
        mask = _new_mask(grid, size, self.predictor.architecture.num_classes, False, device, valid)
        self._label(grid, [HeldRows(image, device)], [mask], in_one_band=False)
        return mask.statistics.prediction()

    def _grid(self, size: tuple[int, int], output_size: tuple[int, int]) -> Grid:
        protocol, align_corners = self.protocol, self.predictor.architecture.align_corners
        side = max(size) if protocol.short_side is None else min(size)
        scales = []
        for scale in protocol.scales:
            scaled_side = max(1, round(scale * (protocol.short_side or protocol.base_size or side)))
            scaled = [max(1, round(scaled_side * length / side)) for length in size]
            rows, columns = (
                Axis.make(
                    size[i], scaled[i], output_size[i], protocol.crop or scaled[i], protocol.stride, align_corners
                )
                for i in (0, 1)
            )
            scales.append((rows, columns))
        return Grid(scales, 2 if protocol.mirror else 1)

    def _label(
        self, grid: Grid, images: Sequence[WholeImage | HeldRows], masks: "Sequence[_Mask]", in_one_band: bool
    ) -> None:
        """Fill the masks band by band, for all images."""
        num_units, unit_rows = masks[0].num_units, masks[0].unit_rows
        band_units = num_units if in_one_band else torch.get_num_threads()
        bands = [range(start, min(start + band_units, num_units)) for start in range(0, num_units, band_units)]
        rows_of_bands = [grid.crop_rows_of(range(band.start * unit_rows, band.stop * unit_rows)) for band in bands]

        free = self._room(grid, rows_of_bands, len(masks))
        logits: dict[tuple[int, CropKey], Tensor] = {}
        for band, crop_rows, pixels in zip(bands, rows_of_bands, grid.pixels_of(rows_of_bands), strict=True):
            crops = grid.crops_in(crop_rows)
            needed = [(n, key) for n in range(len(masks)) for key in crops]
            for n, key in logits.keys() - set(needed):
                free[grid.cells_of(key)].append(logits.pop((n, key)))
            missing = [key for key in needed if key not in logits]
            for image in images if missing else ():
                image.hold(*pixels)
            for batch in self._batches(grid, missing):
                crops_NPQ3 = torch.stack([self._crop_image(grid, images[n], key) for n, key in batch])
                for (n, key), logits_hwK in zip(batch, self.predictor.logits(crops_NPQ3), strict=True):
                    logits[n, key] = free[grid.cells_of(key)].pop().copy_(logits_hwK)
            for n, mask in enumerate(masks):
                mask.label(band, {key: logits[n, key] for key in crops})

    def _room(
        self, grid: Grid, rows_of_bands: list[list[CropRow]], num_images: int
    ) -> dict[tuple[int, int], list[Tensor]]:
        """Return tensors for the logits of the crops of any band, by their rows and columns of cells."""
        # One allocation per size: many short-lived ones among the network's would fragment memory to twice its size.
        counts = (Counter(map(grid.cells_of, grid.crops_in(crop_rows))) for crop_rows in rows_of_bands)
        most = functools.reduce(operator.or_, counts)
        num_classes, device = self.predictor.architecture.num_classes, self.predictor.device
        return {
            cells: list(torch.empty(num_images * count, *cells, num_classes, device=device))
            for cells, count in most.items()
        }

    def _batches(self, grid: Grid, keys: list[tuple[int, CropKey]]) -> Iterator[list[tuple[int, CropKey]]]:
        """Divide (image, crop) pairs into batches of crops of the same size."""
        by_size = defaultdict(list)
        for n, key in keys:
            by_size[grid.size_of(key)].append((n, key))
        for size, of_size in by_size.items():
            count = self.max_batch or self._default_batch(math.prod(size))
            for first in range(0, len(of_size), count):
                yield of_size[first : first + count]

    def _default_batch(self, crop_pixels: int) -> int:
        if self.predictor.device.type == "cpu":
            return max(torch.get_num_threads() if self.protocol.crop else 1, CPU_BATCH_PIXELS // crop_pixels)
        return GPU_BATCH if self.protocol.crop else max(1, min(GPU_BATCH, GPU_BATCH_PIXELS // crop_pixels))

    def _crop_image(self, grid: Grid, image: WholeImage | HeldRows, key: CropKey) -> Tensor:
        """Return a crop of the scaled image, (P, Q, 3) float32 from 0 to 255."""
        crop_PQ3 = self.predictor.mean_3.expand(*grid.size_of(key), 3).contiguous()
        rows, columns = grid.scales[key.scale]
        window = image.window(rows.source(key.row), columns.source(key.column))
        inside: list[slice] = []
        for dim, (axis, index) in enumerate(((rows, key.row), (columns, key.column))):
            pixels, start = axis.pixels(index), int(axis.starts[index])
            inside.append(slice(pixels.start - start, pixels.stop - start))
            taps = within(axis.image.part(pixels), axis.source(index))
            window = mix(window, taps.tensors(window.device), dim)
        crop_PQ3[inside[0], inside[1]] = window
        return crop_PQ3.flip(1) if key.mirror else crop_PQ3


Logits = Mapping[CropKey, Tensor]


class _KernelMask:
    """Mask of one image, computed by the kernel; a unit is a chunk of its statistics."""

    def __init__(
        self,
        grid: Grid,
        size: tuple[int, int],
        num_classes: int,
        with_confidence_map: bool,
        valid: ValidRows | None,
    ) -> None:
        self._grid = grid
        self.statistics = KernelStatistics(size, num_classes, with_confidence_map, valid)
        self.unit_rows, self.num_units = self.statistics.chunk_rows, self.statistics.num_chunks

    def label(self, units: range, logits: Logits) -> None:
        grid, kernels = self._grid, library()
        assert kernels is not None
        shapes = [(len(rows.starts), len(columns.starts), grid.mirrors) for rows, columns in grid.scales]
        addresses = [np.zeros(shape, np.uintp) for shape in shapes]
        for key, logits_hwK in logits.items():
            addresses[key.scale][key.row, key.column, key.mirror] = logits_hwK.data_ptr()
        structs = (ScaleStruct * len(grid.scales))(
            *(
                ScaleStruct(rows.struct(), columns.struct(), of_scale.ctypes.data)
                for (rows, columns), of_scale in zip(grid.scales, addresses, strict=True)
            )
        )
        self.statistics.fill(kernels.label_crops, structs, len(structs), grid.mirrors, chunks=units)


class _TorchMask:
    """Mask of one image, computed by torch; a unit is a strip of rows."""

    def __init__(
        self,
        grid: Grid,
        size: tuple[int, int],
        num_classes: int,
        with_confidence_map: bool,
        device: torch.device,
        valid: ValidRows | None,
    ) -> None:
        self._grid, self._device = grid, device
        self.statistics = StripStatistics(size, num_classes, with_confidence_map, device, valid)
        strip_bytes = STRIP_BYTES_CPU if device.type == "cpu" else STRIP_BYTES_GPU
        # Four planes: the sum over scales, both neighbors of the term to add, and the rows from which these come.
        self.unit_rows = min(size[0], max(1, strip_bytes // (4 * 4 * size[1] * num_classes)))
        self.num_units = -(-size[0] // self.unit_rows)

    def label(self, units: range, logits: Logits) -> None:
        for unit in units:
            strip = slice(unit * self.unit_rows, (unit + 1) * self.unit_rows)
            probability_SWK = self._at_scale(0, strip, logits)
            for scale in range(1, len(self._grid.scales)):
                probability_SWK += self._at_scale(scale, strip, logits)
            probability_SWK /= len(self._grid.scales)
            top_SW, ids_SW = probability_SWK.max(-1)
            entropy_SW = torch.special.entr(probability_SWK).sum(-1)
            self.statistics.put(strip, ids_SW[None], top_SW[None], entropy_SW[None])

    def _at_scale(self, scale: int, strip: slice, logits: Logits) -> Tensor:
        """Return the probabilities of a strip of the output at one scale, (S, W, K)."""
        rows, columns = self._grid.scales[scale]
        taps = rows.output.part(strip)
        needed = span_of(taps)
        scaled_RVK = self._scaled_rows(scale, needed.start, needed.stop - 1, logits)
        taps = within(taps, needed)
        return mix(mix(scaled_RVK, taps.tensors(self._device), 0), columns.output.tensors(self._device), 1)

    def _scaled_rows(self, scale: int, first: int, last: int, logits: Logits) -> Tensor:
        """Return the averaged probabilities of rows `first` to `last` of a scaled image."""
        grid, (rows, columns) = self._grid, self._grid.scales[scale]
        num_classes = next(iter(logits.values())).shape[-1]
        sum_RVK = torch.zeros(last - first + 1, columns.size, num_classes, device=self._device)
        for key in (key for key in logits if key.scale == scale):
            y, x = int(rows.starts[key.row]), int(columns.starts[key.column])
            top, bottom = max(first, y), min(last + 1, y + len(rows.crop))
            left, right = max(0, x), min(columns.size, x + len(columns.crop))
            across = (columns.crop.mirrored() if key.mirror else columns.crop).part(slice(left - x, right - x))
            if top < bottom:
                crop_RVK = mix(logits[key], rows.crop.part(slice(top - y, bottom - y)).tensors(self._device), 0)
                probability_RVK = mix(crop_RVK, across.tensors(self._device), 1).softmax(-1)
                sum_RVK[top - first : bottom - first, left:right] += probability_RVK
        share_R11, share_V1 = (
            torch.from_numpy(share).to(self._device)
            for share in (rows.share[first : last + 1, None, None] / grid.mirrors, columns.share[:, None])
        )
        return sum_RVK.mul_(share_R11).mul_(share_V1)


_Mask = _KernelMask | _TorchMask


def _new_mask(
    grid: Grid,
    size: tuple[int, int],
    num_classes: int,
    with_confidence_map: bool,
    device: torch.device,
    valid: ValidRows | None,
) -> _Mask:
    if device.type == "cpu" and library() is not None:
        return _KernelMask(grid, size, num_classes, with_confidence_map, valid)
    return _TorchMask(grid, size, num_classes, with_confidence_map, device, valid)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(f"SlidingPredictor: {problem}.")
