"""A gate as data: kept by what makes new maps, refused by what cannot have one, saved and read back."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import lineas
from lineas import Gate, Steering
from lineas.maps.card import CARD, CONFIG
from lineas.maps.info import maps_digest

GATE = Gate("1", [1.0, -2.0], 0.5, "all", {"acts_on": {"source": 0.94, "neutral": 0.05}})


def steering(gate=GATE):
    return Steering({"1": ([2.0, 1.0], [1.0, 0.0]), "2": ([1.0, 1.0], [0.0, 3.0])}, info={"seed": 1}, gate=gate)


def test_gates_are_equal_by_what_they_read():
    assert Gate("1", [1.0, -2.0], 0.5, "all") == GATE
    assert hash(Gate("1", np.float32([1.0, -2.0]), 0.5, "all")) == hash(GATE)
    for other in (("2", [1.0, -2.0], 0.5, "all"), ("1", [1.0, -2.5], 0.5, "all"), ("1", [1.0, -2.0], 0.4, "all"),
                  ("1", [1.0, -2.0], 0.5, "token")):  # fmt: skip
        assert Gate(*other) != GATE
    with pytest.raises(ValueError, match="read-only"):
        GATE.weight[0] = 3


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((1, [1.0], 0.0), TypeError, "site: expected the name"),
        (("1", "a", 0.0), TypeError, "weight: expected numbers"),
        (("1", [[1.0]], 0.0), ValueError, r"weight: expected finite numbers \(d,\)"),
        (("1", [], 0.0), ValueError, "weight"),
        (("1", [np.nan], 0.0), ValueError, "weight"),
        (("1", [1.0], np.inf), ValueError, "bias: expected a finite number"),
        (("1", [1.0], None), TypeError, "bias: expected a number"),
        (("1", [1.0], 0.0, "mean"), ValueError, "pooling: expected one of 'running', 'token', 'all'"),
        (("1", [1.0], 0.0, "all", []), TypeError, "facts: expected a dict"),
    ],
)
def test_what_can_be_no_gate_is_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        Gate(*arguments)


def test_it_is_put_on_exchanged_and_taken_off():
    plain = steering(None)
    gated = plain.gated(GATE)
    assert plain.gate is None
    assert gated.gate is GATE
    assert gated.gated(None).gate is None
    assert np.array_equal(gated.weights, plain.weights)
    assert gated.info == plain.info
    assert maps_digest(gated) != maps_digest(plain)
    assert "acts on 94% of source, 5% of neutral" in repr(gated)
    assert "Gate" not in repr(plain)
    with pytest.raises(TypeError, match="gate: expected a Gate or None, got str"):
        plain.gated("1")


def test_new_maps_of_one_steering_keep_its_gate():
    for new in (steering().scaled(0.5), -steering(), 2 * steering(), steering().restricted("1"),
                steering().with_dial(lineas.Dial("kl", (1.0,), {"kl": [lineas.maps.dial.Cost(0.1)]}))):  # fmt: skip
        assert new.gate == GATE


def test_two_steerings_with_gates_are_no_single_one():
    plain = steering(None)
    for make in (
        lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a @ b, lambda a, b: lineas.algebra.interpolate(a, b, 0.5),
        lineas.conflict,
    ):  # fmt: skip
        for pair in ((steering(), plain), (plain, steering()), (steering(), steering())):
            with pytest.raises(ValueError, match=r"expected steerings without a gate, got one with Gate\('1'"):
                make(*pair)
    with pytest.raises(ValueError, match="the inverse: expected steerings without a gate"):
        steering().inverse()


def test_no_weight_can_express_it():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    probe = torch.ones(2, 2)
    with pytest.raises(ValueError, match="a gate says how much of it acts, by what is read"):
        steering().merge(net, probe=probe)
    assert [entry.status for entry in steering().merge_plan(net, probe=probe).sites] == ["refused", "refused"]
    assert steering().gated(None).merge_plan(net, probe=probe).exact


def test_a_fit_does_not_go_on_from_a_gated_steering():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="resume_from: expected steerings without a gate"):
        lineas.fit(net, x, x + 1, sites=["1", "2"], resume_from=steering(), progress=False)


# -- files --


def test_it_is_saved_and_read_back(tmp_path):
    steering().save_pretrained(tmp_path)
    again = Steering.from_pretrained(tmp_path)
    assert again.gate == GATE
    assert again.gate.facts == GATE.facts
    assert repr(again) == repr(steering())
    assert "gate, which says how much acts" in (tmp_path / CARD).read_text()
    assert "acts on 94% of source" in again.summary()
    again.gated(None).save_pretrained(tmp_path)
    assert Steering.from_pretrained(tmp_path).gate is None


def test_a_site_may_be_called_gate(tmp_path):
    made = Steering({"gate": ([2.0], [1.0])}, gate=Gate("gate", [3.0], 0.0))
    made.save_pretrained(tmp_path)
    again = Steering.from_pretrained(tmp_path)
    assert again.gate == made.gate
    assert again.weight("gate")[0] == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gate": None}, "disagrees with steering_config.json"),
        ({"gate": [1]}, "expected a gate with its site, units"),
        ({"gate": {"site": "1", "units": 3, "bias": 0.0, "pooling": "all"}}, "disagrees with"),
        ({"gate": {"site": "1", "units": 1 << 40, "bias": 0.0, "pooling": "all"}}, "expected a gate with its site"),
        ({"gate": {"site": "1", "units": True, "bias": 0.0, "pooling": "all"}}, "expected a gate with its site"),
        ({"gate": {"site": "1\n", "units": 2, "bias": 0.0, "pooling": "all"}}, "printable site names"),
        ({"gate": {"site": "1", "units": 2, "bias": "0", "pooling": "all"}}, "expected a gate: bias"),
        ({"gate": {"site": "1", "units": 2, "bias": 0.0, "pooling": "sum"}}, "expected a gate: pooling"),
        ({"gate": {"site": "1", "units": 2, "bias": 0.0, "pooling": "all", "facts": [3]}}, "expected a gate: facts"),
    ],
)
def test_a_spoilt_gate_is_refused_and_never_left_out(tmp_path, change, match):
    steering().save_pretrained(tmp_path)
    path = tmp_path / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=match):
        Steering.from_pretrained(tmp_path)


def test_facts_of_strangers_are_shown_as_text_or_not_at_all(tmp_path):
    hostile = {"acts_on": {"\x1b[31msource": 0.5, "x" * 10_000: 0.25, "target": "99", "neutral": 7.0, "other": [1]}}
    made = steering(Gate("1", [1.0, -2.0], 0.5, "all", hostile))
    assert "\x1b" not in repr(made)
    assert len(repr(made)) < 400
    assert list(made.gate.acts_on.values()) == [0.5, 0.25]
