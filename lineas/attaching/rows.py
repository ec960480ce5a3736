"""What each row of a batch gets: which steering, if any, and at which strength."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..maps.maps import Maps

__all__ = ["Choice", "Spread", "choose", "named"]


class Choice(NamedTuple):
    """The different pairs of steering and strength in a batch, and which of them each row gets."""

    pairs: list[tuple[Maps | None, float]]
    by_row: Tensor | None  # (batch,); None where every row of whatever batch gets the only kind
    argument: str = ""  # the argument that had an entry for each row

    def times(self, factor: float) -> "Choice":
        """The same with all strengths so many times as large."""
        pairs = [(maps if s * factor else None, s * factor) for maps, s in self.pairs]
        return self._replace(pairs=pairs)


class Spread(NamedTuple):
    """How the rows that the user spoke of lie in those of a pass: each `times` times side by side (beams, pictures of a
    prompt), and all of that in `parts` (guidance), perhaps with `only` one of these steered."""

    times: int = 1
    parts: int = 1
    only: int | None = None


def named(steerings: Mapping[Any, Maps] | Sequence[Maps]) -> dict[Any, Maps]:
    """Steerings by id: a mapping's keys, or the places in a list."""
    if not isinstance(steerings, (Mapping, list, tuple)):
        raise TypeError(f"steerings: expected a list of steerings or a dict of them, got {type(steerings).__name__}")
    found: dict[Any, Maps] = dict(steerings if isinstance(steerings, Mapping) else enumerate(steerings))
    for key, steering in found.items():
        if not isinstance(steering, Maps):
            raise TypeError(f"steerings: expected a Steering for {key!r}, got {type(steering).__name__}")
    if not found:
        raise ValueError("steerings: expected at least one, got none")
    return found


def choose(steerings: Mapping[Any, Maps], rows: Any, strength: Any) -> Choice:
    """From one id (or None) or one for each row, and one strength or one for each row.

    TypeError, ValueError, LookupError as `attach` says.
    """
    ids, ids_by_row = _ids(steerings, rows)
    strengths, strengths_by_row = _strengths(strength)
    if ids_by_row and strengths_by_row and len(ids) != len(strengths):
        raise ValueError(f"rows and strength: expected as many of both, got {len(ids)} and {len(strengths)}")
    count = max(len(ids), len(strengths))
    ids, strengths = (given if len(given) == count else given * count for given in (ids, strengths))
    pairs = [
        (None, 0.0) if key is None or not value else (key, value) for key, value in zip(ids, strengths, strict=True)
    ]
    distinct = list(dict.fromkeys(pairs))
    chosen = [(None if key is None else steerings[key], value) for key, value in distinct]
    if not ids_by_row and not strengths_by_row:
        return Choice(chosen, None)
    index = torch.tensor([distinct.index(pair) for pair in pairs], device="cpu")
    return Choice(chosen, index, "rows" if ids_by_row else "strength")


def _ids(steerings: Mapping[Any, Any], rows: Any) -> tuple[list[Any], bool]:
    """The ids, and whether they are one for each row."""
    if isinstance(rows, (Tensor, np.ndarray)):
        rows = rows.tolist()
    by_row = isinstance(rows, (list, tuple)) and not (isinstance(rows, tuple) and rows in steerings)
    ids = list(rows) if by_row else [rows]
    if not ids:
        raise ValueError("rows: expected an id for each row, got none")
    for key in ids:
        if key is not None and (not isinstance(key, Hashable) or key not in steerings):
            raise LookupError(f"rows: expected ids among {', '.join(map(repr, steerings))}, or None, got {key!r}")
    return ids, by_row


def _strengths(strength: Any) -> tuple[list[float], bool]:
    """The strengths, and whether they are one for each row."""
    if isinstance(strength, (Tensor, np.ndarray, np.generic)):
        if strength.ndim > 1:
            raise ValueError(f"strength: expected a number, or one for each row, got shape {tuple(strength.shape)}")
        strength = strength.tolist()
    by_row = isinstance(strength, (list, tuple))
    strengths = list(strength) if by_row else [strength]
    if not strengths:
        raise ValueError("strength: expected a number for each row, got none")
    for value in strengths:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"strength: expected a number, or one for each row, got {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"strength: expected a finite number, got {value}")
    return [float(value) for value in strengths], by_row
