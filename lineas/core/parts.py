"""Which parts of two sets of samples meet, when both are sorted and spread over the unit interval."""

import numpy as np


def quantile_parts(n: int, m: int) -> list[tuple[int, int, float]]:
    """(i, j, mass): how much of the i-th of n equal parts of the unit interval lies in the j-th of m."""
    cuts = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))  # in units of 1 / (n m)
    starts, masses = cuts[:-1], np.diff(cuts) / (n * m)
    return list(zip((starts // m).tolist(), (starts // n).tolist(), masses.tolist(), strict=True))
