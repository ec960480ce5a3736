"""Every option of `fit` stands in one table: its signature, docstring, checks, facts and the command line follow."""

import inspect
import json
import re
import sys
from dataclasses import fields

import numpy as np
import pytest
from conftest import Mlp, normal
from oracle import run_python

import lineas
from lineas.fitting.option_table import BY_NAME, OPTIONS
from lineas.fitting.options import NAMES, Options

SIGNATURE = inspect.signature(lineas.fit).parameters
SIDES = normal(8, 4), normal(9, 4, seed=1, shift=1.0)


def test_the_signature_is_the_table_in_order_with_its_defaults():
    assert list(SIGNATURE) == ["model", "src", "tgt", *BY_NAME]
    for option in OPTIONS:
        parameter = SIGNATURE[option.name]
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default == option.default
        assert parameter.annotation is not parameter.empty


def test_the_docstring_says_of_each_what_the_table_says_in_at_most_sixty_lines():
    lines = inspect.getdoc(lineas.fit).split("\n")
    assert len(lines) <= 60
    for option in OPTIONS:
        (line,) = [line for line in lines if line.startswith(f"{option.name} : ")]
        assert line.endswith(option.help)
        assert repr(option.default) in line


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.check], ids=lambda option: option.name)
def test_what_the_table_calls_wrong_is_refused_by_fit(option):
    wrong = {
        "a name": "no such name", "whole": 0, "share": -1.0, "flag": "no", "names": "no such name", "price": "cheap",
        "bytes": "much",
    }[option.check]  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=f"^{option.name}: expected .* got {wrong!r}"):
        lineas.fit(Mlp(), *SIDES, **{"sites": "first", "progress": False, option.name: wrong})


@pytest.mark.parametrize("wrong", ["yes", "False", 1, 0.0, None, (0, 1)])
@pytest.mark.parametrize("method", ["lineas", "linear_act"])
def test_a_flag_is_true_or_false_and_nothing_else(wrong, method):
    with pytest.raises(TypeError, match=f"^within_range: expected True or False, got {re.escape(repr(wrong))}"):
        lineas.fit(Mlp(), *SIDES, sites="first", method=method, within_range=wrong)


def test_a_flag_may_be_numpys():
    steering = lineas.fit(Mlp(), *SIDES, sites="first", method="linear_act", within_range=np.bool_(True))
    assert list(steering.special) == ["first"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"learning_rate": "0.1", "recipe": "published"}, ValueError, "learning_rate: expected a number above 0"),
        ({"learning_rate": True, "recipe": "published"}, ValueError, "learning_rate: expected a number above 0"),
        ({"ridge": True}, ValueError, "ridge: expected a number of at least 0, got True"),
        ({"penalty": lineas.penalties.L1}, TypeError, "penalty: expected one of .* got the class L1"),
        (
            {"callbacks": [lineas.callbacks.EarlyStopping]},
            TypeError,
            "functions, got the class EarlyStopping at position",
        ),
        ({"checkpoint_dir": 3}, TypeError, "checkpoint_dir: expected a path, got int"),
    ],
)
def test_options_of_another_kind_are_named(wrong, error, message):
    with pytest.raises(error, match=message):
        lineas.fit(Mlp(), *SIDES, sites="first", progress=False, **wrong)


def test_names_are_known_for_every_option_that_must_be_one():
    assert set(NAMES) == {option.name for option in OPTIONS if option.check == "a name"}
    for name, known in NAMES.items():
        assert BY_NAME[name].default in known


def test_what_goes_with_the_other_way_of_finding_maps_only_is_refused():
    other = {"schedule": "sequential", "within_range": True, "recipe": "published", "loss": "excess", "ridge": 1.0,
             "loss_weights": "standardised",
             "penalty": lineas.penalties.L1(1.0), "optimizer": "sgd", "learning_rate": 0.1, "steps": 3,
             "max_evaluations": 3, "callbacks": [print], "checkpoint_dir": "x", "resume_from": "x",
             "loss_sites": "second", "memory": "4 GB", "graphs": False}  # fmt: skip
    assert set(other) == {option.name for option in OPTIONS if option.only}
    for name, value in other.items():
        method = "lineas" if BY_NAME[name].only == "formula" else "mean_act"
        with pytest.raises(ValueError, match=name):
            lineas.fit(Mlp(), *SIDES, sites="first", method=method, progress=False, **{name: value})


@pytest.mark.parametrize("method", ["lineas", "linear_act"])
def test_info_has_the_values_that_had_a_part_in_the_result(method):
    steering = lineas.fit(Mlp(), *SIDES, sites="first", method=method, seed=3, progress=False)
    other = "formula" if method == "lineas" else "fit"
    expected = {field.name for field in fields(Options) if BY_NAME[field.name].only != other}
    expected -= {"within_range", "graphs"}
    assert expected <= set(steering.info)
    assert not {o.name for o in OPTIONS if o.only == other} & (set(steering.info) - {"ridge", "loss_sites"})
    assert steering.info["seed"] == 3
    assert steering.info["method"] == method
    assert json.loads(json.dumps(steering.info)) == steering.info


def test_the_command_line_has_the_same_words_and_waits_for_no_torch():
    shown = run_python(
        "import sys, typer\nfrom lineas_cli.app import app\nfrom lineas_cli.fit_options import TABLE\n"
        "assert 'torch' not in sys.modules and 'lineas' not in sys.modules\n"
        "command = typer.main.get_command(app).commands['fit']\n"
        "import json; print(json.dumps([{p.name: p.help for p in command.params if hasattr(p, 'help')},"
        " {name: option.on_command_line for name, option in TABLE.items()}]))"
    )
    on_command_line, table = json.loads(shown)
    assert table == {option.name: option.on_command_line for option in OPTIONS}
    for name, words in table.items():
        if words:
            assert on_command_line[name] == words
    assert not sys.flags.optimize
