"""Masks and statistics from logits at stride 8, in memory that does not grow with classes x pixels.

Upsampling is separable, and each output row (column) mixes two rows (columns) of logits. So each axis has one matrix
with two entries per row, which composes three maps of pixel centers. Output pixel u of `out` is mapped to the input
image with half-pixel centers,

    x = clamp((u + 1/2) * size / out - 1/2, 0, size - 1)

x is also a pixel of the padded image (padding is at the bottom and right). It is mapped to the logit grid with the
network's own convention: x * (cells - 1) / (padded - 1) with align_corners, (x + 1/2) * cells / padded - 1/2,
clamped, without. At the input's own size, the result equals F.interpolate to the padded size, cropped.

There are three implementations: on a CPU, the kernel in masks.c, one output pixel at a time; without a C compiler,
torch, strip by strip of output rows; on a GPU, the same strips, compiled by torch into one kernel.

Shape suffixes: N batch, H W rows and columns of the output, K classes, h w rows and columns of the logits, S rows of
one strip, C chunks of rows.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.inference.low_confidence import cell_side, count_by_cell, count_by_column
from models.kernels import compiled

# On a CPU a strip should stay in the last-level cache; on a GPU it should fill the device.
STRIP_BYTES_CPU = 8 * 2**20
STRIP_BYTES_GPU = 512 * 2**20
# Rows are tallied in this many chunks, so that sums do not depend on the number of threads.
CHUNKS, CHUNKS_OF_MANY_CLASSES, MANY_CLASSES = 64, 16, 4096
# Tall images have more chunks, so that the memory of a band with one chunk per thread does not grow with the height.
MAX_CHUNK_ROWS = 64


@dataclass(frozen=True)
class Prediction:
    """Masks of N images with their statistics; pixels are those of the output.

    Confidence is a pixel's largest softmax probability, entropy is that of its softmax in nats, and confidence below
    0.5 is low. `low_count_NRG` has the number of low-confidence pixels in each cell of `cell_side`. Per class,
    `box_NK4` is x_min, y_min, x_max, y_max, half open, zeros if the class is absent; `centroid_NK2` is the mean (x, y)
    of its pixel indices, NaN if it is absent. `class_ids_NHW` is uint8 for up to 256 classes, uint16 beyond;
    `confidence_NHW` is float16, or None unless requested.
    """

    class_ids_NHW: NDArray[np.uint8] | NDArray[np.uint16]
    confidence_NHW: NDArray[np.float16] | None
    mean_confidence_N: NDArray[np.float64]
    mean_entropy_N: NDArray[np.float64]
    low_count_NRG: NDArray[np.int32]
    pixel_count_NK: NDArray[np.int64]
    confidence_sum_NK: NDArray[np.float64]
    box_NK4: NDArray[np.int32]
    centroid_NK2: NDArray[np.float64]

    @property
    def low_confidence_fraction_N(self) -> NDArray[np.float64]:
        """Share of pixels with low confidence."""
        _, height, width = self.class_ids_NHW.shape
        return self.low_count_NRG.sum((1, 2)) / (height * width)

    @property
    def cell_side(self) -> int:
        """Side of the cells in pixels; cells of the last row and column are smaller."""
        _, height, width = self.class_ids_NHW.shape
        return cell_side(height, width)

    def image(self, n: int) -> "Prediction":
        """Return a batch with only image n, as a view."""
        fields: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            values = getattr(self, name)
            fields[name] = None if values is None else values[n : n + 1]
        return Prediction(**fields)


def label_batch(
    logits_NhwK: Tensor,
    size: tuple[int, int],
    padded: tuple[int, int],
    output_size: tuple[int, int],
    align_corners: bool,
    with_confidence_map: bool,
    max_strip_bytes: int | None = None,
) -> Prediction:
    """Return the masks of a batch with their statistics.

    `logits_NhwK` is contiguous float32 on any device, of images of `size` (rows, columns) that were padded to
    `padded`; the masks have `output_size`. `max_strip_bytes` limits the memory of upsampled logits that are evaluated
    in strips, down to one output row; the default depends on the device.
    """
    where = size, padded, output_size, align_corners
    if logits_NhwK.device.type == "cpu":
        return stacked([label(logits_hwK, *where, with_confidence_map, max_strip_bytes) for logits_hwK in logits_NhwK])
    taps_ = _both_taps(logits_NhwK.shape[1:3], *where)
    return Prediction(**label_in_strips(logits_NhwK, *taps_, with_confidence_map, max_strip_bytes))


def label(
    logits_hwK: Tensor,
    size: tuple[int, int],
    padded: tuple[int, int],
    output_size: tuple[int, int],
    align_corners: bool,
    with_confidence_map: bool,
    max_strip_bytes: int | None = None,
) -> dict[str, Any]:
    """Return the fields of Prediction for one image, without their leading axis N; otherwise as `label_batch`."""
    rows, columns = _both_taps(logits_hwK.shape[:2], size, padded, output_size, align_corners)
    kernels = library() if logits_hwK.device.type == "cpu" else None
    if kernels is None:
        return only_image(label_in_strips(logits_hwK[None], rows, columns, with_confidence_map, max_strip_bytes))
    assert logits_hwK.dtype == torch.float32
    assert logits_hwK.is_contiguous()
    output = Output(output_size, logits_hwK.shape[-1], with_confidence_map)
    output.fill(
        kernels.label_logits,
        logits_hwK.data_ptr(),
        logits_hwK.shape[1],
        ctypes.byref(rows.struct()),
        ctypes.byref(columns.struct()),
    )
    return output.fields()


class TapsStruct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("low", "high", "weight")]


@dataclass(frozen=True)
class Taps:
    """1-D interpolation matrix, given by the two entries of each row: 1 - weight at `low`, weight at `high`."""

    low: NDArray[np.int32]
    high: NDArray[np.int32]
    weight: NDArray[np.float32]

    @classmethod
    def at(cls, cell: NDArray[np.float64], cells: int) -> "Taps":
        """Return the matrix that samples `cells` values at the positions `cell`, clamped to their range."""
        cell = cell.clip(0, cells - 1)
        low = cell.astype(np.int32)
        return cls(low, np.minimum(low + 1, cells - 1, dtype=np.int32), (cell - low).astype(np.float32))

    def __len__(self) -> int:
        return len(self.weight)

    def part(self, rows: slice | NDArray[np.integer]) -> "Taps":
        return Taps(self.low[rows], self.high[rows], self.weight[rows])

    def mirrored(self) -> "Taps":
        return Taps(self.low[::-1].copy(), self.high[::-1].copy(), self.weight[::-1].copy())

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        low, high, weight = (torch.from_numpy(array).to(device) for array in (self.low, self.high, self.weight))
        return low, high, weight

    def struct(self) -> TapsStruct:
        """Return the struct for masks.c, valid as long as this object."""
        return TapsStruct(self.low.ctypes.data, self.high.ctypes.data, self.weight.ctypes.data)


def half_pixel_positions(size: int, output_size: int) -> NDArray[np.float64]:
    """Return the positions of the centers of `output_size` pixels on `size` pixels of the same extent."""
    return ((np.arange(output_size) + 0.5) * size / output_size - 0.5).clip(0, size - 1)


def taps(size: int, padded: int, cells: int, output_size: int, align_corners: bool) -> Taps:
    """Return the matrix (output_size, cells) of the module docstring, for one axis."""
    return Taps.at(cell_positions(half_pixel_positions(size, output_size), padded, cells, align_corners), cells)


def _both_taps(
    cells: Sequence[int],
    size: tuple[int, int],
    padded: tuple[int, int],
    output_size: tuple[int, int],
    align_corners: bool,
) -> tuple[Taps, Taps]:
    rows, columns = (taps(size[i], padded[i], cells[i], output_size[i], align_corners) for i in (0, 1))
    return rows, columns


def cell_positions(pixel: NDArray[np.float64], padded: int, cells: int, align_corners: bool) -> NDArray[np.float64]:
    """Return the positions of pixels of the network's input on its logits, along one axis."""
    return pixel * (cells - 1) / (padded - 1) if align_corners else (pixel + 0.5) * cells / padded - 0.5


_SIZES = ("height", "width", "classes", "chunk_rows", "next_chunk", "end_chunk", "cell_side")


class _OutputStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in ("ids", "confidence", "entropy", "low", "tallies", "confidences")),
    ]


# Columns of a tally in masks.c.
COUNT, X_SUM, Y_SUM, X_MIN, Y_MIN, X_MAX, Y_MAX = range(7)


class Output:
    """Output of the kernels of masks.c for one image, from which the fields of Prediction are computed."""

    def __init__(self, size: tuple[int, int], num_classes: int, with_confidence_map: bool) -> None:
        height, width = size
        chunk_rows = min(MAX_CHUNK_ROWS, -(-height // CHUNKS))
        if num_classes > MANY_CLASSES:
            chunk_rows = -(-height // CHUNKS_OF_MANY_CLASSES)
        self.chunk_rows, self.num_chunks = chunk_rows, -(-height // chunk_rows)
        self._ids_HW = np.empty(size, np.uint8 if num_classes <= 256 else np.uint16)
        self._confidence_HW = np.empty(size, np.float32) if with_confidence_map else None
        self._entropy_H = np.empty(height)
        self._cell_side = cell_side(height, width)
        self._low_HG = np.empty((height, -(-width // self._cell_side)), np.int32)
        self._tallies_CK7 = np.zeros((self.num_chunks, num_classes, 7), np.int64)
        self._confidences_CK = np.zeros((self.num_chunks, num_classes))
        arrays = (self._ids_HW, self._confidence_HW, self._entropy_H, self._low_HG, self._tallies_CK7)
        pointers = [None if array is None else array.ctypes.data for array in (*arrays, self._confidences_CK)]
        self._struct = _OutputStruct(*size, num_classes, chunk_rows, 0, 0, self._cell_side, *pointers)

    def fill(self, function: Callable[..., int], *arguments: Any, chunks: range | None = None) -> None:
        """Call `function(*arguments, output)` in as many threads as torch has, until all `chunks` are complete."""
        chunks = range(self.num_chunks) if chunks is None else chunks
        self._struct.next_chunk, self._struct.end_chunk = chunks.start, chunks.stop
        arguments = (*arguments, ctypes.byref(self._struct))
        num_helpers = min(torch.get_num_threads(), len(chunks)) - 1
        helpers = [compiled.threads(num_helpers).submit(function, *arguments) for _ in range(num_helpers)]
        failures = [function(*arguments), *(helper.result() for helper in helpers)]
        if any(failures):
            raise MemoryError(
                "labeling: not enough memory for the upsampled rows; use fewer threads or a smaller image."
            )

    def fields(self) -> dict[str, Any]:
        """Return the fields of Prediction, without their leading axis N, after all chunks are filled."""
        tally_K7 = self._tallies_CK7.sum(0)
        count_K = tally_K7[:, COUNT]
        confidence_K = self._confidences_CK.sum(0)
        present_CK = self._tallies_CK7[:, :, COUNT] > 0
        low_K2 = self._tallies_CK7[:, :, [X_MIN, Y_MIN]].min(0, initial=2**62, where=present_CK[..., None])
        box_K4 = np.concatenate([low_K2, self._tallies_CK7[:, :, [X_MAX, Y_MAX]].max(0)], -1)
        box_K4[count_K == 0] = 0
        with np.errstate(invalid="ignore"):
            centroid_K2 = tally_K7[:, [X_SUM, Y_SUM]] / count_K[:, None]
        confidence_HW = self._confidence_HW
        num_pixels = self._ids_HW.size
        return {
            "class_ids_NHW": self._ids_HW,
            "confidence_NHW": None if confidence_HW is None else torch.from_numpy(confidence_HW).half().numpy(),
            "mean_confidence_N": np.float64(confidence_K.sum() / num_pixels),
            "mean_entropy_N": np.float64(self._entropy_H.sum() / num_pixels),
            "low_count_NRG": count_by_cell(self._low_HG, self._cell_side),
            "pixel_count_NK": count_K.copy(),
            "confidence_sum_NK": confidence_K,
            "box_NK4": box_K4.astype(np.int32),
            "centroid_NK2": centroid_K2,
        }


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled masks.c, or None if it cannot be compiled."""
    kernels = compiled.library("masks")
    if kernels is not None:
        kernels.label_logits.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3]
        kernels.label_crops.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return kernels


def label_in_strips(
    logits_NhwK: Tensor, rows: Taps, columns: Taps, with_confidence_map: bool, max_strip_bytes: int | None = None
) -> dict[str, Any]:
    """Return the fields of Prediction, computed by torch."""
    num_images, _, _, num_classes = logits_NhwK.shape
    device = logits_NhwK.device
    default = STRIP_BYTES_CPU if device.type == "cpu" else STRIP_BYTES_GPU
    max_strip_bytes = default if max_strip_bytes is None else max_strip_bytes
    reduce_strip = _reduce_strip if device.type == "cpu" else _compiled_reduce_strip
    output = TorchOutput(num_images, (len(rows), len(columns)), num_classes, device)
    # Two planes of K floats per pixel are alive at a time: both neighbors, then logits and exponentials.
    strip_rows = max(1, max_strip_bytes // (2 * 4 * num_images * len(columns) * num_classes))
    column_taps = columns.tensors(device)
    for start in range(0, len(rows), strip_rows):
        strip = slice(start, start + strip_rows)
        output.put(strip, *reduce_strip(logits_NhwK, rows.part(strip).tensors(device), column_taps))
    return output.fields(with_confidence_map)


class TorchOutput:
    """Counterpart of `Output` for a batch, from strips of torch tensors."""

    def __init__(self, num_images: int, size: tuple[int, int], num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._ids_NHW = torch.empty(num_images, *size, dtype=torch.int32, device=device)
        self._confidence_NHW = torch.empty(num_images, *size, device=device)
        self._entropy_NH = torch.empty(num_images, size[0], dtype=torch.float64, device=device)
        self._cell_side = cell_side(*size)
        columns = -(-size[1] // self._cell_side)
        self._low_NHG = torch.empty(num_images, size[0], columns, dtype=torch.int32, device=device)

    def put(self, strip: slice, ids_NSW: Tensor, confidence_NSW: Tensor, entropy_NSW: Tensor) -> None:
        self._ids_NHW[:, strip], self._confidence_NHW[:, strip] = ids_NSW, confidence_NSW
        self._entropy_NH[:, strip] = entropy_NSW.sum(-1, dtype=torch.float64)
        self._low_NHG[:, strip] = count_by_column(confidence_NSW, self._cell_side)

    def fields(self, with_confidence_map: bool) -> dict[str, NDArray[Any] | None]:
        """Return the fields of Prediction after all strips are put."""
        ids_NHW, confidence_NHW = self._ids_NHW, self._confidence_NHW
        ids_type = torch.uint8 if self._num_classes <= 256 else torch.uint16
        tensors = {
            "class_ids_NHW": ids_NHW.to(ids_type),
            "confidence_NHW": confidence_NHW.half() if with_confidence_map else None,
            "mean_confidence_N": confidence_NHW.mean((1, 2), dtype=torch.float64),
            "mean_entropy_N": self._entropy_NH.sum(1) / ids_NHW[0].numel(),
            **_class_statistics(ids_NHW, confidence_NHW, self._num_classes),
        }
        fields = {name: None if tensor is None else tensor.cpu().numpy() for name, tensor in tensors.items()}
        fields["low_count_NRG"] = np.stack(
            [count_by_cell(low_HG, self._cell_side) for low_HG in self._low_NHG.cpu().numpy()]
        )
        return fields


def only_image(fields: dict[str, NDArray[Any] | None]) -> dict[str, Any]:
    """Return the fields of a batch of one without their leading axis."""
    return {name: None if values is None else values[0] for name, values in fields.items()}


TapTensors = tuple[Tensor, Tensor, Tensor]


def mix(x: Tensor, taps: TapTensors, dim: int) -> Tensor:
    """Interpolate `x` along `dim`, in float32."""
    low, high, weight = taps
    weight = weight.view([-1 if axis == dim else 1 for axis in range(x.dim())])
    return x.index_select(dim, low).float().lerp_(x.index_select(dim, high).float(), weight)


def _reduce_strip(logits_NhwK: Tensor, rows: TapTensors, columns: TapTensors) -> tuple[Tensor, Tensor, Tensor]:
    """Return class ids, their probabilities and the entropies of a strip of output rows, each (N, S, W)."""
    return _reduce_classes(mix(mix(logits_NhwK, rows, dim=1), columns, dim=2))


def _reduce_classes(logits_NSWK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce logits to class ids, their probabilities and the entropies. Overwrites the logits."""
    top_NSW, ids_NSW = logits_NSWK.max(-1)
    logits_NSWK -= top_NSW[..., None]
    exponentials_NSWK = logits_NSWK.exp()
    total_NSW = exponentials_NSWK.sum(-1)
    mean_logit_NSW = exponentials_NSWK.mul_(logits_NSWK).sum(-1) / total_NSW
    return ids_NSW, total_NSW.reciprocal(), total_NSW.log() - mean_logit_NSW


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_reduce_strip, dynamic=True)


def _compiled_reduce_strip(logits_NhwK: Tensor, rows: TapTensors, columns: TapTensors) -> tuple[Tensor, Tensor, Tensor]:
    """Run `_reduce_strip` as one compiled kernel, or uncompiled if torch cannot compile it."""
    global _can_compile
    if _can_compile:
        try:
            return _compiled()(logits_NhwK, rows, columns)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError) as error:
            _can_compile = False
            warnings.warn(
                f"labeling: torch.compile failed, so masks take longer: {error} Install triton and a C compiler.",
                RuntimeWarning,
                stacklevel=2,
            )
    return _reduce_strip(logits_NhwK, rows, columns)


_can_compile = True


def _class_statistics(ids_NHW: Tensor, confidence_NHW: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Return the per-class fields of Prediction, computed from histograms of rows and columns."""
    ids_NWH, one = ids_NHW.transpose(1, 2), torch.ones((), dtype=torch.int64, device=ids_NHW.device)
    rows_NHK = histogram(ids_NHW, one.expand(ids_NHW.shape), num_classes)
    columns_NWK = histogram(ids_NWH, one.expand(ids_NWH.shape), num_classes)
    count_NK = rows_NHK.sum(1)
    x_min_NK, x_max_NK, x_mean_NK = extent(columns_NWK, count_NK)
    y_min_NK, y_max_NK, y_mean_NK = extent(rows_NHK, count_NK)
    return {
        "pixel_count_NK": count_NK,
        "confidence_sum_NK": histogram(ids_NHW, confidence_NHW.double(), num_classes).sum(1),
        "box_NK4": torch.stack([x_min_NK, y_min_NK, x_max_NK, y_max_NK], -1).int(),
        "centroid_NK2": torch.stack([x_mean_NK, y_mean_NK], -1),
    }


def histogram(ids_NLM: Tensor, weights_NLM: Tensor, num_classes: int) -> Tensor:
    """Return the sum of weights by image, line L and class, (N, L, K); unlike bincount, without synchronization."""
    num_images, lines, _ = ids_NLM.shape
    offsets_NL1 = torch.arange(num_images * lines, device=ids_NLM.device).mul(num_classes).view(num_images, lines, 1)
    sums = torch.zeros(num_images * lines * num_classes, dtype=weights_NLM.dtype, device=ids_NLM.device)
    sums.scatter_add_(0, (ids_NLM + offsets_NL1).reshape(-1), weights_NLM.reshape(-1))
    return sums.view(num_images, lines, num_classes)


def extent(histogram_NLK: Tensor, count_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each class's first index, last index + 1 and mean index along one axis of length L."""
    length = histogram_NLK.shape[1]
    occupied_NLK = (histogram_NLK > 0).byte()
    present_NK = count_NK > 0
    first_NK = occupied_NLK.argmax(1) * present_NK
    end_NK = (length - occupied_NLK.flip(1).argmax(1)) * present_NK
    indices_L = torch.arange(length, dtype=torch.float64, device=histogram_NLK.device)
    return first_NK, end_NK, (indices_L @ histogram_NLK.double()) / count_NK


def stacked(masks: Sequence[dict[str, Any]]) -> Prediction:
    """Combine the fields of images to the Prediction of a batch."""
    fields: dict[str, Any] = {}
    for name, first in masks[0].items():
        if len(masks) == 1 and first is not None:
            fields[name] = np.asarray(first)[None]  # a view, since a mask may take gigabytes
        else:
            fields[name] = None if first is None else np.stack([mask[name] for mask in masks])
    return Prediction(**fields)
