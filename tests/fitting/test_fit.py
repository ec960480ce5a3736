"""lineas.fit: what it learns, what it records, and what it leaves alone."""

import numpy as np
import pytest
import torch
from conftest import LANGUAGE_MODELS, SOURCE, TARGET, Mlp, assert_untouched, normal, snapshot, tiny

import lineas
from lineas import optim
from lineas.core import reference
from lineas.fitting.source_passes import SourcePasses
from lineas.penalties import L1, SparseGroupLasso


def fit(model, src=SOURCE, tgt=TARGET, **options):
    """The plain loss: without the ridge, which looks through the whole model (tests/test_ridge.py)."""
    return lineas.fit(
        model, src, tgt, progress=False, **{"sites": "first|second", "loss": "wasserstein", "ridge": 0.0, **options}
    )


def falls(steering, by=0.5):
    loss = steering.history["loss"]
    return loss[-1] < by * loss[0]


@pytest.mark.parametrize("kind", [*LANGUAGE_MODELS, "bert"])
def test_language_models_and_encoders_are_steered_from_texts(kind, texts, tokenizer):
    model = tiny(kind)
    before = snapshot(model)
    steering = lineas.fit(model, *texts, tokenizer=tokenizer, progress=False)
    assert falls(steering)
    assert len(steering.sites) == 3
    assert_untouched(model, before)


def conv_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(2, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.ReLU(), torch.nn.Conv2d(5, 3, 3)
        )


def test_a_conv_net_is_steered_along_its_channels():
    net = conv_net()
    steering = lineas.fit(
        net, normal(8, 2, 7, 7), normal(9, 2, 7, 7, seed=1, shift=1.0), sites=["0", "3"], progress=False
    )
    assert [len(steering.weight(name)) for name in steering.sites] == [5, 3]
    assert falls(steering)


class TupleNet(torch.nn.Module):
    """Modules that return tuples and a module that returns a tensor."""

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.inner = torch.nn.Linear(4, 6)

        def forward(self, x):
            h = self.inner(x)
            return h, (h * 2)[:, :3]

    def __init__(self):
        super().__init__()
        self.pair, self.tensor = self.Pair(), torch.nn.Tanh()

    def forward(self, x):
        h, extra = self.pair(x)
        return self.tensor(h).sum(1) + extra.sum(1)


def test_items_of_tuples_are_sites_of_their_own():
    steering = fit(TupleNet(), sites=["pair:1", "pair:0", "tensor"])
    assert {name: len(steering.weight(name)) for name in steering.sites} == {"pair:1": 3, "pair:0": 6, "tensor": 6}
    assert falls(steering)
    (only,) = fit(TupleNet(), sites="pair").sites
    assert only == "pair"


def test_every_form_of_input_gives_the_same_steering():
    data = torch.utils.data.TensorDataset
    loader = torch.utils.data.DataLoader
    plain = fit(Mlp())
    for src, tgt in (
        ({"x": SOURCE}, {"x": TARGET}),
        (data(SOURCE), data(TARGET)),
        (loader(data(SOURCE), batch_size=14), loader(data(TARGET), batch_size=11)),
    ):
        other = fit(Mlp(), src, tgt)
        np.testing.assert_array_equal(other.weight("first"), plain.weight("first"))


def test_the_loss_is_the_published_formula_in_the_reference(mlp):
    """(1/sites) sum over sites of (1/d) sum over units of W_2^2; at the first evaluation, between unsteered sets."""
    steering = fit(mlp, max_evaluations=1)
    mlp.eval()
    responses = {}
    for which, data in (("src", SOURCE), ("tgt", TARGET)):
        first = mlp.first(data)
        responses[which] = [first, mlp.second(torch.tanh(first))]
    sites = [reference.wasserstein(a, b).mean() for a, b in zip(*responses.values(), strict=True)]
    np.testing.assert_allclose(steering.history["site_loss"][0], [float(s.detach()) for s in sites], rtol=1e-5)
    np.testing.assert_allclose(steering.history["loss"][0], float(sum(sites).detach()) / 2, rtol=1e-5)
    assert steering.info["stopped"] == "max_evaluations used up"
    assert not any(map(len, steering.support().values())), "one evaluation is no step"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_loss_and_gradient_are_those_of_the_reference_through_the_model(kind, texts, tokenizer):
    """The whole path (hooks, pooling in C, host buffer, loss in C, backward) against plain hooks and autograd."""
    from lineas.fitting.model_loss import ModelLoss
    from lineas.network.data import as_batches
    from lineas.network.state import frozen
    from lineas.responses.probe import probe
    from lineas.responses.runner import Runner

    model = tiny(kind)
    (src,), (tgt,) = (as_batches(side, "src", model, tokenizer) for side in texts)
    with frozen(model):
        layout = probe(model, lineas.find_sites(model), src)
        runner = Runner(model, layout, layout, "mean")
        problem = ModelLoss(SourcePasses(runner, [src]), [runner.collect([tgt])])
        x = problem.identity() + 0.1 * np.random.default_rng(0).normal(size=2 * layout.units).astype(np.float32)
        got = problem.evaluate(x)
        gradient = got.gradient()

        flat = torch.tensor(x, requires_grad=True)
        weights, biases = flat.split(layout.units)

        def responses(batch, steer):
            pooled = []

            def hook(module, args, h):
                where = layout.slice(len(pooled))
                h = reference.affine(h, weights[where], biases[where]) if steer else h
                counts = batch.mask.unsqueeze(2).float()
                pooled.append((h * counts).sum(1) / counts.sum(1))
                return h

            handles = [model.get_submodule(site.path).register_forward_hook(hook) for site in layout.sites]
            model(**batch.kwargs)
            for handle in handles:
                handle.remove()
            return pooled

        pairs = zip(responses(src, True), responses(tgt, False), strict=True)
        loss = torch.stack([reference.wasserstein(a, b.detach()).mean() for a, b in pairs]).mean()
        loss.backward()
    np.testing.assert_allclose(got.loss, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, flat.grad.numpy(), rtol=1e-4, atol=1e-4 * float(flat.grad.abs().max()))


def test_the_fitted_maps_do_what_the_last_loss_says(mlp):
    steering = fit(mlp)
    mlp.eval()
    found = {}
    with steering.apply(mlp):
        handles = [
            getattr(mlp, name).register_forward_hook(lambda m, a, o, n=name: found.update({n: o}))
            for name in steering.sites
        ]
        mlp(SOURCE)
        for handle in handles:
            handle.remove()
    first = mlp.first(TARGET)
    targets = {"first": first, "second": mlp.second(torch.tanh(first))}
    loss = np.mean([reference.wasserstein(found[n].detach(), targets[n].detach()).mean() for n in steering.sites])
    best = min(loss for loss, kept in zip(*map(steering.history.get, ("loss", "accepted")), strict=True) if kept)
    np.testing.assert_allclose(loss, best, rtol=1e-4)


# -- recipes, limits, history --


def test_history_has_an_entry_for_every_evaluation_of_the_model(mlp):
    calls = []
    mlp.first.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    steering = fit(mlp, penalty=L1(0.01))
    history = steering.history
    evaluations = len(history["loss"])
    assert {len(values) for values in history.values()} == {evaluations}
    assert calls == [2, len(TARGET)] + [len(SOURCE)] * evaluations  # two samples to look, the target once
    assert steering.info["evaluations"] == evaluations
    parts = [history[name] for name in ("loss", "ridge", "penalty")]
    np.testing.assert_allclose(history["objective"], np.sum(parts, axis=0))
    np.testing.assert_allclose(np.mean(history["site_loss"], axis=1), history["loss"])
    assert history["step_size"][0] == 0
    assert min(history["step_size"][1:]) > 0


def test_the_fast_recipe_never_accepts_a_worse_objective_and_ends_on_the_best(mlp):
    steering = fit(mlp, penalty=SparseGroupLasso(0.005, 0.005))
    kept = [o for o, a in zip(*map(steering.history.get, ("objective", "accepted")), strict=True) if a]
    assert kept == sorted(kept, reverse=True)
    weight, bias = (np.concatenate([part(n) for n in steering.sites]) for part in (steering.weight, steering.bias))
    sizes = [len(steering.weight(name)) for name in steering.sites]
    last = [p for p, a in zip(*map(steering.history.get, ("penalty", "accepted")), strict=True) if a][-1]
    np.testing.assert_allclose(SparseGroupLasso(0.005, 0.005).value(weight, bias, sizes), last)


def test_limits_are_honoured(mlp):
    assert len(fit(mlp, max_evaluations=4).history["loss"]) == 4
    limited = fit(mlp, steps=np.int64(2))
    assert sum(limited.history["accepted"]) == 1 + 2
    assert limited.info["stopped"] == "all steps done"
    assert len(fit(mlp, recipe="published", steps=7).history["loss"]) == 7
    assert len(fit(mlp, recipe="published", max_evaluations=3).history["loss"]) == 3
    assert len(fit(mlp, recipe="published").history["loss"]) == 1000


def test_the_fast_recipe_stops_by_itself(mlp):
    steering = fit(mlp, max_evaluations=1000)
    assert len(steering.history["loss"]) < 200
    assert steering.info["stopped"] in ("no longer improving", "as far as the published recipe goes")


def test_nothing_to_do_is_done_at_once(mlp):
    steering = fit(mlp, SOURCE, SOURCE)
    assert steering.history["loss"] == [0.0]
    assert not any(map(len, steering.support().values()))


def test_a_huge_penalty_leaves_the_identity(mlp):
    steering = fit(mlp, penalty=L1(1e3))
    assert np.array_equal(np.concatenate([steering.weight(n) for n in steering.sites]), np.ones(17, np.float32))
    assert not any(map(len, steering.support().values()))


def test_more_penalty_means_less_support(mlp):
    counts = [sum(map(len, fit(mlp, penalty=L1(l1)).support().values())) for l1 in (0.0, 0.01, 0.03, 0.1)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 17
    assert 0 < counts[1] < 17


def test_a_site_penalty_drops_whole_sites(mlp):
    weights = fit(mlp, penalty=SparseGroupLasso(0.0, 0.004, 0.0, 0.0))
    dropped = [
        name for name in weights.sites if np.array_equal(weights.weight(name), np.ones_like(weights.weight(name)))
    ]
    kept = [name for name in weights.sites if np.all(weights.weight(name) != 1)]
    assert sorted(dropped + kept) == ["first", "second"], "a group norm keeps all of a site or nothing"
    assert dropped
    assert kept
    assert all(np.any(weights.bias(name) != 0) for name in weights.sites), "biases were not penalised"


def test_published_optimizers_go_down(mlp):
    for optimizer in optim.OPTIMIZERS:
        assert falls(fit(mlp, recipe="published", optimizer=optimizer, steps=100))


def test_published_batches_come_in_order_and_go_round(mlp):
    seen = []
    mlp.first.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    fit(mlp, recipe="published", batch_size=6, steps=4)
    steps = seen[-4:]
    for k, start in enumerate((0, 6, 12, 0)):
        assert torch.equal(steps[k], SOURCE[start : start + 6])


def test_published_divergence_is_an_error_not_a_result(mlp):
    with pytest.raises(FloatingPointError, match="diverged at step [1-9].*learning_rate=1e[+]20 is too large"):
        fit(mlp, recipe="published", learning_rate=1e20, steps=50)


def test_a_trial_that_overflows_is_rejected_not_fatal(mlp, monkeypatch):
    from lineas.fitting.model_loss import ModelLoss

    calls, whole = [], ModelLoss.evaluate

    def overflow(self, x, scale=1.0):
        calls.append(1)
        return whole(self, x * np.float32(np.inf) if len(calls) in (2, 4) else x, scale)

    monkeypatch.setattr(ModelLoss, "evaluate", overflow)
    history = fit(mlp).history
    assert [k for k, loss in enumerate(history["loss"]) if np.isinf(loss)] == [1, 3]
    assert not history["accepted"][1]
    assert history["step_size"][2] < history["step_size"][1]
    assert history["loss"][-1] < 0.5 * history["loss"][0]


@pytest.mark.parametrize("batch_size", [1, 5, 7, 13])
def test_small_batches_give_the_gradient_of_the_whole_set(batch_size):
    whole, parts = fit(Mlp()), fit(Mlp(), batch_size=batch_size)
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-4)
    np.testing.assert_allclose(parts.weight("second"), whole.weight("second"), atol=1e-4)


def test_small_batches_of_padded_texts_too(llama, texts, tokenizer):
    whole = lineas.fit(llama, *texts, tokenizer=tokenizer, progress=False, steps=3)
    parts = lineas.fit(llama, *texts, tokenizer=tokenizer, progress=False, steps=3, batch_size=5)
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-4)


def test_resume_goes_on_where_it_stopped(mlp):
    first = fit(mlp, steps=2)
    second = fit(mlp, resume_from=first, steps=2)
    assert second.history["loss"][0] == pytest.approx(first.history["loss"][-1], rel=1e-5)
    assert second.history["loss"][-1] < first.history["loss"][-1]
    with pytest.raises(ValueError, match="resume_from: expected maps for"):
        fit(mlp, resume_from=first, sites="first")


def test_loss_sites_may_be_others_than_mapped_sites(mlp):
    steering = fit(mlp, sites="first", loss_sites=["second", "third"])
    assert steering.sites == ["first"]
    assert steering.info["loss_sites"] == ["second", "third"]
    assert np.shape(steering.history["site_loss"])[1] == 2
    assert falls(steering, 0.9)
    with pytest.raises(ValueError, match="run after the last loss site.*third"):
        fit(mlp, sites=["first", "third"], loss_sites="second")


def test_last_token_pooling_compares_last_tokens(llama, texts, tokenizer):
    a = lineas.fit(
        llama, *texts, tokenizer=tokenizer, pooling="last", loss="wasserstein", progress=False, max_evaluations=1
    )
    name = a.sites[0]
    found = []
    llama.get_submodule(name).register_forward_hook(lambda m, args, out: found.append(out))
    responses = []
    for side in texts:
        last = []
        for text in side:
            found.clear()
            llama(torch.tensor([tokenizer(text)["input_ids"]]))
            last.append(found[0][0, -1])
        responses.append(torch.stack(last).detach())
    np.testing.assert_allclose(a.history["site_loss"][0][0], float(reference.wasserstein(*responses).mean()), rtol=1e-4)
