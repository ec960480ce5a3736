"""The ridge in the metric of the model's output: what it measures, and what it does to a fit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LANGUAGE_MODELS, Mlp, assert_untouched, normal, snapshot, tiny

import lineas
from lineas.fitting import ridge
from lineas.network.data import as_batches
from lineas.network.sites import find_sites
from lineas.responses.probe import probe


def measure(model, inputs, sites, batch_size=None, seed=0, tokenizer=None):
    batches = as_batches(inputs, "inputs", model, tokenizer, batch_size)
    layout = probe(model, find_sites(model, sites), batches[0])
    return ridge.sensitivity(model, layout, batches, seed)


def without_floor(found):
    """The estimate itself, (3, N), as far as it is known: up to a factor."""
    share = ridge.FLOOR / (1 + ridge.FLOOR)
    return np.array([found.stretch - share, found.cross, found.shift - share])


class Classifier(torch.nn.Module):
    """Logits of four classes from three units."""

    def __init__(self, as_logits: bool):
        super().__init__()
        self.first, self.as_logits = torch.nn.Identity(), as_logits
        self.matrix = torch.nn.Parameter(normal(3, 4, seed=5) * torch.tensor([[0.3], [1.0], [2.0]]))

    def forward(self, x):
        out = self.first(x) @ self.matrix
        return SimpleNamespace(logits=out) if self.as_logits else out


@pytest.mark.parametrize("as_logits", [True, False])
def test_sensitivity_is_the_fisher_information_or_the_squared_move(as_logits):
    """One sample thousands of times: the mean over what is drawn is the exact sum over labels, or over outputs."""
    model, x = Classifier(as_logits), normal(1, 3, seed=2)
    out = x[0] @ model.matrix.detach()
    p = out.softmax(0)
    # Derivative of log p(label) for each unit, label by label; of each output, for other outputs.
    by_unit = model.matrix.detach() - (model.matrix.detach() @ p)[:, None] if as_logits else model.matrix.detach()
    share = p if as_logits else torch.ones(4)
    shift = (share * by_unit**2).sum(1)
    expected = torch.stack([x[0] ** 2 * shift, x[0] * shift, shift]).double().numpy() / shift.mean().item()
    found = without_floor(measure(model, x.repeat(20_000, 1), "first"))
    np.testing.assert_allclose(found * (1 + ridge.FLOOR), expected, rtol=0.05)


def test_value_and_gradient_are_those_of_the_quadratic_form():
    draw = np.random.default_rng(0)
    form = ridge.Ridge(*draw.uniform(0.5, 1, (3, 7)))
    x = torch.tensor(draw.normal(size=14), dtype=torch.float32, requires_grad=True)
    u, b = x[:7] - 1, x[7:]
    stretch, cross, shift = (torch.from_numpy(part) for part in (form.stretch, form.cross, form.shift))
    expected = 0.3 * (stretch * u**2 + 2 * cross * u * b + shift * b**2).sum()
    expected.backward()
    value, gradient = form.value_and_gradient(x.detach().numpy(), 0.3)
    assert value == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-5)
    assert gradient.dtype == np.float32


@pytest.mark.parametrize("kind", [*LANGUAGE_MODELS, "bert"])
def test_how_samples_are_batched_and_padded_changes_nothing(kind, texts, tokenizer, monkeypatch):
    model = tiny(kind)
    before = snapshot(model)
    whole = measure(model, texts[1], None, tokenizer=tokenizer)
    np.testing.assert_allclose(whole.shift.mean(), 1)
    assert (whole.stretch * whole.shift >= whole.cross**2).all(), "a quadratic form that is never negative"
    monkeypatch.setattr(ridge, "LARGEST", 1)  # a sample at a time
    parts = measure(model, texts[1], None, batch_size=3, tokenizer=tokenizer)
    for name in ("stretch", "cross", "shift"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=2e-3, atol=2e-4)
    assert_untouched(model, before)


def test_labels_come_from_the_seed_and_not_from_the_global_state(tokenizer, texts):
    model = tiny("llama")
    first = measure(model, texts[1], None, tokenizer=tokenizer)
    torch.rand(3)
    again, other = (measure(model, texts[1], None, tokenizer=tokenizer, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.shift, first.shift)
    assert not np.allclose(other.shift, first.shift, rtol=1e-3)


def test_what_the_output_minds_more_is_moved_less():
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 3, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[5.0, 0.1]] * 3))
    x, y = normal(64, 2), normal(64, 2, seed=1, shift=1.0)
    steering = lineas.fit(net, x, y, sites="0", ridge=3.0, progress=False)
    minded, free = steering.bias("0")
    assert 0 < 2 * minded < free


def test_where_there_is_no_signal_the_maps_stay():
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(60, 60))
    x, y = normal(32, 60), normal(32, 60, seed=1)
    held, free = (lineas.fit(net, x, y, sites="0", ridge=r, progress=False) for r in (None, 0))
    assert held.info["ridge"] > 5
    assert np.linalg.norm(held.bias("0")) < 0.2 * np.linalg.norm(free.bias("0"))
    shifted = lineas.fit(net, x, y + 2, sites="0", progress=False)
    assert shifted.info["ridge"] < 0.1
    assert shifted.bias("0").mean() > 1.5


def test_the_ridge_is_part_of_the_objective_and_of_the_history():
    steering = lineas.fit(Mlp(), normal(14, 4), normal(11, 4, seed=1, shift=0.7), sites="first", progress=False)
    history = steering.history
    assert history["ridge"][0] == 0
    assert history["ridge"][-1] > 0
    np.testing.assert_allclose(history["objective"], np.add(history["loss"], history["ridge"]), rtol=1e-12)
    kept = [o for o, a in zip(history["objective"], history["accepted"], strict=True) if a]
    assert kept == sorted(kept, reverse=True)


def test_an_output_that_is_no_tensor_is_refused_with_its_type():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(4, 4)

        def forward(self, x):
            return str(self.first(x).sum().item())

    net = Odd()
    before = snapshot(net)
    with pytest.raises(TypeError, match="expected a model whose output is, or holds, a tensor; got str"):
        lineas.fit(net, normal(5, 4), normal(5, 4), sites="first", progress=False)
    assert_untouched(net, before)
    lineas.fit(net, normal(5, 4), normal(5, 4), sites="first", ridge=0, progress=False)


# -- the price along the maps --


def test_predicted_divergence_is_that_of_small_maps():
    """One sample thousands of times: the mean over drawn labels is the Fisher form, half of which is the divergence."""
    model, x = Classifier(True), normal(1, 3, seed=2)
    draw = np.random.default_rng(3)
    moves = 1e-2 * draw.normal(size=6)
    maps = (np.array([1, 1, 1, 0, 0, 0]) + moves).astype(np.float32)
    weight, bias = torch.from_numpy(maps).double().split(3)
    plain = (x[0].double() @ model.matrix.double()).log_softmax(0)
    steered = ((x[0].double() * weight + bias) @ model.matrix.double()).log_softmax(0)
    exact = float((plain.exp() * (plain - steered)).sum())
    found = measure(model, x.repeat(20_000, 1), "first").divergences(maps)
    assert found.shape == (20_000,)
    assert found.mean() == pytest.approx(exact, rel=0.05)
    assert measure(model, x.repeat(3, 1), "first").divergences(np.array([1, 1, 1, 0, 0, 0], np.float32)).max() == 0
    assert len(measure(Classifier(False), x.repeat(3, 1), "first").divergences(maps)) == 0, "of what is no logits"


def test_predicted_divergence_of_texts_is_by_token_and_knows_no_padding(llama, tokenizer):
    texts = ["the movie was", "a long long text about everything that there is", "so"]
    sites = r"model\.layers\.0\.post_attention_layernorm"
    alone = [measure(llama, [t, t], sites, tokenizer=tokenizer, batch_size=1) for t in texts]
    together = measure(llama, texts, sites, tokenizer=tokenizer)
    units = len(together.stretch)
    x = np.concatenate([np.full(units, 1.1), np.full(units, 0.05)]).astype(np.float32)
    assert together.divergences(x)[0] == pytest.approx(alone[0].divergences(x)[0], rel=1e-3)
    parts = measure(llama, texts, sites, tokenizer=tokenizer, batch_size=2).divergences(x)
    np.testing.assert_allclose(parts, together.divergences(x), rtol=1e-3)


def test_rows_are_kept_as_far_as_there_is_room(monkeypatch):
    monkeypatch.setattr(ridge, "ROOM", 2 * 3 * 5)
    found = measure(Classifier(True), normal(12, 3), "first", batch_size=4)
    assert found.rows.shape == (5, 6)
    monkeypatch.setattr(ridge, "ROOM", 5)
    assert measure(Classifier(True), normal(12, 3), "first").rows is None
