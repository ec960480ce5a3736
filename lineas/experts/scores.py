"""How well each unit tells two sets of samples apart (to be replaced by the C kernels)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _checks


def auroc(positive: ArrayLike, negative: ArrayLike) -> NDArray[np.float64]:
    x, y = _checks.samples(positive, negative)
    y = np.sort(y, axis=0)
    below = np.stack([np.searchsorted(y[:, j], x[:, j], "left") for j in range(x.shape[1])], 1)
    upto = np.stack([np.searchsorted(y[:, j], x[:, j], "right") for j in range(x.shape[1])], 1)
    return (below + upto).mean(0) / (2 * len(y))


def average_precision(positive: ArrayLike, negative: ArrayLike) -> NDArray[np.float64]:
    x, y = _checks.samples(positive, negative)
    out = np.empty(x.shape[1])
    for j in range(x.shape[1]):
        a, b = np.sort(x[:, j]), np.sort(y[:, j])
        tp = len(a) - np.searchsorted(a, a, "left")
        fp = len(b) - np.searchsorted(b, a, "left")
        out[j] = (tp / (tp + fp)).mean()
    return out
