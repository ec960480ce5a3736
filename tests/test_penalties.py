"""Penalties that choose units: value and proximal operator."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import GOLDEN, assert_same_bits, bounded, finite_difference

from lineas import _core, _reference
from lineas.penalties import L1, SparseGroupLasso

strength = st.one_of(st.just(0.0), st.floats(1e-4, 2))
penalties = st.one_of(
    st.builds(SparseGroupLasso, strength, strength, strength, strength, strength),
    st.builds(SparseGroupLasso, strength, strength, ridge=strength),
    st.builds(L1, strength, strength),
)
site_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)
steps = st.one_of(st.just(0.0), st.floats(1e-3, 3))
seeds = st.integers(0, 1000)


def make_maps(sizes, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights about 1 and biases about 0, a third of them exactly there."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(2, sum(sizes))) * (rng.random((2, sum(sizes))) > 1 / 3) * rng.choice([0.1, 1, 10])
    return (1 + weight).astype(np.float32), bias.astype(np.float32)


def halves(penalty) -> tuple[tuple[float, float, float, float], ...]:
    """center, l1, group, ridge for weights, then for biases."""
    return (1, penalty.l1, penalty.group, penalty.ridge), (0, penalty.l1_bias, penalty.group_bias, penalty.ridge)


def reference_value(penalty, weight, bias, sizes) -> float:
    return sum(
        float(_reference.penalty(torch.from_numpy(v).double(), center, list(sizes), *strengths))
        for v, (center, *strengths) in zip((weight, bias), halves(penalty), strict=True)
    )


def reference_prox(penalty, weight, bias, sizes, step) -> tuple[np.ndarray, ...]:
    return tuple(
        _reference.prox(torch.from_numpy(v).double(), center, list(sizes), *strengths, step).numpy()
        for v, (center, *strengths) in zip((weight, bias), halves(penalty), strict=True)
    )


# ---- oracles ----


@bounded
@given(penalties, site_sizes, seeds)
def test_value_matches_the_reference(penalty, sizes, seed):
    weight, bias = make_maps(sizes, seed)
    expected = reference_value(penalty, weight, bias, sizes)
    assert penalty.value(weight, bias, sizes) == pytest.approx(expected, rel=1e-12)


@bounded
@given(penalties, site_sizes, seeds, steps)
def test_prox_matches_the_reference(penalty, sizes, seed, step):
    weight, bias = make_maps(sizes, seed)
    out = penalty.prox(weight, bias, sizes, step)
    for got, expected in zip(out, reference_prox(penalty, weight, bias, sizes, step), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-12)


def test_gradient_of_the_value_is_that_of_the_reference_where_it_is_smooth():
    penalty, sizes = SparseGroupLasso(0.3, 0.2, 0.1, 0.4, ridge=0.25), [3, 1, 7]
    rng = np.random.default_rng(0)
    away = rng.integers(64, 2048, size=(2, 11)) / 1024 * rng.choice([-1, 1], size=(2, 11))  # in float32 without loss
    maps = away + np.array([[1], [0]])
    expected = []
    for v, (center, *strengths) in zip(maps, halves(penalty), strict=True):
        leaf = torch.from_numpy(v).requires_grad_()
        _reference.penalty(leaf, center, sizes, *strengths).backward()
        expected.append(leaf.grad.numpy())
    got = finite_difference(lambda both: penalty.value(*both, sizes), maps, step=2**-12)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_value_and_prox_by_hand():
    penalty = SparseGroupLasso(l1=1, group=10, l1_bias=2, group_bias=0, ridge=0.5)
    weight, bias = [1, 4, 5, 1], [3, 0, -1, 0]  # weight - 1 is (0, 3) and (4, 0)
    assert penalty.value(weight, bias, [2, 2]) == pytest.approx(7 + 10 * 2**0.5 * 7 + 0.5 * 25 + 2 * 4 + 0.5 * 10)
    weight, bias = SparseGroupLasso(l1=1, group=1, l1_bias=2, group_bias=0, ridge=0.5).prox(weight, bias, [2, 2], 1)
    shrunk = (2 - 2**0.5) / 2, (3 - 2**0.5) / 2
    np.testing.assert_allclose(weight, [1, 1 + shrunk[0], 1 + shrunk[1], 1], rtol=1e-7)
    np.testing.assert_allclose(bias, [0.5, 0, 0, 0], rtol=1e-7)


@pytest.mark.parametrize("case", range(5))
def test_golden_proximal_steps_of_the_released_implementation(case):
    """Its penalty is evaluated after the step, at the maps that come out; a group of -1 means plain L1."""
    with np.load(GOLDEN / "prox.npz") as golden:
        l1, group, l1_bias, group_bias, step = golden[f"{case}_settings"]
        given, out = (
            [[golden[f"{case}_{site}_{name}_{when}"] for site in range(3)] for name in ("weight", "bias")]
            for when in ("in", "out")
        )
        reg = float(golden[f"{case}_reference_reg"])
    penalty = L1(l1, l1_bias) if group == -1 else SparseGroupLasso(l1, group, l1_bias, group_bias)
    sizes = [len(v) for v in given[0]]
    got = penalty.prox(*map(np.concatenate, given), sizes, step)
    for mine, theirs in zip(got, map(np.concatenate, out), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
        center = 1 if mine is got[0] else 0
        assert ((mine == center) == (np.abs(theirs - center) < 1e-7)).all()  # the same units drop out
    assert penalty.value(*got, sizes) == pytest.approx(reg, rel=1e-5)
    assert penalty.value(*map(np.concatenate, out), sizes) == pytest.approx(reg, rel=1e-5)
    assert penalty.value(*map(np.concatenate, given), sizes) > 1.2 * reg  # so it was not evaluated there


# ---- properties of the proximal operator ----


@bounded
@given(penalties, site_sizes, seeds, st.floats(1e-2, 3))
def test_no_point_is_better_than_the_prox(penalty, sizes, seed, step):
    """The objective is 1/step strongly convex: away from its minimiser it grows by at least distance^2 / (2 step)."""
    given = np.stack(make_maps(sizes, seed))
    best = np.stack(penalty.prox(*given, sizes, step))

    def objective(maps):
        distance = np.square(maps.astype(np.float64) - given).sum()
        return reference_value(penalty, *maps, sizes) + distance / (2 * step)

    least = objective(best)
    rng = np.random.default_rng(seed)
    others = [best + scale * rng.normal(size=best.shape) for scale in (1e-3, 1e-2, 0.1, 1) for _ in range(3)]
    others += [given, np.ones_like(best) * [[1], [0]]]
    others += [
        np.where(rng.random(best.shape) < 0.2, [[1], [0]], best),
        np.where(rng.random(best.shape) < 0.2, given, best),
    ]
    for other in (x.astype(np.float32) for x in others):
        growth = np.square(other.astype(np.float64) - best).sum() / (2 * step)
        there = objective(other)
        assert there >= least + growth - 1e-5 * max(1, there)  # the best point is rounded to float32


@bounded
@given(penalties, site_sizes, seeds, st.floats(1e-2, 3))
def test_the_prox_moves_by_step_times_the_penaltys_gradient_there(penalty, sizes, seed, step):
    given = make_maps(sizes, seed)
    for v, out, (center, *strengths) in zip(given, penalty.prox(*given, sizes, step), halves(penalty), strict=True):
        leaf = torch.from_numpy(out).double().requires_grad_()
        _reference.penalty(leaf, center, list(sizes), *strengths).backward()
        kept = np.abs(out - center) > 1e-3  # where the penalty is smooth; rounding turns the gradient of tiny groups
        moved = (v.astype(np.float64) - out)[kept]
        np.testing.assert_allclose(moved, step * leaf.grad.numpy()[kept], rtol=1e-3, atol=2e-5)


@bounded
@given(penalties, site_sizes, seeds, st.floats(0, 3))
def test_the_prox_never_increases_distances(penalty, sizes, seed, step):
    one, other = np.stack(make_maps(sizes, seed)), np.stack(make_maps(sizes, seed + 1))
    after = np.linalg.norm(np.subtract(penalty.prox(*one, sizes, step), penalty.prox(*other, sizes, step), dtype=float))
    assert after <= np.linalg.norm(one.astype(float) - other) * (1 + 1e-6) + 1e-6


@bounded
@given(penalties, site_sizes, seeds)
def test_a_step_of_zero_is_the_identity(penalty, sizes, seed):
    given = make_maps(sizes, seed)
    out = penalty.prox(*given, sizes, 0)
    for got, v in zip(out, given, strict=True):
        np.testing.assert_array_equal(got, v)
        assert not np.shares_memory(got, v)


@bounded
@given(site_sizes, seeds, st.floats(0, 3))
def test_without_strengths_the_prox_is_the_identity(sizes, seed, step):
    given = make_maps(sizes, seed)
    for got, v in zip(SparseGroupLasso(0, 0).prox(*given, sizes, step), given, strict=True):
        np.testing.assert_array_equal(got, v)


@pytest.mark.parametrize(
    ("name", "huge"), [("l1", 1e6), ("group", 1e6), ("l1", 1e300), ("group", 1e300), ("ridge", 1e300)]
)
def test_huge_strengths_leave_exactly_the_identity_map(name, huge):
    sizes = [5, 1, 8]
    penalty = SparseGroupLasso(**{"l1": 0, "group": 0, name: huge})
    weight, bias = penalty.prox(*make_maps(sizes), sizes, 1e10)
    assert_same_bits(weight, np.ones(14, np.float32))
    assert_same_bits(bias, np.zeros(14, np.float32))  # +0, not -0
    assert penalty.value(weight, bias, sizes) == 0


def test_the_group_strength_removes_whole_sites_and_l1_single_units():
    sizes = [3, 3]
    weight = np.array([1.1, 0.9, 1.1, 1.1, 4.0, 1.1], np.float32)
    bias = np.zeros(6, np.float32)
    by_group, _ = SparseGroupLasso(0, 0.15).prox(weight, bias, sizes, 1)
    assert (by_group[:3] == 1).all()
    assert (by_group[3:] != 1).all()
    by_unit, _ = L1(0.15).prox(weight, bias, sizes, 1)
    assert (by_unit != 1).tolist() == [False, False, False, False, True, False]


def test_a_ridge_shrinks_but_selects_nothing():
    weight, bias = SparseGroupLasso(0, 0, ridge=2.0).prox([3.0, -1.0], [1.0, 5.0], [1, 1], 0.25)
    np.testing.assert_allclose(weight, [2, 0], atol=1e-7)  # divided by 1 + 2 * 0.25 * 2
    np.testing.assert_allclose(bias, [0.5, 2.5])


@bounded
@given(penalties, site_sizes, seeds, steps)
def test_sites_do_not_see_each_other(penalty, sizes, seed, step):
    weight, bias = make_maps(sizes, seed)
    together = penalty.prox(weight, bias, sizes, step)
    cuts = np.cumsum(sizes)[:-1]
    parts = list(zip(np.split(weight, cuts), np.split(bias, cuts), sizes, strict=True))
    apart = [penalty.prox(w, b, [size], step) for w, b, size in parts]
    assert_same_bits(together, tuple(map(np.concatenate, zip(*apart, strict=True))))
    total = sum(penalty.value(w, b, [size]) for w, b, size in parts)
    assert penalty.value(weight, bias, sizes) == pytest.approx(total, rel=1e-12)


@bounded
@given(penalties, site_sizes)
def test_the_identity_map_costs_nothing_and_stays(penalty, sizes):
    identity = np.ones(sum(sizes), np.float32), np.zeros(sum(sizes), np.float32)
    assert penalty.value(*identity, sizes) == 0
    assert_same_bits(penalty.prox(*identity, sizes, 1.0), identity)


# ---- objects ----


def test_bias_strengths_are_those_of_weights_unless_given():
    assert SparseGroupLasso(0.1, 0.2) == SparseGroupLasso(0.1, 0.2, 0.1, 0.2)
    assert SparseGroupLasso(0.1, 0.2, 0.0, 0.0) != SparseGroupLasso(0.1, 0.2)  # zero is given
    assert L1(0.1) == L1(0.1, 0.1)
    assert L1(0.1, 0.0).l1_bias == 0


@bounded
@given(strength, strength, site_sizes, seeds, steps)
def test_l1_is_a_sparse_group_lasso_without_groups(l1, l1_bias, sizes, seed, step):
    given = make_maps(sizes, seed)
    same = SparseGroupLasso(l1, 0, l1_bias, 0)
    assert L1(l1, l1_bias).value(*given, sizes) == same.value(*given, sizes)
    assert_same_bits(L1(l1, l1_bias).prox(*given, sizes, step), same.prox(*given, sizes, step))


def test_inputs_stay_as_they_are():
    given = make_maps([4, 5])
    before = tuple(v.copy() for v in given)
    SparseGroupLasso(0.5, 0.5).prox(*given, [4, 5], 1.0)
    assert_same_bits(given, before)


@pytest.mark.parametrize("name", ["l1", "group", "l1_bias", "group_bias", "ridge"])
@pytest.mark.parametrize("bad", [-1e-9, -1.0, float("nan"), float("inf"), float("-inf")])
def test_impossible_strengths_are_refused_by_name(name, bad):
    with pytest.raises(ValueError, match=rf"^{name}: expected a penalty strength of at least 0, got {bad}"):
        SparseGroupLasso(**{"l1": 0.1, "group": 0.1, name: bad})
    if name in ("l1", "l1_bias"):
        with pytest.raises(ValueError, match=rf"^{name}: .*got {bad}"):
            L1(**{"l1": 0.1, name: bad})


@pytest.mark.parametrize("step", [-0.1, float("nan"), float("inf")])
def test_an_impossible_step_is_refused(step):
    with pytest.raises(ValueError, match=f"step: expected a finite number of at least 0, got {step}"):
        SparseGroupLasso(0.1, 0.1).prox([1.0], [0.0], [1], step)


@pytest.mark.parametrize(
    ("weight", "bias", "sizes", "says"),
    [
        ([1, 1, 1], [0, 0, 0], [2], r"expected weight and bias \(2,\), the sum of sizes; got \(3,\) and \(3,\)"),
        ([1, 1, 1], [0, 0], [3], r"got \(3,\) and \(2,\)"),
        ([[1, 1]], [[0, 0]], [2], r"got \(1, 2\) and \(1, 2\)"),
        ([1, 1], [0, 0], [3, -1], "sizes: expected the number of units of each site; got [3, -1]"),
        ([1, 1], [0, 0], [1.5, 1.5], "sizes: expected the number of units of each site; got [1.5, 1.5]"),
        ([1, 1], [0, 0], 2, "sizes: expected the number of units of each site; got 2"),
        ([], [], [], "sizes: expected the number of units of each site; got []"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_came(weight, bias, sizes, says):
    pattern = says if "\\" in says else re.escape(says)
    for call in (SparseGroupLasso(1, 1).value, lambda *given: SparseGroupLasso(1, 1).prox(*given, 1.0)):
        with pytest.raises(ValueError, match=pattern):
            call(weight, bias, sizes)


def test_kernels_shrink_about_any_center():
    v, offsets = np.array([5.0, 7.0, 4.0], np.float32), np.array([0, 1, 3])
    assert _core.penalty(v, 5.0, offsets, 1.0, 0.0, 0.0) == 3
    assert _core.prox(v, 5.0, offsets, 0.5, 0.0, 0.0, 1.0).tolist() == [5, 6.5, 4.5]
