"""Adaptive norms: a linear layer makes, of the time and the prompt, what scales and shifts a norm's output.

    z = n * (1 + scale) + shift        scale and shift: rows of the linear layer's output

A map of n, or of z, is another scale and another shift, both linear in the old ones: other rows of the layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .folds import Fold, listed
from .layers import Journal, Layer


@dataclass(frozen=True)
class Modulation:
    """n * (plus + scale) + shift, with rows of one linear layer's output for scale and shift."""

    linear: Layer
    scale: tuple[int, ...]
    shift: tuple[int, ...]  # empty: there is none
    plus: float

    @property
    def rows(self) -> tuple[int, ...]:
        return self.scale + self.shift


@dataclass(frozen=True)
class AdaptiveFold(Fold):
    """A map in the rows of the linear layers that modulate the site's output, or that made it by modulation."""

    modulations: tuple[Modulation, ...] = ()
    is_before: bool = False  # the site is n; otherwise it is z

    @property
    def grown(self) -> list[Layer]:
        layers = {m.linear.path: m.linear for m in self.modulations if self._changes_bias(m)}
        return [linear for linear in layers.values() if not linear.has_room]

    def rewritten(self) -> Iterator[tuple[Layer, str]]:
        for linear in {m.linear.path: m.linear for m in self.modulations}.values():
            yield linear, "weight"
            if linear.bias is not None:
                yield linear, "bias"

    def apply(self, model: nn.Module, journal: Journal) -> None:
        for modulation in self.modulations:
            self._rewrite(modulation, model, journal)

    def undo(self, model: nn.Module, journal: Journal) -> None:
        scale = None if self.scale is None else 1 / self.scale
        shift = None if self.shift is None else -self.shift if scale is None else -self.shift * scale
        replace(self, scale=scale, shift=shift).apply(model, journal)

    def _changes_bias(self, modulation: Modulation) -> bool:
        return modulation.plus != 0 or (self.shift is not None and not self.is_before)

    def _rewrite(self, modulation: Modulation, model: nn.Module, journal: Journal) -> None:
        linear = Layer(modulation.linear.path, model.get_submodule(modulation.linear.path), "rows")
        # Columns of the weight, and the bias as one more: the layer's output is linear in all of them.
        rows = _with_bias(linear, journal)
        at, to = list(modulation.scale), list(modulation.shift)
        if self.scale is not None:
            scale = self.scale.to(rows)[:, None]
        if self.shift is not None:
            shift = self.shift.to(rows)[:, None]
        rows[at, -1] += modulation.plus
        if self.is_before and self.shift is not None:
            rows[to] += shift * rows[at]
        if self.scale is not None:
            rows[at] *= scale
        rows[at, -1] -= modulation.plus
        if not self.is_before and self.scale is not None and to:
            rows[to] *= scale
        if not self.is_before and self.shift is not None:
            rows[to, -1] += shift[:, 0]
        journal.put(linear.module, "weight", rows[:, :-1], linear.weight)
        if linear.bias is not None or self._changes_bias(modulation):
            journal.put(linear.module, "bias", rows[:, -1], linear.weight if linear.bias is None else linear.bias)

    def __str__(self) -> str:
        places = list(dict.fromkeys(m.linear.path for m in self.modulations))
        what = "scale and shift" if all(m.shift for m in self.modulations) else "scale"
        return f"into the rows of {listed(places)} that {what} it"


def _with_bias(linear: Layer, journal: Journal) -> Tensor:
    weight: Tensor = journal.exact(linear.module, "weight")  # type: ignore[assignment]
    bias = journal.exact(linear.module, "bias")
    return torch.cat([weight, (weight.new_zeros(len(weight)) if bias is None else bias)[:, None]], 1)
