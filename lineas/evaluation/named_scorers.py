"""What pictures are scored by: a judge, networks by name, functions of one's own."""

from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike

from .judge import Judge
from .picture_scorers import PictureScorer
from .scorers import several_of
from .vision import clip, dino, lpips

NAMES = "'judge:FILE#CONCEPT', 'clip:NAME', 'clip:NAME#A TEXT|ANOTHER', 'dino:NAME', 'lpips', or a function"


def picture_scorer(what: "str | PictureScorer | Callable[..., ArrayLike]") -> PictureScorer:
    """A scorer of pictures by its name, or of a function.

    Parameters
    ----------
    what : str or callable
        - "judge:FILE#CONCEPT": whether a concept is in the picture, by a `Judge`, which has more to say.
        - "clip:NAME": how well picture and prompt fit, the cosine of their features in a CLIP of transformers (`clip`).
        - "clip:NAME#A TEXT|ANOTHER|...": the probability of the first of these texts, by the same.
        - "dino:NAME": likeness to the picture without steering, the cosine of their features in a DINOv2 (`dino`).
        - "lpips", "lpips:alex": perceptual distance from the picture without steering. Needs lpips.
        - any function of pictures that returns as many numbers, and of prompts, if it takes two arguments; higher is
          taken to be better. A `PictureScorer` says more.

    Raises
    ------
    ImportError
        A package is missing; the message says what to install.
    TypeError, ValueError, LookupError, OSError
        Nothing that can score pictures.

    Examples
    --------
    >>> import numpy as np
    >>> from lineas import evaluation
    >>> brightness = evaluation.picture_scorer(lambda pictures: pictures.mean((1, 2, 3)))
    >>> brightness(np.full((2, 8, 8, 3), 0.5, np.float32))
    array([0.5, 0.5])
    """
    if isinstance(what, PictureScorer):
        return what
    if isinstance(what, str):
        kind, _, name = what.partition(":")
        if kind in READY and (name or kind == "lpips"):
            return READY[kind](name)
        raise ValueError(f"scorer: expected {NAMES}; got {what!r}")
    if not callable(what):
        raise TypeError(f"scorer: expected {NAMES}; got {type(what).__name__}")
    name = getattr(what, "__name__", type(what).__name__)
    return PictureScorer("effect" if name == "<lambda>" else name, what)


def _judge(name: str) -> PictureScorer:
    path, _, concept = name.rpartition("#")
    if not path or not concept:
        raise ValueError(f"scorer: expected 'judge:FILE#CONCEPT', got 'judge:{name}'")
    return Judge.from_file(path).presence(concept)


def _clip(name: str) -> PictureScorer:
    name, _, texts = name.partition("#")
    return clip(name, texts.split("|") if texts else None)


READY = {"judge": _judge, "clip": _clip, "dino": dino, "lpips": lambda net: lpips(net or "alex")}


def picture_scorers_of(given: Any) -> list[PictureScorer]:
    """One scorer, several, or a dict by name, as a list; names tell them apart."""
    return several_of(given, picture_scorer)
