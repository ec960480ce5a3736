"""Algebra of steerings: invert, compose, scale, mix, cut down, compare. Arithmetic in float64, results in float32."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .sites import nearest

if TYPE_CHECKING:
    from .steering import Steering

__all__ = ["Overlap", "interpolate", "overlap"]

Maps = dict[str, tuple[NDArray, NDArray]]
LARGEST = float(np.finfo(np.float32).max)
ORIGIN = ("model", "model_class", "revision", "weights", "pooling", "position")  # facts that a result may inherit
SHOWN = 8  # units that a message names


def maps_of(steering: "Steering") -> Maps:
    """Site -> (weight, bias), in float64."""
    return {
        name: (steering.weight(name).astype(np.float64), steering.bias(name).astype(np.float64))
        for name in steering.sites
    }


def at_strength(weight: NDArray, bias: NDArray, strength: float) -> tuple[NDArray, NDArray]:
    """Scale and shift of s * (weight z + bias) + (1 - s) * z, in float64."""
    return 1 + strength * (weight.astype(np.float64) - 1), strength * bias.astype(np.float64)


def ranges_of(*steerings: "Steering") -> Maps:
    """Site -> (low, high), where a map of any of them holds within a range only."""
    found = ((name, steering.range(name)) for steering in steerings for name in steering.sites)
    return {name: pair for name, pair in found if pair is not None}


def derived(how: str, maps: Maps, *parents: "Steering") -> "Steering":
    """A new steering, whose `info` says how it was made, of what, and what its parents have in common.

    Where a parent's map holds within a range only, so does the new one.
    """
    first = parents[0].info
    shared = {
        key: first[key]
        for key in ORIGIN
        if first.get(key) is not None and all(parent.info.get(key) == first[key] for parent in parents)
    }
    ranges = {name: pair for name, pair in ranges_of(*parents).items() if name in maps}
    info = {**shared, "made": how, "of": [dict(parent.info) for parent in parents]}
    return type(parents[0])(maps, ranges=ranges, info=info)


# -- of one --


def inverse(steering: "Steering") -> "Steering":
    _refuse_ranges("the inverse", ranges_of(steering))
    maps, singular = {}, {}
    for name, (weight, bias) in maps_of(steering).items():
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            back = 1 / weight, -bias / weight
        lost = ~np.all([np.abs(part) <= LARGEST for part in back], axis=0)  # NaN counts: it compares as false
        if lost.any():
            singular[name] = lost
        maps[name] = back
    if singular:
        named = "; ".join(f"{name!r}: {some(lost)}" for name, lost in singular.items())
        raise ValueError(f"expected weights that can be divided by, these units cannot be inverted: {named}")
    return derived("inverse", maps, steering)


def scaled(steering: "Steering", strength: float) -> "Steering":
    s = _number(strength, "strength")
    maps = {name: at_strength(*pair, s) for name, pair in maps_of(steering).items()}
    return derived(f"scaled by {s:g}", _within_float32(maps, "scaled"), steering)


def restricted(
    steering: "Steering", sites: str | Sequence[str] | None, top: int | None, responses: Mapping[str, ArrayLike] | None
) -> "Steering":
    chosen = _chosen(steering, sites)
    maps = {name: pair for name, pair in maps_of(steering).items() if name in chosen}
    how = f"restricted to {len(maps)} sites"
    if top is not None:
        if isinstance(top, bool) or not isinstance(top, (int, np.integer)) or top < 1:
            raise ValueError(f"top: expected a number of units of at least 1, got {top!r}")
        maps = _keep_top(maps, int(top), responses, ranges_of(steering))
        how += f", the top {top} units"
    elif responses is not None:
        raise ValueError("responses say which units move most; expected them together with top=")
    return derived(how, maps, steering)


def _chosen(steering: "Steering", sites: str | Sequence[str] | None) -> list[str]:
    """As in `find_sites`: a pattern that matches whole names, or names."""
    if sites is None:
        return steering.sites
    if isinstance(sites, str):
        chosen = [name for name in steering.sites if re.fullmatch(sites, name)]
        if not chosen:
            raise LookupError(f"no site matches {sites!r} over its whole name; {nearest(sites, steering.sites)}")
        return chosen
    for name in sites:
        steering.weight(name)  # LookupError, with the nearest names
    if not sites:
        raise ValueError("sites: expected at least one name, got an empty list")
    return list(sites)


def _keep_top(maps: Maps, top: int, responses: Mapping[str, ArrayLike] | None, ranges: Maps) -> Maps:
    """The identity everywhere but in the units that are moved most; the first ones, where some are moved equally."""
    moves = np.concatenate([_move(name, *pair, responses, ranges.get(name)) for name, pair in maps.items()])
    keep = np.zeros(len(moves), bool)
    keep[np.argsort(-moves, kind="stable")[:top]] = True
    ends = np.cumsum([len(weight) for weight, _ in maps.values()])[:-1]
    return {
        name: (np.where(kept, weight, 1.0), np.where(kept, bias, 0.0))
        for (name, (weight, bias)), kept in zip(maps.items(), np.split(keep, ends), strict=True)
    }


def move(weight: NDArray, bias: NDArray) -> NDArray:
    """Root mean square of what maps add to activations of mean 0 and deviation 1."""
    return np.hypot(weight - 1, bias)


def _move(
    name: str, weight: NDArray, bias: NDArray, responses: Mapping[str, ArrayLike] | None,
    ends: tuple[NDArray, NDArray] | None,
) -> NDArray:  # fmt: skip
    """The same over responses (n, d), where there are some; beyond the ends nothing moves."""
    if responses is None:
        return move(weight, bias)
    if name not in responses:
        raise LookupError(f"responses: expected those of site {name!r}, got {nearest(name, responses)}")
    values = np.asarray(responses[name], np.float64)
    if values.ndim != 2 or values.shape[1] != len(weight) or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"responses of {name!r}: expected finite (samples, {len(weight)}), got {values.shape}")
    low, high = ends or (-np.inf, np.inf)
    moves = ((weight - 1) * values + bias) * ((values >= low) & (values <= high))
    return np.sqrt(np.mean(moves**2, axis=0))


# -- of two --


def compose(after: "Steering", before: "Steering") -> "Steering":
    """First `before`, then `after`: w = w_after w_before, b = w_after b_before + b_after where both have a map."""
    first, second = _pair(before, after)
    maps = {}
    for name in merged_order(list(first), list(second)):
        if name in first and name in second:
            (w1, b1), (w2, b2) = first[name], second[name]
            maps[name] = (w2 * w1, w2 * b1 + b2)
        else:
            maps[name] = first[name] if name in first else second[name]
    return derived("the second of these after the first", _within_float32(maps, "composed"), before, after)


def interpolate(a: "Steering", b: "Steering", t: float) -> "Steering":
    """The steering between two: a at t = 0, b at t = 1, linear in weights and biases between and beyond.

    Parameters
    ----------
    a, b : Steering
        At sites of one of them only, the other counts as the identity.
    t : float
        Any finite number.

    Returns
    -------
    Steering
        At the sites of both. Each unit's activation becomes (1 - t) * a(z) + t * b(z).

    Raises
    ------
    TypeError, ValueError
        t is no finite number; a site has another number of units in a and b; the result is beyond float32; one of two
        maps of a site holds within a range only.

    Examples
    --------
    >>> import lineas
    >>> a, b = lineas.Steering({"0": ([1.0], [0.0])}), lineas.Steering({"0": ([3.0], [2.0])})
    >>> between = lineas.algebra.interpolate(a, b, 0.25)
    >>> between.weight("0"), between.bias("0")
    (array([1.5], dtype=float32), array([0.5], dtype=float32))
    """
    t = _number(t, "t")
    first, second = _pair(a, b)
    maps = {}
    for name in merged_order(list(first), list(second)):
        units = len((first.get(name) or second[name])[0])
        identity = np.ones(units), np.zeros(units)
        (w1, b1), (w2, b2) = first.get(name, identity), second.get(name, identity)
        maps[name] = ((1 - t) * w1 + t * w2, (1 - t) * b1 + t * b2)
    return derived(f"{1 - t:g} of the first, {t:g} of the second", _within_float32(maps, "interpolated"), a, b)


class Overlap(NamedTuple):
    """How much two supports have in common.

    Attributes
    ----------
    jaccard : float
        Units in both supports over units in either, all sites together; NaN where neither has any.
    by_chance : float
        What to expect of supports of these sizes at each site, if their units were drawn at random.
    sites : dict of str -> float
        The same as `jaccard` for each site of both steerings.
    """

    jaccard: float
    by_chance: float
    sites: dict[str, float]


def overlap(a: "Steering", b: "Steering") -> Overlap:
    """How much the supports of two steerings have in common (Jaccard index).

    Parameters
    ----------
    a, b : Steering
        At sites of one of them only, the support of the other is empty.

    Returns
    -------
    Overlap
        `jaccard` over all units, `by_chance` to compare it with, and `sites`, one number for each shared site.

    Raises
    ------
    ValueError
        A site has another number of units in a and b.

    Notes
    -----
    Of p and q units drawn at random from d, p q / d are expected to coincide; `by_chance` adds that up over sites and
    divides by p + q less it.

    Examples
    --------
    >>> import lineas
    >>> a, b = lineas.Steering({"0": ([2, 2, 1, 1], [0] * 4)}), lineas.Steering({"0": ([1, 2, 2, 1], [0] * 4)})
    >>> lineas.algebra.overlap(a, b)
    Overlap(jaccard=0.3333333333333333, by_chance=0.3333333333333333, sites={'0': 0.3333333333333333})
    """
    first, second = maps_of(a), maps_of(b)
    _check_sizes(first, second)
    sizes = {name: len(weight) for name, (weight, _) in {**first, **second}.items()}
    return overlap_of_units(a.support(), b.support(), sizes)


def overlap_of_units(a: Mapping[str, NDArray], b: Mapping[str, NDArray], sizes: Mapping[str, int]) -> Overlap:
    """The same of two sets of units, site -> their numbers; `sizes` says how many units each of these sites has."""
    mine, other = ({name: set(units.tolist()) for name, units in chosen.items()} for chosen in (a, b))
    both, either, chance = 0, 0, 0.0
    sites = {}
    for name in merged_order(mine, other):
        p, q = mine.get(name, set()), other.get(name, set())
        both, either = both + len(p & q), either + len(p | q)
        if name in mine and name in other:
            chance += len(p) * len(q) / sizes[name]
            sites[name] = _share(len(p & q), len(p | q))
    return Overlap(_share(both, either), _share(chance, both + either - chance), sites)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def merged_order(a: Iterable[str], b: Iterable[str]) -> list[str]:
    """All names, in an order that both lists agree with where there is one; by their numbers where nothing tells."""
    a, b = list(a), list(b)
    order: list[str] = []
    while a and b:
        if a[0] == b[0]:
            order.append(a.pop(0))
            b.pop(0)
            continue
        a_waits, b_waits = a[0] in b, b[0] in a
        if a_waits == b_waits:
            a_waits = natural(b[0]) < natural(a[0])
        name = b[0] if a_waits else a[0]
        order.append(name)
        a, b = ([other for other in names if other != name] for names in (a, b))
    return order + a + b


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by: numbers in them count as numbers, so that layers.2 comes before layers.10."""
    return [
        (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in re.split(r"(\d+)", name)
    ]


def _pair(a: "Steering", b: "Steering") -> tuple[Maps, Maps]:
    """Both their maps, if one steering can stand for the two."""
    there, here = a.info.get("position"), b.info.get("position")
    if there is not None and here is not None and there != here:
        raise ValueError(f"expected steerings of one position, got {there!r} and {here!r}: no single map is both")
    first, second = maps_of(a), maps_of(b)
    _check_sizes(first, second)
    shared = {name: pair for name, pair in ranges_of(a, b).items() if name in first and name in second}
    _refuse_ranges("one map for two", shared)
    return first, second


def _refuse_ranges(what: str, ranges: Maps) -> None:
    if ranges:
        names = ", ".join(map(repr, list(ranges)[:SHOWN]))
        raise ValueError(f"{what}: expected maps that hold everywhere, got some that hold within a range only: {names}")


def _check_sizes(first: Maps, second: Maps) -> None:
    for name, (weight, _) in first.items():
        if name in second and len(second[name][0]) != len(weight):
            raise ValueError(
                f"site {name!r}: expected the same number of units, got {len(weight)} and {len(second[name][0])}"
            )


def _within_float32(maps: Maps, how: str) -> Maps:
    for name, pair in maps.items():
        beyond = np.abs(np.stack(pair)).max(axis=0) > LARGEST
        if beyond.any():
            raise ValueError(
                f"site {name!r}: expected finite maps, {how} they are beyond float32 in units {some(beyond)}"
            )
    return maps


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not np.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def some(chosen: NDArray[np.bool_]) -> str:
    """The first of the units that are chosen, and how many more there are."""
    units = np.flatnonzero(chosen)
    more = f" and {len(units) - SHOWN} more" if len(units) > SHOWN else ""
    return ", ".join(map(str, units[:SHOWN].tolist())) + more
