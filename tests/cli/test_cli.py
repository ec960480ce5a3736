"""The command line: every example of its help runs; results go to stdout, all else to stderr; exit codes."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from command_line import FIT, INSTALLED, fill_with_pipeline, objects, run
from conftest import ROOT, small_model, small_tokenizer

import lineas
from lineas import optim
from lineas.fitting import losses, methods, options
from lineas.responses import pooling

COMMANDS = ("fit", "evaluate", "generate", "merge", "inspect", "sites", "dry-run", "app")


# -- help --


def examples(command=""):
    text = run(f"{command} --help").stdout
    return re.findall(r"^ *lineas (.*)$", text.partition("Example:\n")[2].partition("\n\n")[0], re.MULTILINE)


@pytest.fixture
def brief(monkeypatch, tmp_path):
    """A page that is served, and at once no more."""
    pytest.importorskip("gradio")
    from lineas_app import page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(page, "wait", lambda: None)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_of_the_help_runs(command, there, brief):
    found = examples(command)
    assert found
    assert all(line.startswith(command) for line in found)
    for line in found:
        if line.startswith("fit"):  # whose result is there for the others
            shutil.rmtree("polite")
        assert run(line).stdout


def test_the_help_names_all_commands_and_what_every_option_can_be():
    text = run("--help").stdout
    assert all(re.search(rf"^  {command} ", text, re.MULTILINE) for command in COMMANDS)
    of_fit = run("fit --help").stdout
    for names in (
        options.RECIPES,
        losses.LOSSES,
        optim.OPTIMIZERS,
        methods.SCHEDULES,
        pooling.POOLINGS,
        options.HALVES,
    ):
        assert all(re.search(rf"\b{name}\b", of_fit) for name in names), names


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": INSTALLED}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.process
def test_help_and_wrong_usage_need_not_wait_for_torch():
    code = (
        "import sys\nfrom lineas_cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: print(end.code, {'torch', 'lineas'} & set(sys.modules))"
    )
    for arguments, ends in ((["fit", "--help"], 0), (["fit", "model"], 2), (["sites", "model", "--no"], 2)):
        ran = python("-c", code, *arguments)
        assert ran.stdout.splitlines()[-1] == f"{ends} set()"


@pytest.mark.process
def test_without_typer_one_sentence_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from lineas_cli import main; main(['--help'])"
    ran = python("-c", code)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert re.fullmatch(r"lineas: error: .*pip install 'lineas\[cli\]'\n", ran.stderr)


def test_the_version_is_that_of_the_package():
    assert run("--version").stdout.split() == ["lineas", lineas.__version__]


@pytest.mark.slow
def test_every_line_of_the_page_runs(there, brief):
    """Without the other programs in its pipes."""
    (there / "prompts.txt").write_text("The movie was\nHis film\n")
    for name, writing in (
        ("curt.csv", "answer\nNo.\nNever.\nNot now.\nWhy?\nStop that.\n"),
        ("kind.jsonl", '"Yes, gladly."\n{"answer": "Of course."}\n' + '"My pleasure, do come in."\n' * 3),
    ):
        (there / name).write_text(writing)
    fill_with_pipeline(there)
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [found.group(1) for block in blocks for found in re.finditer(r"\blineas ([^|>\n]*)", block)]
    assert {line.split()[0] for line in lines} == set(COMMANDS)
    shutil.rmtree("polite")  # the page makes it
    for line in lines:
        result = run(line, input="The movie was\n")
        assert "--json" not in line or [json.loads(row) for row in result.stdout.splitlines()]


# -- what is there already --

NEW = "fit model --src from.txt --tgt to.txt --max-evaluations 2 --out polite"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_there_is_written_over_only_where_the_user_says_so(there):
    before = content(there / "polite")
    refusal = run(NEW, code=1).stderr
    said = "--out polite: expected a folder without results, there is steering_config.json; --force writes over it"
    assert refusal.splitlines() == [f"lineas: error: {said}"], "before any work"
    assert content(there / "polite") == before
    run(f"{NEW} --force")
    assert objects("inspect polite")[0]["info"]["evaluations"] == 2
    (there / "notes").mkdir()
    (there / "notes" / "README.md").write_text("mine")
    run(NEW.replace("polite", "notes"))
    assert (there / "notes" / "README.md").read_text() == "mine"


def test_the_same_line_with_resume_writes_the_same_result_again(there):
    line = NEW.replace("polite", "slow") + " --checkpoint-dir run --resume"
    run(line)
    before = content(there / "slow")
    run(line)
    assert content(there / "slow") == before
    shutil.rmtree("run")
    assert "--force writes over it" in run(line, code=1).stderr, "which begins anew"


def test_a_merged_model_is_not_written_over_either(there):
    line = "merge model --steering polite --out polite-model"
    run(line)
    before = content(there / "polite-model")
    for strength in (0.5, 0.7):
        refusal = run(f"{line} --strength {strength}", code=1).stderr
        assert "there is config.json; --force writes over it" in refusal
    assert content(there / "polite-model") == before
    assert "fold exactly" in run(f"{line} --plan").stdout, "which writes nothing"
    run(f"{line} --strength 0.5 --force")
    assert content(there / "polite-model") != before


def test_merge_from_files_to_files_writes_what_merge_in_memory_writes(there):
    from transformers import AutoModelForCausalLM

    run("merge model --steering polite --out merged --max-shard-size 1GB")
    said = run("merge model --steering polite --out in-parts --device disk --max-shard-size 10KB")
    assert "in float32 on disk" in said.stderr
    assert "50GB" not in said.stderr
    assert len(list((there / "in-parts").glob("*.safetensors"))) > 1
    whole, parts = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("merged", "in-parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    line = "generate model --steering polite --prompt 'The movie was'"
    assert run(f"{line} --device disk").stdout == run(line).stdout
    refusal = run("merge painter --pipeline --steering polite --plan --max-shard-size 1GB", code=2).stderr
    assert "--max-shard-size: not for a pipeline" in refusal


# -- from texts to a checkpoint --


def test_what_is_merged_loads_without_lineas_and_does_what_the_steered_model_does(there):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(f"{FIT} --seed 3")
    assert objects("inspect polite")[0]["info"]["seed"] == 3
    run("generate model --steering polite --prompt 'The movie was'")
    (merged,) = objects("merge model --steering polite --out polite-model --strength 0.7")
    assert merged["error"] <= 1e-4 < merged["effect"]
    assert merged["left_out"] == []
    model, plain = (AutoModelForCausalLM.from_pretrained(name).eval() for name in ("model", "polite-model"))
    ids = AutoTokenizer.from_pretrained("polite-model")("The movie was not bad", return_tensors="pt")
    with torch.no_grad():
        base, got = model(**ids).logits, plain(**ids).logits
        with lineas.Steering.from_pretrained("polite").apply(model, 0.7):
            wanted = model(**ids).logits
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (base - wanted).abs().max() > 1e-3 * wanted.abs().max()


def test_fit_does_what_the_library_does(there):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = {"sites": r"model\.layers\.[01]\.mlp", "loss_sites": r"model\.norm", "recipe": "published", "steps": 3,
                "learning_rate": 0.01, "batch_size": 6, "max_length": 9, "pooling": "last", "seed": 2,
                "optimizer": "adam"}  # fmt: skip
    told = " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in settings.items())
    (report,) = objects(f"{FIT} --l1 1e-4 --group 1e-3 {told}")
    sets = [(there / name).read_text(encoding="utf-8").split("\n") for name in ("from.txt", "to.txt")]
    model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
    penalty = lineas.penalties.SparseGroupLasso(1e-4, 1e-3)
    wanted = lineas.fit(model, *sets, tokenizer=tokenizer, penalty=penalty, progress=False, **settings)
    assert report["history"] == wanted.history
    got, ours = report["info"], wanted.info
    assert {key for key in {*got, *ours} if got.get(key) != ours.get(key)} <= {"seconds"}


def test_several_poolings_are_listed_with_commas(there):
    (report,) = objects(f"{FIT} --pooling mean,max --max-evaluations 2")
    assert report["info"]["pooling"] == ["mean", "max"]
    wrong = " ".join(run(f"{FIT} --pooling mean,median", 2).stderr.replace("│", "").split())
    assert "pooling: expected some of" in wrong


def test_every_option_of_fit_reaches_the_library_under_its_own_name(there, monkeypatch):
    from inspect import signature

    heard = {}

    def listen(model, src, tgt, **given):
        heard.update(given)
        return lineas.Steering.from_pretrained("polite")

    listen.__signature__ = signature(lineas.fit)
    monkeypatch.setattr(lineas, "fit", listen)
    monkeypatch.setattr("lineas_cli.fitting._check", lambda options: None)  # they do not go together
    told = {"sites": "a", "loss_sites": "b", "method": "linear_act", "schedule": "at_once", "recipe": "fast",
            "loss": "excess", "loss_weights": "standardised", "ridge": 0.5,
            "steps": 4, "max_evaluations": 5, "batch_size": 6, "max_length": 7, "compute_dtype": "bfloat16",
            "pooling": "last", "position": "all", "memory": "4GB", "seed": 8, "budget": "+5%",
            "component": "vae", "at": "all", "checkpoint_dir": "run", "resume_from": "run"}  # fmt: skip
    monkeypatch.setattr("lineas_cli.fitting.load_pipeline", lambda *args, **options: None)
    flags = " --within-range --pipeline --call a=1 --call b=text --gate auto --neutral to.txt"
    run(FIT + flags + "".join(f" --{name.replace('_', '-')} {value}" for name, value in told.items()))
    told |= {"within_range": True, "call": {"a": 1, "b": "text"}, "gate": "auto"}
    told["neutral"] = (there / "to.txt").read_text().splitlines()
    assert {key: value for key, value in heard.items() if key not in ("tokenizer", "progress")} == told
    of_python = {"model", "src", "tgt", "tokenizer", "units", "penalty", "callbacks", "distributed", "graphs"}
    of_recipe = {"optimizer", "learning_rate"}
    assert set(signature(lineas.fit).parameters) == {*told, "progress", *of_python, *of_recipe}
    heard.clear()
    run(FIT)
    assert set(heard) == {"tokenizer", "progress"}, "all else is the library's own default"


def test_the_methods_are_those_of_the_library(there):
    assert objects(f"{FIT} --method linear_act --schedule sequential")[0]["info"]["method"] == "linear_act"
    message = " ".join(run(f"{FIT} --method none", code=2).stderr.split())
    assert all(f"'{name}'" in message for name in options.METHOD_NAMES)


def test_texts_come_out_of_columns_and_fields(there):
    rows = [(there / name).read_text(encoding="utf-8").split("\n") for name in ("from.txt", "to.txt")]
    with open("a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("n", "words"), *enumerate(rows[0])])
    (there / "b.jsonl").write_text("\n".join(json.dumps({"said": text}) for text in [*rows[1], " "]))
    result = run("fit model --src a.csv --tgt b.jsonl --column words --field said --out other --json")
    assert json.loads(result.stdout)["info"]["data"] == objects("inspect polite")[0]["info"]["data"]
    assert "tgt: 12 texts from b.jsonl, 1 empty ones left out" in result.stderr


@pytest.mark.filterwarnings("default")
def test_a_field_may_hold_chats(there):
    chats = [[{"role": "user", "content": text}] for text in ("No.", "Never, no.", "Not now.")]
    (there / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    line = "fit model --src chats.jsonl --tgt chats.jsonl --field messages --out other --max-evaluations 1"
    result = run(f"{line} --json")
    assert json.loads(result.stdout)["info"]["samples"] == [3, 3]
    assert "lineas: warning: the maps change nothing: src and tgt are the same inputs\n" in result.stderr
    generate = "generate model --steering polite --prompts chats.jsonl --field messages"
    assert [row["prompt"] for row in objects(generate)] == chats
    assert "Never, no. ...\n" in run(generate).stdout


def test_a_fit_goes_on_from_its_checkpoint(there):
    run(f"{FIT} --checkpoint-dir run --max-evaluations 3")
    assert "is there already" in run(f"{FIT} --checkpoint-dir run --max-evaluations 3", code=1).stderr
    (first,) = objects(f"{FIT} --checkpoint-dir run --max-evaluations 3 --resume")
    (start,) = objects(f"{FIT} --max-evaluations 1 --resume-from polite")
    assert first["info"]["evaluations"] == 3
    assert start["history"]["loss"][0] == pytest.approx(first["history"]["loss"][-1], rel=1e-4)
    assert "--resume goes with --checkpoint-dir" in run(f"{FIT} --resume", code=2).stderr


# -- results --


def test_inspect_says_what_fit_said(there):
    assert objects(FIT)[0] == objects("inspect polite")[0]
    report = objects("inspect polite")[0]
    steering = lineas.Steering.from_pretrained("polite")
    assert [row["site"] for row in report["sites"]] == steering.sites
    assert report["units"] == 48
    assert report["support"] == sum(map(len, steering.support().values()))
    text = run("inspect polite").stdout
    assert text.startswith(steering.summary())
    assert f'data.src: "{steering.info["data"]["src"]}"\n' in text


def test_inspect_shows_metrics_and_nothing_that_a_terminal_obeys(there):
    steering = lineas.Steering.from_pretrained("polite")
    steering.info["note\x1b"] = "\x1b[2J"
    steering.save_pretrained("polite", metrics={"perplexity": 12.5, "endless": float("inf")})
    result = run("inspect polite").stdout
    assert "metrics.perplexity: 12.5\n" in result
    assert "\x1b" not in result
    assert objects("inspect polite")[0]["info"]["metrics"] == {"perplexity": 12.5, "endless": None}


def test_generate_writes_a_line_for_each_continuation(there):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (there / "prompts.txt").write_text("The movie was\nHis film\n")
    options = "--count 2 --new-tokens 5 --seed 4 --temperature 0.8 --top-p 0.95 --strength 2"
    rows = objects(f"generate model --steering polite --prompt It --prompts prompts.txt --compare {options}")
    prompts = ["It", "The movie was", "His film"]
    expected = [(s, prompt, k) for s in (0.0, 2.0) for prompt in prompts for k in range(2)]
    assert [(row["strength"], row["prompt"], row["number"]) for row in rows] == expected
    model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
    how = {"count": 2, "new_tokens": 5, "seed": 4, "temperature": 0.8, "top_p": 0.95}
    texts = lineas.evaluation.continuations(model, prompts, tokenizer=tokenizer, **how)
    with lineas.Steering.from_pretrained("polite").apply(model, 2.0):
        texts += lineas.evaluation.continuations(model, prompts, tokenizer=tokenizer, **how)
    assert [row["text"] for row in rows] == texts
    assert texts[:6] != texts[6:]


def test_generate_shows_strengths_side_by_side(there):
    shown = run(
        "generate model --steering polite --prompt It --prompt He --strength 0.5 --strength -1 --compare"
    ).stdout
    assert re.findall(r"^(\w+ \.\.\.|[ \d.-]{6})", shown, re.MULTILINE) == [
        *("It ...", "     0", "   0.5", "    -1"), *("He ...", "     0", "   0.5", "    -1"),
    ]  # fmt: skip


def test_generate_at_temperature_zero_takes_the_likeliest_token(there):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = objects("generate model --steering polite --prompt It --temperature 0 --count 2 --new-tokens 6 --strength 0")
    model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
    ids = tokenizer("It", return_tensors="pt")
    out = model.generate(**ids, do_sample=False, max_new_tokens=6)[0, ids["input_ids"].shape[1] :]
    assert [row["text"] for row in rows] == [tokenizer.decode(out, skip_special_tokens=True)] * 2


def test_generate_steers_only_the_tokens_asked_for(there):
    def texts(position):
        line = f"generate model --steering polite --prompt 'The movie was' --strength 3 --position {position}"
        return objects(line)[0]["text"]

    assert texts("all") != texts("generated")
    assert "position" in run("generate model --steering polite --prompt It --position some", code=1).stderr


def test_a_model_of_another_name_is_steered_only_when_told(there):
    tokenizer = small_tokenizer()
    small_model(len(tokenizer)).save_pretrained("another")
    tokenizer.save_pretrained("another")
    line = "generate another --steering polite --prompt It"
    assert "fitted on" in run(line, code=1).stderr
    assert run(f"{line} --no-strict").stdout


def test_merge_says_what_it_did_and_plan_what_it_would_do(there):
    said = run("merge model --steering polite --out merged").stdout
    assert re.fullmatch(r"merged 3 of 3 sites at strength 1 into a LlamaForCausalLM: error \S+ \(steering .*\)\n", said)
    (plan,) = objects("merge model --steering polite --plan")
    assert plan["exact"] is True
    assert [entry["status"] for entry in plan["sites"]] == ["class"] * 3
    assert "3 of 3 sites fold exactly" in run("merge model --steering polite --plan").stdout
    assert "model's own" in run("merge model --steering polite --out ./model", code=2).stderr
    assert "--out FOLDER, or --plan" in run("merge model --steering polite", code=2).stderr


@pytest.mark.filterwarnings("default")
def test_merge_refuses_what_is_not_exact_unless_told(there):
    run(rf"{FIT} --sites 'model\.layers\.0(\.mlp)?' --max-evaluations 2")
    (plan,) = objects("merge model --steering polite --plan")
    assert plan["exact"] is False
    refusal = run("merge model --steering polite --out merged", code=1)
    assert "cannot be merged exactly" in refusal.stderr
    assert refusal.stderr.splitlines()[-1].startswith("lineas: error: ")
    assert not (there / "merged").exists()
    result = run("merge model --steering polite --out merged --partial --json")
    assert json.loads(result.stdout)["left_out"] == ["model.layers.0"]
    assert "lineas: warning: merged 1 of 2 sites" in result.stderr


def test_sites_needs_no_weights(there):
    from transformers import AutoModelForCausalLM

    found = lineas.find_sites(AutoModelForCausalLM.from_pretrained("model"))
    (there / "model" / "model.safetensors").unlink()
    rows = objects("sites model")
    assert rows == [{"name": site.name, "units": site.units, "kind": site.kind} for site in found]
    assert run("sites model").stdout.split() == [str(part) for row in rows for part in row.values()]
    assert objects(r"sites model --sites 'model\.norm'")[0]["name"] == "model.norm"
    assert "there is model.layers.*" in run("sites model --sites nothing", code=1).stderr


def test_sites_with_two_files_says_where_they_part_and_what_fit_takes(there):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sides = [(there / name).read_text().splitlines() for name in ("from.txt", "to.txt")]
    model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
    pattern = r"model\.layers\.[01]\.mlp"
    found = lineas.suggest_sites(model, *sides, pattern, tokenizer=tokenizer)
    line = f"sites model --src from.txt --tgt to.txt --sites '{pattern}'"
    *rows, last = objects(line)
    assert [row["site"] for row in rows] == [one.site for one in found.candidates]
    assert [row["apart"] for row in rows] == pytest.approx([one.apart for one in found.candidates], rel=1e-6)
    assert [name for name in found.sites if re.fullmatch(last["sites"], name)] == found.sites
    assert not last["is_default"]
    said = run(line).stdout
    assert said.startswith(str(found))
    options = said.splitlines()[-1].removeprefix("lineas fit: ")
    run(f"{FIT} {options} --max-evaluations 8")
    assert set(lineas.Steering.from_pretrained("polite").sites) == set(found.sites)


@pytest.mark.parametrize(
    ("options", "named"), [("--src from.txt", "--src"), ("--seed 1 --dtype bfloat16", "--seed, --dtype")]
)
def test_what_sites_needs_two_files_for_is_refused_without_them(there, options, named):
    assert f"{named}: goes with both --src and --tgt" in " ".join(run(f"sites model {options}", code=2).stderr.split())


def test_another_class_of_transformers_loads_encoders(there):
    import transformers as hf

    config = hf.BertConfig(
        vocab_size=500, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.BertModel(config).save_pretrained("encoder")
    small_tokenizer().save_pretrained("encoder")
    names = [row["name"] for row in objects("sites encoder --model-class AutoModel")]
    assert names == [f"encoder.layer.{k}.attention.output.LayerNorm" for k in range(2)]
    fit = FIT.replace("model", "encoder", 1)
    (report,) = objects(
        f"{fit} --model-class AutoModel --loss wasserstein --ridge 0 --max-evaluations 2 --dtype float32 --device cpu"
    )
    assert [row["site"] for row in report["sites"]] == names
    assert "model class of transformers" in run(f"{fit} --model-class Nothing", code=2).stderr


def test_the_code_that_a_model_brings_is_not_run(there):
    config = json.loads((there / "model" / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}, "model_type": "own"}
    (there / "model" / "config.json").write_text(json.dumps({**config, **own}))
    (there / "model" / "own.py").write_text("open('run', 'w')")
    for line in (FIT, "sites model", "generate model --steering polite --prompt It"):
        result = run(line, code=1)
        assert "lineas: error: cannot load model: " in result.stderr
        assert result.stdout == "", "nobody is asked whether it may"
    assert not (there / "run").exists()
