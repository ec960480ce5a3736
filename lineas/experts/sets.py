"""Sets of units, as `Steering.support()` returns them: site -> sorted numbers; and what two of them have in common."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.text import nearest
from ..maps import algebra
from ..maps.algebra import Overlap
from ..maps.units import places_of

Units = dict[str, NDArray[np.int64]]


def by_site(flat: NDArray, sizes: Mapping[str, int]) -> dict[str, NDArray]:
    """What lies side by side in the last dimension, as views by site."""
    ends = np.cumsum(list(sizes.values()))[:-1]
    return dict(zip(sizes, np.split(flat, ends, axis=-1), strict=True))


def chosen(mask: NDArray[np.bool_], sizes: Mapping[str, int]) -> Units:
    """The units where a mask over all of them is true; every site is there, also one that has none."""
    return {name: np.flatnonzero(part) for name, part in by_site(mask, sizes).items()}


def best(scores: NDArray, k: int) -> NDArray[np.int64]:
    """The places of the k highest scores, highest first; of equals the first."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= len(scores):
        raise ValueError(f"k: expected a number of units from 1 to {len(scores)}, got {k!r}")
    return np.argsort(-scores, kind="stable")[:k]


def top(scores: NDArray, k: int, sizes: Mapping[str, int]) -> Units:
    """The units of the k highest scores."""
    mask = np.zeros(len(scores), bool)
    mask[best(scores, k)] = True
    return chosen(mask, sizes)


def overlap(a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike], sizes: Mapping[str, int]) -> Overlap:
    """How much two sets of units have in common (Jaccard index), beside what chance gives.

    Parameters
    ----------
    a, b : dict of str -> array
        Units by site, as numbers or as a mask over the site's units: what `Ranking.top`, `Significance.units` or
        `Steering.support` return. A site that one of them lacks has none of its units there.
    sizes : dict of str -> int
        How many units each site has: `Ranking.sizes`, `Significance.sizes`.

    Returns
    -------
    lineas.algebra.Overlap
        `jaccard` over all units, `by_chance` to compare it with, and `sites`, one number for each shared site.

    Raises
    ------
    LookupError
        A site that `sizes` does not name.
    TypeError, ValueError
        Neither whole numbers nor a mask; a unit that the site does not have.

    Notes
    -----
    `by_chance` is for random sets that have as many units as these at each site; see `lineas.algebra.overlap`.

    Examples
    --------
    >>> import lineas
    >>> lineas.experts.overlap({"0": [0, 1]}, {"0": [1, 2]}, {"0": 4}).jaccard
    0.3333333333333333
    """
    return algebra.overlap_of_units(numbers(a, sizes), numbers(b, sizes), sizes)


def numbers(units: Mapping[str, ArrayLike], sizes: Mapping[str, int]) -> Units:
    """Sorted numbers, however the units were given; LookupError, TypeError and ValueError as in `overlap`."""
    found = {}
    for name, given in units.items():
        if name not in sizes:
            raise LookupError(f"units: no site {name!r}; {nearest(name, sizes)}")
        mask = np.zeros(sizes[name], bool)
        mask[places_of(name, given, sizes[name])] = True
        found[name] = np.flatnonzero(mask)
    return found


def table(units: Mapping[str, NDArray], sizes: Mapping[str, int], head: str) -> list[str]:
    """A line a site: its units, how many of them are chosen, and their share."""
    width = max(4, *map(len, sizes))
    lines = [f"{'site':{width}} {'units':>6} {head:>11} {'share':>7}"]
    for name, size in sizes.items():
        count = len(units[name])
        lines.append(f"{name:{width}} {size:>6} {count:>11} {count / size:>7.1%}")
    return lines


# -- stability --


class Stability(NamedTuple):
    """How much of a set of units is found again on other samples.

    Attributes
    ----------
    jaccard : float
        Mean Jaccard index over the draws; a draw in which neither set has a unit does not count, NaN if none does.
    deviation : float
        Of the draws.
    by_chance : float
        What random sets of these sizes at each site would have, on average over the same draws.
    draws : int
    """

    jaccard: float
    deviation: float
    by_chance: float
    draws: int


Pair = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows of the positive and of the negative samples


def halves(n: int, m: int, draws: int, seed: int) -> Iterator[tuple[Pair, Pair]]:
    """Both sets split at random into two parts of equal size that share no sample; an odd one is left out."""
    draw = np.random.default_rng(seed)
    for _ in range(draws):
        p, q = draw.permutation(n), draw.permutation(m)
        yield (p[: n // 2], q[: m // 2]), (p[n // 2 : n // 2 * 2], q[m // 2 : m // 2 * 2])


def bootstraps(n: int, m: int, draws: int, seed: int) -> Iterator[Pair]:
    """As many samples as there are, drawn with replacement."""
    draw = np.random.default_rng(seed)
    for _ in range(draws):
        yield draw.integers(n, size=n), draw.integers(m, size=m)


def stability(
    choose: Callable[[Pair], Units], n: int, m: int, sizes: Mapping[str, int], how: str, draws: int, seed: int
) -> Stability:
    """How much the sets that `choose` finds on resampled rows have in common: "halves" with each other, "bootstrap"
    with the set of all samples."""
    if not isinstance(draws, (int, np.integer)) or draws < 1:
        raise ValueError(f"draws: expected a number of at least 1, got {draws!r}")
    if how == "halves":
        if min(n, m) < 4:
            raise ValueError(f"expected at least 4 samples in each set to split them into halves, got {n} and {m}")
        pairs = ((choose(first), choose(second)) for first, second in halves(n, m, draws, seed))
    elif how == "bootstrap":
        all_samples = choose((np.arange(n), np.arange(m)))
        pairs = ((choose(rows), all_samples) for rows in bootstraps(n, m, draws, seed))
    else:
        raise ValueError(f"how: expected 'halves' or 'bootstrap', got {how!r}")
    found = [algebra.overlap_of_units(a, b, sizes) for a, b in pairs]
    counted = np.array([(each.jaccard, each.by_chance) for each in found if not np.isnan(each.jaccard)])
    if not len(counted):
        return Stability(float("nan"), float("nan"), float("nan"), int(draws))
    (jaccard, chance), deviation = counted.mean(axis=0), counted[:, 0].std()
    return Stability(float(jaccard), float(deviation), float(chance), int(draws))
