"""Two samples through the model: in which order, how often and in what shape its sites come."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..core.text import warn
from ..network.batch import Batch
from ..network.calls import call
from ..network.default_sites import HOW
from ..network.feeding import watching
from ..network.hooks import channel_dim, hooked
from ..network.sharding import refuse_slices, team_of
from ..network.sites import Site
from ..network.state import dtype_of
from .layout import Layout


def probe(
    model: nn.Module, sites: Sequence[Site], batch: Batch, defaults: Collection[Site] = (), *, feed_mlps: bool = True
) -> Layout:
    """Run two samples through the whole model to learn in which order, how often and in what shape the sites come.

    Of default sites, those are left out that these inputs do not reach (a vision tower's, where there are no images);
    and, with a warning, those that cannot be compared.

    LookupError for a site that never runs, and for a default one that feeds no MLP where defaults do; ValueError for
    one that runs twice, does not keep samples apart, or has a part of its units in each process.
    """
    seen: dict[Site, tuple[int, int, str]] = {}
    folded: list[Site] = []

    def watch(site: Site):
        def see(module: nn.Module, h: Tensor) -> Tensor:
            if site in seen:
                raise ValueError(
                    f"site {site.name!r} runs more than once in a forward pass (a shared module?); one map cannot "
                    "serve several places"
                )
            is_folded = h.ndim == 2 and len(h) != few.size
            if is_folded:
                folded.append(site)
            can_unfold = len(h) % few.size == 0 and not few.has_lists  # whose samples may differ in their tokens
            rows = h.unflatten(0, (few.size, -1)) if is_folded and can_unfold else h
            dim = channel_dim(module, rows)
            side = "decoder_" if rows.ndim == 3 and rows.shape[1] == decoder_tokens else ""
            seen[site] = rows.shape[dim], dim, side
            if team:
                means[f"site {site.name!r}"] = rows.transpose(0, dim).flatten(1).mean(1)
            mask = few.mask_of(side) if rows.ndim == 3 and dim == -1 else None
            if len(rows) != few.size:
                why = ", the same for all samples, as rotary positions (cos, sin) are" * (len(h) == 1)
                unfit[site] = f"expected samples in dimension 0 ({few.size} here), got {tuple(h.shape)}{why}"
            elif site in defaults and mask is not None and mask.shape != rows.shape[:2]:
                unfit[site] = f"has {rows.shape[1]} tokens, {side}attention_mask has {tuple(mask.shape)}"
            return h

        return see

    unfit: dict[Site, str] = {}
    means: dict[str, Tensor] = {}
    team = team_of(model)
    few, decoder_tokens = batch.rows(0, 2).apart()  # where there are two: with one, none would be missed
    watched = watching(model) if defaults and feed_mlps else nullcontext()
    with torch.no_grad(), watched as feeding, hooked(model, {site: watch(site) for site in sites}):
        call(model, few)
    refuse_slices(team, means)
    for site in defaults:
        if feeding is not None and (why := feeding.why_not(site.name)):
            raise LookupError(f"default site {site.name!r} feeds no MLP here: {why}; pass sites=, {HOW}")
    may_lack = set(defaults) if any(site in seen for site in defaults) else set()
    missing = [site.name for site in sites if site not in seen and site not in may_lack]
    if missing:
        raise LookupError(f"not run in the forward pass, so cannot be steered or compared: {', '.join(missing)}")
    unfit |= _not_apart(model, batch, [site for site in folded if site not in unfit])
    fits_some = any(site in seen and site not in unfit for site in defaults)
    for site, why in unfit.items():
        if site not in defaults or not fits_some:
            raise ValueError(f"site {site.name!r}: {why}")
        del seen[site]
    if unfit and not few.has_lists:  # of all normalisations, some are of all samples' tokens together
        site, why = next(iter(unfit.items()))
        warn(f"left out {len(unfit)} of {len(defaults)} default sites; the first is {site.name!r}: {why}")
    return Layout(tuple(seen), *(tuple(values) for values in zip(*seen.values(), strict=True)))


def _not_apart(model: nn.Module, batch: Batch, folded: Sequence[Site]) -> dict[Site, str]:
    """The sites whose tokens (tokens, channels) do not lie sample by sample: the first sample's not in front where two
    samples pass, with as many behind them."""

    def outputs(few: Batch) -> dict[Site, Tensor]:
        found: dict[Site, Tensor] = {}
        functions = {site: lambda module, h, site=site: found.setdefault(site, h.detach()) for site in folded}
        with torch.no_grad(), hooked(model, functions):
            call(model, few.apart()[0])
        return found

    if not folded:
        return {}
    of_one, of_two = outputs(batch.rows(0, 1)), outputs(batch.rows(0, 2) if batch.size > 1 else batch.take([0, 0]))
    tolerance = torch.finfo(dtype_of(model)).eps ** 0.5
    return {
        site: f"expected samples in dimension 0 (2 here), got {tuple(of_two[site].shape)}"
        for site, h in of_one.items()
        if of_two[site].shape != (2 * len(h), h.shape[1])
        or not (of_two[site][: len(h)] - h).norm() <= tolerance * h.norm()
    }
