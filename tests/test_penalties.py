"""Penalties that choose units: value and proximal operator."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import GOLDEN, THREADS, assert_same_bits, bounded, finite_difference
from scipy.optimize import minimize

from lineas.core import reference
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


def labels_of(penalty, sizes) -> torch.Tensor:
    """A label for every unit, whatever the groups are."""
    if penalty.groups is None:
        return torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    return torch.arange(sum(sizes)) if isinstance(penalty.groups, str) else torch.tensor(penalty.groups)


def reference_value(penalty, weight, bias, sizes) -> float:
    labels = labels_of(penalty, sizes)
    return sum(
        float(reference.penalty(torch.from_numpy(v).double(), center, labels, *strengths))
        for v, (center, *strengths) in zip((weight, bias), halves(penalty), strict=True)
    )


def reference_prox(penalty, weight, bias, sizes, step) -> tuple[np.ndarray, ...]:
    """step: a number, or two arrays, for weights and for biases."""
    labels = labels_of(penalty, sizes)
    each = [torch.as_tensor(t).double() for t in (step if np.ndim(step) else (step, step))]
    return tuple(
        reference.prox(torch.from_numpy(v).double(), center, labels, *strengths, t).numpy()
        for v, (center, *strengths), t in zip((weight, bias), halves(penalty), each, strict=True)
    )


def grouped(penalty, kind: str, units: int, seed: int):
    """The same penalty on groups of another kind."""
    labels = np.random.default_rng(seed).integers(-3, 4, units)
    return dataclasses.replace(penalty, groups={"site": None, "unit": "unit", "labels": labels}[kind])


def step_sizes(units: int, seed: int) -> np.ndarray:
    """(2, units) of very different sizes, some of them zero."""
    rng = np.random.default_rng(seed)
    sizes = 10 ** rng.uniform(-3, 1, size=(2, units)) * (rng.random((2, units)) > 0.1)
    return sizes.astype(np.float32)


# ---- oracles ----


@bounded
@given(penalties, site_sizes, seeds)
def test_value_matches_the_reference(penalty, sizes, seed):
    weight, bias = make_maps(sizes, seed)
    expected = reference_value(penalty, weight, bias, sizes)
    assert penalty.value(weight, bias, sizes) == pytest.approx(expected, rel=1e-7)
    weight = np.clip(weight, 0.5, 2)  # the difference to 1 is then exact
    expected = reference_value(penalty, weight, bias, sizes)
    assert penalty.value(weight, bias, sizes) == pytest.approx(expected, rel=1e-12)


group_penalties = st.builds(SparseGroupLasso, strength, strength, strength, strength, strength)
kinds = st.sampled_from(["site", "unit", "labels"])


@bounded
@given(group_penalties, kinds, site_sizes, seeds)
def test_value_matches_the_reference_for_any_groups(penalty, kind, sizes, seed):
    penalty = grouped(penalty, kind, sum(sizes), seed)
    weight, bias = make_maps(sizes, seed)
    assert penalty.value(weight, bias, sizes) == pytest.approx(reference_value(penalty, weight, bias, sizes), rel=1e-7)


@bounded
@given(group_penalties, kinds, site_sizes, seeds, steps)
def test_prox_matches_the_reference(penalty, kind, sizes, seed, step):
    penalty = grouped(penalty, kind, sum(sizes), seed)
    weight, bias = make_maps(sizes, seed)
    out = penalty.prox(weight, bias, sizes, step)
    for got, v, expected in zip(out, (weight, bias), reference_prox(penalty, weight, bias, sizes, step), strict=True):
        assert got.dtype == np.float32
        assert (np.abs(got - expected) <= 3e-7 * np.maximum(1, np.abs(v))).all()  # an ulp or two


@bounded
@given(group_penalties, kinds, site_sizes, seeds)
def test_prox_matches_the_reference_with_a_step_size_for_each_entry(penalty, kind, sizes, seed):
    penalty = grouped(penalty, kind, sum(sizes), seed)
    weight, bias = make_maps(sizes, seed)
    each = step_sizes(len(weight), seed)
    out = penalty.prox(weight, bias, sizes, each.ravel())
    for got, expected in zip(out, reference_prox(penalty, weight, bias, sizes, each), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1.2e-7, atol=1e-12)  # the nearest float32, or the next one
    by_unit = penalty.prox(weight, bias, sizes, each[0])
    assert_same_bits(by_unit, penalty.prox(weight, bias, sizes, np.tile(each[0], 2)))


@bounded
@given(group_penalties, kinds, site_sizes, seeds, steps)
def test_equal_step_sizes_are_one_step_size(penalty, kind, sizes, seed, step):
    penalty = grouped(penalty, kind, sum(sizes), seed)
    given, step = make_maps(sizes, seed), float(np.float32(step))
    each = penalty.prox(*given, sizes, np.full(sum(sizes), step))
    for got, expected, v in zip(penalty.prox(*given, sizes, step), each, given, strict=True):
        assert (np.abs(got - expected) <= 3e-7 * np.maximum(1, np.abs(v))).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_prox_of_different_step_sizes_is_what_a_general_minimiser_finds(seed):
    rng = np.random.default_rng(seed)
    bias, each = rng.normal(size=5).astype(np.float32), rng.uniform(0.1, 3, 5).astype(np.float32)
    penalty = SparseGroupLasso(0.05, 0.1, ridge=0.2)

    def objective(w):
        w = np.concatenate([np.ones(5), w])
        value = reference_value(penalty, *np.split(w, 2), [5])
        return value + float(np.sum((w[5:] - bias) ** 2 / (2 * each)))

    _, got = penalty.prox(np.ones(5), bias, [5], each)
    found = minimize(objective, bias, method="Powell", options={"xtol": 1e-9, "ftol": 1e-14, "maxiter": 10_000})
    assert objective(got.astype(float)) <= found.fun + 1e-7
    np.testing.assert_allclose(got, found.x, atol=2e-3)


@bounded
@given(
    hnp.arrays(np.float32, 6, elements=st.floats(-(2.0**90), 2.0**90, width=32)),
    hnp.arrays(np.float32, 6, elements=st.floats(0, 2.0**60, width=32)),
    st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e30, 1e300]), st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e30, 1e300]),
    st.sampled_from([0.0, 1e-3, 1e300]),
)  # fmt: skip
@np.errstate(all="ignore")
def test_the_prox_of_different_step_sizes_is_stationary_for_any_numbers(bias, each, l1, group, ridge):
    """Every entry w satisfies (v - w)/t in l1 d|w| + 2 ridge w + group sqrt(d) w/|w|, to the rounding of float32."""
    penalty = SparseGroupLasso(l1, group, ridge=ridge)
    _, w = penalty.prox(np.ones(6), bias, [6], each)
    v, w, t = bias.astype(np.float64), w.astype(np.float64), each.astype(np.float64)
    assert np.isfinite(w).all()
    assert (np.abs(w) <= np.abs(v)).all()
    assert (w * v >= 0).all()
    assert (w[t == 0] == v[t == 0]).all()
    pressure, norm = group * 6**0.5, np.linalg.norm(w)
    if norm > 1e-30:
        rest = np.maximum(np.abs(v) - t * l1, 0)
        shrinks = 1 + t * (2 * ridge + pressure / norm)
        kept = np.abs(w) > 1e-30
        assert (np.abs(np.abs(w) * shrinks - rest)[kept] <= 1e-6 * rest[kept] + 1e-30).all()
        assert (rest[w == 0] <= 1e-44 * shrinks[w == 0]).all()


@pytest.mark.parametrize("kind", ["site", "unit", "labels"])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_proximal_step_matches_the_reference(kind, each, threads):
    sizes = [70, 1, 33]
    x, units = np.concatenate(make_maps(sizes)), sum(sizes)
    gradient = np.random.default_rng(1).normal(size=2 * units).astype(np.float32)
    step = step_sizes(units, 2).ravel() if each else 0.25
    penalty = grouped(SparseGroupLasso(0.01, 0.002, 0.02, 0.004, 0.1), kind, units, 0)
    before = x.copy(), gradient.copy()
    got = penalty.proximal_step(x, gradient, sizes, step, threads=threads)
    assert_same_bits((x, gradient), before)
    half_way = np.split(x - step * gradient.astype(np.float64), 2)
    expected = np.concatenate(reference_prox(penalty, *half_way, sizes, np.split(step, 2) if each else step))
    np.testing.assert_allclose(got.x, expected, rtol=1e-6, atol=1e-5 if each else 1e-6)  # v itself is a float32
    assert not np.shares_memory(got.x, x)
    move = got.x.astype(np.float64) - x
    assert got.penalty == pytest.approx(reference_value(penalty, *np.split(got.x, 2), sizes), rel=1e-6)
    assert got.slope == pytest.approx(float(move @ gradient), rel=1e-6)
    assert got.square == pytest.approx(float(move @ move), rel=1e-6)


def test_without_a_gradient_a_proximal_step_is_the_prox_and_tells_of_no_move():
    sizes, penalty = [4, 5], SparseGroupLasso(0.1, 0.1)
    weight, bias = make_maps(sizes)
    got = penalty.proximal_step(np.concatenate([weight, bias]), None, sizes, 0.5)
    assert_same_bits(tuple(np.split(got.x, 2)), penalty.prox(weight, bias, sizes, 0.5))
    assert (got.slope, got.square) == (0, 0)


def test_a_step_that_goes_nowhere_has_moved_by_nothing():
    sizes = [4, 5]
    x = np.concatenate(make_maps(sizes))
    assert SparseGroupLasso(0, 0).proximal_step(x, np.zeros_like(x), sizes, 0.5)[2:] == (0, 0)


@pytest.mark.parametrize("kind", ["site", "unit", "labels"])
@pytest.mark.parametrize("each", [False, True])
def test_the_bits_of_a_proximal_step_do_not_depend_on_threads(kind, each):
    sizes = [900, 1, 5000, 17, 2000]
    x = np.concatenate(make_maps(sizes))
    penalty = grouped(SparseGroupLasso(0.01, 0.02), kind, sum(sizes), 0)
    step = step_sizes(sum(sizes), 2).ravel() if each else 0.25
    first, *others = (tuple(penalty.proximal_step(x, x[::-1].copy(), sizes, step, threads=n)) for n in THREADS)
    for other in others:
        assert_same_bits(other, first)


def test_unit_groups_are_labels_that_all_differ():
    sizes = [7, 9]
    given = make_maps(sizes)
    by_name, by_label = (SparseGroupLasso(0.1, 0.2, ridge=0.1, groups=groups) for groups in ("unit", np.arange(16)))
    assert by_name.value(*given, sizes) == pytest.approx(by_label.value(*given, sizes))
    np.testing.assert_allclose(by_name.prox(*given, sizes, 0.5), by_label.prox(*given, sizes, 0.5), atol=3e-7)


def test_labels_by_site_are_the_default():
    sizes = [7, 9]
    given = make_maps(sizes)
    labelled = SparseGroupLasso(0.1, 0.2, groups=np.repeat([5, -1], sizes))
    assert_same_bits(labelled.prox(*given, sizes, 0.5), SparseGroupLasso(0.1, 0.2).prox(*given, sizes, 0.5))


def test_labels_tie_units_of_different_sites():
    weight = np.array([1.1, 4.0, 0.9, 4.0], np.float32)
    out, _ = SparseGroupLasso(0, 0.2, groups=[0, 1, 0, 1]).prox(weight, np.zeros(4), [2, 2], 1)
    assert (out != 1).tolist() == [False, True, False, True]


def test_gradient_of_the_value_is_that_of_the_reference_where_it_is_smooth():
    penalty, sizes = SparseGroupLasso(0.3, 0.2, 0.1, 0.4, ridge=0.25), [3, 1, 7]
    rng = np.random.default_rng(0)
    away = rng.integers(64, 2048, size=(2, 11)) / 1024 * rng.choice([-1, 1], size=(2, 11))  # in float32 without loss
    maps = away + np.array([[1], [0]])
    expected = []
    for v, (center, *strengths) in zip(maps, halves(penalty), strict=True):
        leaf = torch.from_numpy(v).requires_grad_()
        reference.penalty(leaf, center, labels_of(penalty, sizes), *strengths).backward()
        expected.append(leaf.grad.numpy())
    got = finite_difference(lambda both: penalty.value(*both, sizes), maps, step=2**-12)
    np.testing.assert_allclose(got, expected, rtol=1e-4)  # differences of values right to 1e-7


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
