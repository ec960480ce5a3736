"""Run a model, collect the pooled responses of all sites into one host buffer."""

import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import _core, ops
from .data import Batch
from .sites import Site, channel_dim, hooked
from .state import device_of, must_finish, reseed

POOLINGS = ("mean", "last")


class _Finished(Exception):
    """The last loss site has been seen: the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class Layout:
    """Where each site's units lie in the flat vectors: those of site k at offsets[k] to offsets[k + 1]."""

    sites: tuple[Site, ...]
    sizes: tuple[int, ...]
    channel_dims: tuple[int, ...]
    sides: tuple[str, ...]  # whose tokens a site has, see `Batch.mask_of`
    offsets: NDArray[np.int64] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "offsets", np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)]))

    @property
    def units(self) -> int:
        return int(self.offsets[-1])

    def slice(self, k: int) -> slice:
        return slice(int(self.offsets[k]), int(self.offsets[k + 1]))

    def site_of(self, unit: int) -> Site:
        return self.sites[int(np.searchsorted(self.offsets, unit, side="right")) - 1]

    def part(self, sites: Sequence[Site]) -> "Layout":
        """The layout of some of these sites, in this order."""
        keep = [k for k, site in enumerate(self.sites) if site in sites]
        return Layout(
            tuple(self.sites[k] for k in keep),
            tuple(self.sizes[k] for k in keep),
            tuple(self.channel_dims[k] for k in keep),
            tuple(self.sides[k] for k in keep),
        )


def call(model: nn.Module, batch: Batch) -> None:
    kwargs = dict(batch.kwargs)
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs.setdefault("use_cache", False)  # a cache of keys and values would only cost memory
    model(*batch.args, **kwargs)


def probe(model: nn.Module, sites: Sequence[Site], batch: Batch) -> Layout:
    """Run one sample through the whole model to learn in which order, how often and in what shape the sites come.

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
            if h.shape[0] != one.size:
                raise ValueError(
                    f"site {site.name!r}: expected samples in dimension 0 ({one.size} here), got {tuple(h.shape)}"
                )
            dim = channel_dim(module, h)
            seen[site] = (h.shape[dim], dim, "decoder_" if h.ndim == 3 and h.shape[1] == decoder_tokens else "")
            return h

        return see

    one, decoder_tokens = batch.rows(0, 1).apart()
    with torch.no_grad(), hooked(model, {site: watch(site) for site in sites}):
        call(model, one)
    missing = [site.name for site in sites if site not in seen]
    if missing:
        raise LookupError(f"not run in the forward pass, so cannot be steered or compared: {', '.join(missing)}")
    return Layout(tuple(seen), *(tuple(values) for values in zip(*seen.values(), strict=True)))


def pool_weights(mask: Tensor | None, batch: int, tokens: int, pooling: str, site: Site) -> Tensor:
    """(batch, tokens) float32: what each token counts in its sample's response; every row sums to one."""
    if mask is None:
        mask = torch.ones(batch, tokens)
    if mask.shape != (batch, tokens):
        raise ValueError(
            f"site {site.name!r} has {batch} x {tokens} (batch x tokens), attention_mask has {tuple(mask.shape)}"
        )
    counts = mask != 0
    if pooling == "last":
        last = tokens - 1 - counts.flip(1).int().argmax(1)
        return torch.nn.functional.one_hot(last, tokens).float()
    return counts.float() / counts.sum(1, keepdim=True)


def pooled(h: Tensor, dim: int, mask: Tensor | None, pooling: str, site: Site, scale: Tensor, shift: Tensor):
    """The site's map of h, and its responses (batch, units): channels in `dim`, everything between is pooled over.

    Whether channels are first or last in memory, which `dim` does not tell (images in torch's channels_last format),
    h is viewed, not copied, and its map lies in memory as it does.
    """
    last, first = h.movedim(dim, -1), h.movedim(dim, 1)
    channels_first = first.is_contiguous() and not last.is_contiguous()
    moved = first if channels_first else last
    batch, units = len(h), h.shape[dim]
    flat = moved.reshape((batch, units, -1) if channels_first else (batch, -1, units))
    is_sequence = h.ndim == 3 and dim != 1
    tokens = flat.shape[2 if channels_first else 1]
    weights = pool_weights(mask if is_sequence else None, batch, tokens, pooling, site).to(h.device)
    maps = scale.to(h.device), shift.to(h.device)
    out, responses = ops.affine_pool(flat, *maps, weights, channels_first=channels_first)
    return out.view(moved.shape).movedim(1 if channels_first else -1, dim), responses


class Runner:
    """Runs a frozen model with maps at some sites and gathers responses at others, no further than it must."""

    def __init__(self, model: nn.Module, mapped: Layout, compared: Layout, pooling: str, seed: int = 0):
        self.model, self.mapped, self.compared, self.pooling = model, mapped, compared, pooling
        self.seed, self.device = seed, device_of(model)
        around = {site.path[:k] for site in compared.sites for k, c in enumerate(site.path) if c == "."} | {""}
        self.may_stop = not any(must_finish(model.get_submodule(path)) for path in around)

    def run(self, batch: Batch, maps: Sequence[tuple[Tensor, Tensor]] | None = None) -> list[Tensor]:
        """Responses of the compared sites, each (batch, units), under maps (weight, bias) of the mapped sites, or none.

        Differentiable for the maps. The forward pass ends at the last compared site
        where nothing is left open by that. A model that draws random numbers
        draws the same ones for a batch every time, so that equal maps give equal responses; the caller restores the
        generators (`state.seeded`).
        """
        steered = dict(zip(self.mapped.sites, maps, strict=True)) if maps is not None else {}
        dims: dict[Site, int] = {}
        masks: dict[Site, Tensor | None] = {}
        for layout in (self.compared, self.mapped):
            dims.update(zip(layout.sites, layout.channel_dims, strict=True))
            masks.update(zip(layout.sites, map(batch.mask_of, layout.sides), strict=True))
        found: dict[Site, Tensor] = {}

        def watch(site: Site):
            def see(module: nn.Module, h: Tensor) -> Tensor:
                scale, shift = steered.get(site) or (torch.ones(h.shape[dims[site]]), torch.zeros(h.shape[dims[site]]))
                out, responses = pooled(h, dims[site], masks[site], self.pooling, site, scale, shift)
                if site in self.compared.sites:
                    found[site] = responses
                    if len(found) == len(self.compared.sites) and self.may_stop:
                        raise _Finished
                return out

            return see

        hooks = {site: watch(site) for site in dims if site in steered or site in self.compared.sites}
        reseed(self.seed + batch.number, self.device)
        with hooked(self.model, hooks), suppress(_Finished):
            call(self.model, batch)
        if missing := [site.name for site in self.compared.sites if site not in found]:
            raise LookupError(f"not run in this forward pass, though it was in the first: {', '.join(missing)}")
        return [found[site] for site in self.compared.sites]

    def gather(self, responses: Sequence[Tensor]) -> NDArray[np.float32]:
        """Copy responses to the host, side by side: (batch, N). NonFiniteError names the site where one is not."""
        buffer = torch.empty(len(responses[0]), self.compared.units)
        for k, response in enumerate(responses):
            buffer[:, self.compared.slice(k)] = response.detach()
        host = buffer.numpy()
        bad = _core.first_nonfinite(host)
        if bad >= 0:
            site = self.compared.site_of(bad % self.compared.units)
            raise ops.NonFiniteError(f"site {site.name!r}: expected finite responses, got {host.flat[bad]}")
        return host

    def collect(self, batches: Sequence[Batch], maps: Sequence[tuple[Tensor, Tensor]] | None = None) -> NDArray:
        """Responses to all batches, one after another and without a gradient: (n, N) on the host."""
        with torch.no_grad():
            return np.concatenate([self.gather(self.run(batch, maps)) for batch in batches])
