"""Maps that are looked at, saved, loaded, and refused where a file is spoilt."""

import json

import numpy as np
import pytest
import torch
from conftest import IDS, normal
from hypothesis import given, settings
from hypothesis import strategies as st

import lineas
from lineas import Steering


def test_support_counts_what_the_maps_move():
    steering = Steering({"a": ([1, 1 + 2e-5, 1 - 1e-6], [0, 0, 0]), "b": ([1, 1], [0, -1e-4])})
    assert {name: units.tolist() for name, units in steering.support().items()} == {"a": [1], "b": [1]}
    assert repr(steering) == "Steering(2 sites, 5 units, support 2 (40.0%))"


def test_weights_and_biases_are_views_of_two_flat_arrays(mlp):
    steering = lineas.fit(mlp, normal(9, 4), normal(9, 4, seed=1), sites="first|second", progress=False, steps=1)
    for part in (steering.weight, steering.bias):
        first, second = part("first"), part("second")
        assert first.base is not None
        assert second.__array_interface__["data"][0] - first.__array_interface__["data"][0] == first.nbytes


def test_summary_has_a_line_a_site_with_its_loss(mlp):
    steering = lineas.fit(mlp, normal(9, 4), normal(9, 4, seed=1, shift=1.0), sites="first|second", progress=False)
    lines = steering.summary().splitlines()
    assert lines[0] == repr(steering)
    assert [line.split()[0] for line in lines[2:4]] == ["first", "second"]
    assert f"{steering.history['site_loss'][0][1]:.4g}" in lines[3]
    assert "fast recipe" in lines[4]
    assert "a" in Steering({"a": ([1.0], [0.5])}).summary()


def test_an_unknown_site_is_refused_with_the_nearest(steering):
    with pytest.raises(LookupError, match=r"no map for site 'model.layers.0'; nearest names: model\.layers\.0\.post"):
        steering.weight("model.layers.0")


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ("polite", {}, r"maps: expected a dict of site name -> \(weight \(d,\), bias \(d,\)\), got str"),
        ([("a", ([1.0], [0.0]))], {}, "maps: expected a dict .* got list"),
        ({"a": np.ones(3)}, {}, r"maps: expected \(weight \(d,\), bias \(d,\)\) of numbers for 'a', got array"),
        ({"a": ([1.0],)}, {}, "of numbers for 'a', got"),
        ({"a": (["x"], ["y"])}, {}, "of numbers for 'a', got"),
        ({3: ([1.0], [0.0])}, {}, r"maps: expected names of sites \(str\), got int 3"),
        ({"a": ([1.0], [0.0])}, {"ranges": [0, 1]}, "ranges: expected a dict .* got list"),
        (
            {"a": ([1.0], [0.0])},
            {"ranges": {"a": 3}},
            r"ranges: expected \(low \(d,\), high \(d,\)\) .* for 'a', got 3",
        ),
        ({"a": ([1.0], [0.0])}, {"ranges": {"a": ("x", "y")}}, "ranges: expected .* of numbers for 'a'"),
        ({"a": ([1.0], [0.0])}, {"info": [1]}, "info: expected a dict, got list"),
        ({"a": ([1.0], [0.0])}, {"history": "x"}, "history: expected a dict, got str"),
    ],
)
def test_what_cannot_be_maps_is_refused_with_what_they_are(maps, options, message):
    with pytest.raises(TypeError, match=message):
        Steering(maps, **options)


# -- keeping --


def test_reload_gives_the_same_logits_and_history(llama, tmp_path, texts, tokenizer):
    steering = lineas.fit(llama, *texts, tokenizer=tokenizer, progress=False, steps=3)
    steering.save_pretrained(tmp_path / "new" / "folder")
    again = Steering.from_pretrained(tmp_path / "new" / "folder")
    with steering.apply(llama):
        expected = llama(IDS).logits
    with again.apply(llama):
        assert torch.equal(llama(IDS).logits, expected)
    assert again.sites == steering.sites
    assert again.history == steering.history
    assert again.info == steering.info
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "README.md",
        "steering.safetensors",
        "steering_config.json",
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**31))
def test_any_maps_survive_saving(tmp_path_factory, sizes, seed):
    draw = np.random.default_rng(seed)
    maps = {
        f"a.{k}:{k}": (draw.normal(size=d).astype("f"), draw.normal(size=d).astype("f")) for k, d in enumerate(sizes)
    }
    folder = tmp_path_factory.mktemp("maps")
    Steering(maps).save_pretrained(folder)
    again = Steering.from_pretrained(folder)
    assert again.sites == list(maps)
    for name, (weight, bias) in maps.items():
        assert np.array_equal(again.weight(name), weight)
        assert np.array_equal(again.bias(name), bias)


def test_infinite_trials_in_the_history_do_not_break_the_file(steering, tmp_path):
    steering.history.update(loss=[1.0, float("inf")], site_loss=[[1.0, 2.0], [float("inf")] * 2])
    steering.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "steering_config.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert config["history"]["loss"] == [1.0, None]
    assert Steering.from_pretrained(tmp_path).history == steering.history


def spoil(name, change):
    def spoiler(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return spoiler


def edit(**changes):
    return spoil("steering_config.json", lambda raw: json.dumps({**json.loads(raw), **changes}).encode())


@pytest.mark.parametrize(
    ("spoiler", "error", "message"),
    [
        (spoil("steering.safetensors", lambda raw: raw[: len(raw) // 2]), ValueError, "truncated or corrupted"),
        (spoil("steering.safetensors", lambda raw: b""), ValueError, "truncated or corrupted"),
        (spoil("steering.safetensors", lambda raw: b"\xff" * 50), ValueError, "truncated or corrupted"),
        (spoil("steering_config.json", lambda raw: raw[:40]), ValueError, "truncated or corrupted"),
        (spoil("steering_config.json", lambda raw: b"\xff\xfe\x00"), ValueError, "not JSON"),
        (spoil("steering_config.json", lambda raw: b"[]"), ValueError, "expected a lineas-steering file"),
        (edit(version=99), ValueError, "expected version 1, got 99"),
        (edit(format="other"), ValueError, "expected a lineas-steering file"),
        (edit(sites={"a": 3}), ValueError, "disagrees with steering_config.json"),
        (edit(sites={}), ValueError, "expected sites with their units"),
        (edit(sites={"a": -1}), ValueError, "expected sites with their units"),
        (lambda folder: (folder / "steering.safetensors").unlink(), FileNotFoundError, "steering.safetensors"),
        (lambda folder: (folder / "steering_config.json").unlink(), FileNotFoundError, "steering_config.json"),
    ],
)
def test_a_spoilt_file_is_refused(steering, tmp_path, spoiler, error, message):
    steering.save_pretrained(tmp_path)
    spoiler(tmp_path)
    with pytest.raises(error, match=message):
        Steering.from_pretrained(tmp_path)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*mispelt, and nothing of that name on the hub"):
        Steering.from_pretrained(tmp_path / "mispelt")


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({}, "at least one site"),
        ({"a": ([1.0, 2.0], [0.0])}, r"a: expected weight \(d,\) and bias \(d,\), got \(2,\) and \(1,\)"),
        ({"a": ([[1.0]], [[0.0]])}, r"got \(1, 1\)"),
        ({"a": ([], [])}, r"got \(0,\)"),
        ({"a": ([float("nan")], [0.0])}, "expected finite maps"),
    ],
)
def test_maps_that_make_no_sense_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        Steering(maps)
