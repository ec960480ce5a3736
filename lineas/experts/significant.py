"""Which units respond differently to two sets of inputs, by more than sampling explains."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import checks
from ..core.text import nearest
from ..network.sites import Site
from ..ot import permutation_null, wasserstein_1d
from .samples import Samples, collect, facts
from .sets import Stability, Units, by_site, chosen, stability, table, top

METHODS = ("bh", "by")
LEVEL = 0.05
FIRST, FACTOR = 1000, 20  # relabellings of the first stage, and how many times more each next one has


def false_discovery(p_values: ArrayLike, method: str = "bh") -> NDArray[np.float64]:
    """Adjusted p-values: rejecting those of at most q keeps the expected share of false ones among them at q.

    Parameters
    ----------
    p_values : array, any shape
        From 0 to 1; all are one family.
    method : str
        "bh", Benjamini and Hochberg: for independent tests, and those that depend positively. "by", Benjamini and
        Yekutieli: however tests depend, at the price of a factor of 1 + 1/2 + ... + 1/N.

    Returns
    -------
    float64 array of the same shape

    Raises
    ------
    ValueError
        Values outside 0 to 1, none at all, or another method.

    Notes
    -----
    Source: Benjamini & Hochberg, J. R. Stat. Soc. B 57 (1995) 289; Benjamini & Yekutieli, Ann. Stat. 29 (2001) 1165.

    Examples
    --------
    >>> import lineas
    >>> lineas.experts.false_discovery([0.01, 0.04, 0.03, 0.5])
    array([0.04      , 0.05333333, 0.05333333, 0.5       ])
    """
    given = checks.real(p_values, "p_values").astype(np.float64)
    if not given.size or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"p_values: expected at least one, all from 0 to 1; got {given!r:.80}")
    if method not in METHODS:
        raise ValueError(f"method: expected 'bh' or 'by', got {method!r}")
    flat, count = given.ravel(), given.size
    order = np.argsort(flat, kind="stable")
    rank = np.arange(1, count + 1)
    factor = count if method == "bh" else count * float(np.sum(1 / rank))
    rising = np.minimum.accumulate((flat[order] * factor / rank)[::-1])[::-1]
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(rising, 1)
    return adjusted.reshape(given.shape)


class Significance:
    """A test of every unit at some sites; made by `lineas.experts.significance` or `from_responses`.

    Attributes
    ----------
    sizes : dict of str -> int
        Units of each site.
    n_permutations : int
        Relabellings of the last stage; no p-value is below 1 / (1 + n_permutations).
    info : dict
        Model, pooling, exponent, seed, and how many samples there were.
    """

    def __init__(self, samples: Samples, p: float, n_permutations: int, seed: int, info: Mapping[str, Any]):
        self.sizes, self._samples, self._p, self._seed = samples.sizes, samples, p, seed
        self.n_permutations = n_permutations
        self.info = {**info, "positive": samples.counts[0], "negative": samples.counts[1], "p": p, "seed": seed}
        self._distance = wasserstein_1d(samples.positive, samples.negative, p)
        self._expected, self._p_values = staged(samples.positive, samples.negative, p, n_permutations, seed)

    @classmethod
    def from_responses(
        cls, positive: Mapping[str, ArrayLike], negative: Mapping[str, ArrayLike], *, p: float = 2,
        n_permutations: int | None = None, seed: int = 0,
    ) -> "Significance":  # fmt: skip
        """The same from responses that are there already.

        Parameters
        ----------
        positive, negative : dict of str -> (n, d) and (m, d) array
            By site, as `lineas.evaluation.responses` returns them.
        p, n_permutations, seed : as in `lineas.experts.significance`
        """
        samples = Samples.of(positive, negative)
        return cls(samples, p, relabellings(n_permutations, samples.sizes), seed, {})

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in the order of the forward pass."""
        return list(self.sizes)

    def p_value(self, site: str) -> NDArray[np.float64]:
        """(d,), a view: how probable a distance as large as the unit's is where labels mean nothing."""
        return self._part(self._p_values, site)

    def q_value(self, site: str, method: str = "bh") -> NDArray[np.float64]:
        """(d,): the lowest level at which `units` has the unit; see `false_discovery`, over the units of all sites."""
        return self._part(false_discovery(self._p_values, method), site)

    def distance(self, site: str) -> NDArray[np.float64]:
        """(d,), a view: W_p^p between the two sets, in units of the activations to the power p."""
        return self._part(self._distance, site)

    def expected(self, site: str) -> NDArray[np.float64]:
        """(d,), a view: what sampling alone brings the distance to, on average: the mean of its null."""
        return self._part(self._expected, site)

    def _part(self, flat: NDArray, site: str) -> NDArray:
        if site not in self.sizes:
            raise LookupError(f"no test of site {site!r}; {nearest(site, self.sites)}")
        return by_site(flat, self.sizes)[site]

    def units(self, level: float = LEVEL, method: str = "bh") -> Units:
        """The significant units, site -> sorted numbers, as `Steering.support` returns.

        Parameters
        ----------
        level : float
            What share of them may be false, on average.
        method : str
            "bh" or "by", see `false_discovery`.
        """
        return chosen(false_discovery(self._p_values, method) <= check_level(level), self.sizes)

    def top(self, k: int) -> Units:
        """The k units of the lowest p-values; of equals those whose distance is furthest above what is expected."""
        ratio = self._distance / np.where(self._expected > 0, self._expected, 1.0)
        ranks = np.empty(len(ratio))
        ranks[np.lexsort((-ratio, self._p_values))] = np.arange(len(ratio), 0, -1)
        return top(ranks, k, self.sizes)

    def least(self, level: float = LEVEL, method: str = "bh") -> int:
        """How few units can pass together: with fewer at the lowest p-value that there can be, none would."""
        count = len(self._p_values)
        factor = count if method == "bh" else count * float(np.sum(1 / np.arange(1, count + 1)))
        return math.ceil(factor / (1 + self.n_permutations) / check_level(level) - 1e-9)

    def stability(
        self, level: float = LEVEL, method: str = "bh", *, draws: int = 3, seed: int = 0,
        n_permutations: int | None = None,
    ) -> Stability:  # fmt: skip
        """How many of the significant units of one half of the samples are significant in the other half, too.

        Parameters
        ----------
        level, method : as in `units`
        draws, seed : int
            How many splits, and the random numbers for them.
        n_permutations : int, optional
            As many as here if not given. A draw costs about as much as the test itself.

        Returns
        -------
        Stability
            Mean Jaccard index; a test on half the samples finds fewer units. There is no bootstrap: samples that occur
            twice make the null too narrow.

        Raises
        ------
        ValueError
            Fewer than 4 samples in a set.
        """
        count = relabellings(self.n_permutations if n_permutations is None else n_permutations, self.sizes)

        def choose(rows: tuple[NDArray, NDArray]) -> Units:
            positive, negative = self._samples.positive[rows[0]], self._samples.negative[rows[1]]
            found = staged(positive, negative, self._p, count, self._seed)[1]
            return chosen(false_discovery(found, method) <= check_level(level), self.sizes)

        return stability(choose, *self._samples.counts, self.sizes, "halves", draws, seed)

    def __repr__(self) -> str:
        passed = sum(map(len, self.units().values()))
        n, m = self._samples.counts
        return f"Significance({passed} of {len(self._p_values)} units at q = {LEVEL}, {n} + {m} samples)"

    def summary(self, level: float = LEVEL, method: str = "bh") -> str:
        """A table: how many units pass, in all and at each site."""
        found = self.units(level, method)
        count, total = sum(map(len, found.values())), len(self._p_values)
        n, m = self._samples.counts
        by = {"bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}[method]
        lowest, least = 1 / (1 + self.n_permutations), self.least(level, method)
        lines = [
            f"{count} of {total} units ({count / total:.1%}) pass at q = {level:g} ({by}), {n} + {m} samples",
            f"lowest possible p-value {lowest:.2g}: at least {least} must have it for any to pass",
        ]
        return "\n".join([*lines, *table(found, self.sizes, "significant")])


def check_level(level: float) -> float:
    if not isinstance(level, (int, float, np.number)) or not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}")
    return float(level)


def relabellings(asked: int | None, sizes: Mapping[str, int]) -> int:
    """As many as were asked for; else two stages, or enough for twenty units to pass at `LEVEL` together."""
    return max(FIRST * FACTOR, sum(sizes.values())) if asked is None else checks.whole(asked, "n_permutations")


def stages(limit: int) -> list[int]:
    """Numbers of relabellings, each about `FACTOR` times the one before, up to the limit."""
    counts = [FIRST]
    while counts[-1] * FACTOR < limit:
        counts.append(counts[-1] * FACTOR)
    return [min(FIRST, limit)] if limit <= FIRST else [*counts, limit]


def staged(
    positive: NDArray, negative: NDArray, p: float, limit: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the null and p-value of every unit, with most relabellings where they matter.

    A unit goes on to the next stage while fewer than `FACTOR` relabellings reach its distance, and has the p-value of
    its last stage. That is a p-value like any other: it is at most x only if that of one certain stage is, the first
    whose bar for going on lies below x. (Who stopped earlier has one above a bar of at least x; who went on from that
    stage had one below its bar there.)
    """
    expected, p_values = np.empty(0), np.empty(0)
    left = np.arange(positive.shape[1])
    for count in stages(limit):
        null = permutation_null(positive[:, left], negative[:, left], p, n_permutations=count, seed=seed)
        if not len(p_values):
            expected, p_values = null.mean, null.p_value.copy()
        p_values[left] = null.p_value
        left = left[null.p_value * (1 + count) <= FACTOR + 0.5]
        if not len(left):
            break
    return expected, p_values


def significance(
    model: Any, positive: Any, negative: Any, sites: str | Sequence[str | Site] | None = None, *, p: float = 2,
    n_permutations: int | None = None, tokenizer: Any = None, batch_size: int | None = None,
    max_length: int | None = None, pooling: str = "mean", seed: int = 0,
    component: str | None = None, call: Mapping[str, Any] | None = None, at: str | Sequence[int] | None = None,
) -> Significance:  # fmt: skip
    """Test every unit: are its responses to two sets of inputs further apart than those to the same inputs relabelled?

    Parameters
    ----------
    model : nn.Module or pipeline
        With or without a steering on it; left as it was.
    positive, negative : as `src` and `tgt` of `lineas.fit`
        At least two inputs of each. The test is the same both ways round.
    sites, tokenizer, batch_size, max_length, pooling, component, call, at : as in `lineas.evaluation.responses`
    p : float
        Of the distance W_p^p that is tested, at least 1.
    n_permutations : int, optional
        Relabellings of the units that need most of them; if not given 20,000, or N for more units than that. No p-value
        is below 1 / (1 + n_permutations), and so few units alone cannot pass: at least 18 of N = 17,280 must, at a
        level of 0.05, as `Significance.least` says. N / 0.05 relabellings let a single one pass.
    seed : int
        Of the relabellings, and of a pipeline's noise. No global random state is touched.

    Returns
    -------
    Significance

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `lineas.fit` and `lineas.ot.permutation_null`.

    Notes
    -----
    All units have 1000 relabellings; those whose distance fewer than 20 of them reach have 20,000; and so on. What a
    unit ends with is a valid p-value. At N = 17,280 that takes 2 seconds of one core for 32 + 32 samples, half a minute
    for 128 + 128. Few samples limit it, too: 4 + 4 can be labelled in 70 ways.
    Source: Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39 (p-values of drawn permutations), and
    `false_discovery`.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
    >>> net[0].weight.data = torch.eye(2)
    >>> draw = torch.Generator().manual_seed(0)
    >>> one, other = torch.randn(2, 30, 2, generator=draw) + torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]])
    >>> lineas.experts.significance(net, one, other, "0").units(0.05)
    {'0': array([0])}
    """
    options = {
        "tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length, "pooling": pooling, "seed": seed,
        "component": component, "call": call, "at": at,
    }  # fmt: skip
    if n_permutations is not None:  # before the model runs
        checks.whole(n_permutations, "n_permutations")
    samples = collect(model, positive, negative, sites, options)
    return Significance(samples, p, relabellings(n_permutations, samples.sizes), seed, facts(model, options))
