"""Closed-form maps from one sample to another, unit by unit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import GOLDEN, bounded, import_pot

import lineas
from lineas import transport
from lineas.core import reference

COUNTS = [(1, 1), (1, 5), (5, 1), (2, 2), (4, 6), (7, 7), (16, 17), (32, 32), (33, 20), (100, 64)]
COLUMNS = (1, 31, 32, 33, 64, 65, 130)  # a block, a tile, and one more
METHODS = ("mean_act", "gaussian_act", "linear_act", "aura", "det0")


def make_samples(n, m, columns, *, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, columns)).astype(dtype), (0.5 + 1.3 * rng.normal(size=(m, columns))).astype(dtype)


def expected(method, x, y):
    x, y = torch.from_numpy(x).double(), torch.from_numpy(y).double()
    units = {"units": torch.ones(x.shape[1], dtype=torch.bool)} if method == "det0" else {}
    return [a.numpy() for a in getattr(reference, method)(x, y, **units)]


# ---- oracles ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "m"), COUNTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_method_matches_the_reference(method, n, m, dtype):
    for columns in COLUMNS:
        x, y = make_samples(n, m, columns, dtype=dtype)
        weight, bias = getattr(transport, method)(x, y)
        assert weight.dtype == bias.dtype == np.float64  # sums are float64 for either input
        assert weight.shape == bias.shape == (columns,)
        for got, right in zip((weight, bias), expected(method, x, y), strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_ties_are_no_exception(method):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-2, 3, size=(n, 70)).astype(np.float64) for n in (12, 15))
    for got, right in zip(getattr(transport, method)(x, y), expected(method, x, y), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-13)


def golden():
    with np.load(GOLDEN / "closed_form.npz") as file:
        return dict(file)


def test_linear_act_is_that_of_the_released_implementation():
    right = golden()
    weight, bias = transport.linear_act(right["source"], right["target"])
    np.testing.assert_allclose(weight, right["linear_act_weight"], atol=1e-5)
    np.testing.assert_allclose(bias, right["linear_act_bias"], atol=1e-5)


@pytest.mark.parametrize("method", ["gaussian_act", "mean_act"])
def test_maps_of_activations_are_those_of_the_released_implementation(method):
    right = golden()
    weight, bias = getattr(transport, method)(right["source"], right["target"])
    np.testing.assert_allclose(weight * right["x"] + bias, right[f"{method}_of_x"], atol=1e-5)


def test_aura_dampens_as_the_released_implementation_does():
    right = golden()
    weight, bias = transport.aura(right["source"], right["target"])
    np.testing.assert_allclose(weight, right["aura_alpha"], atol=1e-6)
    assert (bias == 0).all()


def test_linear_act_agrees_with_a_fit_to_a_fine_grid_of_quantiles_where_counts_differ():
    x, y = make_samples(6, 10, 5)
    fine = np.sort(np.repeat(x, 10, axis=0), axis=0), np.sort(np.repeat(y, 6, axis=0), axis=0)  # 60 equal parts of both
    weight, bias = transport.linear_act(x, y)
    for k in range(5):
        np.testing.assert_allclose([weight[k], bias[k]], np.polyfit(fine[0][:, k], fine[1][:, k], 1), rtol=1e-10)


def test_gaussian_act_agrees_with_pots_map_between_gaussians():
    pot = import_pot()
    x, y = make_samples(20, 31, 4)
    weight, bias = transport.gaussian_act(x, y)
    for k in range(4):
        moments = [np.array([z[:, k].mean()]) for z in (x, y)] + [np.array([[z[:, k].var(ddof=1)]]) for z in (x, y)]
        scale, shift = pot.gaussian.bures_wasserstein_mapping(*moments)
        np.testing.assert_allclose([weight[k], bias[k]], [scale.item(), shift.item()], rtol=1e-10)


# ---- properties ----

entry = st.floats(-100, 100, width=32).map(lambda v: round(v, 2))
sample = st.lists(entry, min_size=1, max_size=12).map(lambda v: np.array(v)[:, None])


@bounded
@given(sample, st.floats(0.01, 50), entry, st.randoms(use_true_random=False))
def test_linear_and_gaussian_act_find_the_affine_map_that_made_the_target(x, scale, shift, random):
    y = np.array(random.sample((scale * x + shift).tolist(), len(x)))  # in any order
    for method in (transport.linear_act, transport.gaussian_act):
        weight, bias = method(x, y)
        right = scale if np.ptp(x) > 0 else 1
        np.testing.assert_allclose(weight, right, rtol=1e-9)
        np.testing.assert_allclose(weight * x + bias, scale * x + shift, rtol=1e-9, atol=1e-9)


@bounded
@given(sample, sample, st.floats(0.1, 10), st.floats(0.1, 10), entry, entry)
def test_maps_follow_a_change_of_units_of_either_side(x, y, a, c, b, d):
    """From a x + b to c y + d, the map is that from x to y between the two changes."""
    if min(np.ptp(x), np.ptp(y)) == 0:  # then the weight is 1 or 0 by definition
        return
    for method in (transport.linear_act, transport.gaussian_act):
        (weight,), (bias,) = method(x, y)
        (got,), (moved,) = method(a * x + b, c * y + d)
        if min(len(x), len(y)) == 1:
            continue
        assert got == pytest.approx(c * weight / a, rel=1e-8)
        assert moved == pytest.approx(c * (bias - weight * b / a) + d, rel=1e-8, abs=1e-6)


@bounded
@given(sample, sample)
def test_no_affine_map_without_a_turn_comes_closer_than_linear_act(x, y):
    weight, bias = transport.linear_act(x, y)
    assert weight >= 0
    best = lineas.ot.wasserstein_1d(weight * x + bias, y)
    slack = 1e-9 * (1 + np.abs(x).max() ** 2 + np.abs(y).max() ** 2)
    for w, b in (transport.mean_act(x, y), transport.gaussian_act(x, y), (weight * 1.01, bias), (weight, bias + 0.01)):
        assert best <= lineas.ot.wasserstein_1d(w * x + b, y) + slack


@bounded
@given(sample, sample)
def test_every_map_of_means_takes_the_mean_to_the_mean(x, y):
    for method in (transport.mean_act, transport.gaussian_act, transport.linear_act, transport.det0):
        weight, bias = method(x, y)
        np.testing.assert_allclose((weight * x + bias).mean(0), y.mean(0), atol=1e-9 * (1 + np.abs(weight).max() * 100))


@pytest.mark.parametrize("method", ["gaussian_act", "linear_act"])
@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, 1e8 + 1, -3e30])
def test_a_constant_source_is_only_shifted_and_a_constant_target_is_hit(method, value):
    varying, constant = np.random.default_rng(0).normal(size=(7, 3)), np.full((5, 3), value)
    weight, bias = getattr(transport, method)(constant, varying)
    assert (weight == 1).all()
    np.testing.assert_allclose(bias, varying.mean(0) - value, rtol=1e-12)
    weight, bias = getattr(transport, method)(varying, constant)
    assert (weight == 0).all()
    assert (bias == value).all()
    weight, bias = getattr(transport, method)(constant, constant + 2)
    assert (weight == 1).all()
    np.testing.assert_allclose(bias, constant[0] + 2 - value)


def test_a_single_sample_leaves_no_deviation_and_gaussian_act_only_shifts():
    x, y = make_samples(1, 6, 4)
    for source, target in ((x, y), (y, x)):
        weight, bias = transport.gaussian_act(source, target)
        assert (weight == 1).all()
        np.testing.assert_allclose(bias, target.mean(0) - source.mean(0))


@pytest.mark.parametrize("method", ["gaussian_act", "linear_act"])
def test_what_lies_far_from_zero_is_mapped_as_well_as_what_lies_near(method):
    rng = np.random.default_rng(0)
    near = rng.integers(-8, 9, (2, 40, 33)) / 8  # exact wherever it lies
    weight, _ = getattr(transport, method)(*near)
    far, _ = getattr(transport, method)(near[0] + 2.0**40, near[1] - 2.0**40)
    np.testing.assert_allclose(far, weight, rtol=1e-12)


# ---- experts only ----


def test_det0_sets_the_units_given_and_leaves_the_others():
    x, y = make_samples(3, 4, 6)
    mask = np.array([False, True, False, False, True, False])
    for units in ([1, 4], (4, 1, 4), np.array([1, 4], np.uint8), mask, mask.tolist()):
        weight, bias = transport.det0(x, y, units=units)
        np.testing.assert_array_equal(weight, np.where(mask, 0, 1))
        np.testing.assert_allclose(bias, np.where(mask, y.mean(0), 0))
    weight, bias = transport.det0(x, y, units=[])
    assert (weight == 1).all()
    assert (bias == 0).all()


@pytest.mark.parametrize(
    ("units", "error", "says"),
    [
        ([0, 6], ValueError, r"^units: expected numbers from 0 to 5 in one dimension, got \[0, 6\]"),
        ([-1], ValueError, r"^units: expected numbers from 0 to 5 in one dimension, got \[-1\]"),
        ([[0]], ValueError, r"^units: expected numbers from 0 to 5 in one dimension, got \[\[0\]\]"),
        (3, ValueError, r"^units: expected numbers from 0 to 5 in one dimension, got 3"),
        ([True, False], ValueError, r"^units: expected a mask of shape \(6,\), got \(2,\)"),
        ([0.0, 1.0], TypeError, "^units: expected integers or booleans, got dtype float64"),
        ("all", TypeError, "^units: expected integers or booleans, got dtype <U3"),
    ],
)
def test_det0_refuses_units_that_are_not_there(units, error, says):
    with pytest.raises(error, match=says):
        transport.det0(*make_samples(3, 4, 6), units=units)


# ---- what is refused ----


@pytest.mark.parametrize("method", METHODS)
def test_wrong_samples_are_refused_by_name(method):
    function = getattr(transport, method)
    x, y = make_samples(3, 4, 5)
    bad = y.copy()
    bad[2, 1] = np.nan
    for source, target, error, says in (
        (
            x,
            y[:, :4],
            ValueError,
            r"^expected source \(n, d\) and target \(m, d\), none empty; got \(3, 5\) and \(4, 4\)$",
        ),
        (x[0], y, ValueError, r"none empty; got \(5,\) and \(4, 5\)$"),
        (x[:0], y, ValueError, r"none empty; got \(0, 5\) and \(4, 5\)$"),
        (x, bad, ValueError, r"^target: expected finite values, got nan at \[2, 1\]$"),
        (np.where(x == x[1, 2], np.inf, x), y, ValueError, r"^source: expected finite values, got inf at \[1, 2\]$"),
        (x + 1j, y, TypeError, "^source: expected real numbers, got dtype complex128"),
        (x, np.full(y.shape, "a"), TypeError, "^target: expected real numbers, got dtype <U1"),
    ):
        with pytest.raises(error, match=says):
            function(source, target)


@pytest.mark.parametrize("method", ["mean_act", "gaussian_act", "linear_act", "det0"])
def test_values_whose_squares_could_overflow_are_refused_and_smaller_ones_mapped(method):
    function = getattr(transport, method)
    x, y = (z / np.abs(z).max() for z in make_samples(3, 4, 5))
    weight, bias = function(x, y)
    for side, source, target in (("source", x * -1.5e150, y), ("target", x, y * 1.5e150)):
        with pytest.raises(ValueError, match=f"^{side}: expected values up to 1e150, got 1.5e[+]150"):
            function(source, target)
    again, moved = function(x * 1e150, y * 1e150)
    np.testing.assert_allclose(again, weight)
    np.testing.assert_allclose(moved, bias * 1e150)
