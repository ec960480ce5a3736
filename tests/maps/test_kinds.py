"""A third kind of map, made in this file alone: applied, saved, loaded, combined, fitted around, refused by merging."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import lineas
from lineas import Steering
from lineas.core import ops
from lineas.maps.kinds import KINDS, Affine, WithinRange, register


@register
class Limited(Affine):
    """The affine map, but no activation moves further than its unit's limit; the limit grows with the strength."""

    key = "limits"
    neutral: ClassVar[dict[str, float]] = {"limit": np.inf}
    holds = "move no further than a limit"
    label = "within limits"
    not_merged = "its map moves no further than a limit, which no weight can express"

    def at_strength(self, weight, bias, strength):
        scale, shift, limit = super().at_strength(weight, bias, strength)
        with np.errstate(invalid="ignore"):
            return scale, shift, np.where(np.isinf(limit), limit, abs(strength) * limit)

    @staticmethod
    def apply(h, scale, shift, *parts):
        (limit,) = parts
        wide = h.to(torch.promote_types(h.dtype, scale.dtype))
        return (wide + (ops.affine(wide, scale, shift) - wide).clamp(-limit, limit)).to(h.dtype)


MAPS = {"0": ([2.0, 1.0, 0.5], [1.0, -3.0, 0.0])}
LIMIT = [0.5, 2.0, np.inf]


def limited():
    return Steering(MAPS, kinds={"0": Limited(LIMIT)}, info={"seed": 1})


def net():
    model = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.zero_()
    return model


Z = torch.tensor([[4.0, 1.0, 8.0], [-0.9, 0.0, -2.0]])


def by_hand(z, strength):
    """The definition, in NumPy."""
    weight, bias = (np.array(part) for part in MAPS["0"])
    move = strength * ((weight - 1) * z.numpy() + bias)
    most = np.abs(strength) * np.array(LIMIT) if strength else np.zeros(3)
    return z.numpy() + np.clip(move, -most, most)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_applied_at_every_strength(strength, dtype):
    with torch.no_grad(), limited().apply(net().to(dtype), strength) as handle:
        got = handle._model(Z.to(dtype))
    np.testing.assert_allclose(got.double(), by_hand(Z, strength), rtol=0.01 if dtype == torch.bfloat16 else 1e-6)
    assert (got[0, 0] != Z[0, 0]) == (strength != 0), "the limit is met, and the unit moves"


def test_rows_have_it_beside_the_plain_kind_and_none():
    with torch.no_grad(), lineas.attach(net(), [limited(), Steering(MAPS)], [0, 1]) as handle:
        got = handle._model(Z)
        np.testing.assert_allclose(got[0], by_hand(Z, 1.0)[0])
        np.testing.assert_allclose(got[1], [2 * Z[1, 0] + 1, -3.0, -1.0])
        handle.select([None, 0])
        got = handle._model(Z)
        assert torch.equal(got[0], Z[0])
        np.testing.assert_allclose(got[1], by_hand(Z, 1.0)[1])


def test_two_kinds_that_no_one_kind_can_stand_for_are_refused_together():
    within = Steering(MAPS, ranges={"0": ([0.0] * 3, [1.0] * 3)})
    with pytest.raises(ValueError, match="site '0': expected maps of one kind, got Limited and WithinRange"):
        lineas.attach(net(), [limited(), within])


def test_it_is_saved_and_read_with_the_same_bits(tmp_path):
    limited().save_pretrained(tmp_path)
    again = Steering.from_pretrained(tmp_path)
    assert type(again.kind("0")) is Limited
    assert again.kind("0").parts[0].tolist() == LIMIT
    assert repr(again) == repr(limited())
    assert "within limits" in repr(again)
    with torch.no_grad(), again.apply(net()) as handle:
        np.testing.assert_allclose(handle._model(Z), by_hand(Z, 1.0))


def test_who_does_not_know_it_loses_nothing_silently(tmp_path, monkeypatch):
    limited().save_pretrained(tmp_path)
    monkeypatch.delitem(KINDS, "limits")
    with pytest.raises(ValueError, match=r"disagrees.*limit"):
        Steering.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="expected a kind of map that files know, got Limited"):
        limited().save_pretrained(tmp_path / "other")


def test_algebra_keeps_or_refuses_it():
    half = limited().scaled(0.5)
    with torch.no_grad(), half.apply(net()) as handle:
        np.testing.assert_allclose(handle._model(Z), by_hand(Z, 0.5))
    with pytest.raises(ValueError, match="the inverse: expected maps that hold everywhere, got some that move no furt"):
        limited().inverse()
    with pytest.raises(ValueError, match="one map for two: .* move no further than a limit: '0'"):
        Steering(MAPS) @ limited()
    moves = limited().restricted(top=1, responses={"0": Z.numpy()})
    assert moves.support()["0"].tolist() == [2], "unit 0 would move most, were it not for its limit"
    assert type(moves.kind("0")) is Limited


def test_merging_refuses_it_and_says_why():
    plan = limited().merge_plan(net(), probe=Z)
    assert not plan.exact
    assert "moves no further than a limit, which no weight can express" in str(plan)
    with pytest.raises(ValueError, match="moves no further than a limit"):
        limited().merge(net(), probe=Z)


def test_a_fit_through_the_model_does_not_start_from_it():
    with pytest.raises(ValueError, match="resume_from: expected maps that hold everywhere"):
        lineas.fit(net(), Z, Z + 1, sites="0", resume_from=limited(), progress=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Limited(), TypeError, "Limited: expected limit; got 0 arrays"),
        (lambda: Steering(MAPS, kinds={"0": Limited([1.0])}), ValueError, r"limit \(3,\); got \(1,\)"),
        (lambda: Steering(MAPS, kinds={"9": Limited([1.0])}), LookupError, "no map for site '9'"),
        (
            lambda: register(type("Other", (Affine,), {"key": "limits", "neutral": {"x": 0}})),
            ValueError,
            "another kind",
        ),
        (
            lambda: register(type("Taken", (Affine,), {"key": "info", "neutral": {"x": 0}})),
            ValueError,
            "a key and parts",
        ),
        (lambda: register(Affine), ValueError, "expected a kind with a key"),
    ],
)
def test_what_is_no_such_map_or_kind_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
    assert set(KINDS) == {"ranges", "limits"}
    assert KINDS["ranges"] is WithinRange
