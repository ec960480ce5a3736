"""Losses that leave out what sampling alone explains: against torch, at the identity and away from it."""

import numpy as np
import pytest
import torch
from conftest import SOURCE, TARGET, Mlp, normal

import lineas
from lineas.core import ops
from lineas.core.reference import wasserstein
from lineas.fitting import losses
from lineas.network.sites import Site
from lineas.responses.layout import Layout


def fit(loss, **options):
    return lineas.fit(Mlp(), SOURCE, TARGET, sites="first|second", loss=loss, progress=False, **options)


def problem(n=12, m=9, units=40):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(n, units)).astype(np.float32), draw.normal(size=(m, units)).astype(np.float32)
    y[:, ::2] += 1.5  # half of the units are shifted, half differ by chance
    return x, y, draw.uniform(0.5, 1, size=units)


@pytest.mark.parametrize("loss", ["excess", "significant"])
def test_what_counts_is_what_torch_differentiates(loss):
    x, y, coefficient = problem()
    noise = losses.sampling_noise(x, y)
    assert (noise.p_value < losses.LEVEL).any()
    assert (noise.p_value >= losses.LEVEL).any()
    source = torch.from_numpy(x).double().requires_grad_()
    cost = wasserstein(source, torch.from_numpy(y).double())
    if loss == "excess":
        expected = torch.from_numpy(coefficient) * (cost - torch.from_numpy(noise.mean)).clamp(min=0)
    else:
        expected = torch.from_numpy(coefficient * (noise.p_value < losses.LEVEL)) * cost
    expected.sum().backward()
    unit_loss, slopes = ops.loss(x, ops.prepare_target(y), coefficient)
    value, derivative = losses.find(loss).of_distance(unit_loss / coefficient, noise)
    unit_loss, slopes = coefficient * value, slopes * derivative.astype(np.float32)
    np.testing.assert_allclose(unit_loss, expected.detach(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slopes, source.grad, rtol=1e-5, atol=1e-7)
    assert slopes.dtype == np.float32
    assert (unit_loss[1::2] == 0).any(), "some unit differs by chance alone"


def test_sampling_noise_is_the_null_of_the_two_sets_and_costs_the_same_for_more_samples(monkeypatch):
    asked = []

    class Noted:
        def __init__(self, n, m, count):
            asked.append(count)

        def null(self, x, y, device):
            return np.zeros((3, 0))

    monkeypatch.setattr(losses, "Relabellings", Noted)
    for n in (32, 128, 1000, 4096, 10**6):
        losses.sampling_noise(np.zeros((n, 0)), np.zeros((n, 0)))
    assert asked == [1000, 1000, 128, 99, 99]


def test_fit_counts_what_the_loss_says():
    started = {name: fit(name).history["loss"][0] for name in losses.LOSSES}
    assert 0 < started["excess"] < started["wasserstein"]
    assert 0 < started["significant"] <= started["wasserstein"]
    steering = fit("excess")
    assert steering.info["loss"] == "excess"
    assert steering.history["loss"][-1] < 0.5 * steering.history["loss"][0]


def test_noise_is_that_of_the_unsteered_sources_wherever_the_fit_starts():
    first = fit("excess")
    again = fit("excess", resume_from=first, max_evaluations=1)
    kept = [v for v, accepted in zip(first.history["loss"], first.history["accepted"], strict=True) if accepted]
    assert again.history["loss"][0] == pytest.approx(kept[-1], rel=1e-6)


def test_units_that_differ_by_chance_alone_are_left_where_they_are():
    """Source and target from one distribution, at one site: most of what "wasserstein" does is to fit noise."""
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(60, 60))
    x, y = normal(32, 60), normal(32, 60, seed=1)
    moved = {}
    for loss in ("wasserstein", "excess"):
        steering = lineas.fit(net, x, y, sites="0", loss=loss, ridge=0, progress=False)
        moved[loss] = np.linalg.norm(steering.bias("0"))
    assert moved["excess"] < 0.7 * moved["wasserstein"]


def test_micro_batches_and_one_batch_discount_alike():
    one, several = fit("excess", max_evaluations=3), fit("excess", max_evaluations=3, batch_size=5)
    np.testing.assert_allclose(one.history["loss"], several.history["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 5e-3),
        ({"loss": "significant"}, 5e-3),
        ({"loss": "wasserstein"}, 5e-3),  # the ridge stands for the noise
        ({"loss": "wasserstein", "ridge": 0}, 1e-3),
    ],
)
def test_only_the_plain_loss_is_minimised_to_its_end(options, tolerance, monkeypatch):
    seen, whole = [], lineas.optim.fast
    monkeypatch.setattr(
        lineas.optim, "fast", lambda *args, **kwargs: seen.append(kwargs["tolerance"]) or whole(*args, **kwargs)
    )
    fit(**{"loss": "auto", **options})
    assert seen == [tolerance]


@pytest.mark.parametrize("batch_size", [None, 5])
def test_to_know_the_noise_costs_no_pass_of_its_own(batch_size):
    """What it must know of the unsteered sources comes from the pass that is the first evaluation."""
    calls = {}
    for loss in ("wasserstein", "excess"):
        model, seen = Mlp(), []
        model.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(1))
        options = {"loss": loss, "ridge": 0, "max_evaluations": 1, "batch_size": batch_size}
        lineas.fit(model, SOURCE, TARGET, sites="first|second", progress=False, **options)
        calls[loss] = len(seen)
    assert calls["excess"] == calls["wasserstein"] > 0


@pytest.mark.parametrize("options", [{}, {"ridge": 0}, {"penalty": lineas.penalties.SparseGroupLasso(1e-5, 1e-5)}])
def test_units_that_never_respond_are_left_alone_and_end_no_fit(options):
    sides = normal(64, 4), normal(64, 4, seed=1, shift=2.0)
    torch.manual_seed(0)
    dead = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    with torch.no_grad():
        dead[0].bias[:] = -100.0
    steering = lineas.fit(dead, *sides, sites="1", progress=False, **options)
    assert len(steering.history["loss"]) == 1
    assert not steering.support()["1"].size
    with torch.no_grad():
        dead[0].bias[:4] = 0.0
    steering = lineas.fit(dead, *sides, sites="1", progress=False, **options)
    assert np.isfinite(steering.history["objective"]).all()
    assert steering.history["objective"][-1] < 0.7 * steering.history["objective"][0]
    assert steering.support()["1"].max() < 4


def test_standardised_units_count_by_one_over_their_variance_and_sites_as_before():
    layout = Layout((Site("a", 3, "Linear"), Site("b", 2, "Linear")), (3, 2), (-1, -1), ("", ""))
    source, target = np.random.default_rng(0).normal(size=(2, 500, 5)) * [1, 2, 4, 1, 1e-9]
    found = losses.unit_weights("standardised", source, target, layout)
    np.testing.assert_allclose(losses.unit_weights("equal", source, target, layout), [1 / 6] * 3 + [1 / 4] * 2)
    np.testing.assert_allclose(found[:3] / found[0], [1, 1 / 4, 1 / 16], rtol=0.2)
    np.testing.assert_allclose([found[:3].sum(), found[3:].sum()], [0.5, 0.5])
    # A unit that is all but constant counts as if it varied a thousandth as much as the median.
    assert found[4] / found[3] == pytest.approx(2000, rel=0.2)


def test_a_fit_with_standardised_units_is_one_of_units_that_were_standardised():
    """Units at other scales, with the maps that this takes, fit as they do at their own."""
    draw = np.random.default_rng(0)
    scales = torch.tensor([1.0, 3.0, 10.0, 0.3])
    sides = [torch.from_numpy(draw.normal(size=(40, 4)).astype(np.float32)) + k * torch.ones(4) for k in range(2)]
    found = []
    for scale in (torch.ones(4), scales):
        net = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Identity())
        with torch.no_grad():
            net[0].weight.copy_(torch.diag(scale))
        options = {"sites": "0", "ridge": 0.0, "loss_weights": "standardised", "progress": False}
        options["loss"] = "wasserstein"
        found.append(lineas.fit(net, *sides, **options))
        assert found[-1].info["loss_weights"] == "standardised"
        before = [net[0](side).detach().numpy() for side in sides]
        weights = 1 / sum(side.var(0, dtype=float) for side in before)
        distance = wasserstein(*(torch.from_numpy(side).double() for side in before)).numpy()
        assert found[-1].history["loss"][0] == pytest.approx(float(weights / weights.sum() @ distance), rel=1e-4)
    np.testing.assert_allclose(found[1].weight("0"), found[0].weight("0"), atol=0.02)
    np.testing.assert_allclose(found[1].bias("0") / scales.numpy(), found[0].bias("0"), atol=0.02)
    plain = lineas.fit(net, *sides, sites="0", ridge=0.0, progress=False)
    assert plain.info["loss_weights"] == "equal"
