"""Convolutions over strips of rows of an image, with each row computed once.

A 3x3 convolution needs rows from above and below. Each convolution keeps the few rows that it still needs and passes
on completed rows, so the whole output of a layer is never stored. The result equals that of the whole image.

Shape suffixes: N batch, C channels, S rows of a strip, W columns.
"""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from models.kernels.convolution import Convolution


class RowBuffer:
    """Queue of rows of one feature map, stored as the strips (N, C, rows, W) in which they arrive."""

    def __init__(self) -> None:
        self._strips_NCSW: deque[Tensor] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, strip_NCSW: Tensor) -> None:
        self._strips_NCSW.append(strip_NCSW)
        self._length += strip_NCSW.shape[2]

    def take(self, rows: int, dropped: int | None = None) -> Tensor:
        """Return the first `rows` rows, and drop the first `dropped` rows (by default, the same ones)."""
        parts_NCSW: list[Tensor] = []
        missing = rows
        for strip_NCSW in self._strips_NCSW:
            parts_NCSW.append(strip_NCSW[:, :, :missing])
            missing -= parts_NCSW[-1].shape[2]
            if not missing:
                break
        self._drop(rows if dropped is None else min(dropped, self._length))
        return torch.cat(parts_NCSW, 2) if len(parts_NCSW) > 1 else parts_NCSW[0]

    def _drop(self, rows: int) -> None:
        self._length -= rows
        while rows:
            strip_NCSW = self._strips_NCSW.popleft()
            if strip_NCSW.shape[2] > rows:
                self._strips_NCSW.appendleft(strip_NCSW[:, :, rows:])
            rows -= min(rows, strip_NCSW.shape[2])


def row_windows(
    strips_NCSW: Iterator[Tensor], extent: int, stride: int, padding: int, max_rows: int
) -> Iterator[tuple[Tensor, int]]:
    """Yield the input rows of a layer's next output rows, including zero padding, and the number of output rows.

    The layer's window is `extent` rows high; at most `max_rows` output rows are computed at a time.
    """
    waiting = RowBuffer()
    zeros_NCSW: Tensor | None = None

    def ready(complete: bool) -> Iterator[tuple[Tensor, int]]:
        while True:
            rows = (len(waiting) - extent) // stride + 1
            if not complete:
                # With a stride beyond the window, the rows to drop must have arrived.
                rows = min(rows, len(waiting) // stride)
            rows = min(rows, max_rows)
            if rows <= 0:
                return
            yield waiting.take((rows - 1) * stride + extent, dropped=rows * stride), rows

    for strip_NCSW in strips_NCSW:
        if padding and zeros_NCSW is None:
            num_images, channels, _, width = strip_NCSW.shape
            zeros_NCSW = strip_NCSW.new_zeros(num_images, padding, width, channels).permute(0, 3, 1, 2)
            waiting.put(zeros_NCSW)
        waiting.put(strip_NCSW)
        del strip_NCSW  # here and below: a suspended generator would keep the memory alive
        yield from ready(complete=False)
    if zeros_NCSW is not None:
        waiting.put(zeros_NCSW)
    yield from ready(complete=True)


def convolved(
    strips_NCSW: Iterator[Tensor], convolution: Convolution, max_rows: int, shortcut: RowBuffer | None = None
) -> Iterator[Tensor]:
    """Yield the output of the convolution in strips. `shortcut` must hold the rows to add when they are needed."""
    extent = convolution.dilation * (convolution.kernel_size - 1) + 1
    geometry = extent, convolution.stride, convolution.padding, max_rows
    for window_NCSW, rows in row_windows(strips_NCSW, *geometry):
        y_NCSW = convolution(window_NCSW, None if shortcut is None else shortcut.take(rows), pad_rows=False)
        del window_NCSW
        yield y_NCSW
        del y_NCSW
