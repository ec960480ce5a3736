"""What is compared: the model as it is, and each steering at each strength."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..core.checks import number, whole
from ..steering import Steering

Applied = AbstractContextManager[Any]


class Condition(NamedTuple):
    """A steering at a strength, and how to put it on."""

    steering: str | None
    strength: float
    applied: Callable[[], Applied]


def conditions_of(
    named: Mapping[str, Steering], strengths: Any, apply: Callable[[Steering, float], Applied]
) -> list[Condition]:  # fmt: skip
    """The base model first. A steering that does not fit the model is refused here, before any work."""
    found = [Condition(None, 0.0, nullcontext)]
    for name, one in named.items():
        found += [Condition(name, strength, partial(apply, one, strength)) for strength in _strengths(strengths)]
    for condition in found:
        with condition.applied():
            pass
    return found


def named_steerings(steering: Any) -> dict[str, Steering]:
    if steering is None or isinstance(steering, Steering):
        return {} if steering is None else {"steering": steering}
    if not isinstance(steering, Mapping):
        raise TypeError(f"steering: expected a Steering or a dict of them by name, got {type(steering).__name__}")
    for name, one in steering.items():
        if not isinstance(name, str) or not isinstance(one, Steering):
            raise TypeError(f"steering: expected str -> Steering, got {name!r} -> {type(one).__name__}")
    return dict(steering)


def _strengths(given: float | Sequence[float]) -> list[float]:
    """Each once, in order, without 0, which is the base model."""
    each = (number(strength, "strengths") for strength in _each(given, "strengths", "numbers"))
    return sorted({strength for strength in each if strength})


def seeds_of(given: int | Sequence[int], least: int | None = None) -> list[int]:
    """Each once, in the order given; ValueError where there are none."""
    found = [whole(seed, "seeds", least=least) for seed in dict.fromkeys(_each(given, "seeds", "whole numbers"))]
    if not found:
        raise ValueError("seeds: expected at least one, got none")
    return found


def check_confidence(confidence: float) -> None:
    if not 0 < number(confidence, "confidence") < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")


def _each(given: Any, name: str, what: str) -> list:
    """One number, or several; what they must be is looked at later."""
    if isinstance(given, (int, float, np.generic)):
        return [given]
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected {what}, got {type(given).__name__} {given!r:.60}")
    return given.tolist() if isinstance(given, (np.ndarray, Tensor)) else list(given)
