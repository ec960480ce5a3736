"""fit_gate: what tells where a steering shall act; each sample judged by a probe that was fitted without it."""

import numpy as np
import pytest
import torch
from conftest import Mlp, WordTokenizer, count_hooks, minding_model, normal, random_maps, small_tokenizer, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import lineas
from lineas import Gate, evaluation
from lineas.directions import HOLDS, separation
from lineas.fitting import gates

# -- numbers --


def by_hand(x, labels, hold):
    """The weighted ridge regression, in units' own space."""
    middle = (x[labels > 0].mean(0) + x[labels < 0].mean(0)) / 2
    weight = np.where(labels > 0, 1 / (labels > 0).sum(), 1 / (labels < 0).sum())
    rows = x - middle
    square = (rows * weight[:, None]).T @ rows
    hold = hold * max((weight[:, None] * rows**2).sum() / len(x), 1e-8)
    return np.linalg.solve(square + hold * np.eye(x.shape[1]), (rows * weight[:, None]).T @ labels), middle


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 14), m=st.integers(3, 20), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_probe_is_the_ridge_regression_whose_left_out_error_is_least(n, m, d, seed):
    draw = np.random.default_rng(seed)
    first, second = draw.normal(size=(n, d)) + 0.7, 3 * draw.normal(size=(m, d))
    found = separation(first, second)
    x, labels = np.concatenate([first, second]), np.repeat([1.0, -1.0], [n, m])
    scale = 1 / x.std(0)
    fold = np.concatenate([np.arange(n) % 8, np.arange(m) % 8])
    errors, scores = [], []
    for hold in HOLDS:
        out = np.empty(n + m)
        for k in range(min(8, max(n, m))):
            normal_, middle = by_hand((x * scale)[fold != k], labels[fold != k], hold)
            out[fold == k] = ((x * scale)[fold == k] - middle) @ normal_
        scores.append(out)
        errors.append((np.square(out[:n] - 1).mean() + np.square(out[n:] + 1).mean()) / 2)
    best = int(np.argmin(errors))
    np.testing.assert_allclose(np.concatenate([found.first, found.second]), scores[best], rtol=1e-6, atol=1e-8)
    assert found.error == pytest.approx(errors[best])
    normal_, _ = by_hand(x * scale, labels, HOLDS[best])
    np.testing.assert_allclose(found.normal, normal_ * scale, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.middle, (first.mean(0) + second.mean(0)) / 2)


def test_more_units_than_samples_and_sets_that_are_alike_tell_nothing():
    """In 500 dimensions 20 + 20 samples of one distribution can be parted perfectly; left out, none is told."""
    draw = np.random.default_rng(0)
    found = separation(draw.normal(size=(20, 500)), draw.normal(size=(20, 500)))
    assert found.error > 0.9
    assert (found.first > found.second.mean()).mean() < 0.8


def test_units_that_never_change_count_for_nothing():
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(9, 3)), draw.normal(size=(9, 3)) - 2
    expected = separation(first, second)
    constant = np.full((9, 1), 7.0)
    found = separation(np.hstack([first, constant]), np.hstack([second, constant]))
    np.testing.assert_allclose(found.normal, [*expected.normal, 0.0], atol=1e-12)


def test_tokens_of_a_text_are_left_out_together():
    """Each text has a mark of its own, by which its tokens would be known again."""
    draw = np.random.default_rng(0)
    marks = np.repeat(np.eye(12), 5, 0)
    groups = np.repeat(np.arange(6), 5)
    first, second = marks[:30] + 0.01 * draw.normal(size=(30, 12)), marks[30:]
    assert separation(first, second).error < 0.2
    assert separation(first, second, groups, groups).error > 0.9


# -- a plain network --


@pytest.fixture(scope="module")
def plain():
    net, src, tgt = Mlp().eval(), normal(40, 4, shift=1.5), normal(40, 4, seed=1, shift=-1.5)
    return net, src, tgt, lineas.fit(net, src, tgt, sites=["first", "second"], progress=False)


def test_it_opens_on_the_source_and_not_on_the_target(plain):
    net, src, tgt, steering = plain
    hooks = count_hooks(net)
    gate = lineas.fit_gate(steering, net, src, tgt)
    assert gate.site == "first"
    assert gate.pooling == "all"
    assert gate.acts_on.keys() == {"source", "target"}
    assert gate.acts_on["source"] > 0.9
    assert gate.acts_on["target"] <= 0.05
    assert gate.facts["samples"] == {"source": 40, "target": 40}
    gated = steering.gated(gate)
    fresh = normal(200, 4, seed=2, shift=1.5), normal(200, 4, seed=3, shift=-1.5)
    opened, shut = (evaluation.openness(gated, net, some) for some in fresh)
    assert (opened > 0.5).mean() > 0.9
    assert (shut > 0.5).mean() < 0.1
    assert np.median(shut) < 0.05
    with torch.no_grad():
        base, moved = net(fresh[1]), []
        for one in (steering, gated):
            with one.apply(net):
                moved.append((net(fresh[1]) - base).square().mean())
    assert moved[1] < 0.15 * moved[0], "what is not like the source is left alone"
    assert count_hooks(net) == hooks


def test_neutral_inputs_set_the_threshold(plain):
    net, _, tgt, steering = plain
    near = normal(60, 4, seed=5, shift=0.4)
    with pytest.warns(UserWarning, match="acts on .*% of the source"):
        gate = lineas.fit_gate(steering, net, normal(40, 4, shift=0.6), tgt, near)
    assert gate.acts_on["neutral"] <= 0.05
    assert gate.acts_on["source"] < 0.8
    assert gate.facts["samples"] == {"source": 40, "target": 40, "neutral": 60}


def test_at_most_five_of_a_hundred_new_neutral_samples_open_it():
    """The promise is of new samples: over many fits on 40 of them, not on those that it was fitted on."""
    shares = []
    for seed in range(30):
        draw = np.random.default_rng(seed)
        found = separation(draw.normal(size=(40, 5)) + 1, draw.normal(size=(40, 5)))
        gate = gates._calibrated("x", found, {"target": slice(0, 40)}, "all")
        new = draw.normal(size=(2000, 5)) @ gate.weight + gate.bias
        shares.append((new > 0).mean())
    assert np.mean(shares) < 0.055


def test_the_same_seed_gives_the_same_gate(plain):
    net, src, tgt, steering = plain
    assert lineas.fit_gate(steering, net, src, tgt) == lineas.fit_gate(steering, net, src, tgt)


# -- language models: a random one, which tells little apart --

quiet = pytest.mark.filterwarnings("ignore:the gate at", "ignore:at strength 1")


@pytest.fixture(scope="module")
def language():
    words = small_tokenizer()
    network = minding_model(len(words))
    return network, words, *lineas.samples.movie_reviews(12)


def fitted(language, **options):
    network, words, src, tgt = language
    return lineas.fit(network, src, tgt, **{"ridge": 0.01, "progress": False, "tokenizer": words, **options})


@quiet
def test_a_fit_with_a_gate_is_the_fit_with_a_gate_on(language):
    network, words, src, tgt = language
    plain, gated = fitted(language), fitted(language, gate=True, neutral=lineas.samples.neutral_sentences(30))
    assert np.array_equal(plain.weights, gated.weights)
    assert plain.gate is None
    assert gated.gate.pooling == "running"
    assert gated.gate.acts_on["neutral"] <= 0.05
    assert set(gated.gate.acts_on) == {"source", "target", "neutral"}
    again = lineas.fit_gate(plain, network, src, tgt, lineas.samples.neutral_sentences(30), tokenizer=words)
    assert again == gated.gate


@quiet
def test_a_named_site_leaves_out_the_default_sites_before_it(language):
    network, *_ = language
    names = [site.name for site in lineas.find_sites(network)]
    assert len(names) > 1
    block = names[1].rsplit(".", 1)[0].replace(".1", ".0")
    gated = fitted(language, gate=block, neutral=lineas.samples.neutral_sentences(30))
    assert gated.sites == names[1:]
    assert gated.gate.site == block
    with pytest.raises(ValueError, match=f"gate: expected a site that runs before every map, got '{block}'"):
        fitted(language, gate=block, sites=names)
    with pytest.raises(ValueError, match="runs before every map"):
        fitted(language, gate=names[-1].rsplit(".", 1)[0])


@quiet
def test_a_budget_is_of_the_maps_where_the_gate_is_open(language):
    neutral = lineas.samples.neutral_sentences(30)
    ungated, gated = (fitted(language, budget="0.02 nats", **more) for more in ({}, {"gate": True, "neutral": neutral}))
    assert np.array_equal(gated.weights, ungated.weights)
    assert gated.dial == ungated.dial
    assert gated.gate is not None


@quiet
def test_a_causal_model_writes_neutral_text_itself(language):
    network, words, src, tgt = language
    plain = fitted(language)
    state = torch.random.get_rng_state()
    gate = lineas.fit_gate(plain, network, src, tgt, tokenizer=words)
    assert gate.facts["samples"]["neutral"] > 40
    assert torch.equal(torch.random.get_rng_state(), state)
    assert gate == lineas.fit_gate(plain, network, src, tgt, tokenizer=words)
    texts = gates._written(network, words, 0)
    assert all(text.strip() for text in texts)
    assert len(set(texts)) > 20


@quiet
def test_single_tokens_are_told_apart_too(language):
    network, words, src, tgt = language
    plain = fitted(language)
    gate = lineas.fit_gate(
        plain, network, src, tgt, lineas.samples.neutral_sentences(30), pooling="token", tokenizer=words
    )
    assert gate.pooling == "token"
    assert gate.facts["samples"]["source"] > len(src)
    assert gate.acts_on["neutral"] <= 0.05
    with plain.gated(gate).apply(network) as handle:
        network(torch.tensor([[3, 4, 5]]))
        assert handle.openness()[0].shape == (1, 3)


def test_the_site_that_tells_best_is_taken():
    """Of the blocks before the first map and the map's own site, by what was left out."""
    model = tiny("llama")
    texts = [["film dull and sad", "the plot was poor", "so very bad"] * 4, ["a joy to see", "great true film"] * 6]
    steering = random_maps(model).restricted(".*2.*")
    names = gates._candidates(model, steering.sites[0])
    assert names == ["model.layers.0", "model.layers.1", steering.sites[0]]
    how = {"tokenizer": WordTokenizer(), "batch_size": None, "max_length": None, "seed": 0}
    name, found, _ = gates._best(model, dict(zip(("source", "target"), texts, strict=True)), names, "running", how)
    errors = {}
    for one in names:
        values = [evaluation.responses(model, some, [one], tokenizer=WordTokenizer())[one] for some in texts]
        errors[one] = separation(*values).error
    assert name == min(errors, key=errors.get)
    assert found.error == pytest.approx(errors[name])


# -- what cannot be --


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"gate": 3}, TypeError, "gate: expected True, 'auto' or the name of a site, got int"),
        ({"neutral": ["a"]}, ValueError, "neutral: expected gate="),
        ({"gate": "nowhere"}, LookupError, "nowhere"),
        ({"gate": True, "distributed": True}, ValueError, "expected distributed=False"),
    ],
)
def test_a_fit_refuses_before_any_work(language, options, error, match):
    network, words, src, tgt = language
    with pytest.raises(error, match=match):
        lineas.fit(network, src, tgt, tokenizer=words, progress=False, **options)


def test_what_cannot_be_gated_is_refused(plain):
    net, src, tgt, steering = plain
    with pytest.raises(TypeError, match="steering: expected a Steering, got str"):
        lineas.fit_gate("a", net, src, tgt)
    with pytest.raises(TypeError, match="model: expected a network"):
        lineas.fit_gate(steering, lambda: 0, src, tgt)
    with pytest.raises(ValueError, match="pooling: expected one of"):
        lineas.fit_gate(steering, net, src, tgt, pooling="mean")
    with pytest.raises(ValueError, match="expected at least 2 samples"):
        lineas.fit_gate(steering, net, src[:1], tgt)
    with pytest.raises(ValueError, match="'second', to run before it"):
        lineas.fit_gate(steering, net, src, tgt, site="second")
    with pytest.raises(ValueError, match="steering: expected one with a gate"):
        evaluation.openness(steering, net, src)
    assert isinstance(lineas.fit_gate(steering, net, src, tgt), Gate)


def test_a_fit_that_can_have_no_gate_is_not_lost(plain, monkeypatch):
    net, src, tgt, steering = plain

    def refuse(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gates, "fit_gate", refuse)
    with pytest.warns(UserWarning, match="gate: the steering has none, and always acts: out of memory"):
        found = lineas.fit(net, src, tgt, sites=["first", "second"], progress=False, gate=True)
    assert found.gate is None
    assert np.array_equal(found.weights, steering.weights)


def test_handles_say_how_far_gates_are_open(plain):
    net, src, tgt, steering = plain
    gated = steering.gated(lineas.fit_gate(steering, net, src, tgt))
    with lineas.attach(net, {"g": gated, "p": steering}, "g") as handle:
        with pytest.raises(RuntimeError, match="expected a forward pass"):
            handle.openness()
        net(src)
        found = handle.openness()
        assert found.keys() == {"g"}
    np.testing.assert_array_equal(found["g"].detach(), evaluation.openness(gated, net, src))
    with steering.apply(net) as handle:
        assert handle.openness() == {}
