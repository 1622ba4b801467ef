"""Temperature that calibrates a network's confidences: the least cross-entropy of softmax(logits / T).

The slope of the cross-entropy along 1/T is E[z] - z_label for each pixel, with the expectation over softmax(z / T). It
increases with 1/T, so its sum over pixels crosses zero once, at the best T. Only the slopes at a few fixed temperatures
have to be kept for a pixel, and they can be added over images in any order. Source: Guo et al. 2017, "On Calibration of
Modern Neural Networks", section 4.2.

Shape suffixes: P pixels, K classes, T temperatures.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEMPERATURES: NDArray[np.float64] = 2.0 ** (np.arange(-32, 33) / 8)  # from 1/16 to 16


def slopes(logits_PK: Tensor, labels_P: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the sum over pixels of the slope of the cross-entropy along 1/T at each of TEMPERATURES, (T,).

    `labels_P` are class ids below K.
    """
    labels_P1 = torch.from_numpy(labels_P.astype(np.int64)).to(logits_PK.device)[:, None]
    # Logits relative to the label's: a constant per pixel changes neither softmax nor slope.
    relative_PK = logits_PK.float() - logits_PK.float().gather(1, labels_P1)
    sums = [
        (relative_PK.div(temperature).softmax(1) * relative_PK).sum(dtype=torch.float64)
        for temperature in TEMPERATURES.tolist()
    ]
    return torch.stack(sums).cpu().numpy()


def best_temperature(slopes_T: NDArray[np.float64]) -> float:
    """Return the temperature of least cross-entropy, given the sum of the `slopes` of all pixels.

    The result is limited to TEMPERATURES: without a single wrong pixel, lower would always be better.
    """
    is_past = slopes_T > 0  # 1/T is too large, from the lowest temperature up to the best
    last = int(is_past.sum()) - 1
    if last < 0:
        return float(TEMPERATURES[0])
    if last == len(slopes_T) - 1:
        return float(TEMPERATURES[-1])
    cold, hot = slopes_T[last], slopes_T[last + 1]
    octaves = np.log2(TEMPERATURES[last : last + 2])
    return float(2 ** np.interp(0, [hot, cold], octaves[::-1]))
