"""Penalties that choose units: sparse group lasso on weight - 1 and on bias, with an optional ridge."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .core import _core
from .core.arrays import Vector
from .core.threads import thread_count

__all__ = ["L1", "Penalty", "ProximalStep", "SparseGroupLasso"]


class ProximalStep(NamedTuple):
    """Where a proximal gradient step leads, and what a line search asks about it."""

    x: Vector  # the new point, (2 N,)
    penalty: float  # there
    slope: float  # <gradient, move>; 0 without a gradient
    square: float  # |move|^2; 0 without a gradient


@runtime_checkable
class Penalty(Protocol):
    """What `lineas.fit` asks of a penalty; any object with these two methods is one.

    Its `repr` goes into `info`, and into checkpoints as what tells two penalties apart.
    """

    def value(self, weight: ArrayLike, bias: ArrayLike, sizes: Sequence[int]) -> float:
        """Penalty of weight (N,) and bias (N,), where sizes are the units of each site, summing to N."""

    def proximal_step(self, x: Vector, gradient: Vector | None, sizes: Sequence[int], step: ArrayLike) -> ProximalStep:
        """The w that minimises penalty(w) + sum of (w - v)^2 / (2 step), for v = x - step * gradient.

        Parameters
        ----------
        x : (2 N,) float32, [weights, biases]; not to be changed
        gradient : like x, or None for v = x
        sizes : units of each site, summing to N
        step : a number, or (2 N,) for a step size of each entry; an entry whose step is 0 stays
        """


@dataclass(frozen=True, eq=False)
class SparseGroupLasso:
    """l1 |u|_1 + group sqrt(d) |u|_2 + ridge |u|_2^2, summed over groups of d units, for u = weight - 1 and u = bias.

    Parameters
    ----------
    l1, group : float
        Strengths for weights; `group` removes whole groups, `l1` single units.
    l1_bias, group_bias : float, optional
        Strengths for biases; as for weights if not given. They are filled in when the object is made, so that
        `dataclasses.replace` of `l1` alone leaves `l1_bias` as it was.
    ridge : float
        Strength of the squared norm, for both.
    groups : None, "unit" or (N,) array of int
        Which units form a group, for weights and for biases: those of a site (None), each its own, so that `group` adds
        to `l1` ("unit"), or those of equal label, wherever they are: any integers, one for each of the N units in the
        order of the sites.

    Notes
    -----
    Strengths are in units of the loss that the recipe minimises (docs/published-recipe.md). Value, prox and proximal
    step cost O(N), in C; `reference.penalty` and `.prox` write them out. Labels are sorted once, at the first use.
    Source: LinEAS, arXiv 2503.10679, sec. 3; Simon et al., A Sparse-Group Lasso, JCGS 2013.

    Raises
    ------
    TypeError, ValueError
        On a strength that is no number, negative or not finite; on groups of another kind. Labels of another number
        than N are refused where they are used.

    Examples
    --------
    >>> import lineas
    >>> penalty = lineas.penalties.SparseGroupLasso(l1=0.0, group=0.5, groups=[0, 1, 0, 1])
    >>> weight, bias = penalty.prox([1.1, 3.0, 0.9, 1.0], [0.0, 0.0, 0.0, 0.0], sizes=[4], step=1.0)
    >>> weight.round(3).tolist()  # the first group vanishes, the second shrinks by 0.5 sqrt(2)
    [1.0, 2.2929999828338623, 1.0, 1.0]
    """

    l1: float
    group: float
    l1_bias: float | None = None
    group_bias: float | None = None
    ridge: float = 0.0
    groups: Any = None

    def __post_init__(self):
        for name in ("l1", "group", "l1_bias", "group_bias", "ridge"):
            strength = getattr(self, name)
            if strength is None and name.endswith("_bias"):
                object.__setattr__(self, name, getattr(self, name.removesuffix("_bias")))
            elif isinstance(strength, bool) or not isinstance(strength, (int, float, np.number)):
                raise TypeError(f"{name}: expected a number, got {type(strength).__name__} {strength!r}")
            elif not 0 <= strength < float("inf"):
                raise ValueError(f"{name}: expected a penalty strength of at least 0, got {strength!r}")
        if self.groups is not None and not isinstance(self.groups, str):
            object.__setattr__(self, "groups", _labels(self.groups))
        elif self.groups not in (None, "unit"):
            raise ValueError(f"groups: expected None (by site), 'unit' or an integer label a unit; got {self.groups!r}")

    def value(self, weight: ArrayLike, bias: ArrayLike, sizes: Sequence[int]) -> float:
        """Penalty of weight (N,) and bias (N,), where sizes are the units of each site, summing to N."""
        return self._step(_flat(weight, bias), None, sizes, None, 0.0).penalty

    def prox(
        self, weight: ArrayLike, bias: ArrayLike, sizes: Sequence[int], step: ArrayLike
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The point w that minimises penalty(w) + sum (w - v)^2 / (2 step), where v is (weight, bias); new arrays (N,).

        step is a number, (N,) for a step size a unit, or (2 N,) for those of the weights, then those of the biases.
        A unit whose step size is 0 stays as it is.
        """
        new_weight, new_bias = np.split(self.proximal_step(_flat(weight, bias), None, sizes, step).x, 2)
        return new_weight, new_bias

    def proximal_step(
        self, x: Vector, gradient: Vector | None, sizes: Sequence[int], step: ArrayLike, *, threads: int | None = None
    ) -> ProximalStep:
        """The prox of x - step * gradient, its penalty and how far it moved, in one call.

        Parameters
        ----------
        x, gradient : (2 N,) float32
            [weights, biases]; without a gradient (None) it is the prox of x.
        sizes : sequence of int
            Units of each site, summing to N.
        step : float, (N,) or (2 N,)
            As for `prox`.

        Returns
        -------
        ProximalStep

        Raises
        ------
        ValueError
            On sizes that do not sum to N, labels of another length, and step sizes that are negative or not finite.

        Notes
        -----
        O(N). Where step sizes differ within a group, its norm is the root of one scalar equation, found by Newton's
        method in about five passes. Source: Parikh & Boyd, Proximal Algorithms, 2014, sec. 4.2 and 6.5.4.
        """
        sizes_of, scale = _step_sizes(step, len(x) // 2)
        return self._step(x, gradient, sizes, sizes_of, scale, threads)

    def _step(self, x, gradient, sizes, scales, step, threads=None) -> ProximalStep:
        (offsets, order), strengths = self._layout(x, sizes), self._strengths
        threads = thread_count(threads, x.size)
        return ProximalStep(*_core.proximal_step(x, gradient, scales, offsets, order, step, *strengths, threads))

    @property
    def is_ridge(self) -> bool:
        """Whether there is a ridge at most, so that the penalty is smooth and separable."""
        return not any((self.l1, self.group, self.l1_bias, self.group_bias))

    def in_c(self, x: Vector, sizes: Sequence[int]) -> tuple[Any, ...]:
        """As kernels take it: offsets and order of the groups of x = [weights, biases], and five strengths."""
        return (*self._layout(x, sizes), *self._strengths)

    @property
    def _strengths(self) -> tuple[float, float, float, float, float]:
        l1, group = self.l1, self.group
        l1_bias, group_bias = float(self.l1_bias or 0), float(self.group_bias or 0)  # never None once made
        if isinstance(self.groups, str):  # a unit's own norm is its absolute value
            l1, group, l1_bias, group_bias = l1 + group, 0.0, l1_bias + group_bias, 0.0
        return l1, group, l1_bias, group_bias, self.ridge

    def _layout(self, x: Vector, sizes: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Where each group ends, and its units if they do not lie side by side."""
        units = np.asarray(sizes)
        if units.ndim != 1 or units.dtype.kind not in "iu" or (units < 0).any():
            raise ValueError(f"sizes: expected the number of units of each site; got {sizes!r}")
        offsets = np.concatenate([[0], np.cumsum(units, dtype=np.int64)])
        if x.shape != (2 * offsets[-1],):
            raise ValueError(
                f"expected weight and bias ({offsets[-1]},), the sum of sizes; got {x.shape}, weights before biases"
            )
        if not isinstance(self.groups, np.ndarray):
            return offsets, None
        if len(self.groups) != offsets[-1]:
            raise ValueError(f"groups: expected {offsets[-1]} labels, one for each unit; got {len(self.groups)}")
        return self._sorted_labels

    @cached_property
    def _sorted_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.groups, kind="stable").astype(np.int64, copy=False)
        counts = np.unique(self.groups, return_counts=True)[1]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), order

    def _key(self) -> tuple:
        labels = self.groups.tobytes() if isinstance(self.groups, np.ndarray) else self.groups
        return type(self), self.l1, self.group, self.l1_bias, self.group_bias, self.ridge, labels

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, SparseGroupLasso) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True, eq=False)
class L1(SparseGroupLasso):
    """l1 |weight - 1|_1 + l1_bias |bias|_1; l1_bias is l1 if not given. See `SparseGroupLasso`."""

    group: float = field(default=0.0, init=False, repr=False)
    group_bias: float | None = field(default=0.0, init=False, repr=False)
    ridge: float = field(default=0.0, init=False, repr=False)
    groups: Any = field(default=None, init=False, repr=False)


def _labels(groups: ArrayLike) -> NDArray[np.int64]:
    labels = np.array(groups)  # a copy, which stays as it is
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TypeError(
            f"groups: expected None (by site), 'unit' or an integer label a unit; got {labels.dtype} {labels.shape}"
        )
    labels = labels.astype(np.int64)
    labels.flags.writeable = False
    return labels


def _flat(weight: ArrayLike, bias: ArrayLike) -> Vector:
    w, b = np.asarray(weight, np.float32), np.asarray(bias, np.float32)
    if w.ndim != 1 or w.shape != b.shape:
        raise ValueError(f"expected weight and bias (N,); got {w.shape} and {b.shape}")
    return np.concatenate([w, b])


def _step_sizes(step: ArrayLike, units: int) -> tuple[Vector | None, float]:
    """A step size for each entry of the flat vector, or None, times a number."""
    sizes = np.asarray(step, np.float64)
    right = (sizes >= 0) & (sizes <= np.finfo(np.float32).max)
    if not right.all():
        raise ValueError(f"step: expected a finite number of at least 0, got {sizes[~right].flat[0]}")
    if sizes.ndim == 0:
        return None, float(sizes)
    if sizes.shape not in ((units,), (2 * units,)):
        raise ValueError(f"step: expected a number, ({units},) or ({2 * units},) of them; got {sizes.shape}")
    return np.tile(sizes.astype(np.float32), 2 * units // len(sizes)), 1.0
