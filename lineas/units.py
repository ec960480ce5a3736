"""Chosen units: a dict of site name -> units, as one mask over all mapped units."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .responses import Layout
from .sites import nearest


def mask_of(units: Mapping[str, ArrayLike], layout: Layout) -> NDArray[np.bool_]:
    """(N,): which units of the layout are among these, given by site as places or as masks; no other site's are.

    Raises
    ------
    LookupError
        A site that is not mapped.
    TypeError, ValueError
        Not a dict; not whole numbers or a mask; a place or a mask beyond the site's units; no unit at all.
    """
    if not isinstance(units, Mapping):
        raise TypeError(f"units: expected a dict of site name -> units, got {type(units).__name__}")
    names = [site.name for site in layout.sites]
    chosen = np.zeros(layout.units, bool)
    for name, given in units.items():
        if name not in names:
            raise LookupError(f"units: {name!r} is not among the sites that are mapped; {nearest(str(name), names)}")
        k = names.index(name)
        chosen[layout.slice(k)][_places(name, given, layout.sizes[k])] = True
    if not chosen.any():
        raise ValueError(f"units: expected at least one unit, got none at {len(units)} sites")
    return chosen


def _places(name: str, given: ArrayLike, size: int) -> NDArray[Any]:
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
