"""Control vectors of llama.cpp: what is in the file, and what is said of what is not."""

import numpy as np
import pytest
import torch
from conftest import IDS, tiny

import lineas
from lineas.serving import to_gguf

gguf = pytest.importorskip("gguf")
BLOCKS = ["model.layers.1", "model.layers.2"]


def biases(sites=BLOCKS, seed=0, stretch=0.0):
    draw = np.random.default_rng(seed)
    return lineas.Steering({site: (1 + stretch * draw.normal(size=16), 0.3 * draw.normal(size=16)) for site in sites})


def read(file):
    found = gguf.GGUFReader(file)
    return found, {tensor.name: np.array(tensor.data) for tensor in found.tensors}


def test_biases_of_blocks_are_in_the_file_exactly_and_nothing_is_said(tmp_path, recwarn):
    steering, model = biases(), tiny("llama")
    record = to_gguf(steering, tmp_path / "polite.gguf", model=model)
    assert record == {
        "directions": [1, 2], "lost": 0, "sites": dict.fromkeys(BLOCKS, 0), "left_out": {}, "lost_on_outputs": 0,
    }  # fmt: skip
    assert not [warning for warning in recwarn if "control vector" in str(warning.message)]
    found, tensors = read(tmp_path / "polite.gguf")
    assert {name: value.dtype for name, value in tensors.items()} == dict.fromkeys(
        ("direction.1", "direction.2"), np.float32
    )
    for k, site in enumerate(BLOCKS, 1):
        np.testing.assert_array_equal(tensors[f"direction.{k}"], steering.bias(site))
    text = {name: found.fields[name].contents() for name in ("general.architecture", "controlvector.model_hint")}
    assert text == {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}
    assert found.fields["controlvector.layer_count"].contents() == 2


def test_what_llama_cpp_adds_is_the_attached_steering(tmp_path):
    """`direction.k` at strength s is added to the output of block k: done by hand."""
    steering, model = biases(), tiny("llama")
    to_gguf(steering, tmp_path / "file.gguf")
    with torch.no_grad(), steering.apply(model, 0.5):
        wanted = model(IDS).logits
    for name, value in read(tmp_path / "file.gguf")[1].items():
        block, add = model.model.layers[int(name.partition(".")[2])], 0.5 * torch.tensor(value)
        block.register_forward_hook(lambda module, args, output, add=add: output + add)
    torch.testing.assert_close(model(IDS).logits, wanted)


def test_weights_are_lost_and_it_says_how_much(tmp_path):
    steering, model = biases(stretch=0.1), tiny("llama")
    moves = {
        site: [np.square(steering.weight(site) - 1.0).sum(), np.square(steering.bias(site)).sum()] for site in BLOCKS
    }
    stretched, pushed = np.sum(list(moves.values()), 0)
    with pytest.warns(
        UserWarning, match=r"is not the steering: the weights of 2 sites of 2 are lost, \d\d% of the moves"
    ):
        record = to_gguf(steering, tmp_path / "file.gguf", model=model)
    assert record["lost"] == pytest.approx((stretched / (stretched + pushed)) ** 0.5, rel=1e-4)
    assert 0 < record["lost_on_outputs"] < 1
    with pytest.warns(UserWarning, match="pass model= to measure"):
        assert "lost_on_outputs" not in to_gguf(steering, tmp_path / "file.gguf")


def test_with_responses_the_direction_is_their_mean_move(tmp_path):
    steering = biases(stretch=0.5)
    draw = np.random.default_rng(1)
    responses = {site: 3 + 0.5 * draw.normal(size=(200, 16)) for site in BLOCKS}
    with pytest.warns(UserWarning, match="over the responses"):
        record = to_gguf(steering, tmp_path / "file.gguf", responses=responses)
    with pytest.warns(UserWarning, match="mean 0 and deviation 1"):
        assert record["lost"] < to_gguf(steering, tmp_path / "other.gguf")["lost"] / 2
    moves = [values * (steering.weight(site) - 1.0) + steering.bias(site) for site, values in responses.items()]
    for k, each in enumerate(moves, 1):
        np.testing.assert_allclose(read(tmp_path / "file.gguf")[1][f"direction.{k}"], each.mean(0), rtol=1e-5)
    spread = sum(np.square(each - each.mean(0)).sum() for each in moves)
    assert record["lost"] == pytest.approx((spread / sum(np.square(each).sum() for each in moves)) ** 0.5, rel=1e-4)


def test_maps_within_ranges_have_a_mean_move_only(tmp_path):
    site = "model.layers.1"
    steering = lineas.Steering({site: ([1, 1], [1, 1])}, ranges={site: ([0, 0], [1, 1])})
    with pytest.raises(ValueError, match=r"within a range only; pass responses="):
        to_gguf(steering, tmp_path / "file.gguf")
    with pytest.warns(UserWarning, match="lost"):
        record = to_gguf(steering, tmp_path / "file.gguf", responses={site: [[0.5, 5.0], [5.0, 5.0]]})
    assert read(tmp_path / "file.gguf")[1]["direction.1"].tolist() == [0.5, 0]
    assert record["sites"][site] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(("site", "why"), [
    ("model.layers.0", "no direction for the output of the first block"),
    ("model.layers.1.post_attention_layernorm", "no block's output"),
    ("model.layers.1.mlp", "no block's output"),
    ("model.norm", "no block's output"),
    ("vision_tower.encoder.layers.1", "no block's output"),
])  # fmt: skip
def test_sites_that_it_does_not_reach_are_refused_by_name_or_counted_as_lost(site, why, tmp_path):
    steering = biases([site, "model.layers.2"])
    with pytest.raises(ValueError, match=f"1 of 2 sites cannot be in a control vector:\n  {site}: .*{why}"):
        to_gguf(steering, tmp_path / "file.gguf")
    assert not (tmp_path / "file.gguf").exists()
    with pytest.warns(UserWarning, match="1 whole sites of 2 are lost"):
        record = to_gguf(steering, tmp_path / "file.gguf", partial=True)
    assert record["sites"] == {site: 1, "model.layers.2": 0}
    assert record["directions"] == [2]
    assert why in record["left_out"][site]


def test_a_default_steering_which_maps_norms_has_no_control_vector_at_all(tmp_path):
    with pytest.raises(ValueError, match="2 of 2 sites cannot be(?s:.*)a merged checkpoint"):
        to_gguf(biases([f"{block}.post_attention_layernorm" for block in BLOCKS]), tmp_path / "x.gguf", partial=True)


def test_responses_of_another_shape_and_a_missing_package_are_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"expected \(samples, 16\), got \(4, 15\)"):
        to_gguf(biases(), tmp_path / "file.gguf", responses={BLOCKS[0]: np.ones((4, 15))})
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'lineas\[gguf\]'"):
        to_gguf(biases(), tmp_path / "file.gguf")
