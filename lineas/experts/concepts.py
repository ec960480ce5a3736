"""Many concepts: a ranking of each, from one pass over each set of inputs; how much their experts have in common."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..network.sites import Site
from ..responses.collect import responses_to
from .ranking import Ranking
from .samples import Samples, count_of, facts, shown, side_by_side
from .scores import check_metric
from .sets import overlap


def rank_concepts(
    model: Any, concepts: Mapping[str, Any], negative: Any = None,
    sites: str | Sequence[str | Site] | None = None, *, metric: str = "average_precision", either_way: bool = False,
    tokenizer: Any = None, batch_size: int | None = None, max_length: int | None = None, pooling: str = "mean",
    seed: int = 0, component: str | None = None, call: Mapping[str, Any] | None = None,
    at: str | Sequence[int] | None = None,
) -> dict[str, Ranking]:  # fmt: skip
    """A ranking for each of several concepts; the model runs over each set of inputs once.

    Parameters
    ----------
    model : nn.Module or pipeline
        With or without a steering on it; left as it was.
    concepts : dict of str -> inputs
        The inputs of each concept, of any kind that `lineas.fit` takes, at least two of each.
    negative : inputs, optional
        What all concepts are told from. If not given, each is told from all the others together, as in the papers.
    sites, metric, either_way, tokenizer, batch_size, max_length, pooling, seed, component, call, at : as in `rank`

    Returns
    -------
    dict of str -> Ranking
        In the order of `concepts`.

    Raises
    ------
    ValueError
        Fewer than two concepts and no `negative`.
    TypeError, ValueError, LookupError
        As in `rank`.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU())
    >>> sets = {name: torch.randn(6, 2) for name in ("up", "down", "left")}
    >>> {name: len(ranking.score("0")) for name, ranking in lineas.experts.rank_concepts(net, sets, sites="0").items()}
    {'up': 8, 'down': 8, 'left': 8}
    """
    check_metric(metric)
    if not isinstance(concepts, Mapping):
        raise TypeError(f"concepts: expected a dict of name -> inputs, got {type(concepts).__name__}")
    if len(concepts) < (2 if negative is None else 1):
        raise ValueError(f"concepts: expected at least two, or a negative set beside one, got {len(concepts)}")
    options = {
        "tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length, "pooling": pooling, "seed": seed,
        "component": component, "call": call, "at": at,
    }  # fmt: skip
    sets = {
        name: responses_to(f"concepts[{name!r}]", model, inputs, sites, **options) for name, inputs in concepts.items()
    }
    sizes = {site: values.shape[1] for site, values in next(iter(sets.values())).items()}
    texts = [shown(model, inputs, count_of(sets[name]), call) for name, inputs in concepts.items()]
    if negative is not None:
        shared = side_by_side(responses_to("negative", model, negative, sites, **options))
        others = shown(model, negative, len(shared), call)
        all_samples = [
            Samples(sizes, side_by_side(positive), shared, (mine, others))
            for positive, mine in zip(sets.values(), texts, strict=True)
        ]
    else:
        all_samples = _each_from_the_others([side_by_side(values) for values in sets.values()], texts, sizes)
    return {
        name: Ranking._of(samples, metric, either_way, {**facts(model, options), "concept": name})
        for name, samples in zip(concepts, all_samples, strict=True)
    }


def _each_from_the_others(
    sets: Sequence[NDArray], texts: Sequence[list | None], sizes: Mapping[str, int]
) -> list[Samples]:
    """Every set against all others. All share one buffer: with the sets in it twice, the others of a set, from its end
    to where it comes again, are rows in a row."""
    pool = np.concatenate([*sets, *sets])
    ends = np.cumsum([len(values) for values in sets])
    found = []
    for k, (values, end) in enumerate(zip(sets, ends, strict=True)):
        start = end - len(values)
        others = [*texts[k + 1 :], *texts[:k]]
        inputs = None if None in others else [text for part in others for text in part or ()]
        found.append(Samples(dict(sizes), pool[start:end], pool[end : start + ends[-1]], (texts[k], inputs)))
    return found


class Similarity(NamedTuple):
    """How much the units of several concepts have in common.

    Attributes
    ----------
    names : list of str
    jaccard : (c, c) array
        Units in both sets over units in either; 1 on the diagonal, NaN where neither has any.
    by_chance : (c, c) array
        What random sets of the same sizes at each site would have.
    """

    names: list[str]
    jaccard: NDArray[np.float64]
    by_chance: NDArray[np.float64]

    def pairs(self) -> list[tuple[str, str, float]]:
        """All pairs of two concepts with their Jaccard index, the most similar first."""
        found = [(self.names[i], self.names[k], float(self.jaccard[i, k])) for i, k in self._places()]
        return sorted(found, key=lambda pair: -pair[2])

    def _places(self) -> list[tuple[int, int]]:
        return list(combinations(range(len(self.names)), 2))

    def __str__(self) -> str:
        """The matrix in hundredths, a line a concept."""
        width = max(4, *map(len, self.names))
        heads = " ".join(f"{name[:4]:>4}" for name in self.names)
        rows = (
            f"{name:>{width}} " + " ".join(f"{100 * value:4.0f}" for value in row)
            for name, row in zip(self.names, self.jaccard, strict=True)
        )
        places = self._places()
        chance = np.mean([self.by_chance[place] for place in places]) if places else float("nan")
        return "\n".join([f"{'':{width}} {heads}", *rows, f"Jaccard index in hundredths; by chance {100 * chance:.1f}"])


def similarity(units: Mapping[str, Mapping[str, ArrayLike]], sizes: Mapping[str, int]) -> Similarity:
    """Jaccard index of every pair of unit sets.

    Parameters
    ----------
    units : dict of name -> units
        A set of units for each concept, e.g. `{name: ranking.top(500) for name, ranking in rankings.items()}`.
    sizes : dict of str -> int
        Units of each site: `Ranking.sizes`.

    Returns
    -------
    Similarity

    Raises
    ------
    LookupError, TypeError, ValueError
        As in `overlap`.

    Notes
    -----
    Source: Suau et al., arXiv 2005.07647 (the overlap of top experts as a similarity of concepts); Fedzechkina et al.,
    arXiv 2502.15090 (the same for sets over a threshold).

    Examples
    --------
    >>> import lineas
    >>> print(lineas.experts.similarity({"a": {"0": [0, 1]}, "b": {"0": [1, 2]}}, {"0": 4}))
            a    b
       a  100   33
       b   33  100
    Jaccard index in hundredths; by chance 33.3
    """
    names = list(units)
    found = np.empty((2, len(names), len(names)))
    for i, one in enumerate(names):
        for k in range(i, len(names)):
            found[:, i, k] = found[:, k, i] = overlap(units[one], units[names[k]], sizes)[:2]
    return Similarity(names, found[0], found[1])
