"""`lineas evaluate`: the library's report from the command line, as a table, as JSON, as a file."""

import json

import pytest
from command_line import objects, run

import lineas

SMALL = "--strength 1 --count 2 --new-tokens 4"
FILES = "--src from.txt --tgt to.txt --texts to.txt"


def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")


def test_evaluate_does_what_the_library_does(there):
    pytest.importorskip("vaderSentiment")
    more = "--seed 3 --seed 4 --temperature 0.7 --top-p 0.8 --confidence 0.9 --text-batch-size 5 --batch-size 7"
    line = f"evaluate model --steering polite --scorer sentiment --prompt 'The movie' {FILES} {SMALL} {more}"
    printed = run(f"{line} --max-length 9 --position generated --out report.json")
    source, target = ((there / name).read_text(encoding="utf-8").split("\n") for name in ("from.txt", "to.txt"))
    model, tokenizer = loaded()
    wanted = lineas.evaluate(
        model, {"polite": lineas.Steering.from_pretrained("polite")}, tokenizer=tokenizer, strengths=1, seeds=(3, 4),
        scorers="sentiment", prompts=["The movie"], texts=target, src=source, tgt=target, count=2, new_tokens=4,
        temperature=0.7, top_p=0.8, position="generated", batch_size=7, text_batch_size=5, max_length=9,
        confidence=0.9, progress=False,
    )  # fmt: skip
    assert printed.stdout == f"{wanted}\n"
    report = lineas.evaluation.Report.from_json("report.json")
    assert report.written == wanted.written
    assert report.outcomes == wanted.outcomes
    assert "saved in report.json" in printed.stderr


def test_a_line_of_json_for_the_base_and_each_steering_and_strength(there):
    (there / "other").mkdir()
    lineas.Steering.from_pretrained("polite").scaled(2).save_pretrained("other")
    rows = objects(
        f"evaluate model --steering polite --steering other --no-prompts {FILES} --strength 0.5 --strength 1"
    )
    cells = [(row["steering"], row["strength"]) for row in rows]
    assert cells == [(None, 0.0), ("polite", 0.5), ("polite", 1.0), ("other", 0.5), ("other", 1.0)]
    assert rows[0]["held_out"] == 1.0
    assert rows[2]["perplexity"] == pytest.approx(rows[3]["perplexity"], rel=1e-5), "half of the double is the whole"
    assert rows[0]["held_out_low"] is None, "one number has no interval"
    assert "sentiment" not in rows[0]


def test_without_texts_of_ones_own_there_are_the_librarys(there):
    (row, _) = objects("evaluate model --steering polite --no-prompts --strength 1")
    model, tokenizer = loaded()
    own = lineas.evaluation.perplexity(model, lineas.samples.neutral_sentences(), tokenizer=tokenizer)
    assert row["perplexity"] == pytest.approx(own, rel=1e-5)


def test_prompts_come_from_files_and_from_the_line(there):
    pytest.importorskip("vaderSentiment")
    chats = [[{"role": "user", "content": text}] for text in ("No.", "Not now.")]
    (there / "chats.jsonl").write_text("\n".join(json.dumps({"said": chat}) for chat in chats))
    line = f"evaluate model --steering polite --scorer sentiment {SMALL}"
    run(f"{line} --prompts chats.jsonl --field said --prompt 'The movie' --out three.json")
    run(f"{line} --prompts - --out one.json", input="His film\n")
    for name, count in (("three.json", 6), ("one.json", 2)):
        assert len(lineas.evaluation.Report.from_json(name).continuations(1.0)) == count


def test_a_report_that_is_there_is_written_over_only_where_the_user_says_so(there):
    line = "evaluate model --steering polite --no-prompts --texts to.txt --strength 1 --out report.json"
    (there / "report.json").write_text("mine")
    refusal = run(line, code=1).stderr
    said = "--out report.json: expected a new file, this one is there; --force writes over it"
    assert refusal.splitlines() == [f"lineas: error: {said}"], "before any work"
    assert (there / "report.json").read_text() == "mine"
    run(f"{line} --force")
    assert lineas.evaluation.Report.from_json("report.json").strengths() == [1.0]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ("--count 0", 2, "--count"),
        ("--src from.txt", 2, "expected --src and --tgt, or neither; got only --src"),
        ("--no-prompts --prompt It", 2, "--no-prompts goes without"),
        ("--src - --tgt -", 2, "only one of them can be the standard input"),
        ("--texts none.txt", 1, "none.txt: No such file"),
        ("--scorer sentimant", 1, "scorer: expected 'sentiment', 'toxicity'"),
        ("--out nowhere/report.json", 1, "--out nowhere/report.json: expected a file that can be written"),
        ("--out model", 1, "--out model: expected a file that can be written"),
        ("--no-prompts --strength nan", 1, "strengths: expected a finite number, got nan"),
        ("--steering nowhere", 1, "no folder nowhere"),
    ],
)
def test_errors_take_one_line_and_an_exit_code(more, code, message, there):
    result = run(f"evaluate model --steering polite {more}", code=code)
    assert result.stdout == ""
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_the_best_strength_for_a_price_stands_below(there):
    pytest.importorskip("vaderSentiment")
    line = "evaluate model --steering polite --scorer sentiment --count 2 --new-tokens 4 --texts to.txt --strength 0.2"
    report = f"{line} --strength 0.4 --out report.json"
    printed = run(f"{report} --best '+500%'").stdout
    found = lineas.evaluation.Report.from_json("report.json").best("+500%")
    (said,) = [row for row in printed.splitlines() if row.startswith("best for +500%: polite at strength")]
    assert f"strength {found.strength:g}, effect {found.effect.value:+.3g} [" in said
    *rows, best = objects(f"{line} --best '+500%'")
    assert len(rows) == 2
    assert best["best"] == "+500%"
    assert best["strength"] == 0.2
    assert best["price"]["value"] == rows[1]["perplexity_change"]
    assert "the cheapest measured, 0.2, costs" in run(f"{line} --best '0.0001 nats'", code=1).stderr
    assert "--best: expected '+5%'" in run(f"{line} --best cheap", code=1).stderr


@pytest.mark.filterwarnings("ignore:the gate at")
def test_a_gate_is_kept_and_generate_goes_through_it(there):
    run("fit model --src from.txt --tgt to.txt --out gated --steps 3 --gate auto --neutral to.txt")
    maps = lineas.Steering.from_pretrained("gated")
    assert maps.gate.pooling == "running"
    assert maps.gate.acts_on["neutral"] <= 0.05
    assert "Gate(" in run("inspect gated").stdout
    objects("generate model --steering gated --prompt 'The movie' --new-tokens 5 --strength 1 --compare")
    wrong = "fit model --src from.txt --tgt to.txt --out x"
    assert "neutral: expected gate=" in run(f"{wrong} --neutral to.txt", code=1).stderr
    assert "only one of them can be the standard input" in run(f"{wrong} --gate auto --neutral - --src -", code=2).stderr
    assert "a gate says how much of it acts" in run("merge model --steering gated --out y", code=1).stderr


def test_a_budget_is_kept_and_generate_asks_for_its_price(there):
    run("fit model --src from.txt --tgt to.txt --out priced --steps 3 --budget '+2% perplexity'")
    maps = lineas.Steering.from_pretrained("priced")
    assert maps.info["budget"] == "+2% perplexity"
    line = "generate model --steering priced --prompt 'The movie' --new-tokens 5 --seed 2"
    rows = objects(f"{line} --price 1% --price +2% --compare")
    assert [row["strength"] for row in rows] == [0.0, maps.strength_for("1%"), maps.strength_for("2%")]
    assert "price: expected at most what was measured" in run(f"{line} --price +900%", code=1).stderr
    assert "--price: goes without --strength" in run(f"{line} --price 1% --strength 2", code=2).stderr
    assert "expected a dial, which this steering has none of" in (
        run("generate model --steering polite --prompt 'The movie' --price 1%", code=1).stderr
    )
