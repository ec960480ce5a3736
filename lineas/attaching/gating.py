"""Gates on a running network: a hook that reads, before the maps, how far they shall be open."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..maps.gate import Gate
from ..network.hooks import channel_dim
from ..network.sites import Site
from .caches import Reading, joined
from .positions import Tokens

__all__ = ["Reader", "openness"]

ONLY_WHOLE = 'there, only a gate with pooling="all" is defined'


class Reader:
    """Reads a site's activations for one gate or several, and changes none."""

    def __init__(self, site: Site, gates: Sequence[Gate], tokens: Tokens):
        self.name, self.gates, self.tokens = site.name, list(gates), tokens
        self._weights: dict[tuple[str, torch.device], Tensor] = {}

    def __call__(self, module: nn.Module, h: Tensor) -> Tensor:
        reading = self.tokens.reading
        if reading is None:
            raise ValueError(
                f"site {self.name!r}: expected to run inside a call of the steered model, whose gate reads here; got a "
                "call of one of its modules"
            )
        shape = self.tokens.folded(self.name, module, h) if h.ndim == 2 else None
        whole = h if shape is None else h.unflatten(0, shape)
        dim = channel_dim(module, whole)
        for gate in self.gates:
            if whole.shape[dim] != len(gate.weight):
                raise ValueError(
                    f"site {self.name!r}: the gate has weight ({len(gate.weight)},), the model produced "
                    f"{tuple(h.shape)}; expected the model it was fitted on"
                )
            scores = whole.movedim(dim, -1).to(torch.float32) @ self._weight(gate, whole.device)
            reading.openness[gate.key] = torch.sigmoid(self._pooled(gate, whole, dim, scores, reading) + gate.bias)
        return h

    def _pooled(self, gate: Gate, h: Tensor, dim: int, scores: Tensor, reading: Reading) -> Tensor:
        """Scores (rows, ...) of single tokens or pixels, averaged over what the gate looks at."""
        if gate.pooling == "all":
            return self._of_rows(scores, reading)
        now = self.tokens.at(self.name, h, dim, ONLY_WHOLE)
        if gate.pooling == "token":
            return scores
        sums = joined(reading.before.get(gate.key), scores, now.real)
        reading.sums[gate.key] = sums
        totals, counts = sums.each(lambda part: part[:, -h.shape[1] :])
        return (totals / counts.clamp(min=1)).to(torch.float32)

    def _of_rows(self, scores: Tensor, reading: Reading) -> Tensor:
        if isinstance(reading.past, Tensor) or reading.past:
            raise ValueError(
                f'site {self.name!r}: expected whole rows for a gate with pooling="all", got a pass that goes on from '
                'a cache; a gate with pooling="running" follows a text while it is written'
            )
        now = self.tokens.current
        if now is None or now.real is None or scores.shape[:2] != now.shape:
            return scores.flatten(1).mean(1) if scores.ndim > 1 else scores
        counted = now.real.to(scores.device, scores.dtype).view(*now.shape, *[1] * (scores.ndim - 2))
        each = counted.expand_as(scores).flatten(1)
        return (scores.flatten(1) * each).sum(1) / each.sum(1).clamp(min=1)

    @torch.inference_mode(False)  # or no later pass could save it for its backward
    def _weight(self, gate: Gate, device: torch.device) -> Tensor:
        key = gate.key, device
        if key not in self._weights:
            self._weights[key] = torch.tensor(gate.weight, device=device)
        return self._weights[key]


def openness(site: str, h: Tensor, dim: int, gate: Gate, reading: Reading | None) -> Tensor:
    """How far a gate is open, as it broadcasts over a site's output.

    ValueError where the gate has not read in this pass, or read rows or tokens that are not those of the output.
    """
    found = None if reading is None else reading.openness.get(gate.key)
    if found is None:
        raise ValueError(
            f"site {site!r}: expected its gate's site, {gate.site!r}, to run before it in the same pass of the steered "
            "model; it has not"
        )
    tokens = found.shape[1:]
    if found.shape[:1] != h.shape[:1] or (tokens and (h.ndim != 3 or dim != -1 or h.shape[1:2] != tokens)):
        raise ValueError(
            f"site {site!r}: expected the {' x '.join(map(str, found.shape))} (rows{' x tokens' * bool(tokens)}) that "
            f"the gate at {gate.site!r} has read, got {tuple(h.shape)}"
        )
    return found.view(*found.shape, *[1] * (h.ndim - found.ndim)).to(h.device)
