"""From a site's activations to one response a unit and sample, or to one for each of several poolings."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import ops
from ..network.batch import Batch
from ..network.blocks import PrefixRecord
from ..network.sites import Site
from .padding import padding_in, put_back, set_aside

POOLINGS = ("mean", "max", "min", "last")
EXTREMES = {"max": torch.amax, "min": torch.amin}


def as_poolings(pooling: str | Sequence[str]) -> tuple[str, ...]:
    """One or several, as a tuple; ValueError where one is not known, or stands there twice."""
    names = tuple(pooling) if isinstance(pooling, (list, tuple)) else (pooling,)
    if not names or not all(name in POOLINGS for name in names) or len(set(names)) < len(names):
        how, once = ("some", ", each once") if isinstance(pooling, (list, tuple)) else ("one", "")
        raise ValueError(f"pooling: expected {how} of {', '.join(map(repr, POOLINGS))}{once}; got {pooling!r:.80}")
    return names


def pool_weights(mask: Tensor | None, batch: int, tokens: int, pooling: str, site: Site) -> Tensor:
    """(batch, tokens) float32: what each token counts in its sample's response; every row sums to one."""
    if mask is None:
        mask = torch.ones(batch, tokens, device="cpu")
    if mask.shape != (batch, tokens):
        raise ValueError(
            f"site {site.name!r} has {batch} x {tokens} (batch x tokens), attention_mask has {tuple(mask.shape)}"
        )
    counts = mask != 0
    if pooling == "last":
        last = tokens - 1 - counts.flip(1).int().argmax(1)
        return torch.nn.functional.one_hot(last, tokens).float()
    return counts.float() / counts.sum(1, keepdim=True)


def extreme_over_tokens(out: Tensor, weights: Tensor, pooling: str, channels_first: bool) -> Tensor:
    """(batch, units): the largest or the smallest value of each unit over the tokens that count."""
    tokens, counts = (2, weights[:, None] > 0) if channels_first else (1, weights[:, :, None] > 0)
    outside = -torch.inf if pooling == "max" else torch.inf
    return EXTREMES[pooling](torch.where(counts, out, outside), tokens)


class Part:
    """Samples of a batch that pass through the model together, and what stays the same from pass to pass."""

    def __init__(self, batch: Batch, pooling: str | Sequence[str]):
        self.batch, self.poolings = batch, as_poolings(pooling)
        self.record: PrefixRecord | None = None
        self._weights: dict[tuple[str, str | None, int, torch.device], Tensor] = {}
        self._padding: dict[tuple[str, int, torch.device], Tensor | None] = {}

    def weights(self, pooling: str, side: str | None, tokens: int, device: torch.device, site: Site) -> Tensor:
        key = pooling, side, tokens, device
        if key not in self._weights:
            mask = None if side is None else self.batch.mask_of(side)
            self._weights[key] = pool_weights(mask, self.batch.size, tokens, pooling, site).to(device)
        return self._weights[key]

    def padding(self, h: Tensor, dim: int, side: str) -> Tensor | None:
        key = side, dim if h.ndim == 3 else 1, h.device
        if key not in self._padding:
            self._padding[key] = padding_in(h, dim, self.batch, side)
        return self._padding[key]

    def pooled(self, h: Tensor, dim: int, side: str, site: Site, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The site's map of h, and its responses (batch, units): channels in `dim`, everything between is pooled over.
        Of several poolings, those of the first one stand first: (batch, poolings * units).

        Whether channels are first or last in memory, which `dim` does not tell (images in torch's channels_last
        format), h is viewed, not copied, and its map lies in memory as it does.
        """
        padding = self.padding(h, dim, side)
        safe, odd = set_aside(h, padding)
        last, first = safe.movedim(dim, -1), safe.movedim(dim, 1)
        channels_first = first.is_contiguous() and not last.is_contiguous()
        moved = first if channels_first else last
        batch, units = len(h), h.shape[dim]
        flat = moved.reshape((batch, units, -1) if channels_first else (batch, -1, units))
        whose = side if h.ndim == 3 and dim != 1 else None  # pixels have no mask
        where = whose, flat.shape[2 if channels_first else 1], h.device, site
        out, found = self._out_and_weighted(flat, scale, shift, where, channels_first)
        for pooling in filter(EXTREMES.__contains__, self.poolings):
            extreme = extreme_over_tokens(out, self.weights("mean", *where), pooling, channels_first)
            found[pooling] = extreme.to(torch.promote_types(h.dtype, torch.float32))
        side_by_side = [found[pooling] for pooling in self.poolings]
        responses = torch.cat(side_by_side, 1) if len(side_by_side) > 1 else side_by_side[0]
        out = out.view(moved.shape).movedim(1 if channels_first else -1, dim)
        return put_back(out, h, odd, padding), responses

    def _out_and_weighted(
        self, flat: Tensor, scale: Tensor, shift: Tensor, where: tuple, channels_first: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The map of (batch, tokens, units), and the poolings that are weighted sums of it: a pass for each, one at
        least."""
        weighted = [pooling for pooling in self.poolings if pooling not in EXTREMES] or ["mean"]
        passes = {
            pooling: ops.affine_pool(flat, scale, shift, self.weights(pooling, *where), channels_first=channels_first)
            for pooling in weighted
        }
        return passes[weighted[0]][0], {pooling: responses for pooling, (_, responses) in passes.items()}
