"""What a site's units do at single tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..network.batch import Batch
from ..network.calls import call
from ..network.hooks import channel_dim, hooked
from ..network.sites import Site


def token_responses(
    network: nn.Module, site: Site, batches: Sequence[Batch], most: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """At most so many tokens of each sample, evenly spaced, padding aside.

    Returns
    -------
    values : (tokens, d), and samples : (tokens,)
        Which sample each token is of.

    Raises
    ------
    ValueError
        The site has no tokens of the input; it did not run.
    """
    values: list[NDArray[np.float32]] = []
    samples: list[int] = []
    seen: list[Tensor] = []

    def see(module: nn.Module, h: Tensor) -> Tensor:
        if h.ndim != 3 or channel_dim(module, h) != -1:
            raise ValueError(f"site {site.name!r}: expected (batch, tokens, channels), got {tuple(h.shape)}")
        seen.append(h)
        return h

    count = 0
    for batch in batches:
        with torch.no_grad(), hooked(network, {site: see}, batch.size):
            call(network, batch)
        if not seen:
            raise ValueError(f"site {site.name!r}: expected it to run, but it did not")
        h = seen[-1].to("cpu", torch.float32).numpy()
        seen.clear()
        real = np.ones(h.shape[:2], bool) if batch.mask is None else (batch.mask != 0).cpu().numpy()
        if real.shape != h.shape[:2]:
            raise ValueError(f"site {site.name!r}: expected the {real.shape} tokens of the input, got {h.shape}")
        for row, is_real in zip(h, real, strict=True):
            at = np.flatnonzero(is_real)
            chosen = at[np.linspace(0, len(at) - 1, min(most, len(at))).round().astype(int)]
            values.append(row[chosen])
            samples += [count] * len(chosen)
            count += 1
    return np.concatenate(values), np.array(samples)
