"""lineas.calibrate: what strengths of a steering cost, by texts, pictures or outputs, and what it refuses."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import (
    IMAGE_CALL,
    assert_untouched,
    minding_model,
    normal,
    random_maps,
    small_model,
    small_tokenizer,
    snapshot,
)
from image_model import StandIn, maps_of

import lineas
from lineas import evaluation
from lineas.evaluation import calibration
from lineas.evaluation.divergence import read
from lineas.evaluation.language import own_tokens

TEXTS = lineas.samples.neutral_sentences(12)


@pytest.fixture(scope="module")
def words():
    return small_tokenizer()


@pytest.fixture(scope="module")
def model(words):
    return minding_model(len(words))


@pytest.fixture(scope="module")
def maps(model):
    return random_maps(model, size=0.3)


@pytest.fixture(scope="module")
def dial(model, maps, words):
    return lineas.calibrate(maps, model, TEXTS, tokenizer=words, progress=False)


# -- language models --


def test_figures_are_those_of_the_parts(dial, model, maps, words):
    options = {"tokenizer": words}
    plain = evaluation.perplexity(model, TEXTS, **options)
    for k, s in enumerate(dial.strengths):
        with maps.apply(model, s):
            steered = evaluation.perplexity(model, TEXTS, **options)
        assert dial.costs["perplexity"][k].value == pytest.approx(steered / plain - 1, rel=1e-4, abs=1e-6)
        divergence = evaluation.kl_divergence(model, TEXTS, maps, s, **options)
        assert dial.costs["kl"][k].value == pytest.approx(divergence, rel=1e-4)
        assert dial.costs["kl_95"][k].value > divergence, "a high percentile is above the mean"
    assert (dial.price, dial.facts["texts"], dial.facts["which"]) == ("perplexity", 12, "given")


def test_intervals_are_those_of_a_report(dial, model, maps, words):
    report = lineas.evaluate(
        model, maps, strengths=dial.strengths, texts=TEXTS, prompts=(), tokenizer=words, progress=False
    )
    for k, s in enumerate(dial.strengths):
        change = report.change("perplexity", s)
        assert dial.costs["perplexity"][k] == pytest.approx((change.value, change.low, change.high), rel=1e-5)
        kl = report.estimate("kl", s)
        assert dial.costs["kl"][k] == pytest.approx((kl.value, kl.low, kl.high), rel=1e-5)


@pytest.mark.parametrize("budget", ["+5%", "+40% perplexity", "0.02 nats", 0.01])
def test_a_strength_costs_its_budget_when_it_is_measured(budget, model, maps, words):
    dial = lineas.calibrate(maps, model, TEXTS, budget=budget, tokenizer=words, progress=False)
    price = lineas.maps.dial.Price.of(budget)
    with maps.apply(model, dial.strength_for(budget)):
        steered = evaluation.perplexity(model, TEXTS, tokenizer=words)
    if price.measure == "kl":
        got = evaluation.kl_divergence(model, TEXTS, maps, dial.strength_for(budget), tokenizer=words)
    else:
        got = steered / evaluation.perplexity(model, TEXTS, tokenizer=words) - 1
    assert got == pytest.approx(price.value, rel=calibration.CLOSE + 0.03)
    assert len(dial.strengths) <= 3 + calibration.ROUNDS


def test_a_model_writes_its_own_texts_and_the_seed_tells_which(model, maps, words):
    dials = [lineas.calibrate(maps, model, tokenizer=words, progress=False, seed=seed) for seed in (0, 0, 1)]
    assert dials[0] == dials[1]
    assert dials[0].costs != dials[2].costs
    assert dials[0].facts["texts"] == 32
    assert dials[0].facts["which"] == "written by the model, up to 32 tokens"


def test_own_texts_are_drawn_from_the_whole_distribution(model, words):
    """On its own tokens a model's log perplexity under another is higher by the divergence, up to sampling."""
    tokens, steering = own_tokens(model, words, 1000, 12, 0), random_maps(model, size=0.1)
    base, steered = read(model, tokens, [nullcontext, lambda: steering.apply(model)], tokenizer=None, batch_size=250)
    rise = (steered.sums.losses - base.sums.losses).sum() / base.sums.predicted.sum()
    divergence = steered.sums.divergences.sum() / steered.sums.tokens.sum()
    assert rise == pytest.approx(divergence, rel=0.15), "to second order either direction of it"


def test_own_texts_end_where_the_model_ended_them(model, words):
    tokens = own_tokens(model, words, 50, 40, 3)
    for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True):
        length = int(mask.sum())
        assert mask[:length].all()
        assert ids[0] == words.eos_token_id
        assert not (ids[1 : length - 1] == words.eos_token_id).any()
        assert length == 41 or ids[length - 1] == words.eos_token_id
    assert tokens["attention_mask"].sum(1).min() > 8
    assert len(set(tokens["attention_mask"].sum(1).tolist())) > 1, "some end early"


def test_a_model_that_writes_nothing_asks_for_texts(model, maps, words):
    with torch.no_grad():
        silent = small_model(len(words))
        silent.lm_head.weight.zero_()
        silent.lm_head.weight[1] = 0
    silent.generation_config.eos_token_id = list(range(len(words)))
    with pytest.raises(ValueError, match=r"texts: expected some; of 64 that this LlamaForCausalLM wrote from nothing"):
        lineas.calibrate(random_maps(silent), silent, tokenizer=words, progress=False)


def test_a_calibration_leaves_nothing_behind(model, maps, words, random_state_stays):
    before = snapshot(model)
    lineas.calibrate(maps, model, tokenizer=words, progress=False)
    assert_untouched(model, before)


def test_the_fits_prediction_is_where_it_looks_first(model, maps, words):
    predicted = lineas.Steering(
        {site: (maps.weight(site), maps.bias(site)) for site in maps.sites}, info={"predicted_kl": 4.0}
    )
    dial = lineas.calibrate(predicted, model, TEXTS, budget="0.04 nats", tokenizer=words, progress=False)
    assert {0.05, 0.1, 0.2} <= {round(s, 12) for s in dial.strengths}


def test_strengths_at_which_a_model_overflows_are_left_out(model, words):
    wild = lineas.Steering({"model.norm": (np.full(16, 2e4, np.float32), np.zeros(16, np.float32))})
    dial = lineas.calibrate(wild, model, TEXTS, budget="+5%", tokenizer=words, progress=False)
    assert all(math.isfinite(cost.value) for found in dial.costs.values() for cost in found)
    assert dial.strengths[-1] < 0.5, "of the first three, none was finite"
    assert 0 < dial.strength_for("+5%") < 1e-3


# -- pictures and other networks --


def test_a_language_model_may_be_priced_by_its_output(model, maps, words):
    dial = lineas.calibrate(maps, model, TEXTS, budget="5% output_change", tokenizer=words, progress=False)
    assert dial.price == "output_change"
    refusal(ValueError, "budget: expected one in output_change, which price= says, got '0.05 nats'", maps, model, TEXTS,
            price="output_change", budget="0.05 nats", tokenizer=words)  # fmt: skip
    refusal(ValueError, "price: expected perplexity or kl of this model", maps, model, price="output_change")
    by_kl = lineas.calibrate(maps, model, TEXTS, price="kl", budget="+5%", tokenizer=words, progress=False)
    assert by_kl.price == "kl"
    assert by_kl.cost(by_kl.strength_for("+5%"), "perplexity").value == pytest.approx(0.05, rel=0.01)


def test_pictures_cost_what_they_change():
    pipe = StandIn()
    steering = maps_of(pipe.unet, "0")
    prompts = ["one", "three", "a longer caption", "x"]
    dial = lineas.calibrate(steering, pipe, prompts, budget=0.02, call={}, progress=False)
    assert dial.price == "pixel_change"
    s = dial.strength_for(0.02)
    report = lineas.evaluate(pipe, steering, prompts=prompts, strengths=s, pictures=0, progress=False)
    assert report.estimate("pixel_change", s).value == pytest.approx(0.02, rel=calibration.CLOSE + 0.03)


def test_pictures_are_measured_with_the_component_that_is_told(image_pipe):
    encoder = maps_of(image_pipe.text_encoder, ".*layer_norm2")
    told = {"component": "text_encoder", "call": IMAGE_CALL, "progress": False}
    dial = lineas.calibrate(encoder, image_pipe, ["a cat", "a boat"], budget=0.01, **told)
    assert dial.cost(dial.strength_for(0.01)).value == pytest.approx(0.01)
    with pytest.raises(LookupError):
        lineas.calibrate(encoder, image_pipe, ["a cat", "a boat"], budget=0.01, call=IMAGE_CALL, progress=False)


def test_any_other_network_costs_what_its_output_changes(mlp):
    x, mlp = normal(20, 4), mlp.eval()
    draw = np.random.default_rng(0)
    steering = lineas.Steering({"first": (1 + 0.3 * draw.normal(size=9), 0.3 * draw.normal(size=9))})
    dial = lineas.calibrate(steering, mlp, x, progress=False, batch_size=7)
    base = mlp(x)
    with steering.apply(mlp, dial.strength_for("+5%")):
        apart = ((mlp(x) - base).norm(dim=1) / base.norm(dim=1)).mean()
    assert float(apart) == pytest.approx(0.05, rel=calibration.CLOSE + 0.03)
    assert dial.price == "output_change"


def test_padding_is_no_part_of_an_output(words):
    from conftest import tiny

    bert = tiny("bert")
    steering = random_maps(bert, size=0.2)
    tokens = {
        "input_ids": torch.tensor([[2, 3, 4, 0], [5, 6, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1] * 4]),
    }
    other = {**tokens, "input_ids": torch.tensor([[2, 3, 4, 9], [5, 6, 7, 8]])}
    dials = [lineas.calibrate(steering, bert, given, progress=False) for given in (tokens, other)]
    np.testing.assert_allclose(dials[0].costs["output_change"], dials[1].costs["output_change"], rtol=1e-5)


# -- refusals --


def refusal(error, match, *args, **options):
    with pytest.raises(error, match=match):
        lineas.calibrate(*args, progress=False, **options)


def test_what_cannot_be_calibrated_is_refused(model, maps, words, mlp):
    identity = lineas.Steering({"model.norm": (np.ones(16), np.zeros(16))})
    refusal(ValueError, "steering: expected maps that change something, got the identity", identity, model)
    refusal(TypeError, "steering: expected a Steering, got dict", {}, model)
    refusal(TypeError, "model: expected a network or a pipeline, got str", maps, "gpt2")
    refusal(TypeError, "texts: expected inputs of a Mlp, which writes no texts itself; got none", maps, mlp)
    refusal(TypeError, "texts: expected captions for a StandIn, got none", maps, StandIn())
    refusal(ValueError, "price: expected perplexity or kl of this model", maps, model, price="joy")
    refusal(
        ValueError,
        "price: expected output_change of this model and texts, got 'kl'",
        maps,
        mlp,
        normal(4, 4),
        price="kl",
    )
    refusal(ValueError, "budget: expected perplexity or kl", maps, model, budget="0.1 pixel_change")
    refusal(ValueError, "budget: expected '.5%'", maps, model, budget="cheap")
    refusal(LookupError, "no module|lacks|no site", maps, mlp, normal(4, 4))


def test_a_budget_that_no_strength_costs_is_refused(mlp):
    mlp.eval()
    units = mlp.first.out_features
    faint = lineas.Steering({"first": (np.full(units, 1.0 + 1e-4, np.float32), np.zeros(units, np.float32))})
    refusal(
        ValueError, "budget: expected one that some strength costs, got 50.0%", faint, mlp, normal(4, 4), budget=0.5
    )


def test_what_is_on_the_model_already_is_said(model, maps, words):
    other = random_maps(model, seed=5, size=0.05)
    with other.apply(model), pytest.warns(UserWarning, match="1 steerings are on this model"):
        lineas.calibrate(maps, model, TEXTS, tokenizer=words, progress=False)
