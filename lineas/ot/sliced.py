"""Sliced Wasserstein distances: samples in d dimensions, projected on many directions and compared along each.

Public through `lineas.ot`. The C core projects, too: NumPy's BLAS has threads of its own, which go on waiting on the
cores that the other kernels then need, and its bits depend on their number.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import _core, checks
from ..core.threads import thread_count
from .columns import Prepared, sorted_target

BLOCK = 256  # directions at a time: bounds the memory; a constant, so that the bits depend on nothing else


class _Slices(NamedTuple):
    """Two sets of samples, and the directions along which to compare them."""

    x: NDArray
    y: NDArray
    x_weights: NDArray[np.float64] | None
    y_weights: NDArray[np.float64] | None
    p: float
    n_directions: int
    blocks: Iterator[NDArray]  # (d, up to BLOCK) each, `n_directions` in all; can be read once

    def along(self, directions: NDArray) -> Prepared:
        target = sorted_target(_project(self.y, directions, "target"), self.y_weights is not None)
        return _project(self.x, directions, "source"), *target, self.x_weights, self.y_weights

    def cost(self, directions: NDArray) -> NDArray[np.float64]:
        """W_p^p along each."""
        prepared = self.along(directions)
        return _core.wasserstein(*prepared, self.p, thread_count(work=prepared[0].size))

    def cost_and_slope(self, directions: NDArray) -> tuple[NDArray[np.float64], NDArray]:
        """W_p^p along each, and its derivative for the projected source."""
        prepared = self.along(directions)
        return _core.wasserstein_grad(*prepared, None, self.p, thread_count(work=prepared[0].size))


def _slices(
    source: ArrayLike,
    target: ArrayLike,
    p: float,
    n_projections: int,
    seed: int,
    projections: ArrayLike | None,
    source_weights: ArrayLike | None,
    target_weights: ArrayLike | None,
) -> _Slices:
    x, y = checks.samples(source, target)
    p = checks.power(p)
    weights = checks.weights(source_weights, target_weights, len(x), len(y))
    if projections is None:
        if isinstance(n_projections, bool) or not isinstance(n_projections, (int, np.integer)):
            raise TypeError(f"n_projections: expected an integer, got {type(n_projections).__name__}")
        if n_projections < 1:
            raise ValueError(f"n_projections: expected at least 1, got {n_projections}")
        return _Slices(x, y, *weights, p, int(n_projections), _drawn(x.shape[1], n_projections, seed, x.dtype))
    with np.errstate(over="ignore"):  # found out below
        given = checks.real(projections, "projections").astype(x.dtype, copy=False)
    if given.ndim != 2 or len(given) != x.shape[1] or not given.shape[1]:
        raise ValueError(f"projections: expected ({x.shape[1]}, k), a direction a column, not empty; got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"projections: expected finite values of {x.dtype}")
    count = given.shape[1]
    return _Slices(x, y, *weights, p, count, (given[:, k : k + BLOCK] for k in range(0, count, BLOCK)))


def _drawn(d: int, count: int, seed: int, dtype: np.dtype) -> Iterator[NDArray]:
    """Directions uniform on the sphere, drawn one after another: those of 4096 begin with those of 128."""
    draw = np.random.default_rng(seed)
    for start in range(0, count, BLOCK):
        rows = draw.normal(size=(min(BLOCK, count - start), d))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        yield rows.astype(dtype, copy=False).T


def _product(a: NDArray, b: NDArray) -> NDArray:
    return _core.product(np.ascontiguousarray(a), np.ascontiguousarray(b), thread_count(work=a.size + b.size))


def _project(samples: NDArray, directions: NDArray, name: str) -> NDArray:
    projected = _product(samples, directions)
    if _core.first_nonfinite(projected) >= 0:
        raise ValueError(f"{name}: expected values whose projections fit into {samples.dtype}; scale both sides down")
    return projected


def _root(cost: float, p: float) -> tuple[float, float]:
    """cost^(1/p) and its derivative; 0 for the latter where the cost is 0, and the root has none."""
    if cost == float("inf"):
        raise ValueError(f"expected distances whose power of {p:g} fits into float64; scale both sides down")
    value = cost ** (1 / p)
    return value, value / (p * cost) if cost > 0 else 0.0


def sliced_wasserstein(
    source: ArrayLike,
    target: ArrayLike,
    p: float = 2,
    *,
    n_projections: int = 128,
    seed: int = 0,
    projections: ArrayLike | None = None,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> float:
    """Sliced Wasserstein distance: the p-th root of the mean, over directions, of W_p^p between the projections.

    Parameters
    ----------
    source : array (n, d), and target : array (m, d)
        Samples in rows. float32 is projected in float32, all else in float64; costs are summed in float64.
    p : float
        Exponent, at least 1.
    n_projections : int
        How many directions to draw, uniform on the sphere.
    seed : int
        Of the directions, which are the rows of ``numpy.random.default_rng(seed).normal(size=(n_projections, d))``
        scaled to length 1. No global random state is read or changed.
    projections : array (d, k), optional
        Directions to use instead, one a column, as they are: not scaled to length 1. `n_projections` and `seed` then
        do not count.
    source_weights : array (n,), target_weights : array (m,), optional
        Weights of the samples, scaled to sum to one; equal if not given.

    Returns
    -------
    distance : float
        In units of the data.

    Raises
    ------
    TypeError
        On anything but real numbers, or a number of directions that is not an integer.
    ValueError
        On shapes that do not fit, an empty set, NaN or infinity, a negative weight, p < 1, no direction, and on
        projections, or powers of their distances, that overflow.

    Notes
    -----
    O(k ((n + m) d + n log^2 n + m log^2 m)) for k directions, and memory for 256 of them at a time, however many there
    are. The same as POT's `ot.sliced_wasserstein_distance` for the same `projections`.
    Source: Bonneel et al., J. Math. Imaging Vis. 51 (2015), doi 10.1007/s10851-014-0506-3.

    Examples
    --------
    >>> import lineas
    >>> lineas.ot.sliced_wasserstein([[0.0, 1.0], [1.0, 2.0]], [[3.0, 1.0], [2.0, 2.0]], projections=[[1.0], [0.0]])
    2.0
    """
    slices = _slices(source, target, p, n_projections, seed, projections, source_weights, target_weights)
    total = sum(float(slices.cost(directions).sum()) for directions in slices.blocks)
    return _root(total / slices.n_directions, slices.p)[0]


def sliced_wasserstein_grad(
    source: ArrayLike,
    target: ArrayLike,
    p: float = 2,
    *,
    n_projections: int = 128,
    seed: int = 0,
    projections: ArrayLike | None = None,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> tuple[float, NDArray]:
    """The distance of `sliced_wasserstein`, and its gradient for the source.

    Returns
    -------
    distance : float
    gradient : array (n, d), float32 for float32 samples, else float64
        Derivative of the distance for source[i, j]. All 0 where the distance is 0, at which the root has no derivative.
        Where projections tie, samples share the gradient in the order in which they stand.

    Examples
    --------
    >>> import lineas
    >>> x, y = [[0.0, 1.0], [1.0, 2.0]], [[3.0, 1.0], [2.0, 2.0]]
    >>> lineas.ot.sliced_wasserstein_grad(x, y, projections=[[1.0], [0.0]])[1]
    array([[-0.5,  0. ],
           [-0.5,  0. ]])
    """
    slices = _slices(source, target, p, n_projections, seed, projections, source_weights, target_weights)
    total, gradient = 0.0, np.zeros(slices.x.shape)
    for directions in slices.blocks:
        cost, slope = slices.cost_and_slope(directions)
        total += float(cost.sum())
        gradient += _product(slope, directions.T)
    value, derivative = _root(total / slices.n_directions, slices.p)
    gradient *= derivative / slices.n_directions
    return value, gradient.astype(slices.x.dtype, copy=False)


def _largest(slices: _Slices) -> tuple[float, NDArray]:
    """The largest cost, and the first direction (d, 1) that has it."""
    best, best_direction = -1.0, np.empty(0)
    for directions in slices.blocks:
        cost = slices.cost(directions)
        at = int(cost.argmax())
        if cost[at] > best:
            best, best_direction = float(cost[at]), directions[:, at : at + 1].copy()
    return best, best_direction


def max_sliced_wasserstein(
    source: ArrayLike,
    target: ArrayLike,
    p: float = 2,
    *,
    n_projections: int = 128,
    seed: int = 0,
    projections: ArrayLike | None = None,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> float:
    """The largest W_p between the projections on any of the directions, which are those of `sliced_wasserstein`.

    Parameters, errors, cost and memory are those of `sliced_wasserstein`. It is the largest over the directions that
    are tried, not over the sphere. The same as POT's `ot.max_sliced_wasserstein_distance` for the same `projections`.

    Returns
    -------
    distance : float
        In units of the data.

    Notes
    -----
    Source: Deshpande et al., arXiv 1904.05877.

    Examples
    --------
    >>> import lineas
    >>> lineas.ot.max_sliced_wasserstein([[0.0, 0.0]], [[3.0, 4.0]], projections=[[1.0, 0.0], [0.0, 1.0]])
    4.0
    """
    slices = _slices(source, target, p, n_projections, seed, projections, source_weights, target_weights)
    return _root(_largest(slices)[0], slices.p)[0]


def max_sliced_wasserstein_grad(
    source: ArrayLike,
    target: ArrayLike,
    p: float = 2,
    *,
    n_projections: int = 128,
    seed: int = 0,
    projections: ArrayLike | None = None,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> tuple[float, NDArray]:
    """The distance of `max_sliced_wasserstein`, and its gradient for the source: along the direction that has it.

    Returns
    -------
    distance : float
    gradient : array (n, d), float32 for float32 samples, else float64
        As in `sliced_wasserstein_grad`; of directions that tie, the first counts.

    Examples
    --------
    >>> import lineas
    >>> lineas.ot.max_sliced_wasserstein_grad([[0.0, 0.0]], [[3.0, 4.0]], projections=[[1.0, 0.0], [0.0, 1.0]])[1]
    array([[ 0., -1.]])
    """
    slices = _slices(source, target, p, n_projections, seed, projections, source_weights, target_weights)
    cost, direction = _largest(slices)
    value, derivative = _root(cost, slices.p)
    slope = slices.cost_and_slope(direction)[1]
    return value, (derivative * slope) * direction.T + 0.0  # no negative zeros
