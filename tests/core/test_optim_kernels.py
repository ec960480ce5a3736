"""The optimisers' vector work, one call at a time and against whole runs of torch.optim."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same_bits, bounded

from lineas import optim
from lineas.core import _core, reference

COUNTS = (2, 4, 30, 32, 34, 2050, 40_000)  # halves of 1, odd, a SIMD width and one more; several blocks


def make_vectors(count: int, how_many: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(how_many, count)).astype(np.float32))


def exact(*vectors: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(v.astype(np.float64)) for v in vectors)


# ---- one call, against the reference ----


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", COUNTS)
def test_sgd_matches_the_reference(count, momentum):
    x, velocity, gradient = make_vectors(count, 3)
    expected = reference.sgd(*exact(x, velocity, gradient), 0.3, momentum)
    before = gradient.copy()
    assert _core.sgd(x, velocity, gradient, 0.3, momentum, 2) is None
    for got, right in zip((x, velocity), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-6, atol=1e-6)
    assert_same_bits(gradient, before)


@pytest.mark.parametrize("count", [1, *COUNTS])
def test_sgd_without_a_velocity_is_a_gradient_step(count):
    x, gradient = make_vectors(count, 2)
    expected, still = x - np.float32(0.3) * gradient, x.copy()
    _core.sgd(still, np.zeros_like(x), gradient, 0.3, 0.0, 1)
    _core.sgd(x, None, gradient, 0.3, 0.0, 1)
    assert_same_bits(x, expected)
    assert_same_bits(x, still)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("iteration", [1, 2, 100, 10**6])
@pytest.mark.parametrize("count", COUNTS)
def test_adam_matches_the_reference(count, iteration, decay):
    x, first, second, gradient = make_vectors(count, 4)
    second = np.abs(second)
    settings = 0.01, 0.9, 0.99, 1e-8, decay, iteration
    expected = reference.adam(*exact(x, first, second, gradient), *settings)
    before = gradient.copy()
    assert _core.adam(x, first, second, gradient, *settings, 2) is None
    for got, right in zip((x, first, second), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-6)
    assert_same_bits(gradient, before)


@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_the_first_adam_step_is_the_rate_in_the_gradients_direction(epsilon):
    x, first, second = np.zeros((3, 4), np.float32)
    gradient = np.array([3, -3, 1e-3, 0], np.float32)
    _core.adam(x, first, second, gradient, 0.25, 0.9, 0.999, epsilon, 0.0, 1, 1)
    np.testing.assert_allclose(x, -0.25 * gradient / (np.abs(gradient) + epsilon), rtol=1e-4)


def test_decay_alone_pulls_maps_towards_the_identity():
    x = np.array([3, 1, 0.5, 2, 0, -4], np.float32)
    zeros = np.zeros((3, 6), np.float32)
    _core.adam(x, *zeros, 0.5, 0.9, 0.999, 1e-8, 0.2, 1, 1)
    np.testing.assert_allclose(x, [2.8, 1, 0.55, 1.8, 0, -3.6], rtol=1e-6)


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


RUNS = (2, 34, 2050)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("count", RUNS)
def test_sgd_follows_torch(count, momentum):
    x, curvature, minimum = quadratic(count)
    velocity = np.zeros_like(x) if momentum else None
    for _ in range(50):
        _core.sgd(x, velocity, curvature * (x - minimum), 0.05, momentum, 1)
    expected = run_torch(lambda params: torch.optim.SGD(params, 0.05, momentum=momentum), count, 50)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.9), (0.0, 0.5)])
@pytest.mark.parametrize("count", RUNS)
def test_adam_follows_torch(count, betas):
    x, curvature, minimum = quadratic(count)
    first, second = np.zeros((2, count), np.float32)
    for k in range(50):
        _core.adam(x, first, second, curvature * (x - minimum), 0.02, *betas, 1e-8, 0.0, k + 1, 1)
    expected = run_torch(lambda params: torch.optim.Adam(params, 0.02, betas=betas), count, 50)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [0.01, 0.5])
@pytest.mark.parametrize("count", RUNS)
def test_adam_with_decay_follows_torchs_adamw_on_the_distance_from_the_identity(count, decay):
    start, curvature, minimum = quadratic(count)
    center = np.repeat(np.float32([1, 0]), count // 2)
    x, (first, second) = start + center, np.zeros((2, count), np.float32)
    for k in range(50):
        gradient = curvature * (x - center - minimum)
        _core.adam(x, first, second, gradient, 0.02, 0.9, 0.999, 1e-8, decay, k + 1, 1)
    expected = run_torch(lambda params: torch.optim.AdamW(params, 0.02, weight_decay=decay), count, 50)
    np.testing.assert_allclose(x - center, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "rival"),
    [
        ("sgd", lambda params: torch.optim.SGD(params, 0.1)),
        ("momentum", lambda params: torch.optim.SGD(params, 0.01, momentum=0.9)),
        ("adam", lambda params: torch.optim.Adam(params, 0.01, betas=(0.9, 0.9))),
        ("adamw", lambda params: torch.optim.AdamW(params, 0.01, weight_decay=0.01)),
    ],
)
def test_optimizers_are_those_of_torch_at_their_own_learning_rates(name, rival):
    u, curvature, minimum = quadratic(34)
    center = np.repeat(np.float32([1, 0]), 17)
    x, update = u + center, optim.OPTIMIZERS[name]()
    for _ in range(30):
        update.step(x, curvature * (x - center - minimum), update.learning_rate)
    np.testing.assert_allclose(x - center, run_torch(rival, 34, 30), rtol=1e-4, atol=2e-5)


def test_sgd_on_a_cosine_follows_torch():
    x, curvature, minimum = quadratic(17)
    for k in range(40):
        _core.sgd(x, None, curvature * (x - minimum), _core.cosine(0.1, 1e-4, k, 40), 0.0, 1)
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
        assert got == pytest.approx(reference.cosine(rate, floor, at, total), rel=1e-14, abs=1e-16)
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
        _core.adam(x, first, second, gradient, 0.1, 0.9, 0.9, 1e-8, 0.0, iteration, 1)
    assert_same_bits((x, first, second), before)
