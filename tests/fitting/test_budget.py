"""fit(budget=): strength 1 costs what the user allowed; and the price that a fit predicts and warns of."""

import numpy as np
import pytest
import torch
from conftest import IMAGE_CALL, SOURCE, TARGET, Mlp, image_captions, minding_model, small_tokenizer

import lineas
from lineas import evaluation
from lineas.evaluation import calibration
from lineas.fitting import doubts

NEAR = calibration.CLOSE + 0.03


@pytest.fixture(scope="module")
def language():
    """A model, its tokenizer, and two sets of texts that it tells apart."""
    words = small_tokenizer()
    return minding_model(len(words)), words, *lineas.samples.movie_reviews(12)


@pytest.fixture(scope="module")
def plain(language):
    network, words, source, target = language
    with pytest.warns(UserWarning, match="strength 1"):
        return lineas.fit(network, source, target, tokenizer=words, progress=False, ridge=0.01)


def fit(language, **options):
    network, words, source, target = language
    return lineas.fit(network, source, target, tokenizer=words, progress=False, **{"ridge": 0.01, **options})


@pytest.mark.parametrize("budget", ["+5% perplexity", "0.02 nats"])
def test_strength_1_costs_the_budget_and_the_maps_are_those_of_the_fit(budget, language, plain, tmp_path):
    network, words, *_ = language
    priced = fit(language, budget=budget)
    s = priced.info["scaled_by"]
    np.testing.assert_allclose(priced.weights - 1, s * (plain.weights - 1), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(priced.biases, s * plain.biases, rtol=1e-3, atol=1e-6)
    assert priced.history["loss"] == plain.history["loss"]
    assert priced.info["budget"] == budget
    assert priced.info["predicted_kl"] == pytest.approx(s**2 * plain.info["predicted_kl"], rel=1e-3)
    assert priced.strength_for(budget) == pytest.approx(1, rel=1e-3)
    again = lineas.calibrate(priced, network, budget=budget, tokenizer=words, progress=False)
    name = "kl" if "nats" in budget else "perplexity"
    assert again.cost(1.0, name).value == pytest.approx(lineas.maps.dial.Price.of(budget).value, rel=NEAR)
    priced.save_pretrained(tmp_path)
    kept = lineas.Steering.from_pretrained(tmp_path)
    assert kept.dial == priced.dial
    assert f"strength 1 costs {budget}" in kept.summary()


def test_a_fit_predicts_its_price_and_says_so(language, plain):
    network, words, _, target = language
    predicted = plain.info["predicted_kl"]
    s = (0.01 / predicted) ** 0.5
    actual = evaluation.kl_divergence(network, target, plain, s, tokenizer=words)
    assert 0.4 < actual / 0.01 < 2.5, "one draw of labels of 12 texts"
    assert f"predicted to move next-token distributions by {predicted:.3g} nats a token" in plain.summary()


def test_a_dear_strength_1_is_warned_of_unless_a_budget_is_told(language, recwarn):
    fit(language, budget="+5%")
    assert not [w for w in recwarn if "strength 1" in str(w.message)]
    with pytest.warns(
        UserWarning, match=r'about \+\d+% of perplexity; strength 0\.\d+ costs about \+5%\. budget="\+5% p'
    ):
        fit(language)
    assert doubts._dear(doubts.DEAR) == doubts._dear(None) == ""


def test_other_networks_and_methods_have_budgets_in_what_their_output_changes():
    for method in ("lineas", "linear_act"):
        net = Mlp().eval()
        steering = lineas.fit(net, SOURCE, TARGET, sites="first", method=method, budget=0.03, progress=False)
        base = net(SOURCE)
        with steering.apply(net):
            apart = ((net(SOURCE) - base).norm(dim=1) / base.norm(dim=1)).mean()
        assert float(apart) == pytest.approx(0.03, rel=NEAR)
        assert steering.dial.price == "output_change"
        assert "predicted_kl" not in steering.info


def test_a_language_model_that_is_given_tokens_writes_its_own_text_too(language):
    network, *_ = language
    ids = torch.randint(2, 400, (12, 6), generator=torch.Generator().manual_seed(0))
    sides = {"input_ids": ids}, {"input_ids": ids.flip(0) // 2 + 1}
    steering = lineas.fit(network, *sides, budget="+5% perplexity", progress=False, ridge=0.01)
    assert steering.dial.price == "perplexity"
    assert steering.dial.facts["texts"] == 32


def test_a_pipelines_budget_is_what_its_pictures_change(image_pipe):
    prompts, snowy = image_captions(4)
    steering = lineas.fit(
        image_pipe, prompts, snowy, sites=["mid_block.resnets.1.norm2", "conv_norm_out"], call=IMAGE_CALL, steps=1,
        budget=0.02, progress=False,
    )  # fmt: skip
    assert steering.dial.price == "pixel_change"
    assert steering.info["pipeline"]["component"] == "unet"
    report = lineas.evaluate(
        image_pipe, steering, prompts=prompts, strengths=1, call=IMAGE_CALL, pictures=0, progress=False
    )
    assert report.estimate("pixel_change", 1.0).value == pytest.approx(0.02, rel=NEAR)
    rows = {"prompt": prompts, "generator": [1, 2, 3, 4]}
    by_output = lineas.calibrate(steering, image_pipe, rows, progress=False)
    assert by_output.price == "output_change"


def test_a_budget_that_cannot_be_is_refused_before_any_work():
    net = Mlp().eval()
    for budget, match in (
        ("0.05 nats", "budget: expected output_change of this model and texts, got '0.05 nats'"),
        ("much", "budget: expected '.5%'"),
        (-1, "budget: expected a price above 0"),
    ):
        with pytest.raises(ValueError, match=match):
            lineas.fit(net, SOURCE, TARGET, sites="first", budget=budget, progress=False, callbacks=[pytest.fail])


def test_a_budget_is_of_one_process():
    with pytest.raises(ValueError, match="budget, gate: expected distributed=False"):
        lineas.fit(Mlp(), SOURCE, TARGET, sites="first", budget=0.1, progress=False, distributed=True)


def test_what_was_fitted_is_not_lost_where_no_strength_costs_the_budget():
    net = Mlp().eval()
    with torch.no_grad():
        net.third.weight.zero_()
    with pytest.warns(
        UserWarning, match="strength 1 is as it was fitted, and not at the budget of 0.1: budget: expected"
    ):
        steering = lineas.fit(net, SOURCE, TARGET, sites="first", budget=0.1, progress=False, ridge=0)
    assert steering.dial is None
    assert any(map(len, steering.support().values()))
