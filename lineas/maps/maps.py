"""Maps: one for each unit at several sites, side by side in one vector, and where they come from."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.arrays import Floats, Vector
from ..core.text import nearest
from .gate import Gate
from .kinds import PLAIN, Affine, WithinRange
from .units import is_moved

Pair = tuple[ArrayLike, ArrayLike]
AnyMaps = TypeVar("AnyMaps", bound="Maps")


class Maps:
    """One affine map per unit at several sites of a network.

    Parameters
    ----------
    maps : dict of site name -> (weight (d,), bias (d,))
        Kept in float32; identity is weight 1, bias 0.
    ranges : dict of site name -> (low (d,), high (d,)), optional
        Where a unit's map holds: activations below low or above high stay as they are. Kept in float32, infinities
        allowed. At sites that are not in it, maps hold everywhere.
    kinds : dict of site name -> kind, optional
        The same for any kind of map (`lineas.maps.kinds`); at sites in neither, maps are plain affine ones.
    gate : Gate, optional
        What says how much of all maps acts; all of them always do if there is none.
    history : dict of lists, optional
        What `lineas.fit` recorded, one entry an evaluation.
    info : dict, optional
        Where the maps come from: model, data sizes, recipe, penalty, seed.

    Notes
    -----
    At strength s a unit's activation z becomes s * (weight z + bias) + (1 - s) * z: 0 is exactly the base model.
    All weights lie side by side in one array, all biases in another; `weight` and `bias` are views of them.
    """

    def __init__(
        self, maps: Mapping[str, Pair], *, ranges: Mapping[str, Pair] | None = None,
        kinds: Mapping[str, Affine] | None = None, gate: Gate | None = None,
        history: dict[str, list] | None = None, info: dict[str, Any] | None = None,
    ):  # fmt: skip
        check_pairs("maps", maps, "weight (d,), bias (d,)")
        check_pairs("ranges", ranges or {}, "low (d,), high (d,)")
        for what, given in (("kinds", kinds), ("history", history), ("info", info)):
            if given is not None and not isinstance(given, Mapping):
                raise TypeError(f"{what}: expected a dict, got {type(given).__name__}")
        names = list(maps)
        weights, biases = zip(*maps.values(), strict=True) if names else ((), ())
        parts = [np.asarray(part, np.float32) for part in (*weights, *biases)]
        for name, weight, bias in zip(names, parts, parts[len(names) :], strict=False):
            if weight.ndim != 1 or weight.shape != bias.shape or not len(weight):
                raise ValueError(f"{name}: expected weight (d,) and bias (d,), got {weight.shape} and {bias.shape}")
        if not names:
            raise ValueError("expected maps for at least one site, got none")
        within = {name: WithinRange(*ends) for name, ends in (ranges or {}).items()}
        sizes = [len(part) for part in parts[: len(names)]]
        self._setup(names, sizes, np.concatenate(parts), {**within, **(kinds or {})}, gate, history, info)

    @classmethod
    def from_flat(
        cls: type[AnyMaps], names: Iterable[str], sizes: Iterable[int], x: Vector, *,
        kinds: Mapping[str, Affine] | None = None, gate: Gate | None = None,
        history: dict[str, list] | None = None, info: dict[str, Any] | None = None,
    ) -> AnyMaps:  # fmt: skip
        """From one vector (2 N,) float32, all weights before all biases, which is shared, not copied.

        Parameters
        ----------
        names, sizes : of the sites, in order, and how many units each has; the sizes sum to N
        """
        self = object.__new__(cls)
        self._setup(list(names), list(sizes), x, kinds or {}, gate, history, info)
        return self

    def _setup(
        self, names: list[str], sizes: list[int], x: Vector, kinds: Mapping[str, Affine], gate: Gate | None,
        history: dict[str, list] | None, info: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        if x.shape != (2 * sum(sizes),):
            raise ValueError(f"expected maps ({2 * sum(sizes)},), weights before biases, got {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("expected finite maps, got a NaN or infinity")
        self.sizes: dict[str, int] = dict(zip(names, sizes, strict=True))
        ends = np.cumsum(sizes)
        self._slices = {
            name: slice(int(end - size), int(end)) for name, size, end in zip(names, sizes, ends, strict=True)
        }
        self.weights, self.biases = np.split(x, 2)
        for name, kind in kinds.items():
            kind.check(name, len(self.weight(name)))
        self._kinds = {name: kind for name, kind in kinds.items() if kind.neutral}
        if gate is not None and not isinstance(gate, Gate):
            raise TypeError(f"gate: expected a Gate or None, got {type(gate).__name__}")
        self.gate = gate
        self.history: dict[str, list] = history or {}
        self.info: dict[str, Any] = info or {}

    def told(self: AnyMaps, info: dict[str, Any], history: dict[str, list]) -> AnyMaps:
        """The same maps, copied, with other facts beside them."""
        return self._copy(self.gate, info, history)

    def gated(self: AnyMaps, gate: Gate | None) -> AnyMaps:
        """The same maps, scaled by what this gate says of each input, instead of any that they have; None: always on.

        See `lineas.fit_gate`, which makes one. A dial stays: what it says is the price where the gate is open.
        """
        return self._copy(gate, dict(self.info), self.history)

    def _copy(self: AnyMaps, gate: Gate | None, info: dict[str, Any], history: dict[str, list]) -> AnyMaps:
        x = np.concatenate([self.weights, self.biases])
        return type(self).from_flat(
            self.sizes, self.sizes.values(), x, kinds=self.special, gate=gate, history=history, info=info
        )

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in the order in which the forward pass reaches them."""
        return list(self.sizes)

    def weight(self, site: str) -> Vector:
        """(d,), a view; 1 is no change. LookupError for a site without a map."""
        return self.weights[self._slice(site)]

    def bias(self, site: str) -> Vector:
        """(d,), a view; 0 is no change. LookupError for a site without a map."""
        return self.biases[self._slice(site)]

    def kind(self, site: str) -> Affine:
        """What kind of map the site has. LookupError as in `weight`."""
        self._slice(site)
        return self._kinds.get(site, PLAIN)

    @property
    def special(self) -> dict[str, Affine]:
        """The kinds of those sites whose maps are not plain affine ones."""
        return dict(self._kinds)

    def range(self, site: str) -> tuple[Vector, Vector] | None:
        """Low (d,) and high (d,), between which the site's maps hold; None: everywhere. LookupError as in `weight`."""
        kind = self.kind(site)
        return (kind.parts[0], kind.parts[1]) if isinstance(kind, WithinRange) else None

    def at_strength(self, site: str, strength: float) -> tuple[Floats, ...]:
        """What the site's kind applies at a strength, in float64: scale (d,), shift (d,), and what else it has."""
        return self.kind(site).at_strength(self.weight(site), self.bias(site), strength)

    def support(self) -> dict[str, NDArray[np.int64]]:
        """The units that the maps change, by site: abs(weight - 1) or abs(bias) above 1e-5."""
        moved = is_moved(self.weights, self.biases)
        return {name: np.flatnonzero(moved[where]) for name, where in self._slices.items()}

    def _slice(self, site: str) -> slice:
        if site not in self._slices:
            raise LookupError(f"no map for site {site!r}; {nearest(site, self.sites)}")
        return self._slices[site]

    def __repr__(self) -> str:
        units, moved, count = len(self.weights), sum(map(len, self.support().values())), len(self.sizes)
        labels = "".join(f", {label}" for label in dict.fromkeys(kind.label for kind in self._kinds.values()))
        labels += "" if self.gate is None else f", {self.gate!r}"
        support = f"support {moved} ({moved / units:.1%})"
        return f"{type(self).__name__}({count} site{'s' * (count > 1)}, {units} units, {support}{labels})"


def check_pairs(what: str, given: Any, wanted: str) -> None:
    """TypeError where it is no dict of site name -> two arrays of numbers."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{what}: expected a dict of site name -> ({wanted}), got {type(given).__name__}")
    for name, pair in given.items():
        if not isinstance(name, str):
            raise TypeError(f"{what}: expected names of sites (str), got {type(name).__name__} {name!r:.60}")
        try:
            first, second = pair
            np.asarray(first, np.float32), np.asarray(second, np.float32)
        except (TypeError, ValueError):
            raise TypeError(f"{what}: expected ({wanted}) of numbers for {name!r}, got {pair!r:.60}") from None
