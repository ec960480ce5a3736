"""The optimisers' vector work, one call at a time and against whole runs of torch.optim."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same_bits, bounded

from lineas import _core, _reference

COUNTS = (1, 2, 15, 16, 17, 1025)


def make_vectors(count: int, how_many: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(how_many, count)).astype(np.float32))


def exact(*vectors: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(v.astype(np.float64)) for v in vectors)


# ---- one call, against the reference ----


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", COUNTS)
def test_sgd_matches_the_reference(count, momentum):
    x, velocity, gradient = make_vectors(count, 3)
    expected = _reference.sgd(*exact(x, velocity, gradient), 0.3, momentum)
    before = gradient.copy()
    assert _core.sgd(x, velocity, gradient, 0.3, momentum) is None
    for got, right in zip((x, velocity), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-6, atol=1e-6)
    assert_same_bits(gradient, before)


@pytest.mark.parametrize("count", COUNTS)
def test_sgd_without_a_velocity_is_a_gradient_step(count):
    x, gradient = make_vectors(count, 2)
    expected = _core.gradient_step(x, gradient, 0.3)
    still = x.copy()
    _core.sgd(still, np.zeros_like(x), gradient, 0.3, 0.0)
    _core.sgd(x, None, gradient, 0.3, 0.0)
    assert_same_bits(x, expected)
    assert_same_bits(x, still)


@pytest.mark.parametrize("iteration", [1, 2, 100, 10**6])
@pytest.mark.parametrize("count", COUNTS)
def test_adam_matches_the_reference(count, iteration):
    x, first, second, gradient = make_vectors(count, 4)
    second = np.abs(second)
    settings = 0.01, 0.9, 0.99, 1e-8, iteration
    expected = _reference.adam(*exact(x, first, second, gradient), *settings)
    before = gradient.copy()
    assert _core.adam(x, first, second, gradient, *settings) is None
    for got, right in zip((x, first, second), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-6)
    assert_same_bits(gradient, before)


@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_the_first_adam_step_is_the_rate_in_the_gradients_direction(epsilon):
    x, first, second = np.zeros((3, 4), np.float32)
    gradient = np.array([3, -3, 1e-3, 0], np.float32)
    _core.adam(x, first, second, gradient, 0.25, 0.9, 0.999, epsilon, 1)
    np.testing.assert_allclose(x, -0.25 * gradient / (np.abs(gradient) + epsilon), rtol=1e-4)


@pytest.mark.parametrize("count", COUNTS)
def test_gradient_step_makes_a_new_vector(count):
    x, gradient = make_vectors(count, 2)
    before = x.copy(), gradient.copy()
    out = _core.gradient_step(x, gradient, 0.7)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, x.astype(float) - 0.7 * gradient.astype(float), rtol=1e-6, atol=1e-6)
    assert_same_bits((x, gradient), before)
    assert not np.shares_memory(out, x)


@pytest.mark.parametrize("count", COUNTS)
def test_movement_is_summed_in_float64(count):
    to, start, gradient = make_vectors(count, 3)
    slope, square = _core.movement(to, start, gradient)
    move = to.astype(float) - start
    assert slope == pytest.approx(float(move @ gradient.astype(float)), rel=1e-12, abs=1e-12)
    assert square == pytest.approx(float(move @ move), rel=1e-12)


def test_movement_keeps_small_terms_beside_large_ones():
    to = np.array([1e7, *[1.0] * 1000], np.float32)
    slope, square = _core.movement(to, np.zeros_like(to), to)
    assert slope == square == 1e14 + 1000


def test_staying_put_is_no_movement():
    x, gradient = make_vectors(33, 2)
    assert _core.movement(x, x, gradient) == (0, 0)


# ---- whole runs, against torch.optim ----


def quadratic(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, curvatures and minimum."""
    start, curvature, minimum = make_vectors(count, 3, seed=5)
    return start, np.abs(curvature) + 0.1, minimum


def run_torch(make_optimizer, count: int, iterations: int, make_scheduler=None) -> np.ndarray:
    start, curvature, minimum = map(torch.from_numpy, quadratic(count))
    x = start.clone().requires_grad_()
    optimizer = make_optimizer([x])
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    for _ in range(iterations):
        x.grad = curvature * (x.detach() - minimum)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return x.detach().numpy()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("count", [1, 17, 1025])
def test_sgd_follows_torch(count, momentum):
    x, curvature, minimum = quadratic(count)
    velocity = np.zeros_like(x) if momentum else None
    for _ in range(50):
        _core.sgd(x, velocity, curvature * (x - minimum), 0.05, momentum)
    expected = run_torch(lambda params: torch.optim.SGD(params, 0.05, momentum=momentum), count, 50)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.9), (0.0, 0.5)])
@pytest.mark.parametrize("count", [1, 17, 1025])
def test_adam_follows_torch(count, betas):
    x, curvature, minimum = quadratic(count)
    first, second = np.zeros((2, count), np.float32)
    for k in range(50):
        _core.adam(x, first, second, curvature * (x - minimum), 0.02, *betas, 1e-8, k + 1)
    expected = run_torch(lambda params: torch.optim.Adam(params, 0.02, betas=betas), count, 50)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)


def test_sgd_on_a_cosine_follows_torch():
    x, curvature, minimum = quadratic(17)
    for k in range(40):
        _core.sgd(x, None, curvature * (x - minimum), _core.cosine(0.1, 1e-4, k, 40), 0.0)
    expected = run_torch(
        lambda params: torch.optim.SGD(params, 0.1), 17, 40,
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=1e-4),
    )  # fmt: skip
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rate", "floor", "total"), [(0.1, 1e-4, 1000), (1.0, 0.0, 7), (0.3, 0.3, 5), (0.1, 0.2, 1)])
def test_cosine_is_the_schedule_of_torch(rate, floor, total):
    optimizer = torch.optim.SGD([torch.zeros(1)], rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, eta_min=floor)
    for at in range(total):
        got = _core.cosine(rate, floor, at, total)
        assert got == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9, abs=1e-12)
        assert got == pytest.approx(_reference.cosine(rate, floor, at, total), rel=1e-14, abs=1e-16)
        optimizer.step()
        scheduler.step()


@bounded
@given(st.floats(1e-3, 10), st.floats(0, 1), st.integers(1, 500))
def test_cosine_falls_from_rate_to_floor(rate, part, total):
    floor = part * rate
    rates = [_core.cosine(rate, floor, at, total) for at in range(total + 1)]
    assert rates[0] == pytest.approx(rate, rel=1e-15)
    assert rates[-1] == pytest.approx(floor, abs=1e-15 * rate)
    assert all(a >= b - 1e-15 * rate for a, b in pairwise(rates))
    assert math.fsum(rates) / (total + 1) == pytest.approx((rate + floor) / 2)  # symmetric about its middle


@pytest.mark.parametrize(("at", "total"), [(-1, 10), (11, 10), (0, 0), (0, -5)])
def test_cosine_refuses_what_is_off_the_schedule(at, total):
    with pytest.raises(ValueError, match=rf"at, total: expected 0 <= at <= total.*got {at}, {total}"):
        _core.cosine(0.1, 0.01, at, total)


@pytest.mark.parametrize("iteration", [0, -1])
def test_adam_counts_iterations_from_one(iteration):
    x, first, second, gradient = make_vectors(4, 4)
    before = x.copy(), first.copy(), second.copy()
    with pytest.raises(ValueError, match=f"iteration: expected at least 1, got {iteration}"):
        _core.adam(x, first, second, gradient, 0.1, 0.9, 0.9, 1e-8, iteration)
    assert_same_bits((x, first, second), before)
