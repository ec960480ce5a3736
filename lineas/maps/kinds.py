"""Kinds of maps: what a site's map is beside its weight and bias, and all that the others ask of it.

A new kind is a subclass of `Affine`, registered: files, attaching, algebra, merging and the methods ask the kind and
name none. One rule holds for all: weight 1 and bias 0 change nothing, whatever else a kind has.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..core import ops
from ..core.arrays import Floats, Vector
from ..core.text import first_units


class Affine:
    """The plain map: z becomes weight * z + bias, wherever z is.

    Parameters
    ----------
    *parts : array (d,)
        What a kind has beside weight and bias, in the order of `neutral`; kept in float32. The plain one has nothing.

    Attributes
    ----------
    key : str
        Under which a file lists the sites of this kind; empty for the plain one, which is not listed.
    neutral : dict of str -> float
        Names of the parts, in which tensors of a file end, each with the value at which a unit's map is the plain one.
    holds, plainly : str
        How a message tells such maps from others: they "hold ...", and what other maps do instead.
    label : str
        What the steering's `repr` says of it.
    not_merged : str
        Why no weight can express such a map; empty where one can.
    """

    key: ClassVar[str] = ""
    neutral: ClassVar[Mapping[str, float]] = {}
    holds: ClassVar[str] = ""
    plainly: ClassVar[str] = "hold everywhere"
    label: ClassVar[str] = ""
    not_merged: ClassVar[str] = ""

    def __init__(self, *parts: ArrayLike):
        if len(parts) != len(self.neutral):
            wanted = ", ".join(self.neutral) or "no parts"
            raise TypeError(f"{type(self).__name__}: expected {wanted}; got {len(parts)} arrays")
        self.parts: tuple[Vector, ...] = tuple(np.asarray(part, np.float32) for part in parts)

    def check(self, site: str, units: int) -> None:
        """ValueError where the parts cannot be those of a site with so many units."""
        if any(part.shape != (units,) for part in self.parts):
            got = ", ".join(str(part.shape) for part in self.parts)
            wanted = " and ".join(f"{name} ({units},)" for name in self.neutral)
            raise ValueError(f"{site}: expected maps {self.label} with {wanted}; got {got}")

    def at_strength(self, weight: NDArray, bias: NDArray, strength: float) -> tuple[Floats, ...]:
        """What `apply` takes for s * map(z) + (1 - s) * z, in float64: scale, shift, and the parts."""
        scale, shift = 1 + strength * (weight.astype(np.float64) - 1), strength * bias.astype(np.float64)
        return scale, shift, *(part.astype(np.float64) for part in self.parts)

    @staticmethod
    def apply(h: Tensor, scale: Tensor, shift: Tensor, *parts: Tensor) -> Tensor:
        """Activations h mapped, out of place and in their dtype; all else broadcasts over h."""
        return ops.affine(h, scale, shift)

    @classmethod
    def measured(cls, responses: Vector) -> tuple[Vector, ...]:
        """The parts of a site whose maps were computed from source responses (n, d)."""
        return ()

    def tensors(self) -> dict[str, Vector]:
        """The parts by name, for a file."""
        return dict(zip(self.neutral, self.parts, strict=True))

    def moves(self, values: Floats, weight: Floats, bias: Floats) -> Floats:
        """What the map adds to values (n, d)."""
        mapped = self.apply(*(torch.from_numpy(np.asarray(x, np.float64)) for x in (values, weight, bias, *self.parts)))
        return mapped.numpy() - values


class WithinRange(Affine):
    """The affine map between a low and a high end, both included; activations outside stay as they are.

    Parameters
    ----------
    low, high : array (d,)
        Infinities allowed; low <= high.

    Notes
    -----
    Source: the support of Linear-AcT, Rodriguez et al., arXiv 2410.23054.
    """

    key = "ranges"
    neutral: ClassVar[Mapping[str, float]] = {"low": -np.inf, "high": np.inf}
    holds = "hold within a range only"
    label = "within ranges"
    not_merged = "its map holds within a range only, which no weight can express"

    def check(self, site: str, units: int) -> None:
        low, high = self.parts
        if low.shape != (units,) or high.shape != (units,):
            raise ValueError(
                f"{site}: expected a range of low {(units,)} and high {(units,)}, got {low.shape}, {high.shape}"
            )
        wrong = ~(low <= high)  # NaN, too
        if wrong.any():
            raise ValueError(f"{site}: expected a range with low <= high, got others in units {first_units(wrong)}")

    @staticmethod
    def apply(h: Tensor, scale: Tensor, shift: Tensor, *parts: Tensor) -> Tensor:
        low, high = parts
        return torch.where((h >= low) & (h <= high), ops.affine(h, scale, shift), h)

    @classmethod
    def measured(cls, responses: Vector) -> tuple[Vector, ...]:
        return responses.min(0), responses.max(0)


PLAIN = Affine()
KINDS: dict[str, type[Affine]] = {}
TAKEN = ("format", "version", "sha256", "sites", "gate", "info", "history")  # other keys of a steering's config


def register(kind: type[Affine]) -> type[Affine]:
    """Make a kind known to files; a class decorator."""
    if not kind.key or kind.key in TAKEN or not kind.neutral:
        raise ValueError(f"{kind.__name__}: expected a kind with a key and parts of its own, got {kind.key!r}")
    if KINDS.setdefault(kind.key, kind).__qualname__ != kind.__qualname__:
        raise ValueError(f"{kind.__name__}: another kind has the key {kind.key!r}")
    return kind


register(WithinRange)


def common(kinds: Iterable[Affine], where: str) -> type[Affine]:
    """The kind that can stand for all of these at one site: the plain one, or the only other one among them."""
    special = {type(kind): kind for kind in kinds if kind.neutral}
    if len(special) > 1:
        names = " and ".join(sorted(kind.__name__ for kind in special))
        raise ValueError(f"{where}: expected maps of one kind, got {names}; attach these steerings one after the other")
    return next(iter(special), Affine)


def neutral_parts(kind: type[Affine], units: int) -> tuple[Vector, ...]:
    """The parts with which a map of this kind is the plain one."""
    return tuple(np.full(units, value, np.float32) for value in kind.neutral.values())
