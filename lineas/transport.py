"""Maps from one sample to another in closed form, unit by unit: no model, no gradient, no steps.

Each function takes source responses (n, d) and target responses (m, d), and returns `weight` and `bias`, both (d,), of
the map z -> weight * z + bias.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .core import _core, checks
from .core.threads import thread_count

__all__ = ["aura", "det0", "gaussian_act", "linear_act", "mean_act"]

WeightBias = tuple[NDArray[np.float64], NDArray[np.float64]]


_LARGEST = 1e150  # with a square, and sums of squares, that float64 can hold


def _prepare(source: ArrayLike, target: ArrayLike) -> tuple[NDArray, NDArray, int]:
    x, y = checks.samples(source, target)
    for name, values in (("source", x), ("target", y)):
        if values.dtype == np.float64 and (largest := max(values.max(), -values.min())) > _LARGEST:
            raise ValueError(f"{name}: expected values up to 1e150, got {largest:.3g}")
    return x, y, thread_count(work=x.size + y.size)


def mean_act(source: ArrayLike, target: ArrayLike) -> WeightBias:
    """Mean-AcT: shift every unit by the difference of the means.

    weight = 1, bias = mean(target) - mean(source).

    Parameters
    ----------
    source : array (n, d), and target : array (m, d)
        Responses, samples in rows, units in columns. float32 stays float32, all else becomes float64; sums are float64.

    Returns
    -------
    weight, bias : array (d,) float64
        The weights have no unit, the biases that of the responses.

    Raises
    ------
    TypeError
        On anything but real numbers.
    ValueError
        On shapes that do not fit, an empty set, NaN, infinity, or a value beyond 1e150.

    Notes
    -----
    O(d (n + m)). `reference.mean_act` spells it out.
    Source: Rodriguez et al., arXiv 2410.23054 (Mean-AcT).

    Examples
    --------
    >>> import lineas
    >>> lineas.transport.mean_act([[0.0], [2.0]], [[3.0], [4.0], [5.0]])
    (array([1.]), array([3.]))
    """
    x, y, threads = _prepare(source, target)
    return np.ones(x.shape[1]), _core.mean_shift(x, y, threads)


def gaussian_act(source: ArrayLike, target: ArrayLike) -> WeightBias:
    """Gaussian-AcT: match mean and standard deviation of every unit.

    weight = std(target) / std(source), bias = mean(target) - weight * mean(source), with the unbiased deviations (n - 1
    below the root). It is the optimal transport map between the two where both are Gaussian.

    Returns
    -------
    weight, bias : array (d,) float64
        A constant target has weight 0. The weight is 1, which leaves `mean_act`, where nothing is known of a deviation:
        where the source is constant, or either side is a single sample.

    Notes
    -----
    Parameters and errors are those of `mean_act`. A source that hardly varies gets a large weight. O(d (n + m)).
    `reference.gaussian_act` spells it out.
    Source: Peyre & Cuturi, arXiv 1803.00567, sec. 2.6 (optimal transport between Gaussians), in one dimension.

    Examples
    --------
    >>> import lineas
    >>> lineas.transport.gaussian_act([[0.0], [2.0]], [[1.0], [7.0]])
    (array([3.]), array([1.]))
    """
    return _core.gaussian_map(*_prepare(source, target))


def linear_act(source: ArrayLike, target: ArrayLike) -> WeightBias:
    """Linear-AcT: least squares from sorted source samples to sorted target samples, unit by unit.

    weight, bias = the least of the integral over u in [0, 1] of (weight * F^-1(u) + bias - G^-1(u))^2, where F^-1 and
    G^-1 are the quantile functions of source and target. For n = m it is the sum over sorted samples, as published; for
    n != m it is exact all the same, without interpolation or subsampling.

    Returns
    -------
    weight, bias : array (d,) float64
        The weight is the covariance of the quantile functions over the variance of the source, never negative, and the
        bias mean(target) - weight * mean(source). A constant target has weight 0; a constant source, or a single one,
        weight 1, which leaves `mean_act`.

    Notes
    -----
    Parameters and errors are those of `mean_act`. Among all affine maps with a weight of at least 0 it is the one whose
    result has the least W_2^2 (`ot.wasserstein_1d`) to the target. O(d (n log^2 n + m log^2 m)).
    `reference.linear_act` spells it out.
    Source: Rodriguez et al., arXiv 2410.23054 (Linear-AcT).

    Examples
    --------
    >>> import lineas
    >>> lineas.transport.linear_act([[3.0], [1.0], [2.0]], [[5.0], [7.0], [9.0]])
    (array([2.]), array([3.]))
    """
    return _core.linear_map(*_prepare(source, target))


def aura(source: ArrayLike, target: ArrayLike) -> WeightBias:
    """AurA: dampen the units that tell the source from the target, the more the better they do.

    weight = 1 - 2 (AUROC - 0.5) where AUROC > 0.5, else 1; bias = 0. AUROC is that of the unit as a classifier of
    source against target (`experts.auroc(source, target)`): a unit that is larger for every source sample is set to 0.

    Returns
    -------
    weight, bias : array (d,) float64
        Weights from 0 to 1.

    Notes
    -----
    Parameters and errors are those of `mean_act`. The authors pool by the maximum over tokens, where other methods take
    the mean. O(d (n + m) log^2 (n + m)).
    Source: Suau et al., arXiv 2407.12824 (AurA).

    Examples
    --------
    >>> import lineas
    >>> lineas.transport.aura([[3.0, 1.0], [2.0, 5.0]], [[1.0, 6.0], [2.0, 7.0]])
    (array([0.25, 1.  ]), array([0., 0.]))
    """
    auroc, _ = _core.rank(*_prepare(source, target))
    return np.where(auroc > 0.5, 1 - 2 * (auroc - 0.5), 1.0), np.zeros(len(auroc))


def det0(source: ArrayLike, target: ArrayLike, *, units: ArrayLike | None = None) -> WeightBias:
    """Det0: set expert units to their mean over the target, whatever the input.

    weight = 0, bias = mean(target) for the units given; weight = 1, bias = 0 for all others.

    Parameters
    ----------
    source : array (n, d), and target : array (m, d)
        As in `mean_act`; of the source only the shape counts.
    units : array (k,) of integers, or array (d,) of booleans, optional
        The experts, by number or by a mask; all units if not given.

    Returns
    -------
    weight, bias : array (d,) float64

    Raises
    ------
    TypeError
        On anything but real numbers, and on units that are neither integers nor booleans.
    ValueError
        As `mean_act`, and on units out of range or a mask of another length.

    Notes
    -----
    O(d m). Choose experts by `experts.average_precision`, as the authors do. Suau et al., arXiv 2407.12824, use a
    variant as a baseline that sets experts to 0: take the weight and leave the bias.
    Source: Suau et al., arXiv 2110.02802 (the intervention do(c, k): the top k experts of concept c, each set to its
    mean over the samples that have the concept).

    Examples
    --------
    >>> import lineas
    >>> lineas.transport.det0([[0.0, 0.0]], [[1.0, 4.0], [3.0, 6.0]], units=[1])
    (array([1., 0.]), array([0., 5.]))
    """
    x, y, threads = _prepare(source, target)
    chosen = _unit_mask(units, x.shape[1])
    mean = _core.mean_shift(np.zeros((1, x.shape[1]), y.dtype), y, threads)
    return np.where(chosen, 0.0, 1.0), np.where(chosen, mean, 0.0)


def _unit_mask(units: ArrayLike | None, d: int) -> NDArray[np.bool_]:
    if units is None:
        return np.ones(d, bool)
    given = np.asarray(units)
    if given.size == 0:  # an empty list has no integers to show
        return np.zeros(d, bool)
    if given.dtype.kind not in "iub":
        raise TypeError(f"units: expected integers or booleans, got dtype {given.dtype}")
    if given.dtype.kind == "b":
        if given.shape != (d,):
            raise ValueError(f"units: expected a mask of shape ({d},), got {given.shape}")
        return given
    if given.ndim != 1 or given.min() < 0 or given.max() >= d:
        raise ValueError(f"units: expected numbers from 0 to {d - 1} in one dimension, got {units!r}")
    mask = np.zeros(d, bool)
    mask[given] = True
    return mask
