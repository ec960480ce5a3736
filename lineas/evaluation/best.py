"""The strength of a report with the most effect for a price."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from ..maps.dial import COSTS, Price, said
from .intervals import Estimate

EFFECT, ROUNDING = "effect", 1e-9


class Measured(Protocol):
    """What must be known of a report."""

    @property
    def measures(self) -> Mapping[str, Any]: ...
    def cells(self) -> list[tuple[str | None, float]]: ...
    def cell(self, measure: str, steering: str | None, strength: float) -> tuple[Estimate, Estimate]: ...


class Best(NamedTuple):
    """A steering at a strength, and what it does there.

    Attributes
    ----------
    steering : str
    strength : float
    effect : Estimate
        How the effect differs from the base model's.
    price : Estimate
        What that costs.
    """

    steering: str
    strength: float
    effect: Estimate
    price: Estimate


def best(report: Measured, price: Any, by: str | None, steering: str | None) -> Best:
    """`Report.best`, which says what is what."""
    wanted = Price.of(price)
    cost, effect = price_in(report, wanted), effect_of(report, by)
    points = [
        Best(name, strength, report.cell(effect, name, strength)[1], paid(report, cost, name, strength))
        for name, strength in report.cells()
        if name is not None and steering in (None, name)
    ]
    if not points:
        names = ", ".join(dict.fromkeys(name for name, _ in report.cells() if name is not None)) or "none"
        raise LookupError(f"steering: expected one of {names}; got {steering!r}")
    sign = -1 if report.measures[effect].better == "lower" else 1
    within = [point for point in points if point.price.value <= wanted.value * (1 + ROUNDING)]
    if not within:
        least = min(points, key=lambda point: point.price.value)
        raise LookupError(
            f"price: expected a strength that costs at most {said(cost, wanted.value)}, the cheapest measured, "
            f"{least.strength:g}, costs {said(cost, least.price.value)}"
        )
    return max(within, key=lambda point: sign * point.effect.value)


def price_in(report: Measured, price: Price) -> str:
    """In which measure of the report a price is."""
    known = [name for name in COSTS if name in report.measures]
    name = price.measure_among(known)
    if name not in report.measures:
        raise LookupError(f"price: expected one of what was measured, {', '.join(known) or 'nothing'}; got {name!r}")
    return name


def effect_of(report: Measured, by: str | None) -> str:
    """The measure that counts: the first effect if it is not told."""
    name = by or next((name for name, measure in report.measures.items() if measure.role == EFFECT), "")
    if name not in report.measures:
        raise LookupError(f"by: expected one of {', '.join(report.measures)}; got {name!r}")
    return name


def paid(report: Measured, cost: str, steering: str | None, strength: float) -> Estimate:
    """What a strength costs: a perplexity's relative change, anything else as it is."""
    figure, change = report.cell(cost, steering, strength)
    return change if cost == "perplexity" else figure
