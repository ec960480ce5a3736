"""`make app`: which steerings it takes."""

import sys
from types import SimpleNamespace

import pytest
from app_desks import dial, parts
from conftest import ROOT, load_example

import lineas


@pytest.fixture
def example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    model, tokenizer, steerings = parts()
    monkeypatch.setitem(sys.modules, "embedded_model", SimpleNamespace(load=lambda path=None: (model, tokenizer)))
    monkeypatch.setattr(lineas, "fit", lambda *given, **how: steerings["plain"].with_dial(dial()))
    return load_example("app")


def test_what_the_demo_saved_is_taken(example, capsys):
    parts()[2]["casual"].save_pretrained("out/demo")
    (control,) = example.language(None).controls
    assert (control.name, control.dial) == ("casual", dial())
    assert "Taking what was saved in out/demo/" in capsys.readouterr().out
    (there,) = (ROOT / "examples").glob("demo.py")
    assert "report.to_json(folder / REPORT)" in there.read_text(encoding="utf-8"), "which is looked for beside it"


def test_without_the_demo_one_is_fitted_once_and_the_terminal_says_so(example, capsys, monkeypatch):
    wanted = parts()[2]["plain"]
    assert (example.language(None).controls[0].steering.weights == wanted.weights).all()
    assert "fitting from formal to casual within +5% perplexity" in capsys.readouterr().out
    monkeypatch.setattr(lineas, "fit", lambda *given, **how: pytest.fail("a second time"))
    assert (example.language(None).controls[0].steering.weights == wanted.weights).all()
    assert "fitting" not in capsys.readouterr().out


def test_pictures_are_those_of_the_other_demo(example, image_pipe, fitted_image_pipe, monkeypatch):
    import steer_pictures

    monkeypatch.setattr(steer_pictures, "load", lambda: image_pipe)
    fitted_image_pipe.save_pretrained("out/images/snow_out")
    desk = example.pictures()
    assert [control.name for control in desk.controls] == ["snow_out"]
    assert desk.maker.makes == "pictures"
    assert len(desk.maker.examples) == example.CAPTIONS
