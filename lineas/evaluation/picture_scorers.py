"""A scorer of pictures: what it is called with, and what it must return."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .pictures import as_pictures
from .scorers import check_better, checked

TAKES = ("pictures", "prompts", "base", "rows")


@dataclass(frozen=True)
class PictureScorer:
    """A function that gives each picture a number.

    Parameters
    ----------
    name : str
        What the figure is called in a report.
    function : callable
        What it takes -> n finite floats. Pictures are a float32 array (n, height, width, 3) of values from 0 to 1.
    better : {"higher", "lower", ""}
        Which way is better; "" where neither is.
    takes : tuple of str, optional
        What the function is called with, by position: "pictures", "prompts", a list of n strings, "base", the pictures
        without steering from the same noise, "rows", which of all prompts they are. If not given, its parameters tell:
        the first is for pictures, the others are what they are called, and one of another name is for the prompts.
    prompts : int, optional
        How many prompts there must be, where the function knows something of each.
    """

    name: str
    function: Callable[..., ArrayLike]
    better: str = "higher"
    takes: tuple[str, ...] = ()
    prompts: int | None = None

    def __post_init__(self) -> None:
        check_better(self.better)
        takes = tuple(self.takes) or _taken_by(self.function, self.name)
        if unknown := set(takes) - set(TAKES):
            raise ValueError(f"takes: expected some of {', '.join(TAKES)}; got {', '.join(map(repr, sorted(unknown)))}")
        object.__setattr__(self, "takes", takes)

    def __call__(
        self, pictures: Any, prompts: Sequence[str] | None = None, base: Any = None, rows: Sequence[int] | None = None
    ) -> NDArray[np.float64]:  # fmt: skip
        """(n,) for n pictures. ValueError where the function returns anything else, or what is not finite."""
        pictures = as_pictures(pictures, "pictures")
        n = len(pictures)
        given = {
            "pictures": pictures,
            "prompts": None if prompts is None else list(prompts),
            "base": None if base is None else as_pictures(base, "base"),
            "rows": list(range(n)) if rows is None else list(rows),
        }
        if missing := [what for what in self.takes if given[what] is None]:
            raise ValueError(f"scorer {self.name!r}: expected {' and '.join(missing)} too, got none")
        return checked(self.name, self.function(*(given[what] for what in self.takes)), n, "picture")

    def check_prompts(self, count: int) -> None:
        """ValueError where it was made for another number of them."""
        if self.prompts not in (None, count):
            raise ValueError(f"scorer {self.name!r}: it was made for {self.prompts} prompts, got {count}")


def _taken_by(function: Callable, name: str) -> tuple[str, ...]:
    """What a function asks for, as far as its parameters tell."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of C, mostly
        return TAKES[:1]
    by_place = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if not by_place and any(one.kind == one.VAR_POSITIONAL for one in parameters):
        return TAKES[:1]
    others = [one.name for one in by_place[1:] if one.name in TAKES or one.default is one.empty]
    strange = [other for other in others if other not in TAKES]
    if not by_place or len(strange) > 1 or (strange and "prompts" in others):
        raise TypeError(
            f"scorer {name!r}: expected a function of pictures, and of prompts, base or rows if it needs them; got "
            f"one of {', '.join(one.name for one in parameters) or 'nothing'}"
        )
    return ("pictures", *(other if other in TAKES else "prompts" for other in others))
