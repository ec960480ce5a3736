"""A figure and how well it is known: confidence intervals."""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Estimate(NamedTuple):
    """A figure with its confidence interval.

    Attributes
    ----------
    value : float
    error : float
        Standard error; NaN, as are `low` and `high`, where one number is all there is.
    low, high : float
        Ends of the interval.
    over : str
        What the interval is over: "runs", "seeds", "samples", or "" where there is none.
    n : int
        How many of them.
    """

    value: float
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    over: str = ""
    n: int = 1


@lru_cache(maxsize=256)
def student_t(confidence: float, freedom: int) -> float:
    """t such that Student's t with so many degrees of freedom lies in [-t, t] with probability `confidence`.

    Bisection on the angle atan(t / sqrt(freedom)), in which that probability is a finite series. Source: Abramowitz &
    Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    odd = freedom % 2
    terms = (freedom - odd) // 2
    k = np.arange(1, max(terms, 1))
    weights = np.concatenate([[1.0], np.cumprod(2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))])

    def probability(angle: float) -> float:
        series = float(weights @ math.cos(angle) ** (2 * np.arange(len(weights)))) * math.sin(angle)
        if not odd:
            return series
        return 2 / math.pi * (angle + (math.cos(angle) * series if terms else 0.0))

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def mean(values: Sequence[float], confidence: float, over: str) -> Estimate:
    """The mean of independent values, and the interval of their expectation."""
    return ratio(values, np.ones(len(values)), confidence)._replace(over=over)


def ratio(totals: ArrayLike, counts: ArrayLike, confidence: float) -> Estimate:
    """Sum of totals by sum of counts, over samples that have one of each: a mean over tokens, over texts drawn whole.

    The error is that of the linearised ratio, which for counts of one is the standard error of a mean.
    """
    total, count = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    value, n = float(total.sum() / count.sum()), len(total)
    if n < 2:
        return Estimate(value)
    rest = total - value * count
    error = math.sqrt(n / (n - 1) * float(np.square(rest).sum())) / float(count.sum())
    half = student_t(confidence, n - 1) * error
    return Estimate(value, error, value - half, value + half, "samples", n)


def share(hits: ArrayLike, confidence: float) -> Estimate:
    """A mean of zeros and ones, with Wilson's interval: Student's has no width where all are the same.

    Source: Wilson, JASA 1927, doi 10.1080/01621459.1927.10502953.
    """
    each = np.asarray(hits, np.float64)
    value, n, z = float(each.mean()), len(each), _normal_quantile(confidence)
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return Estimate(value, half / z, middle - half, middle + half, "samples", n)


def share_change(differences: ArrayLike, confidence: float) -> Estimate:
    """A mean of differences of pairs of zeros and ones: -1, 0 or 1, with an interval as if two pairs more differed.

    Source: Bonett & Price, adjusted Wald intervals for a difference of paired proportions, JEBS 2012.
    """
    each = np.asarray(differences, np.float64)
    n, z = len(each), _normal_quantile(confidence)
    up, down = ((np.sum(each == way) + 1) / (n + 2) for way in (1, -1))
    error = math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    middle = float(up - down)
    return Estimate(float(each.mean()), error, max(middle - z * error, -1), min(middle + z * error, 1), "samples", n)


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def normal(value: float, error: float, confidence: float, n: int) -> Estimate:
    """From a standard error that somebody else computed over n samples."""
    half = _normal_quantile(confidence) * error
    return Estimate(value, error, value - half, value + half, "samples", n)


def exponential(estimate: Estimate, minus: float = 0.0) -> Estimate:
    """exp of an estimate, less `minus`; the interval's ends go where they go."""
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(x)) for x in (estimate.value, estimate.low, estimate.high))
    return estimate._replace(value=value - minus, error=value * estimate.error, low=low - minus, high=high - minus)
