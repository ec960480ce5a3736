"""The benchmarks run, at tiny sizes, and write down what they print."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ot")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kernels.py"
FIT, GENERATE = SCRIPT.with_name("fit.py"), SCRIPT.with_name("generate.py")
if not SCRIPT.exists():
    pytest.skip("tests without the source tree", allow_module_level=True)


def run(*words, script=SCRIPT):
    return subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=300)


def test_every_group_of_cases_runs_and_its_figures_are_written_and_drawn(tmp_path):
    groups = "loss,sort,sliced,null,affine,updates"
    done = run(
        "--quick", "--only", groups, "--json", tmp_path / "figures.json", "--picture", tmp_path / "kernels.png"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["machine"]["threads"] == 2
    starts = {case["case"].split(",")[0].split(":")[0] for case in written["cases"]}
    assert starts >= {"loss", "sort", "sliced distance", "permutation null", "map and pooling", "proximal step", "Adam"}
    for case in written["cases"]:
        assert case["case"] in done.stdout
        ours, *others = case["figures"].values()
        assert next(iter(case["figures"])) == "lineas"
        assert ours["ratio"] == 1
        assert others
        for row in (ours, *others):
            assert 0 < row["minimum"] <= row["median"]
            assert row["ratio"] == pytest.approx(row["minimum"] / ours["minimum"])
            assert row["goal"] is None or row["met"] == (row["ratio"] >= row["goal"])


def test_only_the_groups_that_were_asked_for_run():
    done = run("--quick", "--only", "null", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "permutation null" in done.stdout
    assert "Adam" not in done.stdout
    assert "threads 1" in done.stdout


def test_every_table_of_a_steps_cost_runs_and_is_written(tmp_path):
    tables = ["recipes", "once", "step", "padding", "precision", "prefix", "memory", "samples", "tokens", "sites"]
    picture = tmp_path / "fit.png"
    done = run(
        "--quick", "--only", ",".join(tables), "--json", tmp_path / "figures.json", "--picture", picture, script=FIT
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert list(written["tables"]) == tables
    for name, rows in written["tables"].items():
        assert f"\n{name}: " in done.stdout
        assert len(rows) >= 2
        assert all(row.get("ratio", 1) > 0 for row in rows)
    for row in written["tables"]["recipes"]:
        assert row["evaluations"] > 1
        assert 0 < row["fitted"] < 1 < row["held out"] * 100
    assert [row["peak"] > 0 for row in written["tables"]["memory"]] == [True] * 5


def test_an_unknown_table_is_refused():
    done = run("--only", "stpe", script=FIT)
    assert done.returncode == 1
    assert "expected some of recipes, once, step, padding" in done.stderr


def test_generation_is_timed_bare_merged_and_attached_and_attaching_is_too(tmp_path):
    done = run("--quick", "--json", tmp_path / "figures.json", script=GENERATE)
    assert done.returncode == 0, done.stderr
    tables = json.loads((tmp_path / "figures.json").read_text())["tables"]
    assert list(tables) == ["one", "many", "attach"]
    for name in ("one", "many"):
        bare, *others = tables[name]
        assert bare["ratio"] == bare["by turn"] == 1
        assert {row[""] for row in others} > {"merged", "dense", "1% support", "a steering for each row"}
        for row in others:
            assert row["tokens/s"] >= row["median"] > 0
            assert row["ratio"] == pytest.approx(row["tokens/s"] / bare["tokens/s"])
    assert all(0 < row["attach"] <= row["median"] for row in tables["attach"])
    assert "\nmany: Tokens per second, a batch of 16 texts" in done.stdout
