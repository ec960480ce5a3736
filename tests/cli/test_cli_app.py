"""`lineas app`: what it hands to the page, and how it refuses; the page itself is tested in tests/app."""

import socket

import pytest
from command_line import fill_with_pipeline, run

import lineas

pytest.importorskip("gradio")
pytest.importorskip("matplotlib")
from lineas_app import page


@pytest.fixture
def visited(there, monkeypatch):
    """What was served, as long as it was: somebody comes, and interrupts."""
    found = []

    def visit():
        raise KeyboardInterrupt

    def serve(desk, **how):
        blocks, address = real(desk, **how)
        found.append((desk, how, address))
        return blocks, address

    real = page.serve
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(there / "gradio"))
    monkeypatch.setattr(page, "serve", serve)
    monkeypatch.setattr(page, "wait", visit)
    return found


def error_of(line, code=1):
    *_, last = run(line, code).stderr.splitlines()
    return last


def test_it_serves_on_this_computer_until_it_is_interrupted(visited):
    result = run("app --model model polite ./polite", code=130)
    ((desk, how, address),) = visited
    assert result.stdout == f"{address}\n"
    assert result.stderr.splitlines()[-1] == "lineas: interrupted"
    assert how == {"host": "127.0.0.1", "port": None}
    assert [control.name for control in desk.controls] == ["polite", "polite (2)"]
    assert desk.may_open
    assert desk.maker.name == "model"
    with socket.socket() as one:
        assert one.connect_ex(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))), "nothing is left there"


def test_others_are_let_in_only_where_the_user_says_so_and_open_no_folders(visited):
    run("app --model model polite --host 0.0.0.0", code=130)
    ((desk, how, _),) = visited
    assert how["host"] == "0.0.0.0"
    assert not desk.may_open


def test_a_pipeline_is_called_as_the_fit_called_it(visited):
    from pathlib import Path

    fill_with_pipeline(Path())
    fit = "fit painter --pipeline --src plain.txt --tgt snowy.txt --out snow --max-evaluations 2"
    run(f"{fit} --call num_inference_steps=1 --call guidance_scale=0")
    run("app --pipeline painter snow --call guidance_scale=0.5", code=130)
    desk, _, _ = visited[0]
    assert desk.maker.call == {"num_inference_steps": 1, "guidance_scale": 0.5}
    assert desk.maker.makes == "pictures"


def test_a_report_is_shown(visited):
    run("evaluate model --steering polite --scorer sentiment --count 1 --out report.json --strength 1")
    run("app --model model polite --report report.json", code=130)
    assert visited[0][0].report.steerings


def test_what_cannot_be_used_is_one_line_before_anything_is_served(visited, there):
    size = len(lineas.Steering.from_pretrained("polite").weight(lineas.Steering.from_pretrained("polite").sites[0]))
    site = lineas.Steering.from_pretrained("polite").sites[0]
    lineas.Steering({site: ([1.0], [1.0])}).save_pretrained("narrow")
    (there / "empty").mkdir()
    for line, said in (
        ("app --model model nothing", "no folder nothing"),
        ("app --model model empty", "empty/steering_config.json"),
        ("app --model model narrow", rf"narrow: site '{site}': the steering has weight (1,), the model's"),
        ("app --model ./nothing polite", "no model folder ./nothing"),
        ("app --model nothing polite", "cannot load nothing"),
        ("app --pipeline ./nothing polite", "no model folder ./nothing"),
        ("app --model model polite --report from.txt", "expected what Report.to_json writes"),
        ("app --model model polite --host no.such.host", "expected an address to listen on, got no.such.host"),
    ):
        last = error_of(line)
        assert last.startswith("lineas: error: ")
        assert said in last
    assert f"({size},)" in error_of("app --model model narrow")
    assert not visited


@pytest.mark.parametrize(
    ("line", "said"),
    [("app polite", "expected --model or --pipeline, got neither"), ("app --model a --pipeline b polite", "got both"),
     ("app --model model", "FOLDER"), ("app --model model polite --port 70000", "--port"),
     ("app --model model polite --call a=1", "--call: expected --pipeline with it")],
)  # fmt: skip
def test_wrong_usage_is_told_at_once(line, said):
    assert said in " ".join(run(line, 2).stderr.replace("│", "").split())


def test_a_taken_port_is_told_before_a_model_is_loaded(visited):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        result = run(f"app --model model polite --port {one.getsockname()[1]}", 1)
    assert result.stderr.startswith("lineas: error: expected an address to listen on, got 127.0.0.1, port")


def test_without_gradio_one_line_says_what_to_install(there, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    said = "lineas: error: the app needs gradio; install it with: pip install 'lineas[app]'"
    assert error_of("app --model model polite") == said
