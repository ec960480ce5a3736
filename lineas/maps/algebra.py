"""Algebra of steerings: invert, compose, scale, mix, cut down, compare. Arithmetic in float64, results in float32."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.checks import number
from ..core.text import SHOWN, first_units, natural_order, nearest
from .dial import scaled_prices
from .gate import refuse_gated
from .kinds import Affine
from .maps import AnyMaps, Maps

__all__ = ["Overlap", "interpolate", "overlap"]

Pairs = dict[str, tuple[NDArray, NDArray]]  # site -> weight, bias
LARGEST = float(np.finfo(np.float32).max)
# The facts that a result may inherit.
ORIGIN = ("model", "model_class", "base_model", "revision", "weights", "adapters", "dtype", "pooling", "position")


def pairs_of(maps: Maps) -> Pairs:
    """Site -> (weight, bias), in float64."""
    return {name: (maps.weight(name).astype(np.float64), maps.bias(name).astype(np.float64)) for name in maps.sites}


def special_kinds(*several: Maps) -> dict[str, Affine]:
    """Site -> kind, where a map of any of them is not a plain affine one."""
    return {name: kind for maps in several for name, kind in maps.special.items()}


def derived(how: str, pairs: Pairs, *parents: AnyMaps, kinds: Mapping[str, Affine] | None = None) -> AnyMaps:
    """New maps of the parents' class, whose `info` says how they were made, of what, and what the parents share.

    Where a parent's map is of another kind than the plain one, so is the new one, unless `kinds` says otherwise. The
    gate of a single parent goes on; of several none has one.
    """
    first = parents[0].info
    shared = {
        key: first[key]
        for key in ORIGIN
        if first.get(key) is not None and all(parent.info.get(key) == first[key] for parent in parents)
    }
    kept = {name: kind for name, kind in (kinds or special_kinds(*parents)).items() if name in pairs}
    info = {**shared, "made": how, "of": [dict(parent.info) for parent in parents]}
    return type(parents[0])(pairs, kinds=kept, gate=parents[0].gate, info=info)


# -- of one --


def inverse(maps: AnyMaps) -> AnyMaps:
    refuse_special("the inverse", maps.special)
    refuse_gated("the inverse", maps.gate)
    pairs, singular = {}, {}
    for name, (weight, bias) in pairs_of(maps).items():
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            back = 1 / weight, -bias / weight
        lost = ~np.all([np.abs(part) <= LARGEST for part in back], axis=0)  # NaN counts: it compares as false
        if lost.any():
            singular[name] = lost
        pairs[name] = back
    if singular:
        named = "; ".join(f"{name!r}: {first_units(lost)}" for name, lost in singular.items())
        raise ValueError(f"expected weights that can be divided by, these units cannot be inverted: {named}")
    return derived("inverse", pairs, maps)


def scaled(maps: AnyMaps, strength: float) -> AnyMaps:
    s = number(strength, "strength")
    pairs: Pairs = {}
    kinds: dict[str, Affine] = {}
    for name in maps.sites:
        scale, shift, *parts = maps.at_strength(name, s)
        pairs[name], kinds[name] = (scale, shift), type(maps.kind(name))(*parts)
    found = derived(f"scaled by {s:g}", _within_float32(pairs, "scaled"), maps, kinds=kinds)
    found.info.update(scaled_prices(maps.info, s))
    return found


def restricted(
    maps: AnyMaps, sites: str | Sequence[str] | None, top: int | None = None,
    responses: Mapping[str, ArrayLike] | None = None,
) -> AnyMaps:  # fmt: skip
    chosen = _chosen(maps, sites)
    pairs = {name: pair for name, pair in pairs_of(maps).items() if name in chosen}
    how = f"restricted to {len(pairs)} sites"
    if top is not None:
        if isinstance(top, bool) or not isinstance(top, (int, np.integer)) or top < 1:
            raise ValueError(f"top: expected a number of units of at least 1, got {top!r}")
        pairs = _keep_top(pairs, int(top), responses, maps)
        how += f", the top {top} units"
    elif responses is not None:
        raise ValueError("responses say which units move most; expected them together with top=")
    return derived(how, pairs, maps)


def _chosen(maps: Maps, sites: str | Sequence[str] | None) -> list[str]:
    """As in `find_sites`: a pattern that matches whole names, or names."""
    if sites is None:
        return maps.sites
    if isinstance(sites, str):
        try:
            chosen = [name for name in maps.sites if re.fullmatch(sites, name)]
        except re.error as error:
            raise ValueError(f"sites: {sites!r} is not a regular expression: {error}") from error
        if not chosen:
            raise LookupError(f"no site matches {sites!r} over its whole name; {nearest(sites, maps.sites)}")
        return chosen
    if not isinstance(sites, Iterable):
        raise TypeError(f"sites: expected a regular expression, names or None, got {sites!r:.60}")
    sites = list(sites)
    for name in sites:
        maps.weight(name)  # LookupError, with the nearest names
    if not sites:
        raise ValueError("sites: expected at least one name, got an empty list")
    return sites


def _keep_top(pairs: Pairs, top: int, responses: Mapping[str, ArrayLike] | None, maps: Maps) -> Pairs:
    """The identity everywhere but in the units that are moved most; the first ones, where some are moved equally."""
    moves = np.concatenate([_move(name, *pair, responses, maps.kind(name)) for name, pair in pairs.items()])
    keep = np.zeros(len(moves), bool)
    keep[np.argsort(-moves, kind="stable")[:top]] = True
    ends = np.cumsum([len(weight) for weight, _ in pairs.values()])[:-1]
    return {
        name: (np.where(kept, weight, 1.0), np.where(kept, bias, 0.0))
        for (name, (weight, bias)), kept in zip(pairs.items(), np.split(keep, ends), strict=True)
    }


def move(weight: NDArray, bias: NDArray) -> NDArray:
    """Root mean square of what maps add to activations of mean 0 and deviation 1."""
    return np.hypot(weight - 1, bias)


def _move(
    name: str, weight: NDArray, bias: NDArray, responses: Mapping[str, ArrayLike] | None, kind: Affine
) -> NDArray:
    """The same over responses (n, d), where there are some, as the kind of map moves them."""
    if responses is None:
        return move(weight, bias)
    if name not in responses:
        raise LookupError(f"responses: expected those of site {name!r} too; {nearest(name, responses)}")
    values = np.asarray(responses[name], np.float64)
    if values.ndim != 2 or values.shape[1] != len(weight) or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"responses of {name!r}: expected finite (samples, {len(weight)}), got {values.shape}")
    return np.sqrt(np.mean(kind.moves(values, weight, bias) ** 2, axis=0))


# -- of two --


def compose(after: AnyMaps, before: AnyMaps) -> AnyMaps:
    """First `before`, then `after`: w = w_after w_before, b = w_after b_before + b_after where both have a map."""
    first, second = _pair(before, after)
    pairs: Pairs = {}
    for name in merged_order(list(first), list(second)):
        if name in first and name in second:
            (w1, b1), (w2, b2) = first[name], second[name]
            pairs[name] = (w2 * w1, w2 * b1 + b2)
        else:
            pairs[name] = first[name] if name in first else second[name]
    return derived("the second of these after the first", _within_float32(pairs, "composed"), before, after)


def added(a: AnyMaps, b: AnyMaps, times: float = 1.0) -> AnyMaps:
    """Both moves at once, b's so many times: w = w_a + times (w_b - 1), b = b_a + times b_b."""
    pairs = {name: (w1 + times * (w2 - 1), b1 + times * b2) for name, (w1, b1), (w2, b2) in paired(a, b)}
    how = f"the moves of the first and {times:g} times those of the second"
    return derived(how, _within_float32(pairs, "added"), a, b)


def interpolate(a: AnyMaps, b: AnyMaps, t: float) -> AnyMaps:
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
    for steering in (a, b):
        _check_maps(steering)
    t = number(t, "t")
    pairs = {name: ((1 - t) * w1 + t * w2, (1 - t) * b1 + t * b2) for name, (w1, b1), (w2, b2) in paired(a, b)}
    return derived(f"{1 - t:g} of the first, {t:g} of the second", _within_float32(pairs, "interpolated"), a, b)


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


def overlap(a: Maps, b: Maps) -> Overlap:
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
    for steering in (a, b):
        _check_maps(steering)
    first, second = pairs_of(a), pairs_of(b)
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
            a_waits = natural_order(b[0]) < natural_order(a[0])
        name = b[0] if a_waits else a[0]
        order.append(name)
        a, b = ([other for other in names if other != name] for names in (a, b))
    return order + a + b


def _pair(a: Maps, b: Maps) -> tuple[Pairs, Pairs]:
    """Both their maps, if one steering can stand for the two."""
    position_a, position_b = a.info.get("position"), b.info.get("position")
    if position_a is not None and position_b is not None and position_a != position_b:
        got = f"{position_a!r} and {position_b!r}"
        raise ValueError(f"expected steerings of one position, got {got}: no single map is both")
    first, second = pairs_of(a), pairs_of(b)
    _check_sizes(first, second)
    both = {name: kind for name, kind in special_kinds(a, b).items() if name in first and name in second}
    refuse_special("one map for two", both)
    refuse_gated("one steering for two", a.gate, b.gate)
    return first, second


def paired(a: Maps, b: Maps) -> Iterator[tuple[str, tuple[NDArray, NDArray], tuple[NDArray, NDArray]]]:
    """Each site with the maps of both; the identity where one lacks it."""
    first, second = _pair(a, b)
    for name in merged_order(list(first), list(second)):
        units = len((first.get(name) or second[name])[0])
        identity = np.ones(units), np.zeros(units)
        yield name, first.get(name, identity), second.get(name, identity)


def refuse_special(what: str, kinds: Mapping[str, Affine]) -> None:
    """ValueError, with their names, where there are sites whose maps are not plain affine ones."""
    if kinds:
        first, names = next(iter(kinds.values())), ", ".join(map(repr, list(kinds)[:SHOWN]))
        raise ValueError(f"{what}: expected maps that {first.plainly}, got some that {first.holds}: {names}")


def _check_maps(given: Any) -> None:
    if not isinstance(given, Maps):
        raise TypeError(f"expected two steerings, got {type(given).__name__} {given!r:.60}")


def _check_sizes(first: Pairs, second: Pairs) -> None:
    for name, (weight, _) in first.items():
        if name in second and len(second[name][0]) != len(weight):
            raise ValueError(
                f"site {name!r}: expected the same number of units, got {len(weight)} and {len(second[name][0])}"
            )


def _within_float32(pairs: Pairs, how: str) -> Pairs:
    for name, pair in pairs.items():
        beyond = np.abs(np.stack(pair)).max(axis=0) > LARGEST
        if beyond.any():
            raise ValueError(
                f"site {name!r}: expected finite maps, {how} they are beyond float32 in units {first_units(beyond)}"
            )
    return pairs
