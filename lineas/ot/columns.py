"""The exact distance between two samples, unit by unit."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import _core, checks
from ..core.threads import thread_count

# What the core takes: x, sorted y, the permutation of y, weights of x, weights of y; the last three only with weights.
Prepared = tuple[NDArray, NDArray, NDArray | None, NDArray | None, NDArray | None]


def sorted_target(y: NDArray, weighted: bool) -> tuple[NDArray, NDArray | None]:
    """y sorted and, where weights must follow, its permutation."""
    threads = thread_count(work=y.size)
    return _core.sort_columns(y, threads) if weighted else (_core.sort_values(y, threads), None)


def _prepare(
    source: ArrayLike, target: ArrayLike, p: float, source_weights: ArrayLike | None, target_weights: ArrayLike | None
) -> Prepared:
    x, y = checks.samples(source, target)
    checks.power(p)
    x_weights, y_weights = checks.weights(source_weights, target_weights, len(x), len(y))
    return x, *sorted_target(y, x_weights is not None), x_weights, y_weights


def wasserstein_1d(
    source: ArrayLike,
    target: ArrayLike,
    p: float = 2,
    *,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Exact W_p^p between the empirical distributions of every column.

    Parameters
    ----------
    source : array (n, d), and target : array (m, d)
        Samples in rows, units in columns. float32 stays float32, all else becomes float64; sums are float64.
    p : float
        Exponent, at least 1.
    source_weights : array (n,), target_weights : array (m,), optional
        Weights of the samples, scaled to sum to one; equal if not given.

    Returns
    -------
    cost : array (d,) float64
        In units of the data to the power p; not rooted.

    Raises
    ------
    TypeError
        On anything but real numbers.
    ValueError
        On shapes that do not fit, an empty set, NaN or infinity, a negative weight, p < 1.

    Notes
    -----
    O(d (n log^2 n + m log^2 m)). For n != m it is the integral of |F^-1 - G^-1|^p over quantiles, never a subsample.
    Source: Peyre & Cuturi, arXiv 1803.00567, sec. 2.6.

    Examples
    --------
    >>> import lineas
    >>> lineas.ot.wasserstein_1d([[0.0], [1.0]], [[3.0], [2.0]])
    array([4.])
    """
    prepared = _prepare(source, target, p, source_weights, target_weights)
    return _core.wasserstein(*prepared, float(p), thread_count(work=prepared[0].size))


def wasserstein_1d_grad(
    source: ArrayLike,
    target: ArrayLike,
    p: float = 2,
    *,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray]:
    """W_p^p of every column, that of `wasserstein_1d` up to the rounding of sums, and its gradient for the source.

    Returns
    -------
    cost : array (d,) float64
    gradient : array (n, d), float32 for float32 samples, else float64
        Derivative of cost[j] for source[i, j]. Tied samples share the order in which they stand.

    Examples
    --------
    >>> import lineas
    >>> lineas.ot.wasserstein_1d_grad([[0.0], [1.0]], [[3.0], [2.0]])[1]
    array([[-2.],
           [-2.]])
    """
    prepared = _prepare(source, target, p, source_weights, target_weights)
    return _core.wasserstein_grad(*prepared, None, float(p), thread_count(work=prepared[0].size))
