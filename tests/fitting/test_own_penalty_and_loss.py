"""A penalty and a loss that lineas does not have, each an object of its user's own, in both recipes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import Mlp, normal

import lineas
from lineas.fitting.losses import Loss
from lineas.penalties import L1, Penalty, ProximalStep

SIDES = normal(16, 4), normal(14, 4, seed=1, shift=1.0)
GRID = np.linspace(-2, 2, 4001)[:, None]  # logarithms of weights


@dataclass(frozen=True)
class LogElasticNet:
    """l1 |log w| + l2 / 2 (log w)^2 of the weights, which stay positive; the same of 1 + |bias| for the biases."""

    l1: float
    l2: float = 0.0

    def of(self, logarithm):
        return self.l1 * np.abs(logarithm) + self.l2 / 2 * logarithm**2

    def value(self, weight, bias, sizes):
        weight, bias = np.asarray(weight, float), np.asarray(bias, float)
        return float(self.of(np.log(weight)).sum() + self.of(np.log1p(np.abs(bias))).sum())

    def proximal_step(self, x, gradient, sizes, step):
        t = np.broadcast_to(np.asarray(step, float), x.shape)
        v = x.astype(float) if gradient is None else x - t * gradient
        weight, bias = np.split(v, 2)
        t_weight, t_bias = np.split(np.maximum(t, 1e-30), 2)
        size = np.where(GRID >= 0, np.expm1(np.abs(GRID)), np.inf)  # of a bias, whose sign is that of v
        best_weight = np.argmin(self.of(GRID) + (np.exp(GRID) - weight) ** 2 / (2 * t_weight), axis=0)
        best_bias = np.argmin(self.of(GRID) + (size - np.abs(bias)) ** 2 / (2 * t_bias), axis=0)
        new = np.concatenate([np.exp(GRID[best_weight, 0]), np.sign(bias) * size[best_bias, 0]])
        new = np.where(t == 0, x, new).astype(np.float32)
        move = new.astype(float) - x
        slope = 0.0 if gradient is None else float((gradient * move).sum())
        return ProximalStep(new, self.value(*np.split(new, 2), sizes), slope, float((move**2).sum()))


@dataclass(frozen=True)
class Huberised:
    """The distance up to `knee`, and from there on only in proportion to its root, so that far units pull no harder."""

    knee: float
    needs_noise: bool = False

    def of_distance(self, distance, noise):
        root = np.sqrt(np.maximum(distance, 1e-300))
        far = distance > self.knee
        value = np.where(far, 2 * np.sqrt(self.knee) * root - self.knee, distance)
        return value, np.where(far, np.sqrt(self.knee) / root, 1.0)


def fit(**options):
    return lineas.fit(Mlp(), *SIDES, sites="first|second", progress=False, **options)


def flat(steering):
    return np.concatenate([steering.weights, steering.biases])


@pytest.mark.parametrize("recipe", [{"recipe": "fast", "ridge": 0}, {"recipe": "published", "steps": 60}])
def test_an_elastic_net_on_log_weights_chooses_units(recipe):
    n = len(SIDES[0]) if recipe["recipe"] == "published" else 1  # that recipe's loss is a sum over samples
    penalty = LogElasticNet(0.01 * n, 0.01 * n)
    assert isinstance(penalty, Penalty)
    with_it, without = fit(penalty=penalty, **recipe), fit(**recipe)
    assert with_it.info["penalty"] == repr(penalty)
    assert (with_it.weights > 0).all()
    moved = {name: (np.abs(one.weights - 1) > 1e-5).sum() for name, one in (("with", with_it), ("without", without))}
    assert 0 < moved["with"] < moved["without"]
    history = with_it.history
    total = np.add(np.add(history["loss"], history["ridge"]), history["penalty"])
    np.testing.assert_allclose(history["objective"], total)
    assert min(history["objective"]) < 0.8 * history["objective"][0]
    if recipe["recipe"] == "fast":
        kept = [p for p, accepted in zip(history["penalty"], history["accepted"], strict=True) if accepted]
        assert kept[-1] == pytest.approx(penalty.value(with_it.weights, with_it.biases, [8, 8]), rel=1e-5)
        nudged = [fit_objective(with_it, penalty, k) for k in range(8)]
        assert min(nudged) > history["objective"][-1] - 2e-3 * history["objective"][0], "near a minimum of the sum"


def fit_objective(steering, penalty, seed):
    """The objective a little beside the fitted maps: one evaluation of a fit that starts there."""
    move = 0.02 * np.random.default_rng(seed).normal(size=flat(steering).shape).astype(np.float32)
    near = lineas.Steering.from_flat(steering.sites, steering.sizes.values(), flat(steering) + move)
    return fit(penalty=penalty, ridge=0, resume_from=near, max_evaluations=1).history["objective"][0]


class OwnL1:
    """L1, written anew: no class of lineas."""

    def __init__(self, l1):
        self.l1 = l1

    def value(self, weight, bias, sizes):
        return self.l1 * float(np.abs(np.asarray(weight, float) - 1).sum() + np.abs(np.asarray(bias, float)).sum())

    def proximal_step(self, x, gradient, sizes, step):
        center = np.repeat(np.array([1, 0], np.float32), len(x) // 2)
        v = x if gradient is None else x - np.float32(1) * np.asarray(step, np.float32) * gradient
        u = v - center
        new = (center + np.sign(u) * np.maximum(np.abs(u) - np.asarray(step) * self.l1, 0)).astype(np.float32)
        move = new.astype(float) - x
        slope = 0.0 if gradient is None else float((gradient * move).sum())
        return ProximalStep(new, self.value(*np.split(new, 2), sizes), slope, float((move**2).sum()))

    def __repr__(self):
        return f"OwnL1({self.l1})"


@pytest.mark.parametrize("recipe", [{}, {"recipe": "published", "steps": 30}])
def test_ones_own_l1_gives_what_the_librarys_gives(recipe):
    own, ours = fit(penalty=OwnL1(1e-2), **recipe), fit(penalty=L1(1e-2), **recipe)
    np.testing.assert_allclose(flat(own), flat(ours), atol=2e-3)
    assert own.history["objective"][-1] == pytest.approx(ours.history["objective"][-1], rel=1e-3)
    assert len(own.history["loss"]) == len(ours.history["loss"])


def test_a_huberised_distance_is_what_is_minimised():
    loss = Huberised(0.05)
    assert isinstance(loss, Loss)
    steering, plain = fit(loss=loss, ridge=0), fit(loss="wasserstein", ridge=0)
    assert steering.info["loss"] == repr(loss)
    assert 0 < steering.history["loss"][0] < plain.history["loss"][0], "far units count less"
    assert steering.history["loss"][-1] < 0.2 * steering.history["loss"][0]
    assert np.abs(flat(steering) - flat(plain)).max() > 1e-3
    wide = fit(loss=Huberised(1e9), ridge=0)
    np.testing.assert_allclose(flat(wide), flat(plain), atol=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    """Through the problem that a fit minimises."""
    from lineas.fitting.model_loss import ModelLoss
    from lineas.fitting.source_passes import SourcePasses
    from lineas.network.data import as_batches
    from lineas.responses.probe import probe
    from lineas.responses.runner import Runner

    model = Mlp().eval().requires_grad_(False)
    (src,), (tgt,) = (as_batches(side, "src", model) for side in SIDES)
    layout = probe(model, lineas.find_sites(model, "first|second"), src)
    runner = Runner(model, layout, layout, "mean")
    problem = ModelLoss(SourcePasses(runner, [src]), [runner.collect([tgt])], Huberised(0.05))
    x = problem.identity() + 0.1 * np.random.default_rng(0).normal(size=2 * layout.units).astype(np.float32)
    gradient = problem.evaluate(x).gradient()
    for k in range(0, len(x), 5):
        ends = []
        for sign in (1, -1):
            near = x.copy()
            near[k] += np.float32(sign * 1e-2)
            ends.append(problem.evaluate(near).loss)
        assert gradient[k] == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.05, abs=2e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"penalty": torch.nn.ReLU()}, TypeError, "penalty: expected one of lineas.penalties, got ReLU, which has no"),
        ({"loss": 3}, ValueError, "loss: expected one of 'auto', .* got 3"),
        ({"loss": Huberised(1.0), "recipe": "published"}, ValueError, 'loss: expected "wasserstein"'),
    ],
)
def test_what_is_neither_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)
