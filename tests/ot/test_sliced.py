"""Sliced Wasserstein: mean and maximum over directions, their gradients, and the product that projects."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import THREADS, assert_same_bits, bounded, finite_difference, import_pot

from lineas.core import _core, reference
from lineas.ot import (
    max_sliced_wasserstein,
    max_sliced_wasserstein_grad,
    sliced,
    sliced_wasserstein,
    sliced_wasserstein_grad,
    wasserstein_1d,
)

COUNTS = [(1, 1), (1, 5), (7, 7), (6, 4), (33, 20)]
POWERS = (1, 1.5, 2, 3)
VALUES = {"mean": sliced_wasserstein, "max": max_sliced_wasserstein}
GRADIENTS = {"mean": sliced_wasserstein_grad, "max": max_sliced_wasserstein_grad}
REFERENCES = {"mean": reference.sliced_wasserstein, "max": reference.max_sliced_wasserstein}
BOTH = pytest.mark.parametrize("kind", VALUES)
ALL = [*VALUES.values(), *GRADIENTS.values()]


def make_samples(n: int, m: int, d: int, *, seed: int = 0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(dtype), (0.5 + 1.3 * rng.normal(size=(m, d))).astype(dtype)


def make_directions(d: int, k: int, *, seed: int = 1):
    """Not all of length 1: given directions are used as they are."""
    return np.random.default_rng(seed).normal(size=(d, k))


def make_weights(n: int, m: int, *, seed: int = 2) -> dict:
    """As the keyword arguments, one weight a side zero where it has more than three samples."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.1, 1, n), rng.uniform(0.1, 1, m)
    for w in (a, b):
        if len(w) > 3:
            w[1] = 0
    return {"source_weights": a, "target_weights": b}


def drawn_directions(d: int, k: int, seed: int = 0):
    """What the docstring promises."""
    rows = np.random.default_rng(seed).normal(size=(k, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T


# ---- oracles ----


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_values_agree_with_pot_for_given_projections(kind, n, m, p, weighted):
    pot = import_pot()
    theirs = {"mean": pot.sliced_wasserstein_distance, "max": pot.max_sliced_wasserstein_distance}[kind]
    directions, weights = make_directions(5, 19), make_weights(n, m) if weighted else {}
    a, b = (w / w.sum() for w in weights.values()) if weights else (None, None)
    x, y = make_samples(n, m, 5)
    value = VALUES[kind](x, y, p, projections=directions, **weights)
    assert type(value) is float
    assert value == pytest.approx(theirs(x, y, a, b, p=p, projections=directions), rel=1e-6)
    single = (z.astype(np.float32) for z in (x, y))
    assert VALUES[kind](*single, p, projections=directions, **weights) == pytest.approx(value, rel=1e-5)


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_values_and_gradients_match_the_reference(kind, n, m, p, weighted):
    weights = make_weights(n, m) if weighted else {}
    totals = [torch.from_numpy(w / w.sum()) for w in weights.values()]
    for d, k in ((1, 1), (3, 5), (17, 40), (4, sliced.BLOCK + 3)):
        directions = make_directions(d, k)
        for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 2e-5)):
            x, y = make_samples(n, m, d, dtype=dtype)
            source, target = (torch.from_numpy(z.astype(np.float64)) for z in (x, y))
            source.requires_grad_()
            expected = REFERENCES[kind](source, target, torch.from_numpy(directions), p, *totals)
            expected.backward()
            value, gradient = GRADIENTS[kind](x, y, p, projections=directions, **weights)
            assert gradient.dtype == dtype
            assert value == pytest.approx(VALUES[kind](x, y, p, projections=directions, **weights), rel=1e-13)
            assert value == pytest.approx(expected.item(), rel=tolerance)
            np.testing.assert_allclose(gradient, source.grad, rtol=tolerance, atol=tolerance)


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), [(1, 4), (6, 6), (5, 8)])
def test_gradient_is_that_of_finite_differences(kind, n, m, p, weighted):
    x, y = make_samples(n, m, 3, seed=7)
    options = {"p": p, "n_projections": 9, "seed": 5, **(make_weights(n, m) if weighted else {})}
    both = np.concatenate([x, y]) @ drawn_directions(3, 9, seed=5)
    assert np.abs(both[:, None] - both[None])[~np.eye(n + m, dtype=bool)].min() > 1e-5  # no kink within a step
    expected = finite_difference(lambda z: VALUES[kind](z, y, **options), x, step=1e-6)
    np.testing.assert_allclose(GRADIENTS[kind](x, y, **options)[1], expected, rtol=1e-6, atol=1e-7)


def test_in_one_dimension_it_is_the_distance_of_the_column():
    x, y = make_samples(8, 5, 1)
    expected = wasserstein_1d(x, y, 3)[0] ** (1 / 3)
    for value in VALUES.values():
        assert value(x, y, 3, n_projections=7) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 64, 67, 130])
def test_product_is_the_product(n, columns, dtype):
    for d in (1, 2, 64):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(d, columns)).astype(dtype)
        got = _core.product(a, b, 1)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, a.astype(np.float64) @ b.astype(np.float64), atol=500 * np.finfo(dtype).eps)


# ---- the directions ----


@BOTH
def test_directions_are_those_that_the_docstring_promises(kind):
    x, y = make_samples(9, 6, 4)
    for k, seed in ((1, 0), (3, 1), (2 * sliced.BLOCK + 5, 2)):
        drawn = VALUES[kind](x, y, n_projections=k, seed=seed)
        assert drawn == pytest.approx(VALUES[kind](x, y, projections=drawn_directions(4, k, seed)), rel=1e-12)


@BOTH
def test_blocks_of_directions_change_nothing_but_rounding(kind, monkeypatch):
    x, y = make_samples(9, 6, 4)
    value, gradient = GRADIENTS[kind](x, y, n_projections=301)
    for block in (1, 7, 300, 301, 1000):
        monkeypatch.setattr(sliced, "BLOCK", block)
        again, slope = GRADIENTS[kind](x, y, n_projections=301)
        assert again == pytest.approx(value, rel=1e-13)
        np.testing.assert_allclose(slope, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("function", ALL)
def test_the_seed_decides_and_no_global_state_moves(function):
    x, y = make_samples(9, 6, 4)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    first = function(x, y, seed=3)
    after = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(after[0], before[0], strict=True))
    assert torch.equal(after[1], before[1])
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert_same_bits(function(x, y, seed=3), first)
    other = function(x, y, seed=4)
    assert other != first if isinstance(first, float) else other[0] != first[0]


@pytest.mark.parametrize("function", ALL)
def test_memory_does_not_grow_with_the_number_of_directions(function):
    x, y = make_samples(64, 64, 32)

    def peak(k: int) -> int:
        tracemalloc.start()
        try:
            function(x, y, n_projections=k)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(8192) < 1.2 * peak(512)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_bits_do_not_depend_on_threads(weighted, dtype):
    x, y = make_samples(301, 170, 230, dtype=dtype)  # enough to be shared
    weights = make_weights(301, 170) if weighted else {}
    before = torch.get_num_threads()
    results = []
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            results.append(
                tuple(np.asarray(z) for f in GRADIENTS.values() for z in f(x, y, n_projections=300, **weights))
            )
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same_bits(result, results[0])


# ---- properties ----

coordinate = st.floats(-100, 100, width=32).map(lambda v: round(v, 3))


@st.composite
def clouds(draw, count=2):
    """So many sets of samples in the same dimension, and directions for them."""
    d, k = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    sets = []
    for _ in range(count):
        n = draw(st.integers(1, 9))
        sets.append(np.array(draw(st.lists(coordinate, min_size=n * d, max_size=n * d))).reshape(n, d))
    return *sets, make_directions(d, k, seed=draw(st.integers(0, 100)))


@BOTH
@bounded
@given(drawn=clouds(), p=st.sampled_from(POWERS))
def test_distance_is_symmetric_and_never_negative(kind, drawn, p):
    x, y, directions = drawn
    distance = VALUES[kind](x, y, p, projections=directions)
    assert distance >= 0
    assert VALUES[kind](y, x, p, projections=directions) == pytest.approx(distance, rel=1e-9, abs=1e-9)


@BOTH
@bounded
@given(drawn=clouds(count=1), p=st.sampled_from(POWERS), random=st.randoms(use_true_random=False))
def test_a_permuted_copy_is_at_distance_zero_and_pulls_nowhere(kind, drawn, p, random):
    """Exactly: the kernel that projects treats every row alike, which a BLAS need not."""
    x, directions = drawn
    order = list(range(len(x)))
    random.shuffle(order)
    distance, gradient = GRADIENTS[kind](x, x[order], p, projections=directions)
    assert distance == 0
    assert (gradient == 0).all()


@BOTH
@bounded
@given(drawn=clouds(count=1), p=st.sampled_from(POWERS), length=st.floats(-50, 50))
def test_a_translation_costs_what_it_moves_along_each_direction(kind, drawn, p, length):
    x, directions = drawn
    shift = length * directions[:, 0]
    along = np.abs(shift @ directions) ** p
    expected = (along.mean() if kind == "mean" else along.max()) ** (1 / p)
    assert VALUES[kind](x + shift, x, p, projections=directions) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@BOTH
@bounded
@given(drawn=clouds(), p=st.sampled_from(POWERS), exponent=st.integers(-6, 6))
def test_distance_scales_with_the_samples_and_its_gradient_does_not(kind, drawn, p, exponent):
    x, y, directions = drawn
    c = 2.0**exponent  # exact: samples that tie still do
    distance, gradient = GRADIENTS[kind](x, y, p, projections=directions)
    again, slope = GRADIENTS[kind](c * x, c * y, p, projections=directions)
    assert again == pytest.approx(c * distance, rel=1e-12)
    np.testing.assert_allclose(slope, gradient, rtol=1e-9, atol=1e-12)


@BOTH
@bounded
@given(drawn=clouds(count=3), p=st.sampled_from(POWERS))
def test_triangle_inequality(kind, drawn, p):
    x, y, z, directions = drawn
    xy, yz, xz = (VALUES[kind](a, b, p, projections=directions) for a, b in ((x, y), (y, z), (x, z)))
    assert xz <= xy + yz + 1e-9 * (1 + xz)


@bounded
@given(drawn=clouds(), p=st.sampled_from(POWERS))
def test_the_mean_is_no_larger_than_the_maximum(drawn, p):
    x, y, directions = drawn
    mean, largest = (value(x, y, p, projections=directions) for value in VALUES.values())
    assert mean <= largest * (1 + 1e-12)


@BOTH
def test_going_down_the_gradient_brings_the_samples_to_the_target(kind):
    x, y = make_samples(40, 40, 3)
    start = VALUES[kind](x, y)
    for _ in range(100):
        distance, gradient = GRADIENTS[kind](x, y)
        x = x - 0.5 * distance * gradient * len(x)
    assert VALUES[kind](x, y) < 0.3 * start


# ---- what comes in ----


@BOTH
def test_a_direction_of_length_zero_sees_no_distance(kind):
    x, y = make_samples(4, 4, 3)
    distance, gradient = GRADIENTS[kind](x, y, projections=np.zeros((3, 2)))
    assert distance == 0
    assert (gradient == 0).all()
    one = make_directions(3, 1)
    both = sliced_wasserstein(x, y, projections=np.hstack([one, 0 * one]))
    assert both == pytest.approx(sliced_wasserstein(x, y, projections=one) / np.sqrt(2), rel=1e-12)


def test_any_real_array_is_taken_and_left_as_it_was():
    x, y = make_samples(5, 4, 3)
    directions = make_directions(3, 6)
    expected = sliced_wasserstein(x, y, projections=directions)
    given = np.asfortranarray(x), y[:, ::-1].copy()[:, ::-1], directions.T.copy().T
    before = tuple(z.copy() for z in given)
    assert sliced_wasserstein(given[0], given[1], projections=given[2]) == expected
    assert sliced_wasserstein(x.tolist(), torch.from_numpy(y), projections=directions.tolist()) == expected
    assert sliced_wasserstein(x, y, n_projections=np.int64(3)) == sliced_wasserstein(x, y, n_projections=3)
    assert_same_bits(given, before)
    assert sliced_wasserstein_grad(x.astype(np.float32), y)[1].dtype == np.float64


GOOD = np.zeros((2, 3))
HUGE = np.full((2, 3), 1e308)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"target": np.zeros((2, 4))}, ValueError, r"target \(m, d\).*got \(2, 3\) and \(2, 4\)"),
        ({"source": np.zeros((0, 3))}, ValueError, r"none empty; got \(0, 3\)"),
        ({"source": [["a"]]}, TypeError, "source: expected real numbers, got dtype <U1"),
        ({"target": [[1, 2, np.nan]]}, ValueError, r"target: expected finite values, got nan at \[0, 2\]"),
        ({"p": 0.5}, ValueError, "p: expected.*at least 1, got 0.5"),
        ({"p": "2"}, TypeError, "p: expected a number, got str"),
        ({"source_weights": [1.0]}, ValueError, r"source_weights: expected shape \(2,\).*got \(1,\)"),
        ({"target_weights": [1.0, -1.0]}, ValueError, r"target_weights: .*none negative"),
        ({"n_projections": 0}, ValueError, "n_projections: expected at least 1, got 0"),
        ({"n_projections": -3}, ValueError, "n_projections: expected at least 1, got -3"),
        ({"n_projections": 2.0}, TypeError, "n_projections: expected an integer, got float"),
        ({"n_projections": True}, TypeError, "n_projections: expected an integer, got bool"),
        ({"n_projections": None}, TypeError, "n_projections: expected an integer, got NoneType"),
        ({"seed": -1}, ValueError, "non-negative"),
        ({"projections": np.zeros((4, 2))}, ValueError, r"projections: expected \(3, k\).*got \(4, 2\)"),
        ({"projections": np.zeros(3)}, ValueError, r"projections: expected \(3, k\).*got \(3,\)"),
        ({"projections": np.zeros((3, 0))}, ValueError, r"projections: expected \(3, k\).*got \(3, 0\)"),
        ({"projections": np.full((3, 1), 1j)}, TypeError, "projections: expected real numbers, got dtype complex128"),
        ({"projections": np.full((3, 1), np.inf)}, ValueError, "projections: expected finite values of float64"),
        ({"source": HUGE, "projections": np.ones((3, 1))}, ValueError, "source: .*projections fit into float64; scale"),
        ({"target": HUGE, "projections": np.ones((3, 1))}, ValueError, "target: .*projections fit into float64; scale"),
        ({"source": HUGE / 100}, ValueError, "whose power of 2 fits into float64; scale"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, error, says):
    for function in ALL:
        with pytest.raises(error, match=says):
            function(**{"source": GOOD, "target": GOOD, **arguments})


def test_directions_too_large_for_float32_samples_are_refused():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="projections: expected finite values of float32"):
        sliced_wasserstein(x, x, projections=np.full((3, 1), 1e39))
