"""Penalties that choose units: sparse group lasso on weight - 1 and on bias, with an optional ridge."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core

__all__ = ["L1", "SparseGroupLasso"]


@dataclass(frozen=True)
class SparseGroupLasso:
    """l1 |u|_1 + group sqrt(d) |u|_2 + ridge |u|_2^2, summed over sites, for u = weight - 1 and for u = bias.

    Parameters
    ----------
    l1, group : float
        Strengths for weights; `group` removes whole sites, `l1` single units.
    l1_bias, group_bias : float, optional
        Strengths for biases; as for weights if not given.
    ridge : float
        Strength of the squared norm, for both.

    Notes
    -----
    A group is one site's weight vector, or its bias vector. Strengths are in units of the loss that the recipe
    minimises (docs/published-recipe.md). Value and prox cost O(N), in C; `_reference.penalty` and `.prox` write them
    out. Source: LinEAS, arXiv 2503.10679, sec. 3; Simon et al., A Sparse-Group Lasso, JCGS 2013.

    Raises
    ------
    TypeError, ValueError
        On a strength that is no number, negative or not finite.
    """

    l1: float
    group: float
    l1_bias: float | None = None
    group_bias: float | None = None
    ridge: float = 0.0

    def __post_init__(self):
        for name, strength in vars(self).items():
            if strength is None and name.endswith("_bias"):
                object.__setattr__(self, name, getattr(self, name.removesuffix("_bias")))
            elif isinstance(strength, bool) or not isinstance(strength, (int, float, np.number)):
                raise TypeError(f"{name}: expected a number, got {type(strength).__name__} {strength!r}")
            elif not 0 <= strength < float("inf"):
                raise ValueError(f"{name}: expected a penalty strength of at least 0, got {strength!r}")

    def value(self, weight: ArrayLike, bias: ArrayLike, sizes: Sequence[int]) -> float:
        """Penalty of weight (N,) and bias (N,), where sizes are the units of each site, summing to N."""
        w, b, offsets = _flat(weight, bias, sizes)
        for_weight, for_bias = self._strengths()
        return _core.penalty(w, 1.0, offsets, *for_weight) + _core.penalty(b, 0.0, offsets, *for_bias)

    def prox(
        self, weight: ArrayLike, bias: ArrayLike, sizes: Sequence[int], step: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The point that minimises step * penalty + half the squared distance from (weight, bias); new arrays (N,)."""
        if not 0 <= step < float("inf"):
            raise ValueError(f"step: expected a finite number of at least 0, got {step!r}")
        w, b, offsets = _flat(weight, bias, sizes)
        for_weight, for_bias = self._strengths()
        return _core.prox(w, 1.0, offsets, *for_weight, step), _core.prox(b, 0.0, offsets, *for_bias, step)

    def _strengths(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        l1_bias, group_bias = float(self.l1_bias or 0), float(self.group_bias or 0)  # never None once made
        return (self.l1, self.group, self.ridge), (l1_bias, group_bias, self.ridge)


class L1(SparseGroupLasso):
    """l1 |weight - 1|_1 + l1_bias |bias|_1; l1_bias is l1 if not given. See `SparseGroupLasso`."""

    def __init__(self, l1: float, l1_bias: float | None = None):
        super().__init__(l1, 0.0, l1_bias, 0.0)

    def __repr__(self) -> str:
        return f"L1(l1={self.l1}, l1_bias={self.l1_bias})"


def _flat(
    weight: ArrayLike, bias: ArrayLike, sizes: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    w, b = np.ascontiguousarray(weight, np.float32), np.ascontiguousarray(bias, np.float32)
    units = np.asarray(sizes)
    if units.ndim != 1 or units.dtype.kind not in "iu" or (units < 0).any():
        raise ValueError(f"sizes: expected the number of units of each site; got {sizes!r}")
    offsets = np.concatenate([[0], np.cumsum(units, dtype=np.int64)])
    if w.shape != (offsets[-1],) or b.shape != w.shape:
        raise ValueError(f"expected weight and bias ({offsets[-1]},), the sum of sizes; got {w.shape} and {b.shape}")
    return w, b, offsets
