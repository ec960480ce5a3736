"""A slider over a dial, for notebooks."""

import re
import sys
from html import unescape

import pytest
from app_desks import PROMPTS, alone, dial, parts
from conftest import assert_untouched, snapshot

from lineas import evaluation

OPTIONS = {"new_tokens": 8, "seed": 3}


@pytest.fixture
def widget():
    pytest.importorskip("ipywidgets")
    model, tokenizer, steerings = parts()

    def make(name="casual", **options):
        return evaluation.slider(steerings[name], model, PROMPTS, tokenizer=tokenizer, **OPTIONS, **options)

    make.model = model
    return make


def cells(html):
    return [unescape(text) for text in re.findall(r"</b> (.*?)</td>", html)]


def texts(on=()):
    return [" ".join(text.split()) for text in alone(on)]


def test_a_moved_slider_shows_what_the_model_writes_at_that_strength(widget):
    knob, shown = widget(strengths=[0.0, 0.5, 1.0, 2.0]).children
    assert knob.value == 1.0
    before = snapshot(widget.model)
    for strength in (2.0, 0.5):
        knob.value = strength
        assert cells(shown.value)[0::2] == texts()
        assert cells(shown.value)[1::2] == texts([("casual", strength)])
    knob.value = 0.0
    assert cells(shown.value)[0::2] == cells(shown.value)[1::2]
    assert_untouched(widget.model, before)
    assert "&lt;b&gt;&amp; so on" in shown.value


def test_its_places_are_what_the_dial_knows_with_their_prices(widget):
    places = widget().children[0].options
    assert len(places) == 21
    assert places[0] == ("0: +0.0%", 0.0)
    assert places[10] == ("1: +5.0%", 1.0)
    assert places[-1] == ("2: +27.0%", dial().strengths[-1])
    assert [label for label, _ in widget("plain", strengths=[0, 1]).children[0].options] == ["0", "1"]


def test_what_goes_wrong_while_it_is_moved_is_shown(widget, monkeypatch):
    knob, shown = widget(strengths=[0.0, 1.0]).children

    def fail(*args, **options):
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr(sys.modules["lineas.evaluation.slider"], "continuations", fail)
    with pytest.raises(RuntimeError):
        knob.value = 0.0
    assert shown.value == "<p>RuntimeError: out of &lt;memory&gt;</p>"


@pytest.mark.parametrize(
    ("options", "said"),
    [({"strengths": []}, "strengths: expected at least one"), ({"strengths": [float("nan")]}, "strength"),
     ({"temperature": 0}, "temperature: expected a number above 0")],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_at_once(widget, options, said):
    with pytest.raises(ValueError, match=said):
        widget(**options)


def test_without_ipywidgets_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    model, tokenizer, steerings = parts()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lineas\[notebook\]'"):
        evaluation.slider(steerings["casual"], model, PROMPTS, tokenizer=tokenizer)
