"""The notebook: what is stored was made by its own code, and that code still runs, here with little of everything."""

import ast
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_untouched, load_example, minding_model, small_tokenizer, snapshot

pytest.importorskip("matplotlib")
pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
runner = load_example("run_notebook")
if not runner.NOTEBOOK.exists():
    pytest.skip("tests without the source tree", allow_module_level=True)
SMALL = "SENTENCES, EVALUATIONS, CONTINUATIONS, NEUTRAL, STRENGTHS = {}"
LITTLE, LEAST = SMALL.format("8, 3, 1, 4, [0.0, 1.0]"), SMALL.format("4, 2, 1, 2, [1.0]")
SMALL_LOADER = """
from transformers import AutoModelForCausalLM, AutoTokenizer


def load():
    return AutoModelForCausalLM.from_pretrained({0!r}).eval(), AutoTokenizer.from_pretrained({0!r})
"""


@pytest.fixture
def stored():
    return nbformat.read(runner.NOTEBOOK, as_version=4)


def outputs(notebook, kind):
    return [output for cell in runner.code_cells(notebook) for output in cell.outputs if output.output_type == kind]


def parameters(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def assigned(source):
    """Names in the order in which code assigns them."""
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return [node.id for node in names if isinstance(node.ctx, ast.Store)]


def test_the_stored_outputs_come_from_the_stored_code_run_once_in_order(stored):
    cells = runner.code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert stored.metadata[runner.EXECUTED] == runner.code_digest(stored), "run examples/run_notebook.py"


def test_a_changed_cell_makes_the_digest_another(stored):
    before = runner.code_digest(stored)
    runner.code_cells(stored)[-1].source += "\n"
    assert runner.code_digest(stored) != before


def test_the_stored_notebook_has_outputs_pictures_and_no_failure(stored):
    assert not outputs(stored, "error")
    assert not [output for output in outputs(stored, "stream") if output.name == "stderr"]
    rich = [output.data for kind in ("display_data", "execute_result") for output in outputs(stored, kind)]
    assert sum("image/png" in data for data in rich) == 3
    assert any("<table>" in data.get("text/html", "") for data in rich)
    printed = "".join(output.text for output in outputs(stored, "stream"))
    assert "the same logits: True" in printed
    assert "strength 1.0: sentiment" in printed
    assert runner.NOTEBOOK.stat().st_size < 500_000


def test_the_stored_outputs_name_no_place_on_the_machine_that_made_them(stored):
    assert not [word for word in ("/home/", "/root/", "/tmp/", "/work/") if word in nbformat.writes(stored)]


def test_the_small_settings_are_those_of_the_notebook(stored):
    assert assigned(LITTLE) == assigned(LEAST) == assigned(parameters(stored).source)


@pytest.fixture
def tiny_model(monkeypatch):
    """What the notebook loads, like `real_model`."""
    tokenizer = small_tokenizer()
    model = minding_model(len(tokenizer)), tokenizer
    monkeypatch.setitem(sys.modules, "embedded_model", SimpleNamespace(load=lambda: model))
    return model


@pytest.mark.parametrize(
    ("loaded", "settings"),
    [
        pytest.param("tiny_model", LITTLE, id="tiny"),
        pytest.param("real_model", LEAST, id="real", marks=pytest.mark.slow),
    ],
)
def test_the_code_runs_and_leaves_the_model_as_it_was(loaded, settings, stored, request, tmp_path, monkeypatch, capsys):
    pytest.importorskip("vaderSentiment")
    model, _ = request.getfixturevalue(loaded)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    parameters(stored).source = settings
    namespace = {"__name__": "notebook"}
    before = snapshot(model)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
        for cell in runner.code_cells(stored):
            exec(compile(cell.source, runner.NOTEBOOK.name, "exec"), namespace)
    namespace["pyplot"].close("all")
    assert_untouched(model, before)
    assert "the same logits: True" in capsys.readouterr().out
    assert {"positive-reviews", "smollm2-positive"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.process
@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel_from_top_to_bottom(stored, tmp_path):
    """On a small model, which a loader of its own finds in a folder."""
    tokenizer = small_tokenizer()
    for part in (minding_model(len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "small.py").write_text(SMALL_LOADER.format(str(tmp_path / "model")), encoding="utf-8")
    parameters(stored).source = LITTLE
    runner.execute(stored, loader=tmp_path / "small.py")
    assert not outputs(stored, "error")
    assert [cell.execution_count for cell in runner.code_cells(stored)] == list(
        range(1, len(runner.code_cells(stored)) + 1)
    )
    assert "the same logits: True" in "".join(output.text for output in outputs(stored, "stream"))
    assert sum("image/png" in output.data for output in outputs(stored, "display_data")) == 3
