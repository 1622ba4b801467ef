"""Accumulators that make a Prediction of class ids, confidences and entropies, band by band of output rows.

They have one interface, `LabelStatistics`, and differ in who computes a band and where its pixels are stored:

- `KernelStatistics`: one image, from threads of the kernels in masks.c, which tally each chunk of rows by themselves.
- `BatchStatistics`: a batch, from strips of torch tensors. All pixels stay on the device and are reduced at the end, so
  that the sums do not depend on the strips and a GPU never waits for a transfer.
- `StripStatistics`: one image of any height, from strips of torch tensors. Pixels go to host memory; the device holds
  the current strip, and counts by row and by column.

Shape suffixes: N batch, H W rows and columns of the output, K classes, S rows of one strip, C chunks of rows,
G columns of cells (low_confidence.py).
"""

import ctypes
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.inference.low_confidence import cell_side, count_by_cell, count_by_column, count_valid_by_column
from models.inference.prediction import Prediction
from models.inference.preprocessing import ValidMaps
from models.kernels import compiled

# Rows are tallied in this many chunks, so that sums do not depend on the number of threads.
CHUNKS, CHUNKS_OF_MANY_CLASSES, MANY_CLASSES = 64, 16, 4096
# Tall images have more chunks, so that the memory of a band with one chunk per thread does not grow with the height.
MAX_CHUNK_ROWS = 64
HOST = torch.device("cpu")

ValidRows = Callable[[slice], NDArray[np.bool_] | None]
"""Function that returns for a strip of output rows which pixels count, (N, S, W); None: all of them."""


def rows_of(valid: ValidMaps, size: tuple[int, int]) -> ValidRows | None:
    """Return the function for images whose valid pixels are known, (H, W) each; None: all are valid."""
    if all(valid_HW is None for valid_HW in valid):
        return None
    valid_NHW = np.stack([np.ones(size, np.bool_) if valid_HW is None else valid_HW for valid_HW in valid])
    return lambda strip: valid_NHW[:, strip]


class LabelStatistics(ABC):
    """Class ids of N images with their statistics, complete when all rows have been added.

    Subclasses allocate the pixels, and reduce them to the fields of Prediction that have none. Pixels that `valid`
    excludes are in no statistic; None: all count.
    """

    _ids_NHW: Tensor
    _confidence_NHW: Tensor | None

    def __init__(
        self,
        num_images: int,
        size: tuple[int, int],
        num_classes: int,
        with_confidence_map: bool,
        device: torch.device,
        valid: ValidRows | None = None,
    ) -> None:
        height, width = size
        self._num_classes = num_classes
        self._valid = valid
        self._with_confidence_map = with_confidence_map
        self._id_type = torch.uint8 if num_classes <= 256 else torch.uint16
        self._cell_side = cell_side(height, width)
        cell_columns = -(-width // self._cell_side)
        self._low_NHG = torch.empty(num_images, height, cell_columns, dtype=torch.int32, device=device)
        all_of_a_row_11G = count_valid_by_column(np.ones((1, 1, width), np.bool_), self._cell_side)
        self._valid_NHG = np.repeat(np.repeat(all_of_a_row_11G, height, 1), num_images, 0)

    def prediction(self) -> Prediction:
        """Return the Prediction after all rows have been added."""
        confidence_NHW = self._confidence_NHW if self._with_confidence_map else None
        # A GPU computes all fields before the first transfer, which waits for it.
        fields: dict[str, Any] = {
            "class_ids_NHW": self._ids_NHW.to(self._id_type),
            "confidence_NHW": None if confidence_NHW is None else confidence_NHW.half(),
            **self._totals(),
        }
        arrays = {n: field.cpu().numpy() if isinstance(field, Tensor) else field for n, field in fields.items()}
        return Prediction(
            **arrays,
            valid_count_NRG=count_by_cell(self._valid_NHG, self._cell_side),
            low_count_NRG=count_by_cell(self._low_NHG.cpu().numpy(), self._cell_side),
        )

    def _valid_in(self, strip: slice) -> NDArray[np.bool_] | None:
        """Count the valid pixels of a strip of rows, and return them, (N, S, W); None if all are valid."""
        valid_NSW = None if self._valid is None else self._valid(strip)
        if valid_NSW is not None:
            self._valid_NHG[:, strip] = count_valid_by_column(valid_NSW, self._cell_side)
        return valid_NSW

    @abstractmethod
    def _totals(self) -> Mapping[str, Tensor | NDArray[Any]]:
        """Return the means by image and the fields by class of Prediction."""


def _on_host(size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor (1, H, W), allocated by numpy, which asks the system for huge pages."""
    return torch.from_numpy(np.empty((1, *size), torch.empty(0, dtype=dtype).numpy().dtype))


_SIZES = ("height", "width", "classes", "chunk_rows", "next_chunk", "end_chunk", "cell_side", "valid_row")
_ARRAYS = ("valid", "ids", "confidence", "entropy", "low", "tallies", "confidences")


class _OutputStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    ]


# Columns of a tally in masks.c.
COUNT, X_SUM, Y_SUM, X_MIN, Y_MIN, X_MAX, Y_MAX = range(7)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled masks.c, or None if it cannot be compiled."""
    kernels = compiled.library("masks")
    if kernels is not None:
        kernels.label_logits.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3]
        kernels.label_crops.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return kernels


class KernelStatistics(LabelStatistics):
    """Statistics of one image, which the kernels of masks.c fill chunk by chunk of rows."""

    def __init__(
        self, size: tuple[int, int], num_classes: int, with_confidence_map: bool, valid: ValidRows | None = None
    ) -> None:
        super().__init__(1, size, num_classes, with_confidence_map, HOST, valid)
        height, _ = size
        chunk_rows = min(MAX_CHUNK_ROWS, -(-height // CHUNKS))
        if num_classes > MANY_CLASSES:
            chunk_rows = -(-height // CHUNKS_OF_MANY_CLASSES)
        self.chunk_rows, self.num_chunks = chunk_rows, -(-height // chunk_rows)
        self._ids_NHW = _on_host(size, self._id_type)
        self._confidence_NHW = _on_host(size, torch.float32) if with_confidence_map else None
        self._entropy_H = np.empty(height)
        self._tallies_CK7 = np.zeros((self.num_chunks, num_classes, 7), np.int64)
        self._confidences_CK = np.zeros((self.num_chunks, num_classes))
        self._struct = _OutputStruct(
            *(*size, num_classes, chunk_rows, 0, 0, self._cell_side, 0),
            None,
            self._ids_NHW.data_ptr(),
            None if self._confidence_NHW is None else self._confidence_NHW.data_ptr(),
            self._entropy_H.ctypes.data,
            self._low_NHG.data_ptr(),
            self._tallies_CK7.ctypes.data,
            self._confidences_CK.ctypes.data,
        )

    def fill(self, function: Callable[..., int], *arguments: Any, chunks: range | None = None) -> None:
        """Call `function(*arguments, output)` in as many threads as torch has, until all `chunks` are complete."""
        chunks = range(self.num_chunks) if chunks is None else chunks
        self._struct.next_chunk, self._struct.end_chunk = chunks.start, chunks.stop
        rows = slice(chunks.start * self.chunk_rows, chunks.stop * self.chunk_rows)
        valid_1SW = self._valid_in(rows)
        valid_1SW = None if valid_1SW is None else np.ascontiguousarray(valid_1SW)  # referenced during the calls
        self._struct.valid_row = rows.start
        self._struct.valid = None if valid_1SW is None else valid_1SW.ctypes.data
        arguments = (*arguments, ctypes.byref(self._struct))
        num_helpers = min(torch.get_num_threads(), len(chunks)) - 1
        helpers = [compiled.threads(num_helpers).submit(function, *arguments) for _ in range(num_helpers)]
        failures = [function(*arguments), *(helper.result() for helper in helpers)]
        if any(failures):
            raise MemoryError(
                "labeling: not enough memory for the upsampled rows; use fewer threads or a smaller image."
            )

    def _totals(self) -> dict[str, NDArray[Any]]:
        tally_K7 = self._tallies_CK7.sum(0)
        count_K = tally_K7[:, COUNT]
        confidence_K = self._confidences_CK.sum(0)
        present_CK = self._tallies_CK7[:, :, COUNT] > 0
        low_K2 = self._tallies_CK7[:, :, [X_MIN, Y_MIN]].min(0, initial=2**62, where=present_CK[..., None])
        box_K4 = np.concatenate([low_K2, self._tallies_CK7[:, :, [X_MAX, Y_MAX]].max(0)], -1)
        box_K4[count_K == 0] = 0
        num_valid_N = count_K.sum(keepdims=True)
        with np.errstate(invalid="ignore"):
            centroid_K2 = tally_K7[:, [X_SUM, Y_SUM]] / count_K[:, None]
            mean_confidence_N = confidence_K.sum(keepdims=True) / num_valid_N
            mean_entropy_N = self._entropy_H.sum(keepdims=True) / num_valid_N
        return {
            "mean_confidence_N": mean_confidence_N,
            "mean_entropy_N": mean_entropy_N,
            "pixel_count_NK": count_K.copy()[None],
            "confidence_sum_NK": confidence_K[None],
            "box_NK4": box_K4.astype(np.int32)[None],
            "centroid_NK2": centroid_K2[None],
        }


class TorchStatistics(LabelStatistics):
    """Statistics that are filled strip by strip of torch tensors."""

    def put(self, strip: slice, ids_NSW: Tensor, confidence_NSW: Tensor, entropy_NSW: Tensor) -> None:
        """Add a strip of class ids, their probabilities and the entropies."""
        valid_NSW = self._valid_in(strip)
        counted_NSW = None if valid_NSW is None else torch.from_numpy(valid_NSW).to(ids_NSW.device)
        if counted_NSW is not None:
            confidence_NSW = confidence_NSW.where(counted_NSW, 1.0)  # which is not low
            entropy_NSW = entropy_NSW.where(counted_NSW, 0.0)
        self._tally(strip, ids_NSW, confidence_NSW, entropy_NSW, counted_NSW)
        # Last, since a GPU's transfers wait for all before.
        _store(ids_NSW, self._ids_NHW[:, strip])
        if self._confidence_NHW is not None:
            _store(confidence_NSW, self._confidence_NHW[:, strip])
        _store(count_by_column(confidence_NSW, self._cell_side), self._low_NHG[:, strip])

    @abstractmethod
    def _tally(
        self, strip: slice, ids_NSW: Tensor, confidence_NSW: Tensor, entropy_NSW: Tensor, counted_NSW: Tensor | None
    ) -> None:
        """Add a strip to the sums; `counted_NSW` is False for pixels that are not valid."""

    def _class_totals(self, rows_NHK: Tensor, columns_NWK: Tensor, confidence_NK: Tensor) -> dict[str, Tensor]:
        """Return the fields by class, from their pixels in each row and column."""
        count_NK = rows_NHK.sum(1)
        x_min_NK, x_max_NK, x_mean_NK = extent(columns_NWK, count_NK)
        y_min_NK, y_max_NK, y_mean_NK = extent(rows_NHK, count_NK)
        return {
            "pixel_count_NK": count_NK,
            "confidence_sum_NK": confidence_NK,
            "box_NK4": torch.stack([x_min_NK, y_min_NK, x_max_NK, y_max_NK], -1).int(),
            "centroid_NK2": torch.stack([x_mean_NK, y_mean_NK], -1),
        }


class BatchStatistics(TorchStatistics):
    """Statistics of a batch whose pixels stay on the device; sums do not depend on the strips."""

    _confidence_NHW: Tensor

    def __init__(
        self,
        num_images: int,
        size: tuple[int, int],
        num_classes: int,
        with_confidence_map: bool,
        device: torch.device,
        valid: ValidRows | None = None,
    ) -> None:
        super().__init__(num_images, size, num_classes, with_confidence_map, device, valid)
        self._ids_NHW = torch.empty(num_images, *size, dtype=torch.int32, device=device)
        self._confidence_NHW = torch.empty(num_images, *size, device=device)
        self._entropy_NH = torch.empty(num_images, size[0], dtype=torch.float64, device=device)
        self._counted_NHW = None if valid is None else torch.ones(num_images, *size, dtype=torch.bool, device=device)

    def _tally(
        self, strip: slice, ids_NSW: Tensor, confidence_NSW: Tensor, entropy_NSW: Tensor, counted_NSW: Tensor | None
    ) -> None:
        self._entropy_NH[:, strip] = entropy_NSW.sum(-1, dtype=torch.float64)
        if self._counted_NHW is not None and counted_NSW is not None:
            self._counted_NHW[:, strip] = counted_NSW

    def _totals(self) -> dict[str, Tensor]:
        ids_NHW = self._ids_NHW
        weights_NHW = weights(self._counted_NHW, ids_NHW, torch.int64)
        confidence_NHW = self._confidence_NHW.double() * weights_NHW
        totals = self._class_totals(
            histogram(ids_NHW, weights_NHW, self._num_classes),
            histogram(ids_NHW.mT, weights_NHW.mT, self._num_classes),
            histogram(ids_NHW, confidence_NHW, self._num_classes).sum(1),
        )
        num_valid_N = totals["pixel_count_NK"].sum(1)
        return {
            "mean_confidence_N": confidence_NHW.sum((1, 2)) / num_valid_N,
            "mean_entropy_N": self._entropy_NH.sum(1) / num_valid_N,
            **totals,
        }


class StripStatistics(TorchStatistics):
    """Statistics of one image of any height, N = 1, with its pixels in host memory."""

    def __init__(
        self,
        size: tuple[int, int],
        num_classes: int,
        with_confidence_map: bool,
        device: torch.device,
        valid: ValidRows | None = None,
    ) -> None:
        super().__init__(1, size, num_classes, with_confidence_map, HOST, valid)
        height, width = size
        self._ids_NHW = _on_host(size, self._id_type)
        self._confidence_NHW = _on_host(size, torch.float16) if with_confidence_map else None
        self._rows_1HK = torch.zeros(1, height, num_classes, dtype=torch.int32, device=device)
        self._columns_1WK = torch.zeros(1, width, num_classes, dtype=torch.int32, device=device)
        self._confidence_K = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self._entropy = torch.zeros((), dtype=torch.float64, device=device)

    def _tally(
        self, strip: slice, ids_NSW: Tensor, confidence_NSW: Tensor, entropy_NSW: Tensor, counted_NSW: Tensor | None
    ) -> None:
        weights_NSW = weights(counted_NSW, ids_NSW, torch.int32)
        confidence_NSW = confidence_NSW.double() * weights_NSW
        self._rows_1HK[:, strip] = histogram(ids_NSW, weights_NSW, self._num_classes)
        self._columns_1WK += histogram(ids_NSW.mT, weights_NSW.mT, self._num_classes)
        self._confidence_K += histogram(ids_NSW, confidence_NSW, self._num_classes).sum((0, 1))
        self._entropy += entropy_NSW.sum(dtype=torch.float64)

    def _totals(self) -> dict[str, Tensor]:
        totals = self._class_totals(self._rows_1HK, self._columns_1WK, self._confidence_K[None])
        num_valid_N = totals["pixel_count_NK"].sum(1)
        return {
            "mean_confidence_N": self._confidence_K.sum()[None] / num_valid_N,
            "mean_entropy_N": self._entropy[None] / num_valid_N,
            **totals,
        }


def weights(counted_NLM: Tensor | None, ids_NLM: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 for pixels that count and 0 for others, (N, L, M); None: all count."""
    if counted_NLM is None:
        return torch.ones((), dtype=dtype, device=ids_NLM.device).expand_as(ids_NLM)
    return counted_NLM.to(dtype)


def _store(values: Tensor, target: Tensor) -> None:
    """Copy values to a tensor of another type, perhaps on another device, to which only the target's bytes go."""
    target.copy_(values if values.device == target.device else values.to(target.dtype))


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
