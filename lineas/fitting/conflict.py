"""conflict(): how two steerings of one model stand to each other, before they are used together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..core.arrays import Floats
from ..core.text import warn
from ..evaluation.calibration import TEXTS, TOKENS, writes_texts
from ..evaluation.language import own_tokens, perplexity
from ..maps.conflict import Conflict, SiteConflict, moves_of, told_by_maps, turned
from ..network.inputs import Inputs
from ..network.sites import find_sites
from ..network.state import device_of, eager, frozen, seeded
from ..responses.layout import Layout
from ..responses.probe import probe
from ..steering import Steering
from .ridge import sensitivity

__all__ = ["Conflict", "SiteConflict", "conflict"]


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
    rank correlation of 0.78 and, of other texts, 0.97; the cosines with 0.11 to 0.59 (`docs/strength.md`).
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
    if sets is not None and (len(sets) != 2 or any(len(pair) != 2 for pair in sets)):
        raise ValueError("sets: expected two pairs (src, tgt), those of a and those of b")
    found, (first, second) = told_by_maps(a, b), moves_of(a, b)
    if model is None:
        return found
    how = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length}
    rows, layout = fisher_rows(model, texts, list(first), component, call, seed, how)
    for site, size in zip(layout.sites, layout.sizes, strict=True):
        if first[site.name].shape[1] != size:
            got = first[site.name].shape[1]
            raise ValueError(f"site {site.name!r}: expected {size} units, as the model has, got {got}")
    orders = {name: np.stack([np.zeros_like(move[0]), turned(move, second[name])]) for name, move in first.items()}
    of_a, of_b, of_order = (
        rows @ np.concatenate([one[site.name] for site in layout.sites], 1).ravel() for one in (first, second, orders)
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


def fisher_rows(
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
        batches = batches.on(device)
        layout = probe(network, found, batches[0])
        rows = sensitivity(network, layout, batches, seed).rows
    if rows is None:
        raise ValueError(f"model: expected logits for its output, got those of no {type(network).__name__}")
    return rows.astype(np.float64), layout
