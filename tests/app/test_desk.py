"""What the page does, without Gradio and without a browser."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from app_desks import PROMPTS, SAMPLING, alone, desk, dial, parts
from conftest import IMAGE_CALL, assert_untouched, random_maps, snapshot, tiny

import lineas
from lineas import evaluation
from lineas_app.controls import PRICE, STRENGTH, Control
from lineas_app.desk import Desk
from lineas_app.makers import Painter, Sampling

LINES = "\n".join(PROMPTS)


@pytest.fixture(scope="module")
def shared():
    return desk(may_open=True)


def asked(at, *strengths, prompts=LINES, sampling=SAMPLING):
    return at.compare(prompts, list(zip(at.controls, strengths, strict=False)), sampling)


def steered(at, *strengths, **how):
    return [pair.steered for pair in asked(at, *strengths, **how).pairs]


# -- what is made --


def test_a_slider_gives_what_apply_and_generate_give(shared):
    model, tokenizer, steerings = parts()
    with steerings["casual"].apply(model, 0.7):
        wanted = evaluation.continuations(model, PROMPTS, tokenizer=tokenizer, new_tokens=8, seed=3)
    found = asked(shared, 0.7, 0.0)
    assert [pair.prompt for pair in found.pairs] == list(PROMPTS)
    assert [pair.steered for pair in found.pairs] == wanted
    assert [pair.base for pair in found.pairs] == alone() != wanted


def test_several_sliders_act_one_after_the_other_in_their_order(shared):
    assert steered(shared, 0.7, 1.0) == alone([("casual", 0.7), ("plain", 1.0)])
    assert steered(shared, 0.7, 1.0) != alone([("casual", 0.7)])


def test_all_sliders_at_0_are_the_base_model_which_runs_once_for_the_same_request(monkeypatch):
    own, made = desk(), []
    make = type(own.maker).make
    monkeypatch.setattr(type(own.maker), "make", lambda self, *given: made.append(given) or make(self, *given))
    assert steered(own, 0.0, 0.0) == alone()
    asked(own, 1.0)
    asked(own, 2.0)
    assert len(made) == 3, "once without steering, twice with"


def test_the_likeliest_token_depends_on_no_seed(shared):
    greedy = [steered(shared, 1.0, sampling=Sampling(8, 0.0, seed)) for seed in (0, 1)]
    drawn = [steered(shared, 1.0, sampling=Sampling(8, 1.0, seed)) for seed in (0, 1)]
    assert greedy[0] == greedy[1]
    assert drawn[0] != drawn[1]


def test_visitors_at_different_strengths_never_meet(shared):
    wanted = {s: alone([("casual", s)] if s else []) for s in (0.0, 0.5, 1.0, 2.0)}
    strengths = [s for _ in range(6) for s in wanted]
    gate = threading.Barrier(8)

    def visit(k):
        if k < 8:
            gate.wait()
        return steered(shared, strengths[k])

    with ThreadPoolExecutor(8) as pool:
        for s, found in zip(strengths, pool.map(visit, range(len(strengths))), strict=True):
            assert found == wanted[s]


def test_weights_hooks_and_random_state_are_as_they_were_after_a_failure_too(monkeypatch):
    own = desk()
    before = snapshot(own.maker.model)
    asked(own, 1.0, 0.5)
    assert_untouched(own.maker.model, before)

    def fail(self, prompts, sampling):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(type(own.maker), "make", fail)
        asked(own, 1.0, prompts="another")
    assert_untouched(own.maker.model, before)
    assert steered(own, 1.0) == alone([("casual", 1.0)]), "whoever comes next is served"


def test_pictures_begin_with_the_same_noise_and_get_the_call_of_the_fit(image_pipe, fitted_image_pipe):
    own = Desk(Painter(image_pipe, IMAGE_CALL), {"snow": fitted_image_pipe})
    found = asked(own, 1.0, prompts="a cat\na house").pairs
    noise = evaluation.generators(3, 2)
    wanted = image_pipe(prompt=["a cat", "a house"], generator=noise, **IMAGE_CALL).images
    for pair, image in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(pair.base), np.asarray(image))
        assert (np.asarray(pair.base) != np.asarray(pair.steered)).any()
    with fitted_image_pipe.apply(image_pipe):
        again = image_pipe(prompt=["a cat", "a house"], generator=evaluation.generators(3, 2), **IMAGE_CALL).images
    np.testing.assert_array_equal(np.asarray(again[1]), np.asarray(found[1].steered))


# -- what a slider stands for --


@pytest.mark.parametrize(("price", "shown"), [("perplexity", 5.0), ("kl", 0.05), ("output_change", 5.0)])
def test_a_price_is_the_strength_that_the_dial_says(price, shown):
    control = Control("one", random_maps(tiny("llama")).with_dial(dial(price)))
    assert control.strength(shown, PRICE) == pytest.approx(1.0)
    assert control.strength(0, PRICE) == 0
    assert control.strength(shown / 2, PRICE) == control.steering.strength_for(0.025)
    assert control.value(1.0, PRICE) == pytest.approx(shown)
    span = control.span(PRICE)
    assert 0 == span.low < control.strength(span.high, PRICE) <= 2.0
    assert control.strength(0.3, STRENGTH) == 0.3


def test_a_steering_without_a_dial_has_a_slider_in_strengths_that_says_so():
    control = Control("one", random_maps(tiny("llama")))
    assert control.unit(PRICE) == STRENGTH
    assert control.span(PRICE).label == "one (strength, no dial)"
    assert control.strength(0.5, PRICE) == 0.5
    assert control.said(0.5) == "strength 0.5"


def test_units_can_be_switched_without_moving(shared):
    for control in shared.controls:
        for strength in (0.0, 0.4, 1.0, 1.7):
            assert control.strength(control.value(strength, PRICE), PRICE) == pytest.approx(strength, abs=1e-3)
    assert "strength 1, costs +5.0% perplexity" in shared.controls[0].said(1.0)


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (float("nan"), STRENGTH, "casual: expected a finite number, got nan"),
        (float("inf"), PRICE, "casual: expected a finite number, got inf"),
        ("1", STRENGTH, "casual: expected a finite number, got '1'"),
        (None, PRICE, "casual: expected a finite number, got None"),
        (1e30, STRENGTH, "casual: expected a strength from -10 to 10, got 1e[+]30"),
        (-1, PRICE, "casual: expected a price of at least 0, got -1"),
        (90, PRICE, "casual: price: expected at most what was measured, .27.0% at strength 2; got .90.0%"),
        (1, "nats", "unit: expected price or strength, got 'nats'"),
    ],
)
def test_what_is_no_strength_is_refused_with_what_was_expected(shared, value, unit, said):
    with pytest.raises(ValueError, match=said):
        shared.controls[0].strength(value, unit)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0, 1, 0), "new tokens: expected a whole number from 1 to 256, got 0"),
        ((2.5, 1, 0), "new tokens: .* got 2.5"),
        ((8, float("nan"), 0), "temperature: expected a finite number, got nan"),
        ((8, -1, 0), "temperature: expected a number from 0 to 5, got -1"),
        ((8, 1, -1), "seed: expected a whole number from 0"),
        ((8, 1, None), "seed: expected a finite number, got None"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Sampling.of(*given)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [("", "got 0"), (" \n\n", "got 0"), (None, "got 0"), ("a\n" * 17, "1 to 16, one a line, got 17"),
     ("a" * 2001, "at most 2000 characters each, got 2001")],
)  # fmt: skip
def test_prompts_that_cannot_be_gone_on_from_are_refused(shared, prompts, said):
    with pytest.raises(ValueError, match=said):
        asked(shared, 1.0, prompts=prompts)


# -- which steerings --


def test_a_steering_of_another_model_is_refused_by_name_before_anybody_comes():
    steerings = parts()[2]
    narrow = lineas.Steering({site: ([1.0], [1.0]) for site in steerings["plain"].sites})
    elsewhere = lineas.Steering({"another.place": ([1.0], [1.0])})
    for wrong, error, said in ((narrow, ValueError, r"bad: site .* \(1,\)"), (elsewhere, LookupError, "bad: .*place")):
        with pytest.raises(error, match=said):
            Desk(desk().maker, {"good": steerings["plain"], "bad": wrong})


def test_a_folder_is_opened_for_whoever_asks_and_nobody_else(shared, tmp_path):
    before = list(shared.controls)
    parts()[2]["casual"].save_pretrained(tmp_path / "more")
    control = shared.open(f" {tmp_path / 'more'} ")
    assert (control.name, control.dial) == ("more", dial())
    assert shared.controls == before
    made = shared.compare(LINES, [(control, 0.7)], SAMPLING)
    assert [pair.steered for pair in made.pairs] == alone([("casual", 0.7)])


def test_what_is_no_folder_of_a_steering_is_refused_and_nothing_is_looked_up_elsewhere(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("lineas.maps.hub.download", lambda *given: pytest.fail("the hub was asked"))
    (tmp_path / "empty").mkdir()
    lineas.Steering({"another.place": ([1.0], [1.0])}).save_pretrained(tmp_path / "other")
    for folder, error, said in (
        (str(tmp_path / "none"), OSError, "expected the folder of a steering, there is no folder"),
        ("organisation/steering", OSError, "there is no folder 'organisation/steering'"),
        ("a\0b", OSError, "there is no folder"),
        ("", ValueError, "expected the folder of a steering, got nothing"),
        (None, ValueError, "got nothing"),
        (str(tmp_path / "empty"), OSError, "steering_config.json"),
        (str(tmp_path / "other"), LookupError, "other: .*another.place"),
    ):
        with pytest.raises(error, match=said):
            shared.open(folder)


def test_folders_are_opened_only_where_the_page_may(tmp_path):
    parts()[2]["casual"].save_pretrained(tmp_path)
    with pytest.raises(PermissionError, match="from this computer only"):
        desk().open(str(tmp_path))
