"""Expert units: how well each unit, taken alone, tells inputs with a concept from inputs without it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.checks import number
from ..core.text import nearest, printable
from ..network.sites import Site
from . import files
from .samples import Samples, collect, facts
from .scores import check_metric, score
from .sets import Stability, Units, best, by_site, chosen, stability, table, top

TEXT = 70  # characters of an input that a table shows


class Example(NamedTuple):
    """One input and what a unit does on it.

    `response` is the unit's pooled activation, `positive` says which set the input is of, `number` its place there;
    `input` is the text, chat or prompt itself, None where inputs were of another kind. A pipeline that was looked at at
    several steps, or makes several pictures of a prompt, has as many responses to an input: step by step all prompts
    with their pictures, and `number` counts these.
    """

    response: float
    positive: bool
    number: int
    input: Any


class Expert(NamedTuple):
    """A unit, its score, and the inputs on which it is most active, or least where `sign` is -1."""

    site: str
    unit: int
    score: float
    sign: int
    examples: list[Example]


class Ranking:
    """Scores of all units at some sites for one concept; made by `lineas.experts.rank` or `from_responses`.

    Attributes
    ----------
    metric : str
        "average_precision" or "auroc".
    either_way : bool
        Whether a unit that is low on the concept counts as much as one that is high.
    sizes : dict of str -> int
        Units of each site.
    info : dict
        Model, pooling, and how many samples there were.
    """

    def __init__(
        self, sizes: Mapping[str, int], scores: NDArray, signs: NDArray, metric: str, *, either_way: bool = False,
        samples: Samples | None = None, info: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.sizes, self.metric, self.either_way = dict(sizes), metric, either_way
        self.info: dict[str, Any] = dict(info or {})
        self._scores, self._signs, self._samples = scores, signs, samples

    @classmethod
    def from_responses(
        cls, positive: Mapping[str, ArrayLike], negative: Mapping[str, ArrayLike], *, metric: str = "average_precision",
        either_way: bool = False,
    ) -> "Ranking":  # fmt: skip
        """The ranking from responses that are there already.

        Parameters
        ----------
        positive, negative : dict of str -> (n, d) and (m, d) array
            By site, as `lineas.evaluation.responses` returns them.
        metric, either_way : as in `lineas.experts.rank`

        Raises
        ------
        TypeError, ValueError
            No real numbers; sets that disagree in their sites or units; NaN or infinity; an unknown metric.
        """
        return cls._of(Samples.of(positive, negative), metric, either_way, {})

    @classmethod
    def _of(cls, samples: Samples, metric: str, either_way: bool, info: Mapping[str, Any]) -> "Ranking":
        scores, signs = score(samples.positive, samples.negative, metric, either_way)
        n, m = samples.counts
        info = {**info, "positive": n, "negative": m}
        return cls(samples.sizes, scores, signs, metric, either_way=either_way, samples=samples, info=info)

    # -- looking --

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in the order of the forward pass."""
        return list(self.sizes)

    @property
    def counts(self) -> tuple[int, int]:
        """Positive and negative responses. ValueError where it was saved without them."""
        return self._with_samples().counts

    def score(self, site: str) -> NDArray[np.float64]:
        """(d,), a view: from 0 to 1, the higher the better. LookupError for a site that was not ranked."""
        return self._part(self._scores, site)

    def sign(self, site: str) -> NDArray[np.int8]:
        """(d,), a view: 1 where the unit is high on the concept, -1 where it is low; -1 occurs with `either_way`."""
        return self._part(self._signs, site)

    def _part(self, flat: NDArray, site: str) -> NDArray:
        if site not in self.sizes:
            raise LookupError(f"no scores for site {site!r}; {nearest(site, self.sites)}")
        return by_site(flat, self.sizes)[site]

    def top(self, k: int) -> Units:
        """The k units of the highest scores, all sites together: site -> sorted numbers, as `Steering.support` returns.

        Of equals, those that the forward pass reaches first.
        """
        return top(self._scores, k, self.sizes)

    def above(self, threshold: float) -> Units:
        """The expert set: units whose score is at least the threshold."""
        return chosen(self._scores >= number(threshold, "threshold"), self.sizes)

    def experts(self, k: int = 10, examples: int = 3) -> list[Expert]:
        """The k best units, best first, each with the inputs of both sets on which it is most active."""
        names, starts = self.sites, np.cumsum([0, *self.sizes.values()])
        found = []
        for flat in best(self._scores, k):
            row = int(np.searchsorted(starts, flat, side="right")) - 1
            unit = int(flat - starts[row])
            inputs = self.examples(names[row], unit, examples) if examples else []
            found.append(Expert(names[row], unit, float(self._scores[flat]), int(self._signs[flat]), inputs))
        return found

    def examples(self, site: str, unit: int, count: int = 3) -> list[Example]:
        """The inputs of both sets on which a unit is most active, most first; least, where its sign is -1.

        ValueError where a ranking was saved without its responses.
        """
        sign = int(self.sign(site)[unit])
        samples = self._with_samples()
        sides = [by_site(side, self.sizes)[site][:, unit] for side in (samples.positive, samples.negative)]
        values, n = np.concatenate(sides), len(sides[0])
        found = []
        for place in np.argsort(-sign * values, kind="stable")[:count].tolist():
            positive, number = place < n, place if place < n else place - n
            inputs = samples.inputs[0 if positive else 1]
            found.append(Example(float(values[place]), positive, number, None if inputs is None else inputs[number]))
        return found

    def _with_samples(self) -> Samples:
        if self._samples is None:
            raise ValueError("expected a ranking with its responses, got one that was saved without: rank again")
        return self._samples

    def stability(
        self, k: int | None = None, *, threshold: float | None = None, how: str = "halves", draws: int = 20,
        seed: int = 0,
    ) -> Stability:  # fmt: skip
        """How much of the experts is found again on other inputs: mean Jaccard index of expert sets.

        Parameters
        ----------
        k : int
            Compare the top k; or, instead,
        threshold : float
            the units whose score is at least this.
        how : str
            "halves": between two halves of the inputs that share none, which have half as many samples as the ranking
            has. "bootstrap": between inputs drawn with replacement and all inputs, which share most of them.
        draws, seed : int
            How many splits or resamples, and the random numbers for them; no global random state is touched.

        Returns
        -------
        Stability
            With the mean Jaccard index of random sets of these sizes beside it.

        Raises
        ------
        ValueError
            Neither k nor threshold, or both; fewer than 4 samples in a set to split; no responses at hand.
        """
        if (k is None) == (threshold is None):
            raise ValueError(f"expected one of k and threshold, got k={k!r} and threshold={threshold!r}")
        samples = self._with_samples()

        def choose(rows: tuple[NDArray, NDArray]) -> Units:
            positive, negative = samples.positive[rows[0]], samples.negative[rows[1]]
            scores, _ = score(positive, negative, self.metric, self.either_way)
            return chosen(scores >= threshold, self.sizes) if k is None else top(scores, k, self.sizes)

        return stability(choose, *samples.counts, self.sizes, how, draws, seed)

    def __repr__(self) -> str:
        count, units = len(self.sizes), len(self._scores)
        return (
            f"Ranking({self.metric} of {units} units at {count} site{'s' * (count > 1)}, best {self._scores.max():.3f})"
        )

    def summary(self, k: int = 10, examples: int = 2) -> str:
        """The k best units with their most activating inputs, and how many of the top hundredth are at each site."""
        lines = [repr(self)]
        for expert in self.experts(k, examples if self._samples is not None else 0):
            lines.append(f"{expert.score:.3f} {'+' if expert.sign > 0 else '-'} {expert.site} unit {expert.unit}")
            lines += [f"        {example_text(example)}" for example in expert.examples]
        share = max(1, round(len(self._scores) / 100))
        return "\n".join([*lines, "", *table(self.top(share), self.sizes, f"in top {share}")])

    # -- files --

    def save_pretrained(self, folder: str | os.PathLike, *, responses: bool = True) -> None:
        """Write `ranking_config.json` and `ranking.safetensors` into a folder, which is made if need be.

        Parameters
        ----------
        folder : path
        responses : bool
            Also the responses, 4 bytes a unit and sample, and the inputs that are texts or chats. Without them, a
            ranking that is read back has no examples and no stability.
        """
        facts = {"sizes": self.sizes, "metric": self.metric, "either_way": self.either_way, "info": self.info}
        files.write(Path(folder), self._scores, self._signs, self._samples if responses else None, facts)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "Ranking":
        """Read what `save_pretrained` wrote; nothing in the files is run.

        Raises
        ------
        FileNotFoundError
            The folder lacks one of the two files.
        ValueError
            A file is truncated, corrupted, too large, of another format or version, or disagrees with the other.
        """
        return cls(**files.read(Path(folder)))


def example_text(example: Example) -> str:
    """A line: which set, the response, the input's beginning. A terminal obeys some characters, so they go."""
    text = f"input {example.number}" if example.input is None else str(example.input)
    return f"{'+' if example.positive else '-'} {example.response:9.3g}  {printable(text)[:TEXT]}"


def rank(
    model: Any, positive: Any, negative: Any, sites: str | Sequence[str | Site] | None = None, *,
    metric: str = "average_precision", either_way: bool = False, tokenizer: Any = None, batch_size: int | None = None,
    max_length: int | None = None, pooling: str = "mean", seed: int = 0,
    component: str | None = None, call: Mapping[str, Any] | None = None, at: str | Sequence[int] | None = None,
) -> Ranking:  # fmt: skip
    """Score every unit as a classifier of inputs with a concept against inputs without it.

    Parameters
    ----------
    model : nn.Module or pipeline
        With or without a steering on it; left as it was.
    positive, negative : as `src` and `tgt` of `lineas.fit`
        Inputs with the concept, and without; at least two of each.
    sites : as in `lineas.fit`
    metric : str
        "average_precision", as in the papers below, or "auroc". A unit that knows nothing has an average precision of
        about the share of positive inputs among all, and an area of 0.5.
    either_way : bool
        Also count units that are low on the concept: a unit's score is then the better of its own and that of its
        negative. The papers count high ones only.
    tokenizer, batch_size, max_length, pooling, seed, component, call, at : as in `lineas.evaluation.responses`
        The papers take the largest response over the tokens of a sentence, the default here is the mean.

    Returns
    -------
    Ranking

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `lineas.fit`; an unknown metric.

    Notes
    -----
    One forward pass over both sets; responses of n + m samples take 4 (n + m) N bytes and stay with the result.
    Source: Suau et al., Finding Experts in Transformer Models, arXiv 2005.07647, sec. 3 (expert units, their average
    precision); Fedzechkina et al., ExpertLens, arXiv 2502.15090 (sets over a threshold and their overlap).

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    >>> net[0].weight.data, net[0].bias.data = torch.eye(2), torch.zeros(2)
    >>> far, near = torch.tensor([[3.0, 1.0], [4.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    >>> lineas.experts.rank(net, far, near, "0", metric="auroc").score("0")
    array([1. , 0.5])
    """
    check_metric(metric)  # before the model runs
    options = {
        "tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length, "pooling": pooling, "seed": seed,
        "component": component, "call": call, "at": at,
    }  # fmt: skip
    samples = collect(model, positive, negative, sites, options)
    return Ranking._of(samples, metric, either_way, facts(model, options))
