"""Steerings as adapters of PEFT: the loaded adapter does what the attached steering does."""

import json

import numpy as np
import pytest
import torch
from conftest import IDS, assert_untouched, random_maps, snapshot, tiny
from safetensors.torch import load_file

import lineas
from lineas.serving import to_peft

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore:`is_gradient_checkpointing`:FutureWarning")

# model, sites, whether weights and biases are moved, the adapter that holds them
CASES = {
    "RMSNorms before the MLP": ("llama", r".*post_attention_layernorm", True, True, "LORA"),
    "RMSNorms, scales only": ("llama", r".*norm", True, False, "LN_TUNING"),
    "Gemma's norms, scales only": ("gemma2", r".*norm", True, False, "LN_TUNING"),
    "LayerNorms": ("gpt2", r".*ln_.", True, True, "LN_TUNING"),
    "linear layers, scales only": ("llama", r".*(gate|o)_proj", True, False, "IA3"),
    "linear layers, biases only": ("llama", r".*(gate|o)_proj", False, True, "LORA"),
    "linear layers": ("llama", r".*(gate|o)_proj", True, True, "LORA"),
    "Qwen's, which have biases": ("qwen2", r".*[qkv]_proj", True, True, "LORA"),
    "GPT-2's, stored the other way round": ("gpt2", r".*c_(attn|proj)", True, True, "LORA"),
    "GPT-2's, scales only": ("gpt2", r".*c_attn", True, False, "IA3"),
    "attention and MLP": ("llama", r".*\.(self_attn|mlp)", True, True, "LORA"),
    "embeddings that the output layer shares": ("gpt2", r"transformer\.wte", True, True, "LN_TUNING"),
    "embeddings beside linear layers": ("llama", r".*(embed_tokens|v_proj)", True, True, "LORA"),
    "the output layer": ("llama", "lm_head", True, True, "LORA"),
}


def maps_at(model, sites, weights=True, biases=True):
    draw = np.random.default_rng(0)
    units = {site.name: site.units or model.config.hidden_size for site in lineas.find_sites(model, sites)}
    return lineas.Steering(
        {
            name: (1 + 0.3 * weights * draw.normal(size=d), 0.3 * biases * draw.normal(size=d))
            for name, d in units.items()
        }
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_loaded_adapter_does_what_the_attached_steering_does(case, tmp_path):
    kind, sites, weights, biases, wanted_kind = case
    model = tiny(kind)
    steering, before = maps_at(model, sites, weights, biases), snapshot(model)
    record = to_peft(steering, model, tmp_path, 0.7)
    assert_untouched(model, before)
    assert record["kind"] == wanted_kind
    assert record["error"] < 1e-5 < 0.05 < record["effect"]
    assert record["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir())
    with torch.no_grad():
        base = model(IDS).logits
        with steering.apply(model, 0.7):
            steered = model(IDS).logits
        loaded = peft.PeftModel.from_pretrained(model, tmp_path)
        torch.testing.assert_close(loaded(input_ids=IDS).logits, steered, atol=1e-4, rtol=1e-4)
        with loaded.disable_adapter():
            assert torch.equal(loaded(input_ids=IDS).logits, base)


def test_the_rank_is_the_number_of_units_that_are_stretched(tmp_path):
    model, site = tiny("llama"), "model.layers.0.mlp.up_proj"
    weight = np.ones(24)
    weight[[3, 7]] = 1.5, 0.5
    to_peft(lineas.Steering({site: (weight, np.full(24, 0.1))}), model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors[f"base_model.model.{site}.lora_A.weight"].shape == (2, 16)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"] == {site: 2}


def test_half_precision_is_rounded_once(tmp_path):
    model = tiny("llama").bfloat16()
    assert to_peft(random_maps(model, size=0.3), model, tmp_path)["error"] < 0.02


def test_a_plain_network_needs_a_probe_and_gets_an_adapter(mlp, tmp_path):
    steering, x = lineas.Steering({"second": (np.full(8, 1.2), np.ones(8))}), torch.randn(5, 4)
    with pytest.raises(ValueError, match="pass one as probe="):
        to_peft(steering, mlp, tmp_path)
    to_peft(steering, mlp, tmp_path, probe=x)
    with steering.apply(mlp.eval()):
        wanted = mlp(x)
    torch.testing.assert_close(peft.PeftModel.from_pretrained(mlp, tmp_path)(x), wanted)


@pytest.mark.parametrize(("kind", "sites", "why"), [
    ("llama", r"model\.layers\.1", "not to linear layers alone"),
    ("gemma2", r".*post_feedforward_layernorm", "Gemma2RMSNorm has no bias"),
])  # fmt: skip
def test_sites_that_no_adapter_holds_are_refused_by_name(kind, sites, why, tmp_path):
    model = tiny(kind)
    with pytest.raises(ValueError, match=rf"sites are in no weight or bias(?s:.*)model\.layers\.1(?s:.*){why}"):
        to_peft(maps_at(model, sites), model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_maps_within_ranges_and_those_that_do_nothing_are_refused(tmp_path):
    model, site = tiny("llama"), "model.norm"
    ranged = lineas.Steering({site: ([2] * 16, [0] * 16)}, ranges={site: ([-1] * 16, [1] * 16)})
    with pytest.raises(ValueError, match="holds within a range only"):
        to_peft(ranged, model, tmp_path)
    with pytest.raises(ValueError, match="expected a map that changes something"):
        to_peft(lineas.Steering({site: ([1] * 16, [0] * 16)}), model, tmp_path)


def test_an_adapter_that_is_not_the_steering_is_not_written(monkeypatch, tmp_path):
    from lineas.serving import adapters

    monkeypatch.setattr(adapters, "_factors", lambda change, real=adapters._factors: [2 * x for x in real(change)])
    model = tiny("llama")
    with pytest.raises(RuntimeError, match="nothing was written"):
        to_peft(maps_at(model, r".*up_proj"), model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_peft_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'lineas\[peft\]'"):
        to_peft(lineas.Steering({"0": ([2], [0])}), torch.nn.Sequential(torch.nn.Linear(1, 1)), tmp_path)
