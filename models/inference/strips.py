"""Running convolutions over an image strip by strip of rows, each row computed once.

A 3x3 convolution needs rows from above and below. Each keeps the few rows that it still needs and hands on what it
has finished, so that no layer's whole output is ever held. The result is that of the whole image.

Shape suffixes: N batch, C channels, S rows of a strip, W columns.
"""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from models.kernels.convolution import Convolution


class RowBuffer:
    """A queue of rows of one feature map, kept as the strips (N, C, rows, W) that they came in."""

    def __init__(self) -> None:
        self._strips_NCSW: deque[Tensor] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, strip_NCSW: Tensor) -> None:
        self._strips_NCSW.append(strip_NCSW)
        self._length += strip_NCSW.shape[2]

    def take(self, rows: int, dropped: int | None = None) -> Tensor:
        """Return the first `rows` rows; drop as many, or `dropped`."""
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
    """Yield the rows that a layer's next output rows need, zeros above and below included, and how many those are.

    The layer's window is `extent` rows high, its output at most `max_rows` at a time.
    """
    waiting = RowBuffer()
    zeros_NCSW: Tensor | None = None

    def ready(complete: bool) -> Iterator[tuple[Tensor, int]]:
        while True:
            rows = (len(waiting) - extent) // stride + 1
            if not complete:
                # A stride beyond the window drops rows that must have come.
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
        del strip_NCSW  # and so below: what a suspended generator holds, nobody can free
        yield from ready(complete=False)
    if zeros_NCSW is not None:
        waiting.put(zeros_NCSW)
    yield from ready(complete=True)


def convolved(
    strips_NCSW: Iterator[Tensor], convolution: Convolution, max_rows: int, shortcut: RowBuffer | None = None
) -> Iterator[Tensor]:
    """Yield the convolution's output in strips. `shortcut` holds the rows to be added by the time they are needed."""
    extent = convolution.dilation * (convolution.kernel_size - 1) + 1
    geometry = extent, convolution.stride, convolution.padding, max_rows
    for window_NCSW, rows in row_windows(strips_NCSW, *geometry):
        y_NCSW = convolution(window_NCSW, None if shortcut is None else shortcut.take(rows), pad_rows=False)
        del window_NCSW
        yield y_NCSW
        del y_NCSW
