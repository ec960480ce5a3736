"""Directions: shifts of all units of a site together, from what two sets of inputs do there."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .core import _core, checks
from .core.threads import thread_count
from .transport import WeightBias, mean_act

__all__ = ["actadd", "caa", "iti_c", "repe"]

L2 = 1.0  # of the probe, on its squared norm / 2; the loss is summed over samples
ROUNDS = 100  # Newton's method needs five to ten
NOTHING = 1e-8  # logits
HOLDS = 10.0 ** np.arange(-4, 4)  # of `separation`: its ridge, as a part of the mean square of the samples
FOLDS = 8


def caa(source: ArrayLike, target: ArrayLike) -> WeightBias:
    """Contrastive activation addition: add the difference of the means.

    Parameters
    ----------
    source : array (n, d), and target : array (m, d)
        Responses of the units of a site; the paper takes those at the last token.

    Returns
    -------
    weight : (d,) float64, ones, and bias : (d,) float64 = mean of target - mean of source, in the units of the data

    Raises
    ------
    TypeError, ValueError
        As in `lineas.transport.mean_act`, which is the same map.

    Notes
    -----
    Pairs are not needed: the mean of differences is the difference of means.
    Source: Panickssery et al., Steering Llama 2 via Contrastive Activation Addition, arXiv 2312.06681, sec. 2.

    Examples
    --------
    >>> import lineas
    >>> lineas.directions.caa([[0.0, 1.0], [2.0, 1.0]], [[3.0, 1.0], [5.0, 1.0]])[1]
    array([3., 0.])
    """
    return mean_act(source, target)


def actadd(source: ArrayLike, target: ArrayLike) -> WeightBias:
    """Activation addition: add the difference of one pair, the first of each set.

    Parameters and errors are those of `caa`.

    Returns
    -------
    weight : (d,) float64, ones, and bias : (d,) float64 = target[0] - source[0]

    Notes
    -----
    The paper adds the difference token by token to the beginning of a prompt; a `Steering` adds it to every token, as
    the paper's successors do. Its coefficient is the strength.
    Source: Turner et al., Steering Language Models With Activation Engineering, arXiv 2308.10248, sec. 3.

    Examples
    --------
    >>> import lineas
    >>> lineas.directions.actadd([[0.0, 1.0], [2.0, 1.0]], [[3.0, 1.0], [5.0, 1.0]])[1]
    array([3., 0.])
    """
    x, y = checks.samples(source, target)
    return mean_act(x[:1], y[:1])


def iti_c(source: ArrayLike, target: ArrayLike) -> WeightBias:
    """Inference-time intervention along a classifier's direction: one deviation towards the target.

    Parameters and errors are those of `caa`.

    Returns
    -------
    weight : (d,) float64, ones, and bias : (d,) float64 = sigma theta
        theta has norm 1 and is the normal of a logistic regression that tells target from source; sigma is the standard
        deviation of all samples along it.

    Notes
    -----
    The paper's alpha is the strength. It moves the heads that its probes find best; here `sites` and `units` choose.
    The regression has an intercept and half the squared norm of its normal as penalty, over the summed loss:
    Newton's method in the span of the samples, O((n + m)^2 (d + n + m)).
    Source: Li et al., Inference-Time Intervention, arXiv 2306.03341, sec. 3 ("probe weight direction").

    Examples
    --------
    >>> import lineas
    >>> lineas.directions.iti_c([[-1.0, 0.0], [-3.0, 0.0]], [[1.0, 0.0], [3.0, 0.0]])[1].round(3)
    array([2.236, 0.   ])
    """
    x, y = checks.samples(source, target)
    pooled = np.concatenate([x, y]).astype(np.float64)
    normal = _probe(pooled, np.repeat([-1.0, 1.0], [len(x), len(y)]))
    spread, size = np.einsum("ij,j", pooled, normal).std(), np.sqrt(np.square(normal).sum())
    # Where the probe tells nothing apart, the sets are alike, and its normal is but rounding: no direction, no shift.
    bias = spread / size**2 * normal if spread > NOTHING else np.zeros_like(normal)
    return np.ones(len(bias)), bias


def repe(source: ArrayLike, target: ArrayLike) -> WeightBias:
    """Representation engineering: along the direction in which pairs differ most, as far as they do on average.

    Parameters and errors are those of `caa`.

    Returns
    -------
    weight : (d,) float64, ones, and bias : (d,) float64 = (mean difference . theta) theta
        theta has norm 1 and is the first principal direction, about zero, of the differences between pairs.

    Notes
    -----
    Pairs are made in the order in which samples stand; the smaller set goes round again. The paper gives its direction
    a free coefficient, here the strength, and a sign by labels, here that of the mean difference. O(n d min(n, d)).
    Source: Zou et al., Representation Engineering, arXiv 2310.01405, sec. 3.1 (linear artificial tomography).

    Examples
    --------
    >>> import lineas
    >>> lineas.directions.repe([[0.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [5.0, 1.0]])[1]
    array([4., 0.])
    """
    x, y = checks.samples(source, target)
    pairs = max(len(x), len(y))
    difference = np.resize(y, (pairs, y.shape[1])).astype(np.float64) - np.resize(x, (pairs, x.shape[1]))
    theta = np.linalg.svd(difference, full_matrices=False)[2][0]
    return np.ones(len(theta)), (difference.mean(0) * theta).sum() * theta + 0.0


def _probe(x: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The normal w of the logistic regression: least sum of log(1 + exp(-label (x w + c))) + L2 / 2 |w|^2.

    w = x' a, so that the unknowns are a (samples,) and c, whatever the number of units.
    """
    samples = len(x)
    gram = _times(x, x.T)
    point = np.zeros(samples + 1)  # a, c

    def value(point: NDArray[np.float64]) -> float:
        bent = np.einsum("ij,j", gram, point[:-1])
        return float(np.logaddexp(0, -labels * (bent + point[-1])).sum() + L2 / 2 * point[:-1] @ bent)

    for _ in range(ROUNDS):
        miss = np.exp(
            -np.logaddexp(0, labels * (np.einsum("ij,j", gram, point[:-1]) + point[-1]))
        )  # 1 - probability of the label
        spread = miss * (1 - miss)
        slope = np.append(L2 * point[:-1] - labels * miss, -labels @ miss)
        jacobian = np.block([
            [L2 * np.eye(samples) + spread[:, None] * gram, spread[:, None]],
            [(spread @ gram)[None], np.full((1, 1), spread.sum())],
        ])  # fmt: skip
        move = np.linalg.lstsq(jacobian, -slope, rcond=None)[0]
        reached, step = value(point), 1.0
        while value(point + step * move) > reached and step > 1e-6:
            step /= 2
        point = point + step * move
        if step <= 1e-6 or np.abs(step * move).max() <= 1e-10 * (1 + np.abs(point).max()):
            break
    return np.einsum("ij,i->j", x, point[:-1])


class Separation(NamedTuple):
    """A direction that tells two sets of samples apart: z scores (z - middle) . normal, about 1 in the first set and -1
    in the second.

    Attributes
    ----------
    normal, middle : (d,)
    first, second : (n,), (m,)
        Scores of the samples, each from a fit without it and its group.
    error : float
        Their mean squared distance from 1 and -1, both sets weighing the same; 1 tells nothing apart.
    """

    normal: NDArray[np.float64]
    middle: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    error: float


def separation(
    first: NDArray, second: NDArray, first_groups: NDArray | None = None, second_groups: NDArray | None = None
) -> Separation:
    """Ridge regression of 1 in the first set (n, d) and -1 in the second (m, d), with units standardised.

    Samples of a group, tokens of a text for instance, are left out together; each sample is a group unless told, and
    every set has at least two. The ridge is that of `HOLDS` with the least error of what was left out in turn, in up to
    eight folds. O(folds (n + m)^2 (d + n + m)).
    """
    x, n = np.concatenate([first, second]).astype(np.float64), len(first)
    labels = np.repeat([1.0, -1.0], [n, len(second)])
    spread = x.std(0)
    does_vary = spread > NOTHING * np.abs(x).max(0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=does_vary)
    fold = np.concatenate([_folds(first, first_groups), _folds(second, second_groups)])
    scores = np.empty((len(HOLDS), len(x)))
    for k in np.unique(fold):
        out = fold == k
        normals, middle = _ridges(x[~out] * scale, labels[~out])
        scores[:, out] = _times(normals, (x[out] * scale - middle).T)
    errors = [np.mean([np.square(row[labels == y] - y).mean() for y in (1.0, -1.0)]) for row in scores]
    best = int(np.argmin(errors))
    normals, _ = _ridges(x * scale, labels)
    middle = (x[:n].mean(0) + x[n:].mean(0)) / 2
    return Separation(normals[best] * scale, middle, scores[best, :n], scores[best, n:], float(errors[best]))


def _folds(samples: NDArray, groups: NDArray | None) -> NDArray:
    return np.unique(np.arange(len(samples)) if groups is None else groups, return_inverse=True)[1] % FOLDS


def _ridges(x: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normals (holds, d) for all ridges, and the middle of the two means; in the span of the samples."""
    middle = (x[labels > 0].mean(0) + x[labels < 0].mean(0)) / 2
    root = np.sqrt(np.where(labels > 0, 1 / (labels > 0).sum(), 1 / (labels < 0).sum()))  # sets weigh the same
    rows = (x - middle) * root[:, None]
    squares, vectors = np.linalg.eigh(_times(rows, rows.T))
    along = vectors.T @ (labels * root)
    holds = HOLDS * max(squares.sum() / len(x), NOTHING)
    duals = (along / (squares.clip(min=0) + holds[:, None])) @ vectors.T
    return _times(duals, rows), middle


def _times(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Their product, whose bits do not depend on threads, as those of BLAS do where units are many."""
    return _core.product(np.ascontiguousarray(a), np.ascontiguousarray(b), thread_count(None, a.size + b.size))
