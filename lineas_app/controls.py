"""A steering's slider: from a price or a strength to the strength that is applied, and back."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import lineas

__all__ = ["PRICE", "STRENGTH", "Control", "Span", "finite"]

PRICE, STRENGTH = "price", "strength"
STRONGEST = 10.0  # beyond it is nothing to see but noise
LOW, HIGH = -1.0, 2.0  # of a slider in strengths; without a dial, nobody knows which are dear
STEPS = 50  # of a slider in prices, at least
# What a dial's price is in -> how it is called, and by what its figures are multiplied to be read.
SCALES = {
    "perplexity": ("% perplexity", 100.0), "kl": ("nats a token", 1.0), "kl_95": ("nats a token", 1.0),
    "pixel_change": ("change of a pixel", 1.0), "output_change": ("% of the output", 100.0),
}  # fmt: skip


class Span(NamedTuple):
    """What a slider goes over."""

    low: float
    high: float
    step: float
    label: str


@dataclass(frozen=True)
class Control:
    """A steering under the name that the page gives it."""

    name: str
    steering: lineas.Steering

    @cached_property
    def dial(self) -> lineas.Dial | None:
        """None too where nothing that was measured costs anything, so that no price tells strengths apart."""
        dial = self.steering.dial
        return dial if dial is not None and _most(dial) > 0 else None

    def unit(self, wanted: str) -> str:
        """Price or strength, as is wanted where it can be had."""
        if wanted not in (PRICE, STRENGTH):
            raise ValueError(f"unit: expected {PRICE} or {STRENGTH}, got {wanted!r:.40}")
        return wanted if self.dial is not None else STRENGTH

    def span(self, unit: str) -> Span:
        """Of the slider in one of the units."""
        if self.dial is None or self.unit(unit) == STRENGTH:
            none = "" if self.dial is not None else ", no dial"
            return Span(LOW, HIGH, 0.05, f"{self.name} (strength{none})")
        step = _step(_most(self.dial) / STEPS)
        high = round(step * math.floor(_most(self.dial) / step + 1e-9), 10)
        return Span(0.0, high, step, f"{self.name} ({self._scale[0]})")

    def within(self, value: Any, unit: str) -> float:
        """The nearest that the slider goes to; ValueError for what is no finite number."""
        span = self.span(unit)
        return min(max(finite(value, self.name), span.low), span.high)

    def strength(self, value: Any, unit: str) -> float:
        """What a slider's value stands for.

        Raises
        ------
        ValueError
            No finite number; a price below 0 or beyond what was measured; a strength that is absurd.
        """
        found = finite(value, self.name)
        if self.dial is not None and self.unit(unit) == PRICE:
            if found < 0:
                raise ValueError(f"{self.name}: expected a price of at least 0, got {found:g}")
            try:
                return self.dial.strength_for(found / self._scale[1]) if found else 0.0
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error
        if abs(found) > STRONGEST:
            raise ValueError(f"{self.name}: expected a strength from {-STRONGEST:g} to {STRONGEST:g}, got {found:g}")
        return found

    def value(self, strength: float, unit: str) -> float:
        """Where a slider stands at a strength; at its end where that is beyond it."""
        if self.dial is not None and self.unit(unit) == PRICE:
            within = min(max(strength, 0.0), self.dial.strengths[-1])
            strength = self.dial.cost(within).value * self._scale[1]
        return round(self.within(strength, unit), 4)

    def said(self, strength: float) -> str:
        """A strength, and what it costs as far as that was measured."""
        if self.dial is None or not 0 < strength <= self.dial.strengths[-1]:
            return f"strength {strength:.3g}"
        name, factor = self._scale
        cost = self.dial.cost(strength).value * factor
        return f"strength {strength:.3g}, costs {cost:+.1f}{name}" if factor > 1 else (
            f"strength {strength:.3g}, costs {cost:.3g} {name}")  # fmt: skip

    @property
    def _scale(self) -> tuple[str, float]:
        assert self.dial is not None
        return SCALES[self.dial.price]


def finite(value: Any, name: str) -> float:
    """A number that a page or a program sent, as a float; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r:.40}")
    return float(value)


def _most(dial: lineas.Dial) -> float:
    """What the largest strength that was measured costs, as it is read."""
    return dial.cost(dial.strengths[-1]).value * SCALES[dial.price][1]


def _step(least: float) -> float:
    """The next of 1, 2 and 5 times a power of ten below."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (5.0, 2.0, 1.0) if factor * power <= least * (1 + 1e-9))
