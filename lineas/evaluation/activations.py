"""How far apart the responses to two sets of inputs are."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from ..ot import wasserstein_1d


def distance(source: Mapping[str, ArrayLike], target: Mapping[str, ArrayLike]) -> float:
    """How far apart the responses to two sets of inputs are: the loss of `lineas.fit`, of any two sets.

    Parameters
    ----------
    source, target : dict of str -> (n, d) and (m, d) array
        By site, the same ones: what `responses` returns.

    Returns
    -------
    float
        Mean over sites of the mean over units of W_2^2. Compare it with the distance without steering, of the same
        sets: most of what remains is sampling noise.

    Raises
    ------
    LookupError
        The two have other sites.
    ValueError
        There are none; a site has two numbers of units; a response is not finite.

    Examples
    --------
    >>> from lineas import evaluation
    >>> evaluation.distance({"0": [[1.0], [2.0]]}, {"0": [[3.0], [4.0]]})
    4.0
    """
    if set(source) != set(target):
        raise LookupError(f"expected the same sites in both, got {list(source)} and {list(target)}")
    if not source:
        raise ValueError("expected responses of at least one site, got none")
    return float(np.mean([wasserstein_1d(source[site], target[site]).mean() for site in source]))
