"""Words for messages and tables: the nearest names, the first few of many, names in the order of their numbers."""

import difflib
import re
import sys
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SHOWN = 8  # units or names that a message lists
LONGEST = 1000  # characters of a name that others are compared with


def nearest(name: str, names: Iterable[str], all_of_them: str = "") -> str:
    """For a message about a name that there is not: names that are like it, else what there is; the first names, or as
    the caller tells it."""
    known = list(names)
    if near := difflib.get_close_matches(str(name)[:LONGEST], known, n=4, cutoff=0.3):
        return f"nearest names: {', '.join(near)}"
    return f"there is {all_of_them or first_few(known) or 'none'}"


def first_few(names: Sequence[object]) -> str:
    """The first of many, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def first_units(chosen: NDArray[np.bool_]) -> str:
    """The first of the units that are chosen, and how many more there are."""
    return first_few(np.flatnonzero(chosen).tolist())


def printable(text: str) -> str:
    """Without the characters that a terminal would obey: texts come from files and users."""
    return "".join(c if c.isprintable() else " " for c in text)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points to the line of whoever called lineas, through however many of its functions."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_globals.get("__name__", "").partition(".")[0] == "lineas":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + 1)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by: numbers in them count as numbers, so that layers.2 comes before layers.10."""
    return [
        (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in re.split(r"(\d+)", name)
    ]
