"""What lies on the disk: a format that stays readable, a card, and which model a steering is for."""

import json
import os
import re
import stat

import numpy as np
import pytest
import torch
import yaml
from conftest import DATA, NEGATIVE, POSITIVE, WordTokenizer, count_hooks, normal, tiny
from safetensors.numpy import load_file

import lineas
from lineas import Steering
from lineas._storage import pairs
from lineas.maps import card
from lineas.maps.card import CARD, CONFIG, TENSORS
from lineas.network import identity as origin

OLD = DATA / "steering_v1"  # written by the first version of the format; it must load for ever


@pytest.fixture
def steering():
    return Steering({"a.0": ([1.5, 1], [0, 2]), "a.1": ([1.0], [0.5])}, info={"model": "m", "model_class": "M"})


def fitted(name="", seed=0, **options):
    model = tiny("llama")
    model.name_or_path = name
    data = {"tokenizer": WordTokenizer(), "progress": False, "steps": 2, "seed": seed, **options}
    return model, lineas.fit(model, NEGATIVE, POSITIVE, **data)


# -- the format --


def test_a_folder_of_the_first_version_loads():
    old = Steering.from_pretrained(OLD)
    raw = load_file(OLD / TENSORS)
    assert old.sites == [f"model.layers.{k}.post_attention_layernorm" for k in range(3)]
    for name in old.sites:
        assert np.array_equal(old.weight(name), raw[f"{name}.weight"])
        assert np.array_equal(old.bias(name), raw[f"{name}.bias"])
    assert old.weight(old.sites[0]).sum() == pytest.approx(16.1038276)
    assert old.info["stopped"] == "all steps done"
    assert old.history["objective"][-1] == float("inf")
    assert old.history["accepted"] == [True] * 5 + [False]
    assert "support 46" in old.summary()
    with old.apply(tiny("llama")):
        pass


def test_what_is_written_now_can_be_read_by_the_first_version(tmp_path):
    """What its reader asked for: format, version, sites, and exactly two float32 tensors a site."""
    Steering.from_pretrained(OLD).save_pretrained(tmp_path)
    now, then = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path, OLD))
    assert {key: now[key] for key in then} == then
    assert (tmp_path / TENSORS).read_bytes() == (OLD / TENSORS).read_bytes()


def test_files_are_readable_by_others_and_replaced_whole(steering, tmp_path, monkeypatch):
    steering.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CARD, CONFIG, TENSORS}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1, "all as the umask says"

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        steering.scaled(2).save_pretrained(tmp_path)
    assert Steering.from_pretrained(tmp_path).bias("a.1") == [0.5]
    assert {path.name for path in tmp_path.iterdir()} == {CARD, CONFIG, TENSORS}


def test_maps_of_another_steering_beside_the_config_are_refused(steering, tmp_path):
    steering.save_pretrained(tmp_path)
    steering.scaled(2).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / TENSORS).replace(tmp_path / TENSORS)
    with pytest.raises(ValueError, match="is corrupted, or of another folder: its checksum is not that in"):
        Steering.from_pretrained(tmp_path)


def test_numpy_numbers_in_info_are_kept_and_what_json_cannot_hold_is_refused(tmp_path):
    maps = {"a": ([1.0], [0.5])}
    Steering(maps, info={"x": np.float32(0.5), "y": np.arange(3), "z": (1, None)}).save_pretrained(tmp_path)
    assert Steering.from_pretrained(tmp_path).info == {"x": 0.5, "y": [0, 1, 2], "z": [1, None]}
    with pytest.raises(TypeError, match=r"expected numbers, strings, lists and dicts in .* got tensor"):
        Steering(maps, info={"x": torch.ones(1)}).save_pretrained(tmp_path)
    assert Steering.from_pretrained(tmp_path).info["x"] == 0.5, "the old one stays"


def test_what_could_not_be_read_again_is_not_written(steering, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "CONFIG_LIMIT", 500)
    steering.history["loss"] = [1.0] * 500
    with pytest.raises(ValueError, match="at most 500 bytes of steering_config.json"):
        steering.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -- the card --


def front_matter(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_the_card_says_what_it_is_how_it_was_made_and_what_was_measured(tmp_path):
    _, steering = fitted("some/tiny-llama", seed=5, penalty=lineas.penalties.L1(1e-3))
    steering.save_pretrained(tmp_path, metrics={"perplexity": 57.5, "judged by": "VADER"})
    text = (tmp_path / CARD).read_text()
    assert front_matter(text) == {
        "library_name": "lineas", "base_model": "some/tiny-llama", "base_model_relation": "adapter",
        "tags": ["lineas", "activation-steering"],
    }  # fmt: skip
    for line in (
        "| seed | `5` |", "| recipe | `fast` |", "| penalty | `L1(l1=0.001, l1_bias=0.001)` |",
        "| its class | `LlamaForCausalLM` |", "| samples (source, target) | `[12, 10]` |",
        "| `perplexity` | `57.5` |", "| `judged by` | `VADER` |",
        steering.info["data"]["src"], 'AutoModelForCausalLM.from_pretrained("some/tiny-llama")',
    ):  # fmt: skip
        assert line in text, line
    rows = [line for line in text.splitlines() if line.startswith("| `model.layers.")]
    assert [row.split("`")[1] for row in rows] == steering.sites
    moved = [len(units) for units in steering.support().values()]
    assert [int(row.split("|")[3]) for row in rows] == moved
    assert f"{sum(moved)} of 48 units" in text
    again = Steering.from_pretrained(tmp_path)
    assert again.info["metrics"] == {"perplexity": 57.5, "judged by": "VADER"}
    again.save_pretrained(tmp_path / "copy", metrics={"perplexity": 60})
    assert "| `60` |" in (tmp_path / "copy" / CARD).read_text()
    assert "VADER" in (tmp_path / "copy" / CARD).read_text()


@pytest.mark.parametrize(
    ("name", "revision", "claimed", "shown"),
    [
        ("some/tiny-llama", None, "some/tiny-llama", "some/tiny-llama"),
        ("tiny-llama", "0123abc", "tiny-llama", "tiny-llama"),  # the first models on the hub have no owner
        ("tiny-llama", None, None, "the folder of tiny-llama"),
        ("/models/tiny-llama", None, None, "the folder of tiny-llama"),
        ("", None, None, "the model it was fitted on"),
    ],
)
def test_a_card_names_a_base_model_only_where_it_is_known_to_be_on_the_hub(name, revision, claimed, shown, tmp_path):
    model = tiny("llama")
    model.name_or_path, model.config._commit_hash = name, revision
    data = {"tokenizer": WordTokenizer(), "progress": False, "steps": 1}
    lineas.fit(model, NEGATIVE, POSITIVE, **data).save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert front_matter(text).get("base_model") == claimed
    assert f"AutoModelForCausalLM.from_pretrained({json.dumps(shown)})" in text


def test_the_user_says_which_base_model_it_is(tmp_path):
    _, steering = fitted("/models/tiny-llama")
    steering.save_pretrained(tmp_path, base_model="org/tiny")
    again = Steering.from_pretrained(tmp_path)
    assert again.info["base_model"] == "org/tiny"
    assert again.info["model"] == "tiny-llama", "what it was loaded by stays known"
    again.scaled(0.5).save_pretrained(tmp_path / "half")
    again.save_pretrained(tmp_path / "moved", base_model="org/moved")
    for folder, name in (("", "org/tiny"), ("half", "org/tiny"), ("moved", "org/moved")):
        text = (tmp_path / folder / CARD).read_text()
        assert front_matter(text)["base_model"] == name
        assert f"# Steering of `{name}`" in text
        assert f'AutoModelForCausalLM.from_pretrained("{name}")' in text


@pytest.mark.parametrize(
    ("name", "error"),
    [("/models/tiny", ValueError), ("./tiny", ValueError), ("a/b/c", ValueError), ("", ValueError), (3, TypeError)],
)
def test_what_is_no_name_on_the_hub_is_refused_as_a_base_model(name, error, steering, tmp_path):
    with pytest.raises(error, match="base_model: expected a name on the hub"):
        steering.save_pretrained(tmp_path / "new", base_model=name)
    assert not (tmp_path / "new").exists()


def test_small_stretches_and_shifts_have_digits(tmp_path):
    steering = Steering({"a": ([1.00012, 1, 1, 1], [0, 0, 0, 2e-4])})
    steering.save_pretrained(tmp_path)
    (row,) = [line for line in (tmp_path / CARD).read_text().splitlines() if line.startswith("| `a`")]
    assert [float(cell) for cell in row.split("|")[4:6]] == pytest.approx([3e-5, 5e-5], rel=2e-2)
    line = steering.summary().splitlines()[2].split()
    assert [float(cell) for cell in line[3:5]] == pytest.approx([3e-5, 5e-5], rel=2e-2)


def test_a_steering_that_nobody_fitted_has_a_card_too(tmp_path):
    Steering({f"s.{k}": ([2.0], [0]) for k in range(300)}).save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert "base_model" not in front_matter(text)
    assert "300 of 300 units" in text
    assert "and 100 sites more" in text
    assert "How it was made" not in text


def test_a_readme_that_somebody_wrote_or_edited_stays(steering, tmp_path):
    (tmp_path / CARD).write_text("# My project\n")
    steering.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == "# My project\n"
    steering.save_pretrained(tmp_path / "b")
    text = (tmp_path / "b" / CARD).read_text()
    (tmp_path / "b" / CARD).write_text(text.replace(card.MARK, "").replace("Steering of", "My steering of"))
    steering.save_pretrained(tmp_path / "b")
    assert "My steering of" in (tmp_path / "b" / CARD).read_text()


EVIL = 'x"\n---\nlicense: evil\n`| <script>alert(1)</script> [a](javascript:b) ![c](http://d/e) \x1b[31m{base}'


def test_nothing_that_a_card_is_told_becomes_markup(tmp_path):
    info = {"model": EVIL, "model_class": "M", "base_model": EVIL, "stopped": EVIL, "made": EVIL}
    steering = Steering({"a|`b<i>": ([2.0], [0])}, info=info)
    text = card.text_of(steering, steering.info, {EVIL: EVIL})
    assert front_matter(text) == {"library_name": "lineas", "tags": ["lineas", "activation-steering"]}
    outside = re.sub(r"```.*?```", "", text.split("-->")[1], flags=re.DOTALL)
    assert not re.search(r"script|javascript|http://d|<i>", re.sub(r"`[^`\n]*`", "", outside))
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (3, 8) for row in rows), "no cell makes others"


@pytest.mark.parametrize("bad", [{"a": torch.ones(1)}, {"a": object()}])
def test_metrics_that_are_no_numbers_are_refused(steering, tmp_path, bad):
    with pytest.raises(TypeError, match="expected numbers, strings"):
        steering.save_pretrained(tmp_path, metrics=bad)


def test_metrics_in_a_list_are_refused_before_anything_is_written(steering, tmp_path):
    with pytest.raises(TypeError, match="metrics: expected a dict of name -> number, got list"):
        steering.save_pretrained(tmp_path / "new", metrics=[1])
    assert not (tmp_path / "new").exists()


# -- which model, which data --


def test_a_fit_keeps_what_identifies_model_and_data():
    model, steering = fitted("org/tiny-llama")
    model.config._commit_hash = "abc123"
    again = lineas.fit(model, NEGATIVE, POSITIVE[1:], tokenizer=WordTokenizer(), progress=False, steps=1)
    assert steering.info["model"] == "org/tiny-llama"
    assert steering.info["model_class"] == "LlamaForCausalLM"
    assert (steering.info["revision"], again.info["revision"]) == (None, "abc123")
    assert steering.info["weights"] == again.info["weights"] == origin.weights_digest(tiny("llama"))
    assert steering.info["data"]["src"] == again.info["data"]["src"]
    assert steering.info["data"]["tgt"] != again.info["data"]["tgt"]
    assert origin.of_data([("a", "b"), ("c", "d")]) != origin.of_data([("c", "d"), ("a", "b")])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("org/model", "org/model"), ("gpt2", "gpt2"), ("/home/ann/models/tiny", "tiny"), ("./tiny/", "tiny"), ("", ""),
        ("/c/hub/models--org--model/snapshots/0123456789abcdef", "org/model"), ("runs/a/checkpoint-5", "checkpoint-5"),
    ],
)  # fmt: skip
def test_a_models_name_is_the_hubs_or_a_folders_without_its_place(path, name):
    model = tiny("llama")
    model.name_or_path = path
    assert origin.name_of(model) == name


def other_model(name):
    """The same shapes, other weights."""
    model = tiny("llama")
    model.name_or_path = name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


def test_a_model_of_another_name_is_refused_unless_told_otherwise():
    _, steering = fitted("org/tiny-llama")
    other = other_model("org/other-llama")
    hooks = count_hooks(other)
    for attach in (steering.attach, lambda model: steering.apply(model).__enter__()):
        with pytest.raises(ValueError, match=r"fitted on, 'org/tiny-llama', .* got 'org/other-llama', .* strict=False"):
            attach(other)
    assert count_hooks(other) == hooks
    with steering.apply(other, strict=False):
        assert count_hooks(other) == hooks + 4, "those of three sites, and one for the first pass"
    steering.attach(other, strict=False).remove()


@pytest.mark.parametrize("name", ["/models/tiny-llama", "other/Tiny-Llama", "tiny-llama", ""])
def test_a_model_of_the_same_name_elsewhere_or_of_none_is_taken(name):
    _, steering = fitted("org/tiny-llama")
    with pytest.warns(UserWarning, match="expected the weights that the steering was fitted on, .* got a .* others"):
        steering.attach(other_model(name)).remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_in_another_precision_or_moved_are_taken_without_a_word(dtype, recwarn):
    model, steering = fitted("org/tiny-llama")
    steering.attach(model.to(dtype)).remove()
    again = Steering({name: (steering.weight(name), steering.bias(name)) for name in steering.sites})
    again.attach(other_model("org/any")).remove()
    assert not [w for w in recwarn.list if "weights" in str(w.message)]


def test_another_checkpoint_of_a_run_is_warned_of_where_the_user_called(recwarn):
    _, steering = fitted("runA/checkpoint-500")
    with steering.apply(other_model("runB/checkpoint-500")):
        pass
    (warned,) = [w for w in recwarn.list if "expected the weights" in str(w.message)]
    assert warned.filename == __file__
    recwarn.clear()
    steering.attach(other_model("runB/checkpoint-500"), strict=False).remove()
    assert not recwarn.list


def test_a_renamed_folder_with_the_same_weights_is_taken(tmp_path):
    model, steering = fitted("org/tiny-llama")
    model.save_pretrained(tmp_path / "renamed")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "renamed")
    assert origin.name_of(again) == "renamed"
    steering.attach(again).remove()


def test_steerings_that_know_no_model_go_on_any():
    net, named = torch.nn.Sequential(torch.nn.Linear(4, 3)), other_model("org/other")
    by_hand = Steering({"0": ([2.0] * 3, [0] * 3)})
    by_hand.attach(net).remove()
    early = Steering.from_pretrained(OLD)  # says "LlamaForCausalLM" where its model had no name
    early.attach(named).remove()
    fit_in_memory = lineas.fit(net, normal(5, 4), normal(5, 4, seed=1), sites="0", progress=False, steps=1)
    net.name_or_path = "now/it-has-one"
    fit_in_memory.attach(net).remove()


def test_results_of_algebra_still_know_their_model():
    _, steering = fitted("org/tiny-llama")
    for made in (steering.inverse(), steering @ steering.scaled(0.5), steering.restricted(top=3)):
        with pytest.raises(ValueError, match="pass strict=False"):
            made.attach(other_model("org/other"))
