"""What the units of a model do on some inputs, steered or not, and how far that is from what they do on others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ..data import as_batches
from ..ot import wasserstein_1d
from ..responses import POOLINGS, Runner, probe
from ..sites import Site, find_sites, unwrapped
from ..state import device_of, eager, frozen, seeded


def responses(
    model: nn.Module, inputs: Any, sites: str | Sequence[str | Site] | None = None, *, tokenizer: Any = None,
    batch_size: int | None = None, max_length: int | None = None, pooling: str = "mean", seed: int = 0,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Pooled activations of a model at some sites, as `lineas.fit` sees them.

    Parameters
    ----------
    model : nn.Module
        With or without a steering on it; left as it was.
    inputs : as `src` and `tgt` of `lineas.fit`
    sites, tokenizer, batch_size, max_length, pooling, seed : as in `lineas.fit`

    Returns
    -------
    dict of str -> (samples, units) float32 array
        By site, in the order of the forward pass. Of a steered model, what comes out of the maps.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `lineas.fit`.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> lineas.evaluation.responses(net, torch.ones(5, 4), "0")["0"].shape
    (5, 3)
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: expected one of {', '.join(map(repr, POOLINGS))}; got {pooling!r}")
    model = unwrapped(model)
    found, device = find_sites(model, sites), device_of(model)
    with seeded(seed, device), frozen(model), eager(), torch.no_grad():
        batches = [b.to(device) for b in as_batches(inputs, "inputs", model, tokenizer, batch_size, max_length)]
        layout = probe(model, found, batches[0])
        values = Runner(model, layout.part([]), layout, pooling, seed).collect(batches)
    return {site.name: values[:, layout.slice(k)].copy() for k, site in enumerate(layout.sites)}


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
