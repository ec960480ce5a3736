"""Two samples through the model: in which order, how often and in what shape its sites come."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..network.calls import call
from ..network.data import Batch
from ..network.hooks import channel_dim, hooked
from ..network.sites import Site
from .layout import Layout


def probe(model: nn.Module, sites: Sequence[Site], batch: Batch) -> Layout:
    """Run two samples through the whole model to learn in which order, how often and in what shape the sites come.

    LookupError for a site that never runs, ValueError for one that runs twice or does not keep samples apart.
    """
    seen: dict[Site, tuple[int, int, str]] = {}

    def watch(site: Site):
        def see(module: nn.Module, h: Tensor) -> Tensor:
            if site in seen:
                raise ValueError(
                    f"site {site.name!r} runs more than once in a forward pass (a shared module?); one map cannot "
                    "serve several places"
                )
            if h.shape[0] != few.size:
                why = ", the same for all samples, as rotary positions (cos, sin) are" * (h.shape[0] == 1)
                raise ValueError(
                    f"site {site.name!r}: expected samples in dimension 0 ({few.size} here), got {tuple(h.shape)}{why}"
                )
            dim = channel_dim(module, h)
            seen[site] = (h.shape[dim], dim, "decoder_" if h.ndim == 3 and h.shape[1] == decoder_tokens else "")
            return h

        return see

    few, decoder_tokens = batch.rows(0, 2).apart()  # where there are two: with one, none would be missed
    with torch.no_grad(), hooked(model, {site: watch(site) for site in sites}):
        call(model, few)
    missing = [site.name for site in sites if site not in seen]
    if missing:
        raise LookupError(f"not run in the forward pass, so cannot be steered or compared: {', '.join(missing)}")
    return Layout(tuple(seen), *(tuple(values) for values in zip(*seen.values(), strict=True)))
