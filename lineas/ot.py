"""One-dimensional optimal transport between samples, unit by unit, on NumPy arrays."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .ops import thread_count

__all__ = ["wasserstein_1d", "wasserstein_1d_grad"]


def _real(values: ArrayLike, name: str) -> NDArray:
    given = np.asarray(values)
    if given.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got dtype {given.dtype}")
    return given


def _samples(source: ArrayLike, target: ArrayLike) -> tuple[NDArray, NDArray]:
    x, y = _real(source, "source"), _real(target, "target")
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in x.shape or 0 in y.shape:
        raise ValueError(f"expected source (n, d) and target (m, d), none empty; got {x.shape} and {y.shape}")
    dtype = np.float32 if x.dtype == y.dtype == np.float32 else np.float64
    x, y = np.ascontiguousarray(x, dtype), np.ascontiguousarray(y, dtype)
    for name, values in (("source", x), ("target", y)):
        if (bad := _core.first_nonfinite(values)) >= 0:
            row, column = divmod(bad, values.shape[1])
            raise ValueError(f"{name}: expected finite values, got {values[row, column]} at [{row}, {column}]")
    return x, y


def _weights(weights: ArrayLike | None, count: int, name: str) -> NDArray[np.float64]:
    if weights is None:
        return np.full(count, 1 / count)
    given = _real(weights, name).astype(np.float64)
    if given.shape != (count,):
        raise ValueError(f"{name}: expected shape ({count},), one weight a sample; got {given.shape}")
    if not (np.isfinite(given).all() and (given >= 0).all() and given.max() > 0):
        raise ValueError(f"{name}: expected finite weights, none negative, not all zero; got {given}")
    given /= given.max()  # huge weights must not overflow their sum
    return given / given.sum()


Prepared = tuple[NDArray, NDArray, NDArray | None, NDArray | None, NDArray | None]


def _prepare(
    source: ArrayLike, target: ArrayLike, p: float, source_weights: ArrayLike | None, target_weights: ArrayLike | None
) -> Prepared:
    """What the core takes: x, sorted y, the permutation of y, weights of x, weights of y."""
    x, y = _samples(source, target)
    if not isinstance(p, (int, float, np.number)):
        raise TypeError(f"p: expected a number, got {type(p).__name__}")
    if not 1 <= p < float("inf"):
        raise ValueError(f"p: expected a finite number of at least 1, got {p!r}")
    threads = thread_count(work=y.size)
    if source_weights is None and target_weights is None:
        return x, _core.sort_values(y, threads), None, None, None
    x_weights = _weights(source_weights, len(x), "source_weights")
    return x, *_core.sort_columns(y, threads), x_weights, _weights(target_weights, len(y), "target_weights")


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
    """W_p^p of every column, as `wasserstein_1d`, and its gradient for the source.

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
