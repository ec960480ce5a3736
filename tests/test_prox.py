"""Properties of the proximal operator of every penalty."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same_bits, bounded
from test_penalties import halves, labels_of, make_maps, penalties, reference_value, seeds, site_sizes, steps

from lineas.core import reference
from lineas.penalties import L1, SparseGroupLasso


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
        reference.penalty(leaf, center, labels_of(penalty, sizes), *strengths).backward()
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
