"""What strengths of a steering cost: figures that were measured, and what they say of the strengths between them."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Floats
from ..core.checks import number

__all__ = ["COSTS", "Cost", "Dial", "Price"]

# What a price can be in -> how a figure is said.
COSTS = {
    "perplexity": "{:+.1%}", "kl": "{:.3f} nats", "kl_95": "{:.3f} nats", "pixel_change": "{:.3f}",
    "output_change": "{:.1%}",
}  # fmt: skip
NAMES = {"nats": "kl", "nat": "kl", **{name: name for name in COSTS}}
WRITTEN = re.compile(r"\+?\s*(?P<value>[0-9.]+(e-?[0-9]+)?)\s*(?P<percent>%)?\s*(?P<name>[a-z_0-9]*)", re.IGNORECASE)
FORMS = "'+5%', '+5% perplexity', '0.05 nats', or a number"
GRID = 2000  # strengths that are looked at on the way up to a price


class Cost(NamedTuple):
    """A figure with its confidence interval, whose ends are NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


class Price(NamedTuple):
    """So much of something; of what the dial is in, where `measure` is None."""

    value: float
    measure: str | None = None
    is_percent: bool = False

    @classmethod
    def of(cls, given: "str | float | Price", name: str = "price") -> "Price":
        """From '+5%', '+5% perplexity', '0.05 nats' or a number; TypeError or ValueError for anything else."""
        if isinstance(given, Price):
            return given
        if not isinstance(given, str):
            found = cls(number(given, name))
        else:
            written = WRITTEN.fullmatch(given.strip())
            measure = NAMES.get(written["name"].lower()) if written and written["name"] else None
            if written is None or (written["name"] and measure is None):
                raise ValueError(f"{name}: expected {FORMS}, got {given!r:.60}")
            try:
                value = float(written["value"])
            except ValueError:
                raise ValueError(f"{name}: expected {FORMS}, got {given!r:.60}") from None
            percent = written["percent"] is not None
            found = cls(value / 100 if percent else value, measure, percent)
        if not (found.value > 0 and math.isfinite(found.value)):
            raise ValueError(f"{name}: expected a price above 0, got {given!r:.60}")
        if found.is_percent and found.measure in ("kl", "kl_95"):
            raise ValueError(f"{name}: expected nats, which are no percentages, got {given!r:.60}")
        return found

    def measure_among(self, known: Iterable[str]) -> str:
        """What it is in: what it says, or the first of these, nats if it is no percentage; empty if there is none."""
        fitting = (name for name in known if not (self.is_percent and name in ("kl", "kl_95")))
        return self.measure or next(fitting, "")


@dataclass(frozen=True)
class Dial:
    """What strengths of a steering cost, by `lineas.calibrate`; print it, or ask it.

    Attributes
    ----------
    price : str
        What a price is in unless it says so: "perplexity" (relative change), "kl" (nats a token), "pixel_change" (of
        values from 0 to 1) or "output_change" (relative).
    strengths : tuple of float
        That were measured, ascending, above 0.
    costs : dict of str -> tuple of Cost
        What each of them costs, in each measure.
    facts : dict
        What it was measured on.
    """

    price: str
    strengths: tuple[float, ...]
    costs: Mapping[str, tuple[Cost, ...]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = np.asarray(self.strengths, np.float64)
        if s.ndim != 1 or not len(s) or not (np.isfinite(s).all() and s[0] > 0 and (np.diff(s) > 0).all()):
            raise ValueError(f"strengths: expected numbers above 0, ascending, got {self.strengths!s:.80}")
        if self.price not in self.costs or not self.costs.keys() <= COSTS.keys():
            raise ValueError(f"costs: expected {self.price} and others of {', '.join(COSTS)}, got {list(self.costs)}")
        if wrong := [name for name, found in self.costs.items() if len(found) != len(s)]:
            raise ValueError(f"costs: expected {len(s)} figures, one a strength, got another number of {wrong[0]}")
        values = [cost.value for found in self.costs.values() for cost in found]
        if not np.isfinite(values).all() or min(values) <= -1:
            raise ValueError("costs: expected finite figures above -1, got others")

    # -- asking --

    def cost(self, strength: float, measure: str | None = None) -> Cost:
        """What a strength costs, between those that were measured too.

        Parameters
        ----------
        strength : float, from 0 to the largest that was measured
        measure : str, optional
            One of `costs`; `price` if not given.

        Returns
        -------
        Cost
            Between two strengths, the figure by strength (of a perplexity its logarithm, of a divergence its root)
            is taken to be linear; the interval's ends likewise.

        Raises
        ------
        ValueError
            A strength below 0 or beyond what was measured.
        LookupError
            No such measure.
        """
        s = number(strength, "strength")
        if not 0 <= s <= self.strengths[-1]:
            raise ValueError(f"strength: expected one from 0 to {self.strengths[-1]:g}, as was measured, got {s:g}")
        name = self._known(measure or self.price)
        return Cost(*(float(self._curve(name, end)(np.array([s]))[0]) for end in Cost._fields))

    def strength_for(self, price: "str | float | Price") -> float:
        """The largest strength up to which nothing costs more than a price.

        Parameters
        ----------
        price : str or float
            '+5%', '+5% perplexity', '0.05 nats', or a number of what `price` says.

        Raises
        ------
        ValueError
            No price; one beyond what was measured.
        LookupError
            It is in something that was not measured.
        """
        wanted = Price.of(price)
        name = self.measure_of(wanted)
        curve = self._curve(name, "value")
        grid = np.linspace(0, self.strengths[-1], GRID + 1)
        beyond = np.flatnonzero(curve(grid) > wanted.value)
        if not len(beyond) and curve(grid[-1:])[0] == wanted.value:
            return self.strengths[-1]
        if not len(beyond):
            most = said(name, self.costs[name][-1].value)
            raise ValueError(
                f"price: expected at most what was measured, {most} at strength {self.strengths[-1]:g}; got "
                f"{said(name, wanted.value)}. Calibrate with this price as budget="
            )
        low, high = grid[beyond[0] - 1], grid[beyond[0]]
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if curve(np.array([middle]))[0] > wanted.value else (middle, high)
        return float(low)

    def measure_of(self, price: Price) -> str:
        """What a price is in: what it says; a percentage that does not say so is not in nats."""
        return self._known(price.measure_among([self.price, *self.costs]))

    def _known(self, name: str) -> str:
        if name not in self.costs:
            raise LookupError(f"price: expected one of what was measured, {', '.join(self.costs)}; got {name}")
        return name

    def _curve(self, name: str, end: str) -> Callable[[Floats], Floats]:
        """What strengths cost: through the figures that were measured, and through 0."""
        straight, back = WAYS[name]
        s = np.array(self.strengths)
        with np.errstate(invalid="ignore", divide="ignore"):
            slopes = straight(np.array([getattr(cost, end) for cost in self.costs[name]], np.float64)) / s
        if len(s) == 1:
            s, slopes = np.append(s, 2 * s), np.append(slopes, slopes * (2 if name == "perplexity" else 1))
        first = slopes[0] - s[0] * (slopes[1] - slopes[0]) / (s[1] - s[0])  # goes on in a line towards 0
        knots, heights = np.append(0.0, s), np.append(first, slopes)
        return lambda x: back(x * np.interp(x, knots, heights))

    # -- changing, showing, keeping --

    def scaled(self, factor: float) -> "Dial":
        """Of the steering scaled by a factor above 0: what strength s cost, s / factor costs."""
        if not number(factor, "factor") > 0:
            raise ValueError(f"factor: expected a number above 0, got {factor}")
        return replace(self, strengths=tuple(s / factor for s in self.strengths))

    def __str__(self) -> str:
        """A table, a line a strength."""
        heads = ["strength", *self.costs]
        rows = [
            [f"{s:.3g}", *(said(name, found[k].value, found[k]) for name, found in self.costs.items())]
            for k, s in enumerate(self.strengths)
        ]
        widths = [max(len(row[k]) for row in (heads, *rows)) for k in range(len(heads))]
        lines = (
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)
        )
        on = ", ".join(f"{key} {value}" for key, value in self.facts.items() if isinstance(value, (str, int)))
        return "\n".join([*lines, *([f"measured on: {on}"] if on else [])])

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        costs = {name: [list(map(_plain, cost)) for cost in found] for name, found in self.costs.items()}
        return {"price": self.price, "strengths": list(self.strengths), "costs": costs, "facts": dict(self.facts)}

    @classmethod
    def from_dict(cls, content: Any) -> "Dial":
        """From what `to_dict` gives; ValueError for anything else."""
        try:
            costs = {
                str(name): tuple(Cost(*(math.nan if part is None else float(part) for part in cost)) for cost in found)
                for name, found in content["costs"].items()
            }
            strengths = tuple(float(s) for s in content["strengths"])
            return cls(str(content["price"]), strengths, costs, dict(content.get("facts") or {}))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"dial: expected what Dial.to_dict gives, got something else: {error!r:.100}") from error


def scaled_prices(info: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """What `info` says of prices, for the same maps scaled by a factor above 0; empty where it says nothing."""
    found: dict[str, Any] = {}
    if factor > 0 and info.get("dial") is not None:
        found["dial"] = Dial.from_dict(info["dial"]).scaled(factor).to_dict()
    if (predicted := predicted_kl(info)) is not None:
        found["predicted_kl"] = predicted * factor**2
    return found


def predicted_kl(info: Mapping[str, Any]) -> float | None:
    """KL a token at strength 1, as a fit predicted it; None where `info` does not say."""
    value = info.get("predicted_kl")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _root(x: Floats) -> Floats:
    return np.sqrt(np.maximum(x, 0))


# Of a measure, what is nearly straight in the strength, and the way back.
WAYS: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {
    "perplexity": (np.log1p, np.expm1), "kl": (_root, np.square), "kl_95": (_root, np.square),
    "pixel_change": (np.asarray, np.asarray), "output_change": (np.asarray, np.asarray),
}  # fmt: skip


def said(measure: str, value: float, within: Cost | None = None) -> str:
    """A figure as one says it, with its interval if there is one."""
    text = COSTS[measure].format(value)
    if within is None or not (math.isfinite(within.low) and math.isfinite(within.high)):
        return text
    low, high = (COSTS[measure].format(end).removesuffix(" nats") for end in (within.low, within.high))
    return f"{text} [{low}, {high}]"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
