"""Every unit as a classifier of two samples: area under the ROC curve, and average precision."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import _core, checks
from ..core.threads import thread_count


def _rank(positive: ArrayLike, negative: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = checks.samples(positive, negative, ("positive", "negative"))
    return _core.rank(x, y, thread_count(work=x.size + y.size))


def auroc(positive: ArrayLike, negative: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve of every unit as a classifier of positive against negative samples.

    It is the share of the n m pairs of a positive and a negative sample in which the positive one is larger, where a
    pair of equal ones counts half: 1 where every positive sample is above every negative one, 0 the other way round,
    0.5 where the unit says nothing.

    Parameters
    ----------
    positive : array (n, d), and negative : array (m, d)
        Responses of d units to samples with the concept and without it. float32 stays float32, all else becomes
        float64.

    Returns
    -------
    auroc : array (d,) float64
        From 0 to 1; the count of pairs is exact and divided once.

    Raises
    ------
    TypeError
        On anything but real numbers.
    ValueError
        On shapes that do not fit, an empty set, NaN or infinity.

    Notes
    -----
    O(d (n + m) log^2 (n + m)), one sort of the pooled samples. `reference.auroc` spells it out. It equals
    `sklearn.metrics.roc_auc_score` and U / (n m) of `scipy.stats.mannwhitneyu`.
    Source: Mann & Whitney, Ann. Math. Statist. 18 (1947) 50; Hanley & McNeil, Radiology 143 (1982) 29. As the expertise
    of a unit: Suau et al., arXiv 2407.12824.

    Examples
    --------
    >>> import lineas
    >>> lineas.experts.auroc([[3.0, 1.0], [2.0, 5.0]], [[1.0, 1.0], [2.0, 1.0]])
    array([0.875, 0.75 ])
    """
    return _rank(positive, negative)[0]


def average_precision(positive: ArrayLike, negative: ArrayLike) -> NDArray[np.float64]:
    """Average precision of every unit as a classifier of positive against negative samples.

    AP = sum over thresholds of (R_k - R_(k-1)) P_k, with the precision P_k and the recall R_k among the samples that
    reach the k-th largest distinct value. Not interpolated; samples that tie enter together.

    Parameters
    ----------
    positive : array (n, d), and negative : array (m, d)
        Responses of d units to samples with the concept and without it. float32 stays float32, all else becomes
        float64.

    Returns
    -------
    precision : array (d,) float64
        Above 0, and exactly 1 where every positive sample is above every negative one; n / (n + m) where all are equal.

    Raises
    ------
    TypeError
        On anything but real numbers.
    ValueError
        On shapes that do not fit, an empty set, NaN or infinity.

    Notes
    -----
    O(d (n + m) log^2 (n + m)), one sort of the pooled samples. `reference.average_precision` spells it out. It equals
    `sklearn.metrics.average_precision_score`.
    Source: as the expertise of a unit, Suau et al., arXiv 2005.07647 and arXiv 2110.02802.

    Examples
    --------
    >>> import lineas
    >>> lineas.experts.average_precision([[3.0, 1.0], [2.0, 5.0]], [[1.0, 1.0], [2.0, 1.0]]).round(3)
    array([0.833, 0.75 ])
    """
    return _rank(positive, negative)[1]


METRICS = {"average_precision": average_precision, "auroc": auroc}


def check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(map(repr, METRICS))}, got {metric!r}")


def score(positive: NDArray, negative: NDArray, metric: str, either_way: bool) -> tuple[NDArray, NDArray[np.int8]]:
    """The score of every column, and whether it is that of the values or of their negatives."""
    check_metric(metric)
    scores = METRICS[metric](positive, negative)
    if not either_way:
        return scores, np.ones(len(scores), np.int8)
    turned = METRICS[metric](-positive, -negative)
    return np.maximum(scores, turned), np.where(turned > scores, -1, 1).astype(np.int8)
