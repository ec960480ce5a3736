"""suggest_sites(): where two sets part in a network, what the output minds there, and where to put maps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..core.arrays import Floats, Vector
from ..core.errors import NonFiniteError
from ..core.text import first_few, warn
from ..network.batch import Batch
from ..network.candidates import Candidate, candidate_sites, kinds_of, that_run
from ..network.inputs import Inputs
from ..network.sites import Site, find_sites
from ..network.state import device_of, eager, frozen, seeded
from ..ot import wasserstein_1d
from ..responses.layout import Layout
from ..responses.pooling import as_poolings
from ..responses.probe import probe
from ..responses.runner import Runner, blame
from .options import OF_PICTURES
from .ridge import Ridge, sensitivity
from .suggestion import LEVEL, OUTPUT, SiteFigures, Suggestion, recommended

__all__ = ["SiteFigures", "Suggestion", "suggest_sites"]

RELABELLINGS = 99  # of which the observed labels are the hundredth
LEAST, TINY = 1e-3, 1e-6  # of the site's median variance, and of the distance: what a unit's variance counts at least


def suggest_sites(
    model: Any, src: Any, tgt: Any, candidates: str | Sequence[str | Site] | None = None, *, tokenizer: Any = None,
    batch_size: int | None = None, max_length: int | None = None, pooling: str | None = None, seed: int = 0,
    component: str | None = None, call: Mapping[str, Any] | None = None, at: str | Sequence[int] | None = None,
) -> Suggestion:  # fmt: skip
    """Where to put maps, and where to compare: looks at every site there could be, and recommends some.

    Parameters
    ----------
    model : nn.Module or pipeline
        Left as it was. Anything already on it is part of what is looked at.
    src, tgt : as in `lineas.fit`
    candidates : str or list, optional
        Where to look, as `sites` of `lineas.fit`: all of these must run. If not given, normalisations, what attention
        and MLPs put out, blocks, other layers, and what the network puts out, as far as inputs reach them.
    tokenizer, batch_size, max_length, seed, component, call, at : as in `lineas.fit`
    pooling : str, optional
        As in `lineas.fit`, one of them.

    Returns
    -------
    Suggestion
        Print it for a table, `plot()` it, or pass `sites` and `loss_sites` to `lineas.fit`.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `lineas.fit`; several poolings; no site at all.

    Warns
    -----
    UserWarning
        The sets differ by no more than chance explains, over all candidates: then the default sites are recommended,
        where there are some.

    Notes
    -----
    A pass over each set, and a forward and backward pass over the target, through all of the model; and four passes
    over two samples. Responses take 4 (n + m) N bytes for the N units of all candidates; a hundred relabellings sort
    them.

    A site gives what source and target are apart there, times its `reach`: how far the output goes when the source's
    means are brought to the target's there; divided by it above 1. Default sites are recommended, unless another site
    gives more than twice what the farthest default site would if it reached as far as all of them together: then the
    sites that give at least three quarters of what the best one does. Where that is less than a tenth of what the
    output is apart, the output is compared. `docs/strength.md` says where that wins, and where it does not.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> source, target = torch.randn(32, 4), torch.randn(40, 4) + 2
    >>> found = lineas.suggest_sites(net, source, target)
    >>> steering = lineas.fit(net, source, target, sites=found.sites, loss_sites=found.loss_sites, progress=False)
    """
    given = Inputs(model, component=component, call=call, at=at, seed=seed)
    pooling = pooling or (OF_PICTURES if given.makes_pictures else "mean")
    if len(as_poolings(pooling)) > 1:
        raise ValueError(f"pooling: expected one, for one response of each unit and sample; got {pooling!r}")
    network = given.network
    device = device_of(network)
    named = None if candidates is None else find_sites(model, candidates, component=component)
    usual = _default_names(model, component)
    with seeded(seed, device), frozen(network), eager(), torch.inference_mode(False), torch.enable_grad():
        sources, targets = (
            [batch.to(device) for batch in batches]
            for batches in given.batches({"src": src, "tgt": tgt}, tokenizer, batch_size, max_length)
        )
        known, layout = _layout(network, named, sources[0])
        runner = Runner(network, layout.part([]), layout, pooling, seed)
        with blame("src"):
            of_source = runner.collect(sources)
        with blame("tgt"):
            of_target = runner.collect(targets)
        minds = _minds(network, layout, targets, seed)
    differ = _apart(of_source, of_target, layout, seed)
    told = differ.p_value <= LEVEL
    if not told:
        warn(
            f"src and tgt ({len(of_source)} + {len(of_target)} samples) differ by no more than chance explains, over "
            f"all candidates (p = {differ.p_value:.2f}); give more samples"
        )
    step = of_target.mean(0, dtype=np.float64) - of_source.mean(0, dtype=np.float64)
    of_a_sample, together = _figures([known[site.name] for site in layout.sites], layout, differ, minds, step, usual)
    figures = tuple(one._replace(memory=one.memory * len(of_source)) for one in of_a_sample)
    sites, loss_sites, why = recommended(figures, usual, told, together)
    is_default = set(sites) == set(usual) and not loss_sites
    in_nats = minds is not None and minds.rows is not None and minds.in_nats
    return Suggestion(figures, sites, loss_sites, is_default, why, in_nats, together)


def _figures(
    known: Sequence[Candidate], layout: Layout, differ: "_Apart", minds: Ridge | None, step: Floats,
    usual: Sequence[str],
) -> tuple[list[SiteFigures], float | None]:  # fmt: skip
    """Of each site, its memory that of a sample; and the reach of all usual sites together, None where not known."""
    kinds = [one.kind for one in known]
    prices, reaches = _prices(minds, step, layout, usual, kinds)
    columns = (
        [one.site.name for one in known], kinds, layout.sizes, differ.apart.tolist(), differ.p_values.tolist(), prices,
        reaches[:-1], [one.memory for one in known],
    )  # fmt: skip
    figures = [SiteFigures(*one) for one in zip(*columns, strict=True)]
    return figures, None if np.isnan(reaches[-1]) else reaches[-1]


class _Apart(NamedTuple):
    """By site, how far apart the sets are by the variance within them, mean over units, and the share of labellings
    that reach that; and the share of them that does over all sites, by Fisher's product of p-values."""

    apart: Floats
    p_values: Floats
    p_value: float


def _apart(source: Vector, target: Vector, layout: Layout, seed: int) -> _Apart:
    pooled, n, draw = np.concatenate([source, target]), len(source), np.random.default_rng(seed)
    share = _shares(source, target, layout)
    totals = np.empty((1 + RELABELLINGS, len(layout.sites)))
    for k in range(len(totals)):
        rows = draw.permutation(len(pooled)) if k else np.arange(len(pooled))
        totals[k] = _by_site(share * wasserstein_1d(pooled[rows[:n]], pooled[rows[n:]]), layout)
    apart = np.maximum(totals[0] - totals[1:].mean(0), 0)
    # Of each labelling and site, the share of labellings that come as far.
    reached = np.stack([(column[:, None] <= column).mean(1) for column in totals.T], 1)
    over_all = -np.log(reached).sum(1)
    return _Apart(apart, reached[0], float((over_all[0] <= over_all).mean()))


def _shares(source: Vector, target: Vector, layout: Layout) -> Floats:
    """What each unit's distance counts at its site, (N,): 1 / its variance within the sets / the site's units.

    Else a few units that are a thousand times as large as others, as residual streams have them, would be all of it. A
    variance far below the site's median counts as more: a unit that is nearly constant would be.
    """
    variance = (source.var(0, dtype=np.float64) + target.var(0, dtype=np.float64)) / 2
    held = np.maximum(
        variance, TINY * wasserstein_1d(source, target)
    )  # there may be none, in two sets of one value each
    for k in range(len(layout.sites)):
        where = layout.slice(k)
        held[where] = np.maximum(held[where], LEAST * np.median(variance[where]))
    sizes = np.repeat(layout.sizes, layout.sizes)
    return np.divide(1.0, held * sizes, out=np.zeros_like(held), where=held > 0)


def _by_site(values: Floats, layout: Layout) -> Floats:
    """(N,) -> (sites,), sums."""
    return np.add.reduceat(values, layout.offsets[:-1])


def _prices(
    minds: Ridge | None, step: Floats, layout: Layout, usual: Sequence[str], kinds: Sequence[str]
) -> tuple[list[float], list[float]]:
    """What it does to the output to move a site's units by `step` (N,), those of no other, by site; and how far that
    is of the output's own way, by site, and at last of all usual sites together."""
    sites = len(layout.sites)
    if minds is None or minds.rows is None:
        return [np.nan] * sites, [np.nan] * (sites + 1)
    pushes = np.stack([_by_site(row.astype(np.float64) * step, layout) for row in minds.rows[:, layout.units :]])
    prices = np.square(pushes).mean(0)
    are_usual = [site.name in usual for site in layout.sites]
    together = np.square(pushes[:, are_usual].sum(1)).mean() if any(are_usual) else np.nan
    whole = prices[kinds.index(OUTPUT)] if OUTPUT in kinds else prices.max()
    reaches = np.sqrt(np.append(prices, together) / whole) if whole > 0 else np.full(sites + 1, np.nan)
    return prices.tolist(), reaches.tolist()


def _minds(network: nn.Module, layout: Layout, targets: Sequence[Batch], seed: int) -> Ridge | None:
    """None where the gradient is not finite, as it may be in half precision."""
    try:
        return sensitivity(network, layout, targets, seed, rows_of_any=True)
    except NonFiniteError:
        return None


def _default_names(model: Any, component: str | None) -> list[str]:
    try:
        return [site.name for site in find_sites(model, component=component)]
    except LookupError:  # there is no default
        return []


def _layout(network: nn.Module, named: list[Site] | None, batch: Batch) -> tuple[dict[str, Candidate], Layout]:
    """The candidates by name, the network's output among them, and where their units lie."""
    if named is not None:
        probe(network, named, batch)  # refuses what cannot be compared
    found = that_run(network, candidate_sites(network) if named is None else kinds_of(network, named), batch)
    if not found:
        raise LookupError("candidates: expected modules that return floats sample by sample, found none")
    known = {one.site.name: one for one in found}
    if lost := [site.name for site in named or () if site.name not in known]:
        raise LookupError(
            f"candidates: expected sites that return something of their own, before the network's output; got "
            f"{first_few(lost)}"
        )
    sites = [one.site for one in found]
    return known, probe(network, sites, batch, sites, feed_mlps=False)
