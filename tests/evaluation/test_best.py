"""The strength with the most effect for a price, by a report, and the budget's line in its picture."""

import math

import pytest

from lineas.evaluation.report import Measure, Outcome, Report

COSTS = {0.0: 0.0, 0.5: 0.02, 1.0: 0.05, 2.0: 0.3}  # log perplexity
EFFECTS = {0.0: 0.1, 0.5: 0.3, 1.0: 0.6, 2.0: 0.9}


def report(better="higher", names=("polite",), costs=COSTS, sign=1, **more):
    measures = {
        "perplexity": Measure("utility", "lower", "texts", is_log=True), "kl": Measure("utility", "lower", "texts"),
        "tone": Measure("effect", better, "continuations"), "length": Measure("effect", "", "continuations"),
    }  # fmt: skip
    outcomes = []
    for name in (None, *names):
        for s, cost in costs.items():
            if (s == 0) != (name is None):
                continue
            less = 0.5 if name == "weak" else 1.0
            outcomes += [
                Outcome("perplexity", name, s, (3.0 + cost, 3.2 + cost, 2.8 + cost)),
                Outcome("kl", name, s, (cost, 1.1 * cost, 0.9 * cost)),
                Outcome("tone", name, s, tuple(sign * less * EFFECTS[s] + k for k in (0.0, 0.01)), seed=0),
                Outcome("length", name, s, tuple(EFFECTS[0.5] if s == 0.5 else 0.0 for _ in range(2)), seed=0),
            ]
    return Report(measures, tuple(outcomes), **more)


def test_the_best_strength_is_the_one_with_the_most_effect_within_bounds():
    found = report().best("+6%")
    assert (found.steering, found.strength) == ("polite", 1.0)
    assert found.effect.value == pytest.approx(0.5)
    assert found.price.value == pytest.approx(math.expm1(0.05))
    assert found.price.low <= found.price.value <= found.price.high
    assert report().best().strength == 0.5, "+5% if not told, and 5.13% is more"
    assert report().best("0.05 nats").strength == 1.0
    assert report().best(0.5).strength == 2.0, "a number is of perplexity, which the report has"


def test_effects_may_be_lower_and_of_another_measure():
    assert report("lower", sign=-1).best("50%").strength == 2.0
    assert report("lower").best("50%").strength == 0.5, "where the measure goes the wrong way, the least harm"
    assert report().best("50%", by="length").strength == 0.5


def test_several_steerings_are_compared_unless_one_is_named():
    both = report(names=("weak", "polite"))
    assert both.best("6%").steering == "polite"
    found = both.best("6%", steering="weak")
    assert (found.steering, found.strength) == ("weak", 1.0)


def test_what_is_not_there_is_refused():
    with pytest.raises(
        LookupError, match=r"a strength that costs at most \+1.0%, the cheapest measured, 0.5, costs \+2.0%"
    ):
        report().best("1%")
    with pytest.raises(LookupError, match="steering: expected one of polite; got 'rude'"):
        report().best("6%", steering="rude")
    with pytest.raises(LookupError, match="by: expected one of perplexity, kl, tone, length; got 'joy'"):
        report().best("6%", by="joy")
    with pytest.raises(
        LookupError, match="price: expected one of what was measured, perplexity, kl; got 'pixel_change'"
    ):
        report().best("0.1 pixel_change")
    with pytest.raises(ValueError, match="price: expected"):
        report().best("cheap")


def test_the_budget_is_a_line_in_the_picture():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    found = report()
    ax = found.plot(budget="+5%")
    line = next(one for one in ax.lines if str(one.get_label()).startswith("budget"))
    base = found.estimate("perplexity").value
    assert line.get_xdata()[0] == pytest.approx(1.05 * base)
    assert line.get_label() == "budget, +5.0%"
    with pytest.raises(LookupError, match="budget: expected one in perplexity, which is drawn; got kl"):
        found.plot(budget="0.05 nats")
