"""Strength 1 as a budget: maps scaled so that they cost what the user allowed."""

from typing import Any

from ..core.text import warn
from ..evaluation.calibration import budget_in, calibrate, prices_of, writes_texts
from ..maps import algebra
from ..steering import Steering


def check_budget(budget: Any, model: Any, src: Any) -> None:
    """TypeError or ValueError, before any work, where a model and its inputs have no such price."""
    budget_in(prices_of(model, _paid_on(model, src)), budget)


def _paid_on(model: Any, src: Any) -> Any:
    """Texts that a language model writes itself; of anything else the source."""
    return None if writes_texts(model) else src


def at_budget(steering: Steering, model: Any, src: Any, budget: Any, **how: Any) -> Steering:
    """The same steering with maps scaled, and with the dial by which they were; `how` is for `calibrate`.

    As it is, with a warning, where no strength costs the budget: what was fitted shall not be lost.
    """
    if not any(map(len, steering.support().values())):
        return steering
    try:
        dial = calibrate(steering, model, _paid_on(model, src), budget=budget, **how)
        strength = dial.strength_for(budget)
    except (ValueError, LookupError, RuntimeError, ArithmeticError) as error:  # out of memory, for instance
        warn(f"strength 1 is as it was fitted, and not at the budget of {budget}: {error}")
        return steering
    found = algebra.scaled(steering.with_dial(dial), strength)
    info = {**steering.info, "scaled_by": round(strength, 4), "budget": str(budget)}
    info |= {key: value for key, value in found.info.items() if key in ("dial", "predicted_kl")}
    return found.told(info, steering.history)
