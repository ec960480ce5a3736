"""The benchmarks run, at tiny sizes, and write down what they print."""

import importlib
import json
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, ROOT, WordTokenizer, minding_model, small_tokenizer, tiny

import lineas

pytest.importorskip("ot.lp")  # of POT; the folder of tests called so has none
pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
SCRIPT = ROOT / "benchmarks" / "kernels.py"
FIT, GENERATE = SCRIPT.with_name("fit.py"), SCRIPT.with_name("generate.py")
if not SCRIPT.exists():
    pytest.skip("tests without the source tree", allow_module_level=True)


@pytest.fixture
def run(monkeypatch, capsys):
    """A benchmark in this process, as if it were its program: what it prints."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    threads, environment = torch.get_num_threads(), dict(os.environ)

    def call(*words, script=SCRIPT):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.slow
def test_the_benchmark_of_streams_runs_with_a_bound_and_without(tmp_path):
    """In a process of its own, which starts others."""
    how = ["--samples", "600", "--processes", "1", "--memory", "11 MB", "1 TB", "--json", tmp_path / "rows.jsonl"]
    subprocess.run([sys.executable, SCRIPT.with_name("streams.py"), *how], check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["memory"] for row in rows] == ["11 MB", "1 TB"]
    assert rows[0]["loss"] == rows[1]["loss"]
    assert all(peak > 0 for row in rows for peak in row["peak"])


def test_every_group_of_cases_runs_and_its_figures_are_written_and_drawn(run, tmp_path):
    groups = "loss,sort,sliced,null,closed,rank,affine,updates,quadratic,steps"
    told = run(
        "--quick", "--only", groups, "--json", tmp_path / "figures.json", "--picture", tmp_path / "kernels.png"
    )  # fmt: skip
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["machine"]["threads"] == 2
    starts = {case["case"].split(",")[0].split(":")[0] for case in written["cases"]}
    assert starts >= {
        "loss", "sort", "sliced distance", "permutation null", "linear_act", "auroc", "average_precision",
        "map and pooling", "proximal step", "Adam", "quadratic", "loss of a step",
    }  # fmt: skip
    for case in written["cases"]:
        assert case["case"] in told
        ours, *others = case["figures"].values()
        assert next(iter(case["figures"])) == "lineas"
        assert ours["ratio"] == 1
        assert others
        for row in (ours, *others):
            assert 0 < row["minimum"] <= row["median"]
            assert row["ratio"] == pytest.approx(row["minimum"] / ours["minimum"])
            assert row["goal"] is None or row["met"] == (row["ratio"] >= row["goal"])


def test_only_the_groups_that_were_asked_for_run(run):
    told = run("--quick", "--only", "null", "--threads", "1")
    assert "permutation null" in told
    assert "Adam" not in told
    assert "threads 1" in told


@pytest.mark.slow
@pytest.mark.process
def test_every_table_of_a_steps_cost_runs_and_is_written(run, tmp_path):
    tables = [
        "recipes",
        "once",
        "step",
        "padding",
        "precision",
        "prefix",
        "memory",
        "samples",
        "tokens",
        "sites",
        "gpu",
    ]
    picture = tmp_path / "fit.png"
    told = run(
        "--quick", "--only", ",".join(tables), "--json", tmp_path / "figures.json", "--picture", picture, script=FIT
    )  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert list(written["tables"]) == tables
    for name, rows in written["tables"].items():
        assert f"\n{name}: " in told
        assert len(rows) >= 2
        assert all(row.get("ratio", 1) > 0 for row in rows)
    for row in written["tables"]["recipes"]:
        assert row["evaluations"] > 1
        assert 0 < row["fitted"] < 1 < row["held out"] * 100
    assert [row["peak"] > 0 for row in written["tables"]["memory"]] == [True] * 5


def test_choices_of_units_are_compared_at_equal_support_and_beside_no_steering(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import units

    texts = [NEGATIVE[:6], POSITIVE[:6], NEGATIVE[6:], POSITIVE[6:]]
    options = {"neutral": ["3 4 5", "6 7 8 9"], "max_evaluations": 3}
    rows = list(units.run(tiny("llama"), WordTokenizer(), texts, 0, units.CHOICES, [10], **options))
    assert [(row["choice"], row["units"], row["support"]) for row in rows[2:]] == [
        (choice, 10, 10) for choice in ("significant", "auroc", "l1", "random")
    ]
    assert [row["choice"] for row in rows[:2]] == ["none", "all"]
    assert rows[0]["support"] == 0
    assert len({row["held_out"] for row in rows}) == len({row["perplexity"] for row in rows}) == 6
    known = {("sentiment", 0, row["choice"], row["units"]) for row in rows[1:]}
    again = list(units.run(tiny("llama"), WordTokenizer(), texts, 0, units.CHOICES, [10], known, **options))
    assert again == rows[:1], "what is known is not measured again"
    printed = capsys.readouterr().out
    assert "10 units, significant and auroc: 0." in printed
    assert "with the whole support of L1" in printed
    lines = list(units.table(rows))
    assert len(lines) == 6
    share = rows[2]["held_out"] / rows[0]["held_out"]
    assert f"significant     10     1 {share:6.3f} ({share:.3f} to {share:.3f})" in lines[2]


def test_shares_of_units_are_parts_of_what_a_fit_does_to_the_output(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import shares

    model, options = tiny("llama"), {"tokenizer": WordTokenizer(), "progress": False}
    draw = SimpleNamespace(
        model=model, tokenizer=WordTokenizer(), fitted=[NEGATIVE, POSITIVE],
        fit=lambda: lineas.fit(model, NEGATIVE, POSITIVE, max_evaluations=3, ridge=0.1, **options),
    )  # fmt: skip
    steering, each = shares.moved(draw)
    still = np.concatenate([(steering.weight(site) == 1) & (steering.bias(site) == 0) for site in steering.sites])
    assert len(each) == len(still) > 20
    assert (each[~still] > 0).all()
    assert (each[still] == 0).all()
    found = shares.shares(draw, [0.01, 0.1, 0.5, 1])
    np.testing.assert_allclose(found[-1], [1, 1])
    assert found[0][0] == pytest.approx(each.max() / each.sum()), "1% of so few units is one"
    assert [most for most, _ in found] == sorted(most for most, _ in found)
    assert all(0 < known <= most for most, known in found)
    assert found[2][1] < found[2][0], "AUROC does not know what the output minds"


@pytest.mark.slow
def test_poolings_of_images_are_judged_at_each_strength_and_never_twice(run, tmp_path):
    pytest.importorskip("diffusers")
    script, rows = SCRIPT.with_name("image_poolings.py"), tmp_path / "rows.jsonl"
    words = ["--concepts", "heart", "--count", 4, "--samples", 3, "--max-evaluations", 2, "--json", rows]
    told = run(*words, "--tasks", "induce", "--settings", "words;mean,max", script=script)
    asked, fitted = (json.loads(line) for line in rows.read_text().splitlines())
    plain, heart = asked["points"]
    assert plain["concept"] == plain["change"] == 0 < heart["change"]
    assert heart["concept"] > 0.5 <= plain["subject"]
    assert asked["goal"] == fitted["goal"] == min(plain["subject"], heart["subject"])
    assert fitted["points"][0] == plain
    assert fitted["evaluations"] == 2
    changes = [point["change"] for point in fitted["points"]]
    assert len(changes) > 2
    assert changes == sorted(changes)
    assert "induce  mean,max" in told
    before = rows.read_bytes()
    shown = run("--table", "--json", rows, script=script)
    run(*words, "--tasks", "induce", "--settings", "mean,max", script=script)
    assert rows.read_bytes() == before, "what is known is not fitted again"
    assert shown.strip() in told


def test_methods_on_the_image_model_are_measured_never_twice_and_written_into_a_page(run, tmp_path):
    pytest.importorskip("diffusers")
    script, rows, page = SCRIPT.with_name("image_methods.py"), tmp_path / "rows.jsonl", tmp_path / "page.md"
    asked = ["--concepts", "heart", "--tasks", "induce", "--cases", "unpaired", "--count", 4, "--json", rows]
    told = run(*asked, "--methods", "words;mean_act", script=script)
    words, fitted = (json.loads(line) for line in rows.read_text().splitlines())
    assert [point["strength"] for point in words["points"]] == [0.0, 1.0]
    assert words["points"][1]["concept"] > 0.5 > words["points"][0]["concept"] == 0
    assert fitted["points"][0] == words["points"][0]
    assert fitted["points"][-1]["change"] > fitted["points"][1]["change"] > 0
    assert fitted["evaluations"] == 1
    before = rows.read_bytes()
    run(*asked, "--methods", "mean_act", script=script)
    assert rows.read_bytes() == before, "what is known is not fitted again"
    marks = [f"<!-- {name} -->\n<!-- end of {name} -->" for name in ("images", "images by concept")]
    page.write_text("\n".join(["Before.", *marks, "After."]))
    run("--json", rows, "--write", page, script=script)
    assert page.read_text().startswith("Before.\n<!-- images -->\n| task |")
    for line in told.splitlines()[-2:]:
        assert line in page.read_text()


def test_the_best_strength_of_an_image_fit_keeps_the_subjects(monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import image_poolings

    points = [
        {"strength": strength, "concept": concept, "subject": subject, "others": 0.0, "change": strength}
        for strength, concept, subject in ((0.0, 0.0, 0.9), (1.0, 0.5, 0.9), (2.0, 1.0, 0.8))
    ]
    row = {"setting": "max", "goal": 0.9, "points": points}
    best = image_poolings.front({"task": "induce", **row})
    assert (best["strength"], best["concept"]) == (pytest.approx(1.5), pytest.approx(0.75))
    for point in points:
        point["concept"] = 1 - point["concept"]
    best = image_poolings.front({"task": "remove", **row})
    assert (best["concept"], best["net"]) == (pytest.approx(0.25), pytest.approx(0.9))


@pytest.mark.process
def test_an_unknown_table_is_refused():
    """By a program that starts as a user starts it."""
    done = subprocess.run([sys.executable, FIT, "--only", "stpe"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "expected some of recipes, once, step, padding" in done.stderr


def test_generation_is_timed_bare_merged_and_attached_and_attaching_is_too(run, tmp_path):
    told = run("--quick", "--json", tmp_path / "figures.json", script=GENERATE)
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
    assert "\nmany: Tokens per second, a batch of 16 texts" in told


def test_prices_are_put_side_by_side(tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    own = [{"+5%": 1.0 + k, "nats": 0.5} for k in (0, 0.1, 0.2)]
    found = {"task": "tone", "draw": 0, "predicted_kl": 0.2, "evaluations": 9, "own": own}
    rows.write_text(json.dumps(found | {"news": {"+5%": 0.9, "nats": 0.4}}) + "\n")
    shown = run("--table", "--json", rows, script=SCRIPT.with_name("prices.py")).splitlines()
    assert shown[-1] == "| tone | 0 | 1.10 (1.00 to 1.20) | 0.90 | 0.50 | 0.40 | 0.50 |"


def test_sites_are_compared_once_and_put_into_a_page(monkeypatch, capsys, tmp_path):
    """On one classifier and pair of digits, where the recommended site turns what the default ones do not."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    import sites

    page, rows = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text("before\n<!-- sites -->\nold\n<!-- end of sites -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(sites, "PAIRS", ((2, 5),))
    monkeypatch.setattr(sites, "NETS", {"residual": sites.NETS["residual"]})
    monkeypatch.setattr(sys, "argv", ["sites.py", "--only", "digits", "--draws", "2", "--json", str(rows)])
    with torch.random.fork_rng():
        sites.main()
        first = rows.read_text()
        sites.main()
    assert rows.read_text() == first, "what the file holds is not fitted again"
    figures = {row["setting"]: row["figure"] for row in map(json.loads, first.splitlines())}
    assert list(figures) == list(sites.COLUMNS)
    assert figures["recommended"] > figures["usual"] + 0.5
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--write", str(page)])
    sites.main()
    shown = page.read_text()
    assert shown.startswith("before\n<!-- sites -->\n| | usual |")
    assert shown.endswith("<!-- end of sites -->\nafter\n")
    assert f"{figures['recommended']:.3f}" in shown
    assert "| 0 of 1 |" in shown
    capsys.readouterr()


def test_what_works_where_is_found_by_running_it_and_written_into_a_page(run, tmp_path):
    pytest.importorskip("accelerate")
    page, found, where = tmp_path / "page.md", tmp_path / "found.jsonl", SCRIPT.with_name("where.py")
    page.write_text("<!-- places -->\n<!-- end of places -->\n", encoding="utf-8")
    run("--only", "disk_offload", "--write", page, script=where)
    assert "`disk_offload` | same bits | same bits | same bits |" in page.read_text()
    run("--only", "dynamic", "--write", page, "--json", found, script=where)
    assert "| refused | to " in page.read_text()
    assert "without a backward pass" in json.loads(found.read_text())["fit"]


def test_weightings_are_compared_at_one_price_and_rules_by_what_they_would_take(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    import weightings

    monkeypatch.setattr(weightings, "EVALUATIONS", 3)
    longer = [[f"{text} as seen in the spring" for text in side] for side in (NEGATIVE, POSITIVE)]
    texts, held = (tuple(side[part] for side in longer) for part in (slice(8), slice(8, None)))
    bench = weightings.Bench(tiny("llama"), WordTokenizer(), ["3 4 5 6 7 8", "6 7 8 9 4"])
    row = weightings.row(bench, "toxicity", 0, texts, held)
    assert row["kl"] == pytest.approx([0.05, 0.05], rel=0.02)
    for effect in weightings.EFFECTS:
        equal, standardised = row[effect]["effects"]
        assert row[effect]["difference"] == pytest.approx(standardised - equal)
        assert row[effect]["error"] > 0
    for where, key, more in weightings.RULES.values():
        first, second = row[where][key]
        assert first != second, f"{key}: the weightings are the same fit"
        rule = next(name for name, known in weightings.RULES.items() if known == (where, key, more))
        assert weightings.picks(row, rule) == ((second > first) == more)
    known = [
        row | {"contrast": {"effects": [0.1, 0.1 + gain], "difference": gain, "error": 0.015}} for gain in (0.05, -0.02)
    ]
    known = [one | {"turn": one["contrast"]} for one in known]
    lines = list(weightings.rules(known))
    assert lines[2] == "| called `standardised` | 1, 1 of 2 | 2 of 2 | 1, 1 of 2; +15%, +15% |", (
        "one draw is within two errors, by both effects"
    )
    page, rows = tmp_path / "page.md", tmp_path / "rows.jsonl"
    names = "weightings", "weightings-rules"
    page.write_text("".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names), encoding="utf-8")
    rows.write_text("".join(json.dumps(one) + "\n" for one in known))
    monkeypatch.setattr(sys, "argv", ["weightings.py", "--json", str(rows), "--write", str(page)])
    weightings.main()
    assert lines[2] in page.read_text()
    assert "| toxicity | 0 | 0.100 | 0.080 | -0.020 ± 0.015 | " in page.read_text()
    capsys.readouterr()


def test_concepts_are_fitted_jointly_and_apart_and_rows_are_given_what_they_lack(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    import joint

    loaded = SimpleNamespace(load=lambda: (minding_model(500), small_tokenizer()))
    monkeypatch.setitem(sys.modules, "embedded_model", loaded)
    pairs = {"positive": (NEGATIVE, POSITIVE), "past": (POSITIVE, NEGATIVE[::-1])}
    monkeypatch.setattr(joint.conflicts, "sides", lambda name, draw: pairs[name])
    monkeypatch.setattr(joint, "FITTED", 8)
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text("<!-- joint -->\n<!-- end of joint -->\n", encoding="utf-8")
    asked = ["joint.py", "--draws", "2", "--pairs", "positive+past", "--json", str(rows), "--write", str(page)]
    monkeypatch.setattr(sys, "argv", [*asked, "--no-summed"])
    joint.main()
    (first,) = map(json.loads, rows.read_text().splitlines())
    assert set(first) == {"a", "b", "draw", "prices", "alone", "added", "joint", "joint_alone"}
    assert first["added"] != first["alone"]
    assert "| positive, past | 2 | positive | " in page.read_text()
    monkeypatch.setattr(sys, "argv", asked)
    joint.main()
    (second,) = map(json.loads, rows.read_text().splitlines())
    assert second == first | {"summed": second["summed"]}
    assert second["summed"] not in (first["added"], first["joint"])
    assert f" | {second['summed'][0] / first['alone'][0]:.2f} | " in page.read_text()
    before = rows.read_bytes()
    joint.main()
    assert rows.read_bytes() == before, "nothing is made again"
    capsys.readouterr()


@pytest.mark.parametrize("name", ["joint", "conflicts"])
def test_the_page_has_the_table_of_the_rows_that_are_kept(name, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    script = importlib.import_module(name)
    page = (ROOT / "docs" / "strength.md").read_text(encoding="utf-8")
    lines = "\n".join(script.table(script._records.read(script.JSON)))
    assert f"<!-- {name} -->\n{lines}\n<!-- end of {name} -->" in page


def test_a_table_takes_the_place_of_the_one_before_and_of_nothing_else(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import _records

    page, file = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter <!-- b -->\n")
    _records.write(page, "a", ["new", "lines"])
    assert page.read_text() == "before\n<!-- a -->\nnew\nlines\n<!-- end of a -->\nafter <!-- b -->\n"
    with pytest.raises(SystemExit, match="expected <!-- b --> and then <!-- end of b -->, once each"):
        _records.write(page, "b", ["new"])
    assert _records.read(file) == []
    _records.keep(file, {"a": 1})
    _records.keep(file, {"a": 2})
    assert _records.read(file) == [{"a": 1}, {"a": 2}]
