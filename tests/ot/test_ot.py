"""One-dimensional optimal transport: cost and gradient, equal and unequal sets, with and without weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import GOLDEN, assert_same_bits, bounded, finite_difference

from lineas.core import _core, ops, reference
from lineas.ot import wasserstein_1d, wasserstein_1d_grad

COUNTS = [(1, 1), (1, 5), (5, 1), (2, 2), (4, 6), (7, 7), (16, 17), (32, 32), (33, 20)]
POWERS = (1, 1.5, 2, 3)
WEIGHTED = ("none", "source", "target", "both")


def make_samples(n: int, m: int, columns: int, *, seed: int = 0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, columns)).astype(dtype), (0.5 + 1.3 * rng.normal(size=(m, columns))).astype(dtype)


def make_weights(n: int, m: int, weighted: str, *, seed: int = 0) -> dict:
    """As the keyword arguments; the first and last weight of a side with more than three samples is zero."""
    rng = np.random.default_rng(seed)
    weights = {"source_weights": rng.uniform(0.1, 1, n), "target_weights": rng.uniform(0.1, 1, m)}
    for w in weights.values():
        if len(w) > 3:
            w[[0, -1]] = 0
    sides = {"none": (), "source": ("source",), "target": ("target",), "both": ("source", "target")}[weighted]
    return {f"{side}_weights": weights[f"{side}_weights"] for side in sides}


def by_reference(x, y, p=2, source_weights=None, target_weights=None):
    """Cost and gradient by the reference, in float64."""
    x, y = torch.from_numpy(x.astype(np.float64)).requires_grad_(), torch.from_numpy(y.astype(np.float64))
    weights = (None if w is None else torch.from_numpy(w / w.sum()) for w in (source_weights, target_weights))
    cost = reference.wasserstein(x, y, p, *weights)
    cost.sum().backward()
    return cost.detach().numpy(), x.grad.numpy()


# ---- oracles ----


@pytest.mark.parametrize("weighted", WEIGHTED)
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_wasserstein_matches_the_reference_in_value_and_gradient(n, m, p, weighted):
    weights = make_weights(n, m, weighted)
    for columns in (1, 15, 16, 17, 50):
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
            x, y = make_samples(n, m, columns, dtype=dtype)
            expected, slope = by_reference(x, y, p, **weights)
            cost, gradient = wasserstein_1d_grad(x, y, p, **weights)
            assert cost.dtype == np.float64
            assert gradient.dtype == dtype
            np.testing.assert_allclose(cost, expected, rtol=1e-12, atol=1e-14)  # sums are float64 for either input
            np.testing.assert_allclose(gradient, slope, rtol=tolerance, atol=tolerance / 10)
            # Without a gradient it may be added up in another order: that of the sorted samples.
            np.testing.assert_allclose(wasserstein_1d(x, y, p, **weights), cost, rtol=1e-14 * n)


@pytest.mark.parametrize("weighted", WEIGHTED)
@pytest.mark.parametrize("p", POWERS)
def test_ties_share_mass_in_the_order_in_which_they_stand(p, weighted):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-2, 3, size=(n, 20)).astype(np.float64) for n in (12, 15))
    weights = make_weights(12, 15, weighted)
    expected, slope = by_reference(x, y, p, **weights)
    cost, gradient = wasserstein_1d_grad(x, y, p, **weights)
    np.testing.assert_allclose(cost, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, slope, atol=1e-12)


values = st.floats(-100, 100, width=32).map(lambda v: round(v, 3))
weight = st.one_of(st.just(0.0), st.floats(0.01, 10))


@st.composite
def samples(draw, weighted=True):
    """Two columns, and their weights (at least one of each positive) or none."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    x, y = (np.array(draw(st.lists(values, min_size=k, max_size=k)))[:, None] for k in (n, m))
    if not (weighted and draw(st.booleans())):
        return x, y, {}
    a, b = (np.array(draw(st.lists(weight, min_size=k, max_size=k).filter(any))) for k in (n, m))
    return x, y, {"source_weights": a, "target_weights": b}


@pytest.mark.parametrize("weighted", WEIGHTED)
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), [(1, 4), (6, 6), (6, 4), (5, 8)])
def test_gradient_is_that_of_finite_differences(n, m, p, weighted):
    x, y = make_samples(n, m, 3, seed=7)
    both = np.concatenate([x, y])
    gaps = np.abs(both[:, None] - both[None])[~np.eye(n + m, dtype=bool)]
    assert gaps.min() > 1e-4  # no kink within a step
    weights = make_weights(n, m, weighted)
    expected = finite_difference(lambda z: wasserstein_1d(z, y, p, **weights).sum(), x)
    np.testing.assert_allclose(wasserstein_1d_grad(x, y, p, **weights)[1], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", range(5))
def test_golden_losses_and_gradients_of_the_released_implementation(case):
    """Its loss sums over samples and averages over units: n times our cost, averaged."""
    with np.load(GOLDEN / "wasserstein.npz") as golden:
        x, y, p, loss = (golden[f"{case}_{key}"] for key in ("source", "target", "p", "reference_loss"))
        slope = None if case == 4 else golden[f"{case}_reference_grad"]  # case 4 has ties, and comes without
    n, units = x.shape
    cost, gradient = wasserstein_1d_grad(x, y, int(p))
    assert n * cost.mean() == pytest.approx(float(loss), rel=1e-5)
    unit_loss, loss_gradient = ops.loss(x, ops.prepare_target(y), np.full(units, n / units), p=int(p))
    assert unit_loss.sum() == pytest.approx(float(loss), rel=1e-5)
    if slope is not None:
        for got in (gradient * n / units, loss_gradient):
            np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-6 * np.abs(slope).max())


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (32, 20)])
def test_loss_is_the_reference_times_each_units_coefficient(n, m, p):
    x, y = make_samples(n, m, 37, dtype=np.float32)
    coefficient = np.random.default_rng(1).uniform(0, 2, 37)
    coefficient[3] = 0
    expected, slope = by_reference(x, y, p)
    unit_loss, gradient = ops.loss(x, ops.prepare_target(y), coefficient, p=p)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(unit_loss, coefficient * expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, coefficient * slope, rtol=1e-6, atol=1e-7)
    assert (gradient[:, 3] == 0).all()


@bounded
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_a_target_prepared_for_n_sources_gives_the_same_loss_and_gradient(n, m, seed):
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-12)):
        x, y = make_samples(n, m, 5, seed=seed, dtype=dtype)
        expected, slope = ops.loss(x, ops.prepare_target(y), np.full(5, 0.2))
        unit_loss, gradient = ops.loss(x, ops.prepare_target(y, n), np.full(5, 0.2))
        np.testing.assert_allclose(unit_loss, expected, rtol=tolerance)
        np.testing.assert_allclose(gradient, slope, rtol=tolerance, atol=tolerance)


def test_a_target_prepared_for_n_sources_is_refused_for_others():
    x, y = make_samples(6, 9, 3)
    target = ops.prepare_target(y, 6)
    for responses, p in ((x, 1), (x[:5], 2)):
        with pytest.raises(
            ValueError, match=f"target: prepared for p = 2 and 6 sources, got p = {p} and {len(responses)}"
        ):
            ops.loss(responses, target, np.ones(3), p=p)


@pytest.mark.parametrize("kernel", [_core.wasserstein, lambda *a: _core.wasserstein_grad(*a[:5], None, *a[5:])])
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("m", [6, 9])
def test_the_core_finds_a_sample_that_is_not_finite_wherever_it_is(m, p, kernel):
    for dtype in (np.float32, np.float64):
        for bad in (np.nan, np.inf, -np.inf):
            for which, rows in (("x", 6), ("y", m)):
                for row in range(rows):
                    x, y = make_samples(6, m, 70, dtype=dtype)
                    y = np.sort(y, axis=0)
                    (x if which == "x" else y)[row, 65] = bad
                    with pytest.raises(ValueError, match=f"^{which}: expected finite.*position {70 * row + 65}$"):
                        kernel(x, y, None, None, None, float(p), 1)


def test_a_cost_beyond_the_largest_number_is_infinite():
    x, y = np.full((2, 1), 1e200), np.full((2, 1), -1e200)
    assert wasserstein_1d(x, y) == np.inf
    assert wasserstein_1d(x, y, p=1) == 2e200


# ---- properties ----


@bounded
@given(samples(weighted=False), st.sampled_from(POWERS), st.randoms(use_true_random=False))
def test_a_permuted_copy_is_at_distance_zero_and_pulls_nowhere(drawn, p, random):
    x, _, _ = drawn
    order = list(range(len(x)))
    random.shuffle(order)
    cost, gradient = wasserstein_1d_grad(x, x[order], p)
    assert (cost == 0).all()
    assert (gradient == 0).all()


@bounded
@given(samples(), st.sampled_from(POWERS))
def test_cost_is_symmetric_and_never_negative(drawn, p):
    x, y, weights = drawn
    turned = {"source_weights": weights.get("target_weights"), "target_weights": weights.get("source_weights")}
    cost = wasserstein_1d(x, y, p, **weights)
    assert (cost >= 0).all()
    np.testing.assert_allclose(wasserstein_1d(y, x, p, **turned), cost, rtol=1e-9, atol=1e-9)


@bounded
@given(samples(), st.floats(-50, 50), st.sampled_from(POWERS))
def test_a_translation_by_c_costs_c_to_the_p(drawn, c, p):
    x, _, weights = drawn
    weights = {f"{side}_weights": weights["source_weights"] for side in ("source", "target")} if weights else {}
    cost, gradient = wasserstein_1d_grad(x + c, x, p, **weights)
    np.testing.assert_allclose(cost, abs(c) ** p, rtol=1e-9, atol=1e-9)
    if abs(c) > 1e-3:
        np.testing.assert_allclose(gradient.sum(0), p * np.sign(c) * abs(c) ** (p - 1), rtol=1e-6, atol=1e-9)


@bounded
@given(samples(), st.floats(0.01, 100), st.sampled_from(POWERS))
def test_scaling_both_by_c_scales_the_cost_by_c_to_the_p(drawn, c, p):
    x, y, weights = drawn
    cost = wasserstein_1d(x, y, p, **weights)
    np.testing.assert_allclose(wasserstein_1d(c * x, c * y, p, **weights), c**p * cost, rtol=1e-7, atol=1e-9 * c**p)


@bounded
@given(samples(weighted=False), st.integers(1, 4), st.integers(1, 4), st.sampled_from(POWERS))
def test_duplicating_every_sample_changes_nothing(drawn, k, j, p):
    x, y, _ = drawn
    cost, gradient = wasserstein_1d_grad(x, y, p)
    again, parts = wasserstein_1d_grad(np.repeat(x, k, axis=0), np.repeat(y, j, axis=0), p)
    np.testing.assert_allclose(again, cost, rtol=1e-12, atol=1e-12)
    if len(np.unique(x)) == len(x):  # else ties share the gradient otherwise
        np.testing.assert_allclose(parts.reshape(len(x), k).sum(1), gradient[:, 0], rtol=1e-9, atol=1e-9)


@bounded
@given(samples(weighted=False), st.data(), st.sampled_from(POWERS))
def test_whole_weights_are_repetitions(drawn, data, p):
    x, y, _ = drawn
    a, b = (
        np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(z), max_size=len(z)).filter(any))) for z in (x, y)
    )
    weighted = wasserstein_1d(x, y, p, source_weights=a, target_weights=b)
    repeated = wasserstein_1d(np.repeat(x, a, axis=0), np.repeat(y, b, axis=0), p)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-9, atol=1e-9)


def test_samples_of_weight_zero_neither_count_nor_move():
    x, y = make_samples(6, 5, 4)
    a, b = np.array([0, 1, 2, 0, 1, 0.0]), np.array([1, 0, 0, 3, 0.0])
    cost, gradient = wasserstein_1d_grad(x, y, 2, source_weights=a, target_weights=b)
    without, slope = wasserstein_1d_grad(x[a > 0], y[b > 0], 2, source_weights=a[a > 0], target_weights=b[b > 0])
    np.testing.assert_allclose(cost, without, rtol=1e-12)
    np.testing.assert_allclose(gradient[a > 0], slope, rtol=1e-12)
    assert (gradient[a == 0] == 0).all()


@pytest.mark.parametrize("p", POWERS)
def test_only_the_ratios_of_weights_matter(p):
    x, y = make_samples(6, 5, 4)
    plain, slope = wasserstein_1d_grad(x, y, p)
    for a, b in ((np.ones(6), None), (None, [3] * 5), (np.full(6, 1e308), np.full(5, 1e-320))):
        cost, gradient = wasserstein_1d_grad(x, y, p, source_weights=a, target_weights=b)
        np.testing.assert_allclose(cost, plain, rtol=1e-12)
        np.testing.assert_allclose(gradient, slope, rtol=1e-9)


@pytest.mark.parametrize("weighted", WEIGHTED)
def test_gradient_follows_its_sample_when_rows_are_reordered(weighted):
    x, y = make_samples(9, 6, 20)
    weights = make_weights(9, 6, weighted)
    order = np.random.default_rng(1).permutation(9)
    moved = {name: w[order] if name == "source_weights" else w for name, w in weights.items()}
    cost, gradient = wasserstein_1d_grad(x, y, 3, **weights)
    again, slope = wasserstein_1d_grad(x[order], y, 3, **moved)
    np.testing.assert_allclose(again, cost, rtol=1e-12)
    np.testing.assert_allclose(slope, gradient[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", WEIGHTED)
def test_columns_do_not_see_each_other(weighted):
    x, y = make_samples(9, 6, 20, dtype=np.float32)
    weights = make_weights(9, 6, weighted)
    cost, gradient = wasserstein_1d_grad(x, y, 1.5, **weights)
    for j in range(20):
        alone, slope = wasserstein_1d_grad(x[:, j : j + 1], y[:, j : j + 1], 1.5, **weights)
        np.testing.assert_allclose(alone, cost[[j]], rtol=1e-14)
        np.testing.assert_allclose(slope, gradient[:, [j]], rtol=1e-6)


def test_descending_the_gradient_reaches_the_target():
    """With p = 2 and step n/2 every sample lands on its partner."""
    x, y = make_samples(8, 8, 17)
    moved = x - 4 * wasserstein_1d_grad(x, y)[1]
    np.testing.assert_allclose(np.sort(moved, axis=0), np.sort(y, axis=0), atol=1e-12)
    np.testing.assert_allclose(wasserstein_1d(moved, y), 0, atol=1e-24)


# ---- what comes in ----


def test_any_real_array_is_taken_and_left_as_it_was():
    lists = [[0.0, 2], [1, 5]], [[3, 1.0], [2, 4]]
    expected = wasserstein_1d(*(np.array(x) for x in lists))
    x, y = (np.asfortranarray(np.array(x, np.float32)) for x in lists)
    before = x.copy(), y.copy()
    for source, target in (
        lists,
        (x, y),
        (x.astype(">f8"), y),
        (x.astype(int), y),
        (torch.tensor(lists[0]), x * 0 + y),
    ):
        np.testing.assert_allclose(wasserstein_1d(source, target), expected, rtol=1e-12)
    assert_same_bits((x, y), before)


GOOD = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([1.0, 2.0], GOOD), ValueError, r"source \(n, d\).*got \(2,\) and \(2, 3\)"),
        ((GOOD, np.zeros((2, 4))), ValueError, r"target \(m, d\).*got \(2, 3\) and \(2, 4\)"),
        ((np.zeros((0, 3)), GOOD), ValueError, r"none empty; got \(0, 3\)"),
        ((GOOD, np.zeros((0, 3))), ValueError, r"none empty.*\(0, 3\)"),
        ((np.zeros((2, 0)), np.zeros((2, 0))), ValueError, r"none empty; got \(2, 0\)"),
        (([["a"]], [[1.0]]), TypeError, "source: expected real numbers, got dtype <U1"),
        (([[1.0]], [[1j]]), TypeError, "target: expected real numbers, got dtype complex128"),
        ((None, GOOD), TypeError, "source: expected real numbers, got dtype object"),
        (([[1, 2, np.nan]], GOOD), ValueError, r"source: expected finite values, got nan at \[0, 2\]"),
        ((GOOD, [[1, 2, 3], [0, -np.inf, 0]]), ValueError, r"target: expected finite values, got -inf at \[1, 1\]"),
        ((GOOD, GOOD, 0.5), ValueError, "p: expected.*at least 1, got 0.5"),
        ((GOOD, GOOD, float("nan")), ValueError, "p: expected.*got nan"),
        ((GOOD, GOOD, float("inf")), ValueError, "p: expected a finite number.*got inf"),
        ((GOOD, GOOD, "2"), TypeError, "p: expected a number, got str"),
        ((GOOD, GOOD, None), TypeError, "p: expected a number, got NoneType"),
    ],
)
def test_bad_samples_and_powers_are_refused_by_name(arguments, error, says):
    for function in (wasserstein_1d, wasserstein_1d_grad):
        with pytest.raises(error, match=says):
            function(*arguments)


@pytest.mark.parametrize("side", ["source_weights", "target_weights"])
@pytest.mark.parametrize(
    ("weights", "error", "says"),
    [
        ([1.0], ValueError, r"expected shape \(2,\).*got \(1,\)"),
        ([[1.0, 1.0]], ValueError, r"expected shape \(2,\).*got \(1, 2\)"),
        ([1.0, -1.0], ValueError, r"none negative.*got \[ 1. -1.\]"),
        ([0.0, 0.0], ValueError, r"not all zero; got \[0. 0.\]"),
        ([1.0, np.nan], ValueError, "finite weights"),
        ([1.0, np.inf], ValueError, "finite weights"),
        (["1", "x"], TypeError, "expected real numbers, got dtype <U1"),
    ],
)
def test_bad_weights_are_refused_by_name(side, weights, error, says):
    for function in (wasserstein_1d, wasserstein_1d_grad):
        with pytest.raises(error, match=f"{side}: .*{says}"):
            function(GOOD, GOOD, **{side: weights})


def test_a_float32_side_meets_a_float64_side_in_float64():
    x, y = make_samples(4, 4, 2)
    cost, gradient = wasserstein_1d_grad(x.astype(np.float32), y)
    assert gradient.dtype == np.float64
    np.testing.assert_allclose(cost, wasserstein_1d(x.astype(np.float32).astype(np.float64), y), rtol=0)


def test_a_sum_of_float32_samples_is_kept_in_float64():
    """Summed in float32, the small distances of 200,000 samples would be lost beside each other's sum."""
    x = np.full((200_000, 1), 1e-3, np.float32)
    assert _core.wasserstein(x, np.zeros_like(x), None, None, None, 2.0, 1) == pytest.approx(1e-6, rel=1e-6)
