"""A dial: what strengths cost, between those that were measured too; the strength for a price; prices as written."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lineas
from lineas import Dial, Steering
from lineas.maps.dial import Cost, Price, said

S = (0.25, 0.5, 1.0, 2.0)


def dial(price="perplexity", strengths=S, a=0.01, b=0.04):
    """Log perplexity a s + b s^2, and a divergence of b s^2."""
    costs = {
        "perplexity": tuple(Cost(*(math.expm1(a * s + k * b * s * s) for k in (1, 0.5, 1.5))) for s in strengths),
        "kl": tuple(Cost(b * s * s, b * s * s / 2, 2 * b * s * s) for s in strengths),
        "kl_95": tuple(Cost(3 * b * s * s) for s in strengths),
    }
    return Dial(price, strengths, costs, {"texts": 32, "which": "given"})


# -- prices --


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("+5% perplexity", (0.05, "perplexity", True)),
        ("5%", (0.05, None, True)),
        (" +2.5 % ", (0.025, None, True)),
        ("0.05 nats", (0.05, "kl", False)),
        ("1e-2 kl", (0.01, "kl", False)),
        ("0.1 perplexity", (0.1, "perplexity", False)),
        ("3% output_change", (0.03, "output_change", True)),
        (0.05, (0.05, None, False)),
        (np.float32(0.5), (0.5, None, False)),
    ],
)
def test_prices_are_read_as_people_write_them(written, expected):
    assert tuple(Price.of(written)) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", ["", "five", "5 apples", "-5%", "0%", 0, -1.0, "5% nats", "1.2.3", "nats", "5%% "])
def test_what_is_no_price_is_refused(wrong):
    with pytest.raises(ValueError, match="price: expected"):
        Price.of(wrong)


@pytest.mark.parametrize("wrong", [None, True, [0.05]])
def test_what_is_no_number_is_refused(wrong):
    with pytest.raises(TypeError, match="price: expected a number"):
        Price.of(wrong)


# -- the curve --


@pytest.mark.parametrize("name", ["perplexity", "kl", "kl_95"])
def test_the_curve_goes_through_what_was_measured_and_through_nothing(name):
    one = dial()
    assert one.cost(0, name).value == 0
    for s, cost in zip(S, one.costs[name], strict=True):
        np.testing.assert_allclose(one.cost(s, name), cost, rtol=1e-9)


@given(s=st.floats(0, 2), a=st.floats(-0.02, 0.05), b=st.floats(0.001, 0.2))
def test_between_what_was_measured_quadratic_costs_are_exact(s, a, b):
    one = dial(a=a, b=b)
    assert one.cost(s).value == pytest.approx(math.expm1(a * s + b * s * s), rel=1e-9, abs=1e-12)
    assert one.cost(s, "kl").value == pytest.approx(b * s * s, rel=1e-9, abs=1e-12)
    assert one.cost(s, "kl").low <= one.cost(s, "kl").value <= one.cost(s, "kl").high


@given(price=st.floats(1e-4, 0.1), a=st.floats(-0.02, 0.05))
def test_the_strength_for_a_price_costs_it(price, a):
    one = dial(a=a)
    for measure in ("perplexity", "kl"):
        s = one.strength_for(f"{price:.12f} {measure}")
        assert one.cost(s, measure).value == pytest.approx(price, rel=1e-5, abs=1e-9)


def test_nothing_on_the_way_up_to_a_strength_costs_more_than_its_price():
    bumpy = Dial("kl", (1.0, 2.0, 3.0), {"kl": (Cost(0.1), Cost(0.02), Cost(0.2))})
    assert bumpy.strength_for(0.05) < 1
    assert bumpy.strength_for(0.15) > 2


def test_one_strength_is_enough():
    one = Dial("perplexity", (1.0,), {"perplexity": (Cost(0.1),), "kl": (Cost(0.1),), "output_change": (Cost(0.1),)})
    assert one.cost(0.5).value == pytest.approx(math.expm1(math.log1p(0.1) / 4))
    assert one.cost(0.5, "kl").value == pytest.approx(0.1 / 4)
    assert one.cost(0.5, "output_change").value == pytest.approx(0.1 / 2)


def test_a_percentage_is_of_perplexity_where_the_dial_is_in_nats():
    in_nats = dial("kl")
    assert in_nats.strength_for("5%") == dial().strength_for("+5% perplexity") == dial().strength_for(0.05)
    assert in_nats.strength_for(0.05) == in_nats.strength_for("0.05 nats") == pytest.approx((0.05 / 0.04) ** 0.5)


def test_what_was_not_measured_is_refused():
    one = dial()
    with pytest.raises(
        ValueError, match=r"price: expected at most what was measured, \+19\.7% at strength 2; got \+50"
    ):
        one.strength_for("+50%")
    with pytest.raises(LookupError, match="expected one of what was measured, perplexity, kl, kl_95; got pixel_change"):
        one.strength_for("0.1 pixel_change")
    for wrong in (-0.1, 2.1):
        with pytest.raises(ValueError, match="strength: expected one from 0 to 2, as was measured"):
            one.cost(wrong)


@pytest.mark.parametrize(
    ("strengths", "costs"),
    [
        ((), {"kl": ()}), ((0.0,), {"kl": (Cost(0.1),)}), ((2.0, 1.0), {"kl": (Cost(0.1),) * 2}),
        ((1.0,), {"perplexity": (Cost(0.1),)}), ((1.0,), {"kl": (Cost(0.1),), "joy": (Cost(1.0),)}),
        ((1.0,), {"kl": (Cost(0.1),) * 2}), ((1.0,), {"kl": (Cost(math.nan),)}), ((math.inf,), {"kl": (Cost(0.1),)}),
    ],
)  # fmt: skip
def test_a_dial_that_cannot_be_is_refused(strengths, costs):
    with pytest.raises(ValueError, match=r"^(strengths|costs): expected"):
        Dial("kl", strengths, costs)


def test_a_dial_is_shown_and_drawn(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import lineas.plot

    text = str(dial())
    assert text.splitlines()[0].split() == ["strength", "perplexity", "kl", "kl_95"]
    assert "+5.1% [+3.0%, +7.3%]" in text
    assert "0.040 nats [0.020, 0.080]" in text
    assert text.splitlines()[-1] == "measured on: texts 32, which given"
    ax = lineas.plot.plot_dial(dial(), budget="+5%")
    assert [t.get_text() for t in ax.texts] == ["+5.0%: strength 0.99"]
    drawn = lineas.plot.plot_dial(dial(), budget="0.05 nats")
    assert drawn.get_ylabel() == "kl"
    assert said("kl", 0.05) == "0.050 nats"


# -- with its steering --


MAPS = {"a": (np.array([1.5, 1.0]), np.array([0.0, -0.5]))}


def test_a_steering_keeps_its_dial_in_files_and_when_it_is_scaled(tmp_path):
    plain = Steering(MAPS, info={"seed": 3, "predicted_kl": 0.2})
    assert plain.dial is None
    with pytest.raises(LookupError, match=r"price: expected a dial, which this steering has none of, .* '\+5%' is"):
        plain.strength_for("+5%")
    priced = plain.with_dial(dial())
    assert (priced.dial, priced.info["seed"]) == (dial(), 3)
    assert "dial" not in plain.info
    priced.save_pretrained(tmp_path)
    again = Steering.from_pretrained(tmp_path)
    assert again.dial == dial()
    assert again.strength_for("+5%") == priced.strength_for("+5%")
    half = again.scaled(0.5)
    assert half.strength_for("+5%") == pytest.approx(2 * priced.strength_for("+5%"))
    assert half.info["predicted_kl"] == pytest.approx(0.05)
    assert again.scaled(-1).dial is None, "what was measured is of strengths above 0"
    assert again.inverse().dial is None
    json.dumps(priced.info)
    with pytest.raises(TypeError, match="dial: expected a Dial, got dict"):
        plain.with_dial(dial().to_dict())


@pytest.mark.parametrize(
    "content",
    [
        5, [], {"price": "kl"}, {**dial().to_dict(), "strengths": ["a"]}, {**dial().to_dict(), "strengths": [2.0, 1.0]},
        {**dial().to_dict(), "costs": {"perplexity": [[None]] * 4}}, {**dial().to_dict(), "price": "joy"},
        {**dial().to_dict(), "costs": {"perplexity": [[1e400, 1, 1]] * 4}}, {**dial().to_dict(), "facts": 7},
    ],
)  # fmt: skip
def test_a_dial_from_a_strangers_file_is_looked_at(content):
    with pytest.raises(ValueError, match=r"dial: expected what Dial.to_dict gives|costs|strengths"):
        _ = Steering(MAPS, info={"dial": content}).dial


def test_apply_takes_a_price(mlp):
    import torch

    mlp.eval()
    x = torch.randn(4, mlp.first.in_features, generator=torch.Generator().manual_seed(0))
    draw = np.random.default_rng(0)
    units = mlp.first.out_features
    steering = lineas.Steering({"first": (1 + draw.normal(size=units), draw.normal(size=units))}).with_dial(dial())
    s = steering.strength_for("+5%")
    with steering.apply(mlp, s):
        expected = mlp(x)
    with steering.apply(mlp, price="+5%"):
        assert torch.equal(mlp(x), expected)
    with steering.apply(mlp, [0.0, 1.0, 0.0, 2.0], price="+5%"):
        rows = mlp(x)
    torch.testing.assert_close(rows[1], expected[1])
    with steering.apply(mlp, 2 * s):
        torch.testing.assert_close(rows[3], mlp(x)[3])
    handle = steering.attach(mlp, torch.tensor([1.0, 1.0, 1.0, 0.0]), price="+5%")
    torch.testing.assert_close(mlp(x)[:3], expected[:3])
    handle.remove()
    with pytest.raises(ValueError, match="price: expected at most what was measured"):
        steering.attach(mlp, price="+80%")
    assert not lineas.attached(mlp)
