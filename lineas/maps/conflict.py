"""How two steerings stand to each other: what `lineas.conflict` finds, and the part of it that their maps tell."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core.arrays import Floats
from .algebra import paired, refuse_special, special_kinds
from .gate import refuse_gated
from .maps import Maps

__all__ = ["Conflict", "SiteConflict", "moves_of", "told_by_maps", "turned"]

Moves = dict[str, Floats]  # site -> (2, d), weight - 1 and bias
HEADS = ("site", "units", "shared", "alike", "order")


class SiteConflict(NamedTuple):
    """One site that both steerings map.

    Attributes
    ----------
    units, shared : int
        Units there; how many of them both steerings move.
    alike : float
        Cosine of their moves (weight - 1, bias): 1 the same, -1 opposed, NaN where one does not move.
    order : float
        By how much b after a differs from a after b, as a part of what both do to the biases.
    """

    site: str
    units: int
    shared: int
    alike: float
    order: float


@dataclass(frozen=True)
class Conflict:
    """What `lineas.conflict` found of steerings a and b.

    Attributes
    ----------
    sites : tuple of SiteConflict
    alike, order : float
        The same over all sites; NaN and 0 where they share none.
    on_output : float or None
        Cosine of what the two do to the model's output: -1 where they cancel. None without a model.
    kept : (float, float) or None
        What is left of each one's own effect while the other is on, predicted from what the other does to it alone: 1
        nothing is lost, 0 it is gone, above 1 they help each other. None without the sets that they are for.
    prices : (float, float, float) or None
        Predicted nats a token of a, of b, and of both.
    order_price : float or None
        Predicted nats a token between a after b and b after a.
    """

    sites: tuple[SiteConflict, ...]
    alike: float
    order: float
    on_output: float | None = None
    kept: tuple[float, float] | None = None
    prices: tuple[float, float, float] | None = None
    order_price: float | None = None

    def __str__(self) -> str:
        width = max(len("site"), *(len(one.site) for one in self.sites)) if self.sites else len("site")
        lines = [f"{HEADS[0]:{width}}" + "".join(f"{head:>8}" for head in HEADS[1:])]
        lines += [f"{s.site:{width}}{s.units:8}{s.shared:8}{s.alike:8.2f}{s.order:8.3f}" for s in self.sites]
        lines.append(f"over all sites: alike {self.alike:.2f}, order {self.order:.3f}")
        if self.prices:
            prices = "{:.3g}, {:.3g}, both {:.3g}".format(*self.prices)
            lines.append(f"on the output: alike {self.on_output:.2f}")
            lines.append(f"nats a token: {prices}; between the two orders {self.order_price:.3g}")
        if self.kept:
            lines.append("of their effects {:.0%} and {:.0%} stay while both are on".format(*self.kept))
        return "\n".join(lines)


def moves_of(a: Maps, b: Maps) -> tuple[Moves, Moves]:
    """Of both, at every site of either; zeros where there is no map.

    ValueError where a site has another number of units in the other, or a map that is no plain affine one.
    """
    refuse_special("what two steerings have in common", special_kinds(a, b))
    refuse_gated("what two steerings have in common", a.gate, b.gate)
    first: Moves = {}
    second: Moves = {}
    for name, (w1, b1), (w2, b2) in paired(a, b):
        first[name], second[name] = np.stack([w1 - 1, b1]), np.stack([w2 - 1, b2])
    return first, second


def told_by_maps(a: Maps, b: Maps) -> Conflict:
    """What needs no model."""
    first, second = moves_of(a, b)
    whole = of_site("", *(np.concatenate([*one.values(), np.empty((2, 0))], 1) for one in (first, second)))
    shared = [name for name in first if name in a.sites and name in b.sites]
    return Conflict(tuple(of_site(name, first[name], second[name]) for name in shared), whole.alike, whole.order)


def turned(a: Floats, b: Floats) -> Floats:
    """What b after a adds more than a after b, from their moves (2, d); the scales are the same."""
    return b[0] * a[1] - a[0] * b[1]


def of_site(name: str, a: Floats, b: Floats) -> SiteConflict:
    lengths, biases = (np.linalg.norm(a) * np.linalg.norm(b), np.hypot(np.linalg.norm(a[1]), np.linalg.norm(b[1])))
    return SiteConflict(
        name, a.shape[1], int(((a != 0).any(0) & (b != 0).any(0)).sum()),
        float((a * b).sum() / lengths) if lengths else float("nan"),
        float(np.linalg.norm(turned(a, b)) / biases) if biases else 0.0,
    )  # fmt: skip
