"""Sets of units: those that maps move, and a dict of site name -> units as one mask over all of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.text import nearest

SUPPORT = 1e-5  # a unit moved by less is left out of the support


def is_moved(weight: NDArray, bias: NDArray) -> NDArray[np.bool_]:
    """Which units are in the support."""
    return (np.abs(weight - 1) > SUPPORT) | (np.abs(bias) > SUPPORT)


def mask_of(units: Mapping[str, ArrayLike], sizes: Mapping[str, int]) -> NDArray[np.bool_]:
    """(N,): which units are among these, given by site as places or as masks; no other site's are.

    `sizes` says how many units each site has, in order.

    Raises
    ------
    LookupError
        A site that is not mapped.
    TypeError, ValueError
        Not a dict; not whole numbers or a mask; a place or a mask beyond the site's units; no unit at all.
    """
    if not isinstance(units, Mapping):
        raise TypeError(f"units: expected a dict of site name -> units, got {type(units).__name__}")
    chosen = {name: np.zeros(size, bool) for name, size in sizes.items()}
    for name, given in units.items():
        if name not in chosen:
            raise LookupError(f"units: {name!r} is not among the sites that are mapped; {nearest(str(name), sizes)}")
        chosen[name][places_of(name, given, sizes[name])] = True
    mask = np.concatenate(list(chosen.values()))
    if not mask.any():
        raise ValueError(f"units: expected at least one unit, got none at {len(units)} sites")
    return mask


def places_of(name: str, given: ArrayLike, size: int) -> NDArray[Any]:
    """The units of one site as an index into them: a mask (size,) or whole numbers."""
    places = np.asarray(given)
    if places.dtype == bool:
        if places.shape != (size,):
            raise ValueError(f"units of {name!r}: expected a mask ({size},), got {places.shape}")
        return places
    if places.ndim != 1 or (places.dtype.kind not in "iu" and places.size):
        raise TypeError(
            f"units of {name!r}: expected whole numbers (k,) or a mask ({size},), got {places.dtype} {places.shape}"
        )
    places = places.astype(np.int64)
    outside = places[(places < 0) | (places >= size)]
    if len(outside):
        raise ValueError(f"units of {name!r}: expected 0 to {size - 1}, got {outside[0]}")
    return places
