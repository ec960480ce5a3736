"""Results as HTML, and figures as addresses."""

import base64
import re

import pytest
from app_desks import desk

from lineas.evaluation import Report
from lineas.evaluation.report import Measure, Outcome
from lineas_app import pictures, shown
from lineas_app.desk import Comparison, Pair

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def strengths():
    return [(control, s) for control, s in zip(desk().controls, (1.0, 0.0), strict=True)]


def report():
    measures = {"casual": Measure("effect", "higher", "continuations"), "perplexity": Measure("utility", "lower")}
    rows = [
        ("casual", None, 0.0, 0.3),
        ("perplexity", None, 0.0, 80.0),
        ("casual", "s", 1.0, 0.5),
        ("perplexity", "s", 1.0, 84.0),
    ]
    return Report(measures, tuple(Outcome(name, whose, s, (value,), seed=None) for name, whose, s, value in rows))


def test_what_models_and_visitors_write_is_escaped(strengths):
    evil = "<script>alert(1)</script>"
    html = shown.comparison(Comparison([Pair(evil, f"a {evil}", f"a b {evil}")], strengths)) + shown.title(evil)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 4


def test_what_both_begin_with_is_told_from_what_differs(strengths):
    html = shown.comparison(Comparison([Pair("p", "one two three", "one two four")], strengths))
    assert html.count('<span class="same">one two </span>') == 2
    assert '<span class="">three</span>' in html
    assert '<span class="other">four</span>' in html
    same = shown.comparison(Comparison([Pair("p", "one two", "one two")], strengths))
    assert 'class="other"' not in same
    assert "(nothing)" in shown.comparison(Comparison([Pair("p", "", "")], strengths))


def test_the_head_says_which_sliders_are_on_and_what_they_cost(strengths):
    assert "casual: strength 1, costs +5.0% perplexity" in shown.comparison(Comparison([], strengths))
    off = [(control, 0.0) for control, _ in strengths]
    assert "all sliders at 0: the base model" in shown.comparison(Comparison([], off))


def test_figures_show_cost_units_and_the_report_and_load_nothing_from_elsewhere(strengths):
    html = shown.figures(strengths, report())
    names = re.findall(r'<img alt="([^"]+)"', html)
    assert names == [
        "What was measured: effect against price",
        "casual: what strengths cost",
        "casual: units",
        "plain: units",
    ]
    assert "No dial: lineas.calibrate" in html
    assert html.count("<summary>by site</summary>") == 2
    for kind, content in re.findall(r'src="data:([^;]+);base64,([^"]+)"', html):
        assert kind == "image/svg+xml"
        assert 'href="http' not in base64.b64decode(content).decode()
    assert html.count("src=") == 4


def test_a_moved_slider_moves_its_mark(strengths):
    (control, _), (other, _) = strengths
    assert pictures.of_cost(control, 0.5) != pictures.of_cost(control, 1.5)
    assert pictures.of_cost(other, 0.5) == ""
