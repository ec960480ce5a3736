"""The command line: errors, streams, signals, and programs of their own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from command_line import FIT, INSTALLED, objects, run
from conftest import load_example
from typer.testing import CliRunner

import lineas
from lineas_cli.app import app


def test_progress_goes_to_stderr_and_can_be_silenced(there):
    told = run(f"{FIT} --json")
    assert len(told.stdout.splitlines()) == 1
    assert "lineas: loading model" in told.stderr
    assert "lineas.fit:" in told.stderr
    assert "lineas: saved in polite" in told.stderr
    assert run(f"{FIT} --no-progress").stderr == ""


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("fit model --src none.txt --tgt to.txt --out x", 1, "none.txt: No such file"),
        ("fit nowhere/at/all --src from.txt --tgt to.txt --out x", 1, "no model folder nowhere/at/all"),
        ("fit none.gguf --src from.txt --tgt to.txt --out x", 1, "no model file none.gguf"),
        ("fit from.txt --src from.txt --tgt to.txt --out x", 1, "cannot load from.txt: "),
        ("fit model --src from.txt --tgt to.txt --out from.txt/x", 1, "--out from.txt/x: expected a folder"),
        ("fit model --src from.txt --tgt to.txt --out x --sites nothing", 1, "no site matches 'nothing'"),
        ("fit model --src from.txt --tgt to.txt --out x --method none", 2, "method: expected one of"),
        ("fit model --src from.txt --tgt to.txt --out x --ridge -1", 2, "ridge: expected a number of at least 0"),
        ("fit model --src from.txt --tgt to.txt --out x --l1 -1", 2, "--l1: expected a penalty strength"),
        ("fit model --src from.txt --tgt to.txt --out x --steps two", 2, "--steps"),
        ("fit model --src from.txt --tgt to.txt --out x --dtype int8", 2, "--dtype: expected auto"),
        ("fit model --src - --tgt - --out x", 2, "only one of them can be the standard input"),
        ("fit model --src from.txt --out x", 2, "Missing option '--tgt'"),
        ("inspect model", 1, "steering_config.json"),
        ("generate model --steering polite", 2, "expected --prompt TEXT or --prompts FILE"),
        ("generate model --steering nowhere --prompt It", 1, "no folder nowhere"),
        ("nothing", 2, "No such command 'nothing'"),
    ],
)  # fmt: skip
def test_errors_take_one_line_and_an_exit_code(line, code, message, there):
    result = run(line, code=code)
    assert result.stdout == ""
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    if code == 1:
        assert result.stderr.splitlines()[-1].startswith("lineas: error: ")
    assert not (there / "x").exists()


def test_an_error_that_is_not_ours_says_its_kind_and_debug_where_it_is(there, monkeypatch):
    def broken(folder):
        return {}["unseen"]

    monkeypatch.setattr(lineas.Steering, "from_pretrained", broken)
    told = run("inspect polite", code=1).stderr
    assert told == "lineas: error: KeyError: 'unseen' (`lineas --debug ...` shows where)\n"
    result = CliRunner().invoke(app, ["--debug", "inspect", "polite"])
    assert isinstance(result.exception, KeyError)


def start(there, *arguments, **streams):
    """The command line as a program."""
    environment = {**os.environ, "PYTHONPATH": INSTALLED, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lineas", *arguments]
    if sys.platform != "win32":  # a test run in the background may ignore SIGINT, and hand that down
        streams["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=there, env=environment, text=True, **streams)


@pytest.mark.process
def test_it_runs_as_a_program_in_a_pipe(there):
    pipe = subprocess.PIPE
    arguments = ["generate", "model", "--steering", "polite", "--prompts", "-", "--json"]
    program = start(there, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = program.communicate("The movie was\nIt\n")
    assert program.returncode == 0, err
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["The movie was", "It"]
    assert "lineas: strength 1: 2 continuations" in err
    rows = objects("generate model --steering polite --prompt 'The movie was' --prompt It")
    assert [json.loads(line) for line in out.splitlines()] == rows


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_an_interrupted_fit_ends_as_programs_do_and_leaves_its_checkpoint(there):
    arguments = [*shlex.split(FIT), "--recipe", "published", "--steps", "100000", "--checkpoint-dir", "run"]
    with open(there / "told", "w") as told:
        program = start(there, *arguments, stdout=subprocess.PIPE, stderr=told)
    while (there / "told").read_text().count("objective") < 2 and program.poll() is None:  # what came first is kept
        time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    out, _ = program.communicate(timeout=600)
    text = (there / "told").read_text()
    assert program.returncode == 130, text
    assert out == ""
    assert text.endswith("lineas: interrupted\n")
    assert "Traceback" not in text
    assert lineas.checkpoint.read("run").state is not None


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_who_has_read_enough_ends_it_quietly(there):
    program = start(there, "sites", "model", "--sites", ".*", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    assert program.wait(timeout=600) == 141
    assert program.stderr.read() == ""
    program.stderr.close()


@pytest.mark.slow
def test_a_gguf_file_becomes_a_plain_checkpoint(there):
    from transformers import AutoConfig, AutoTokenizer

    example = load_example("embedded_model")
    file = example.find_file()
    site = "model.layers.0.post_attention_layernorm"
    lineas.Steering({site: (np.full(576, 1.1), np.full(576, 0.1))}).save_pretrained("other")
    with example.gguf_parsed_once():
        (found,) = objects(f"sites {file} --sites {site}")
        (merged,) = objects(f"merge {file} --steering other --out merged")
    assert (found["name"], found["units"]) == (site, 576)
    assert merged["error"] <= 1e-4 < merged["effect"]
    assert AutoConfig.from_pretrained("merged").mlp_bias
    assert AutoTokenizer.from_pretrained("merged")("The movie was")["input_ids"] == [504, 7704, 436]
