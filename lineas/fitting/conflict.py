"""conflict(): how two steerings of one model stand to each other, before they are used together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..core.arrays import Floats
from ..core.text import warn
from ..evaluation.calibration import TEXTS, TOKENS, writes_texts
from ..evaluation.language import own_tokens, perplexity
from ..maps.algebra import Pairs, merged_order, pairs_of
from ..network.inputs import Inputs
from ..network.sites import find_sites
from ..network.state import device_of, eager, frozen, seeded
from ..responses.layout import Layout
from ..responses.probe import probe
from ..steering import Steering
from .ridge import sensitivity

__all__ = ["Conflict", "SiteConflict", "conflict"]

HEADS = ("site", "units", "shared", "alike", "order")


class SiteConflict(NamedTuple):
    """One site that both steerings map.

    Attributes
    ----------
    units, shared : int
        Units there; how many of them both steerings move.
    alike : float
        Cosine of their moves (weight - 1, bias): 1 the same, -1 opposed, NaN where one does not move.
    order : float
        By how much b after a differs from a after b, as a part of what both do to the biases.
    """

    site: str
    units: int
    shared: int
    alike: float
    order: float


@dataclass(frozen=True)
class Conflict:
    """What `lineas.conflict` found of steerings a and b.

    Attributes
    ----------
    sites : tuple of SiteConflict
    alike, order : float
        The same over all sites; NaN and 0 where they share none.
    on_output : float or None
        Cosine of what the two do to the model's output: -1 where they cancel. None without a model.
    kept : (float, float) or None
        What is left of each one's own effect while the other is on, predicted from what the other does to it alone: 1
        nothing is lost, 0 it is gone, above 1 they help each other. None without the sets that they are for.
    prices : (float, float, float) or None
        Predicted nats a token of a, of b, and of both.
    order_price : float or None
        Predicted nats a token between a after b and b after a.
    """

    sites: tuple[SiteConflict, ...]
    alike: float
    order: float
    on_output: float | None = None
    kept: tuple[float, float] | None = None
    prices: tuple[float, float, float] | None = None
    order_price: float | None = None

    def __str__(self) -> str:
        width = max(len("site"), *(len(one.site) for one in self.sites)) if self.sites else len("site")
        lines = [f"{HEADS[0]:{width}}" + "".join(f"{head:>8}" for head in HEADS[1:])]
        lines += [f"{s.site:{width}}{s.units:8}{s.shared:8}{s.alike:8.2f}{s.order:8.3f}" for s in self.sites]
        lines.append(f"over all sites: alike {self.alike:.2f}, order {self.order:.3f}")
        if self.prices:
            prices = "{:.3g}, {:.3g}, both {:.3g}".format(*self.prices)
            lines.append(f"on the output: alike {self.on_output:.2f}")
            lines.append(f"nats a token: {prices}; between the two orders {self.order_price:.3g}")
        if self.kept:
            lines.append("of their effects {:.0%} and {:.0%} stay while both are on".format(*self.kept))
        return "\n".join(lines)


def conflict(
    a: Steering, b: Steering, model: Any = None, texts: Any = None, *, sets: Sequence[Sequence[Any]] | None = None,
    tokenizer: Any = None, component: str | None = None, call: Mapping[str, Any] | None = None,
    batch_size: int | None = None, max_length: int | None = None, seed: int = 0,
) -> Conflict:  # fmt: skip
    """Whether two steerings go together, before both are on: do they push alike, does one undo the other's effect?

    Parameters
    ----------
    a, b : Steering
        Of the same network, at the strengths at which they are to be used: `0.3 * a`.
    model : nn.Module or pipeline, optional
        Whose output is logits: then also what the two do to its output, where units that hardly matter count little.
    texts : as `src` of `lineas.fit`, optional
        Where to look: inputs that are neither's source. If not given, what a language model writes itself.
    sets : two pairs (src, tgt), optional
        Of texts that are like those that a, and b, were fitted on, and others than these: what `kept` is told by.
    tokenizer, component, call, batch_size, max_length, seed : as in `lineas.fit`

    Returns
    -------
    Conflict
        Print it, or read its `sites`, `alike`, `order`, `on_output`, `kept`, `prices` and `order_price`.

    Raises
    ------
    TypeError, ValueError, LookupError
        No steerings, or of other sites or sizes than the model's; an output that is no logits; `texts` or `sets`
        without a model.

    Warns
    -----
    UserWarning
        A steering does nothing for its `sets`: what is kept of it is NaN.

    Notes
    -----
    Without a model O(units). With one, a forward and a backward pass over the texts, as the ridge of a fit takes: rows
    g of the Fisher form give (g . a)(g . b), averaged. The two orders differ in the biases by w_b b_a + b_b - w_a b_b -
    b_a. An effect is how much likelier a set's targets become than its sources, a token; with `sets` these are read
    three times. Of ten pairs of concepts, each at 0.05 nats, `kept` foretold what was left while both were on with a
    rank correlation of 0.78, the cosines with 0.11 and 0.33 (`docs/strength.md`).
    Source: Amari, Natural Gradient Works Efficiently in Learning, Neural Computation 10 (1998), for the form.

    Examples
    --------
    >>> import lineas
    >>> a, b = lineas.Steering({"0": ([1, 2], [1, 0])}), lineas.Steering({"0": ([1, 1], [-1, 1])})
    >>> round(lineas.conflict(a, b).alike, 2)
    -0.5
    """
    for name, one in (("a", a), ("b", b)):
        if not isinstance(one, Steering):
            raise TypeError(f"{name}: expected a Steering, got {type(one).__name__}")
    for name, value in (("texts", texts), ("sets", sets)):
        if model is None and value is not None:
            raise ValueError(f"{name}: expected a model to look at them with, got none")
    pairs = pairs_of(a), pairs_of(b)
    names = merged_order(*pairs)
    sizes = {name: {len(one[name][0]) for one in pairs if name in one} for name in names}
    if odd := next((name for name in names if len(sizes[name]) > 1), None):
        raise ValueError(f"site {odd!r}: expected as many units in both, got {sorted(sizes[odd])}")
    units = {name: min(sizes[name]) for name in names}
    first, second = (_moves(one, units) for one in pairs)
    sites = tuple(
        _of_site(name, first[name], second[name]) for name in names if all(name in one for one in pairs)
    )  # fmt: skip
    whole = _of_site("", *(np.concatenate([*one.values(), np.empty((2, 0))], 1) for one in (first, second)))
    found = Conflict(sites, whole.alike, whole.order)
    if model is None:
        return found
    how = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length}
    rows, layout = _rows(model, texts, names, component, call, seed, how)
    for site, size in zip(layout.sites, layout.sizes, strict=True):
        if units[site.name] != size:
            raise ValueError(f"site {site.name!r}: expected {size} units, as the model has, got {units[site.name]}")
    turned = {name: np.stack([np.zeros(units[name]), _turned(first[name], second[name])]) for name in names}
    of_a, of_b, of_order = (
        rows @ np.concatenate([one[site.name] for site in layout.sites], 1).ravel() for one in (first, second, turned)
    )
    price_a, price_b, both = (float(np.square(push).mean()) for push in (of_a, of_b, of_a + of_b))
    length = np.sqrt(price_a * price_b)
    return replace(
        found, on_output=float((of_a * of_b).mean() / length) if length else float("nan"),
        prices=(price_a, price_b, both), order_price=float(np.square(of_order).mean()),
        kept=None if sets is None else _kept(a, b, model, sets, how),
    )  # fmt: skip


def _kept(
    a: Steering, b: Steering, model: Any, sets: Sequence[Sequence[Any]], how: Mapping[str, Any]
) -> tuple[float, float]:
    """1 + what the other does to an effect by what the steering itself does to it."""
    if len(sets) != 2 or any(len(pair) != 2 for pair in sets):
        raise ValueError("sets: expected two pairs (src, tgt), those of a and those of b")
    options = {**how, "batch_size": how["batch_size"] or 16}

    def contrasts() -> Floats:
        """Of both pairs, how much likelier a token of the targets is than one of the sources."""
        read = [[np.log(perplexity(model, list(texts), **options)) for texts in pair] for pair in sets]
        return np.array([source - target for source, target in read])

    base = contrasts()
    effects = []
    for one in (a, b):
        with one.apply(model):
            effects.append(contrasts() - base)
    (a_by_a, b_by_a), (a_by_b, b_by_b) = effects
    for name, effect in (("a", a_by_a), ("b", b_by_b)):
        if not effect > 0:
            warn(
                f"sets: {name} alone makes its targets no likelier than its sources ({effect:.3g} a token), so nothing "
                "is told of what stays of it; expected texts like those that it was fitted on"
            )
    own, cross = np.array([a_by_a, b_by_b]), np.array([a_by_b, b_by_a])
    kept = 1 + np.divide(cross, own, out=np.full(2, np.nan), where=own > 0)
    return float(kept[0]), float(kept[1])


def _moves(pairs: Pairs, units: Mapping[str, int]) -> dict[str, Floats]:
    """Site -> (2, d), weight - 1 and bias; zeros where there is no map."""
    return {
        name: np.stack([pairs[name][0] - 1, pairs[name][1]]) if name in pairs else np.zeros((2, size))
        for name, size in units.items()
    }


def _turned(a: Floats, b: Floats) -> Floats:
    """What b after a adds more than a after b, from their moves (2, d); the scales are the same."""
    return b[0] * a[1] - a[0] * b[1]


def _of_site(name: str, a: Floats, b: Floats) -> SiteConflict:
    lengths, biases = (np.linalg.norm(a) * np.linalg.norm(b), np.hypot(np.linalg.norm(a[1]), np.linalg.norm(b[1])))
    return SiteConflict(
        name, a.shape[1], int(((a != 0).any(0) & (b != 0).any(0)).sum()),
        float((a * b).sum() / lengths) if lengths else float("nan"),
        float(np.linalg.norm(_turned(a, b)) / biases) if biases else 0.0,
    )  # fmt: skip


def _rows(
    model: Any, texts: Any, sites: list[str], component: str | None, call: Mapping[str, Any] | None, seed: int,
    how: Mapping[str, Any],
) -> tuple[Floats, Layout]:  # fmt: skip
    """The rows of the Fisher form, and the sites that they are of."""
    given = Inputs(model, component=component, call=call, seed=seed)
    network = given.network
    if texts is None:
        if not writes_texts(network):
            raise TypeError(f"texts: expected inputs of a {type(network).__name__}, which writes no texts; got none")
        texts, how = own_tokens(network, how["tokenizer"], TEXTS, TOKENS, seed), {**how, "tokenizer": None}
    found, device = find_sites(model, sites, component=component), device_of(network)
    with seeded(seed, device), frozen(network), eager(), torch.enable_grad():
        (batches,) = given.batches({"texts": texts}, how["tokenizer"], how["batch_size"], how["max_length"])
        batches = [batch.to(device) for batch in batches]
        layout = probe(network, found, batches[0])
        rows = sensitivity(network, layout, batches, seed).rows
    if rows is None:
        raise ValueError(f"model: expected logits for its output, got those of no {type(network).__name__}")
    return rows.astype(np.float64), layout
