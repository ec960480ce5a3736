"""A gate: a linear probe that says, from what is read, how much of a steering acts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..core.arrays import Vector
from ..core.checks import number
from ..core.text import printable

__all__ = ["POOLINGS", "Gate"]

POOLINGS = ("running", "token", "all")


@dataclass(frozen=True, eq=False, repr=False)
class Gate:
    """Scales all maps of a steering by sigmoid(weight . z + bias), where z is a site's activation without steering.

    Parameters
    ----------
    site : str
        Where it reads: no later in the forward pass than the first map.
    weight : array (d,)
        Of the site's units, kept in float32.
    bias : float
    pooling : {"running", "token", "all"}
        Of what: "running", the mean over the row's tokens so far, this one included, which follows a text while it is
        read and written; "token", each token by itself; "all", the mean over the whole row, tokens or pixels, for
        networks that see all of it at once.
    facts : dict, optional
        How it was made: `acts_on` says on what share of the source, of the target and of neutral inputs it is open.

    Raises
    ------
    TypeError, ValueError
        Another kind of argument; numbers that are not finite.

    Notes
    -----
    A token's map becomes z + g * strength * (map(z) - z), g from 0 to 1. Where g is above 0.5, "it acts".

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    >>> gate = lineas.Gate("0", [100, 0], 0, "all")
    >>> steering = lineas.Steering({"0": ([1, 1], [5, 5])}).gated(gate)
    >>> x = torch.randn(4, 2)
    >>> base = net(x)
    >>> with steering.apply(net):
    ...     moved = (net(x) - base)[:, 0]
    >>> bool((moved.round() == 5 * (base[:, 0] > 0)).all())
    True
    """

    site: str
    weight: Vector
    bias: float
    pooling: str = "running"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self, site: str, weight: ArrayLike, bias: float, pooling: str = "running",
        facts: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        if not isinstance(site, str):
            raise TypeError(f"site: expected the name of one, got {type(site).__name__}")
        try:
            vector = np.asarray(weight, np.float32).copy()
        except (TypeError, ValueError):
            raise TypeError(f"weight: expected numbers (d,), got {weight!r:.60}") from None
        if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
            raise ValueError(f"weight: expected finite numbers (d,), got {vector.shape}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(map(repr, POOLINGS))}, got {pooling!r:.60}")
        if facts is not None and not isinstance(facts, Mapping):
            raise TypeError(f"facts: expected a dict, got {type(facts).__name__}")
        vector.flags.writeable = False
        values = {"site": site, "weight": vector, "bias": number(bias, "bias"), "pooling": pooling}
        for name, value in {**values, "facts": dict(facts or {})}.items():
            object.__setattr__(self, name, value)

    @property
    def acts_on(self) -> dict[str, float]:
        """On what share of the source, the target and neutral inputs it acts, as far as that is known."""
        shares = self.facts.get("acts_on")  # of a file, perhaps, which may hold anything
        found = shares.items() if isinstance(shares, Mapping) else ()
        return {printable(str(name))[:60]: float(x) for name, x in found if type(x) in (int, float) and 0 <= x <= 1}

    @cached_property
    def key(self) -> str:
        """By which equal gates are known: what they read and how, not how they were made."""
        total = blake2b(repr((self.site, self.bias, self.pooling)).encode(), digest_size=16)
        total.update(self.weight.tobytes())
        return total.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gate) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        of = [f"{share:.0%} of {name}" for name, share in self.acts_on.items()]
        return f"Gate({self.site!r}, {len(self.weight)} units, {self.pooling}{'; acts on ' * bool(of)}{', '.join(of)})"


def refuse_gated(what: str, *gates: Gate | None) -> None:
    """ValueError where any steering has a gate."""
    if found := next((gate for gate in gates if gate is not None), None):
        raise ValueError(
            f"{what}: expected steerings without a gate, got one with {found!r:.120}; steering.gated(None) has none"
        )
