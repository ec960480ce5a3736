"""What the units of a model do on some inputs, steered or not."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..network.identity import data_digest
from ..network.inputs import Inputs
from ..network.sharding import refuse_others
from ..network.sites import Site, find_sites
from ..network.state import device_of, eager, frozen, seeded
from .pooling import as_poolings
from .probe import probe
from .runner import Runner


def responses(
    model: Any, inputs: Any, sites: str | Sequence[str | Site] | None = None, *, tokenizer: Any = None,
    batch_size: int | None = None, max_length: int | None = None, pooling: str = "mean", seed: int = 0,
    component: str | None = None, call: Mapping[str, Any] | None = None, at: str | Sequence[int] | None = None,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Pooled activations of a model at some sites, as `lineas.fit` sees them.

    Parameters
    ----------
    model : nn.Module or pipeline
        With or without a steering on it; left as it was.
    inputs : as `src` and `tgt` of `lineas.fit`
    sites, tokenizer, batch_size, max_length, pooling, seed, component, call, at : as in `lineas.fit`

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
    return responses_to(
        "inputs", model, inputs, sites, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length,
        pooling=pooling, seed=seed, component=component, call=call, at=at,
    )  # fmt: skip


def responses_to(
    name: str, model: Any, inputs: Any, sites: str | Sequence[str | Site] | None = None, *,
    tokenizer: Any = None, batch_size: int | None = None, max_length: int | None = None, pooling: str = "mean",
    seed: int = 0, component: str | None = None, call: Mapping[str, Any] | None = None,
    at: str | Sequence[int] | None = None,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """The same; `name` is what messages call the inputs."""
    if len(as_poolings(pooling)) > 1:
        raise ValueError(f"pooling: expected one, for one response of each unit and sample; got {pooling!r}")
    given = Inputs(model, component=component, call=call, at=at, seed=seed)
    found, network, device = find_sites(model, sites, component=component), given.network, device_of(given.network)
    with seeded(seed, device), frozen(network), eager(), torch.no_grad():
        (batches,) = given.batches({name: inputs}, tokenizer, batch_size, max_length)
        refuse_others(network, name, lambda: data_digest(batches))
        batches = batches.on(device)
        defaults = found if sites is None else ()
        layout = probe(network, found, batches[0], defaults, feed_mlps=not given.makes_pictures)
        values = Runner(network, layout.part([]), layout, pooling, seed).collect(batches)
    return {site.name: values[:, layout.slice(k)].copy() for k, site in enumerate(layout.sites)}
