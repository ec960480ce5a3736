"""A merged model is the steered one: in values, after a trip through the disk, in generation, and the way back."""

import copy
import importlib.util
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, Mlp, assert_untouched, count_hooks, normal, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

import lineas
from lineas import Steering
from lineas.merge.adaptive import AdaptiveFold, Modulation
from lineas.merge.layers import Journal, Layer

IDS = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(5))


def load_script():
    spec = importlib.util.spec_from_file_location("merge_table", ROOT / "docs" / "merge_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
random_map, reloaded = script.random_map, script.reloaded


def relative(got, expected):
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def steered(steering, model, *args, strength=1.0):
    with torch.no_grad(), steering.apply(model, strength):
        out = model(*args)
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_what_is_merged_in_inference_mode_can_be_trained(name, inplace):
    model = script.make(name)
    steering = random_map(model, all_sites(name, r".*(post_attention_layernorm|ln_2)")[1])
    inplace = inplace and name == "GPT-2"  # a Llama gets biases, and so another class
    plain = steering.merge(copy.deepcopy(model))
    with torch.inference_mode():
        merged = steering.merge(model, inplace=inplace)
    assert not any(weight.is_inference() for weight in merged.parameters())
    for one in (plain, merged):
        one(IDS).logits.square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), merged.parameters(), strict=True))


def all_sites(name, *patterns):
    model = script.make(name)
    return model, [site.name for pattern in patterns for site in lineas.find_sites(model, pattern)]


# Every norm, or linear layer, that folds: many maps in one model, that meet in the same weights.
TOGETHER = {
    "Llama": [r".*layernorm", r".*_proj"],
    "Qwen2": [r".*layernorm", r".*_proj"],
    "Mistral": [r".*layernorm", r".*down_proj"],
    "Mistral, sliding window": [r".*layernorm"],
    "Phi-3": [r".*layernorm", r".*_proj"],
    "Gemma": [r".*layernorm", r".*_proj"],
    "Gemma 2": [r".*input_layernorm", r".*o_proj"],
    "GPT-2": [r".*ln_.", r".*c_attn", r".*c_proj", r".*c_fc"],
    "GPT-NeoX": [r".*norm", r".*dense.*", r".*query_key_value"],
    "OPT": [r".*layer_norm", r".*fc.", r".*_proj"],
    "BERT": [r".*LayerNorm", r".*dense", r".*query"],
}


@pytest.mark.parametrize("name", TOGETHER)
def test_the_merged_checkpoint_is_the_steered_model_and_unmerges(name):
    model, sites = all_sites(name, *TOGETHER[name])
    if name == "BERT":
        sites = [site for site in sites if not site.startswith("pooler")]
    steering, before = random_map(model, sites), snapshot(model)
    merged = steering.merge(model, 0.5)
    assert_untouched(model, before)
    assert count_hooks(merged) == 0
    assert merged.lineas_merge["error"] < 2e-5 < 2e-3 < merged.lineas_merge["effect"]
    assert merged.lineas_merge["left_out"] == []
    expected = steered(steering, model, IDS, strength=0.5)
    assert relative(merged(IDS)[0], expected) < 2e-5
    loaded = reloaded(merged)
    assert type(loaded) is type(merged)
    assert relative(loaded(IDS)[0], expected) < 2e-5
    if name not in ("Phi-3",):  # whose fused layers, which are sites here, are no longer there
        plain = steering.unmerge(merged, 0.5)
        assert not hasattr(plain, "lineas_merge")
        assert relative(plain(IDS)[0], model(IDS)[0]) < 5e-5


@pytest.mark.parametrize("name", ["Llama", "Mistral, sliding window", "Qwen2", "Phi-3", "Gemma", "GPT-2"])
def test_generation_from_the_loaded_checkpoint_is_that_of_the_steered_model(name):
    model = script.make(name)
    steering = random_map(model, [site.name for site in lineas.find_sites(model)], size=0.3)
    loaded = reloaded(steering.merge(model))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    padded = {"input_ids": IDS.clone(), "attention_mask": torch.ones_like(IDS)}
    padded["input_ids"][1, :3], padded["attention_mask"][1, :3] = 0, 0
    with steering.apply(model):
        expected = model.generate(**padded, **options)
    assert torch.equal(loaded.generate(**padded, **options), expected)
    assert not torch.equal(model.generate(**padded, **options), expected), "steering changes what is generated"


def test_inplace_changes_the_very_model_its_config_and_the_parameters_that_others_hold():
    model, sites = all_sites("Llama", r".*layernorm", r".*down_proj")
    steering, original = random_map(model, sites), script.make("Llama")
    held = model.model.layers[0].mlp.down_proj.weight
    value = held.clone()
    assert steering.merge(model, inplace=True) is model
    assert model.config.attention_bias
    assert model.config.mlp_bias
    assert model.model.layers[0].mlp.down_proj.weight is held
    assert not torch.equal(held, value)
    assert relative(model(IDS)[0], steered(steering, original, IDS)) < 1e-5
    assert steering.unmerge(model, inplace=True) is model
    assert relative(model(IDS)[0], original(IDS)[0]) < 1e-5


def test_embeddings_shared_with_the_output_layer_are_untied():
    model = script.make("GPT-2")
    assert model.transformer.wte.weight is model.lm_head.weight
    steering = random_map(model, ["transformer.wte", "transformer.h.1.ln_1"])
    plan = steering.merge_plan(model)
    assert plan.unties
    assert "untied" in str(plan)
    for inplace in (False, True):
        given = copy.deepcopy(model)
        merged = steering.merge(given, inplace=inplace)
        assert torch.equal(merged.lm_head.weight, model.lm_head.weight)
        assert not merged.config.tie_word_embeddings
        assert relative(reloaded(merged)(IDS)[0], steered(steering, model, IDS)) < 1e-5
    assert model.config.tie_word_embeddings


def test_a_maps_scale_alone_folds_where_no_bias_would():
    model = script.make("Gemma 2")
    names = [f"model.layers.{k}.{norm}_feedforward_layernorm" for k in (0, 1) for norm in ("pre", "post")]
    names += ["model.norm", "model.layers.0.mlp.down_proj"]
    draw = np.random.default_rng(0)
    steering = Steering({name: (1 + 0.3 * draw.normal(size=16), np.zeros(16)) for name in names})
    merged = steering.merge(model)
    assert type(merged) is type(model)
    assert relative(reloaded(merged)(IDS)[0], steered(steering, model, IDS)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["Llama", "Gemma"])
def test_other_precisions_keep_their_dtype_and_report_their_rounding(name, dtype):
    model = script.make(name).to(dtype)
    steering = random_map(model, [site.name for site in lineas.find_sites(model)])
    merged = steering.merge(model)
    assert {p.dtype for p in merged.parameters()} == {dtype}
    ceiling = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float64: 1e-6}[dtype]
    assert merged.lineas_merge["error"] < ceiling
    assert (merged.lineas_merge["error"] > 1e-5) == (dtype != torch.float64)


# -- plain modules --


class Convs(torch.nn.Module):
    """Convolutions of every kind, with norms, groups, and a transposed one."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn = torch.nn
            self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.up, self.group = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), nn.GroupNorm(3, 6)
            self.plain, self.last = nn.InstanceNorm2d(6), nn.Conv2d(6, 4, 3)
            with torch.no_grad():
                for tensor in (*self.parameters(), self.norm.running_mean):
                    tensor.add_(0.3 * torch.randn_like(tensor))
                self.norm.running_var.mul_(2)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last(self.plain(torch.relu(self.group(self.up(x)))))


def test_a_convolutional_network_merges_at_every_kind_of_layer_and_unmerges():
    net, x = Convs(), normal(2, 3, 8, 8)
    steering, before = random_map(net, ["first", "norm", "up", "group", "plain", "last"], size=0.3), snapshot(net)
    plan = steering.merge_plan(net, probe=x)
    assert plan.exact
    texts = {entry.site: entry.text for entry in plan.sites}
    assert texts["norm"] == "exact, into the BatchNorm2d's weight and bias"
    assert texts["plain"] == "exact: scale into last, bias into the bias of last"
    merged = steering.merge(net, probe=x)
    assert_untouched(net, before)
    other = normal(1, 3, 5, 5, seed=3)
    net.eval()
    expected = steered(steering, net, other)
    assert relative(merged.eval()(other), expected) < 1e-5
    assert relative(steering.unmerge(merged, probe=x)(other), net(other)) < 1e-4


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-2, 3), st.sampled_from([0.0, 0.1, 1.0]))
def test_merging_a_network_of_linear_layers_and_norms_is_exact_for_any_map_and_strength(seed, strength, size):
    nn = torch.nn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.RMSNorm(8), nn.Linear(8, 6), nn.GELU(), nn.Dropout(), nn.Linear(6, 3),
        ).double()  # fmt: skip
    draw = np.random.default_rng(seed)
    names = [str(k) for k in np.flatnonzero(draw.random(7) < 0.6) if k not in (5,)] or ["6"]
    width = [8, 8, 8, 6, 6, 6, 3]
    steering = Steering(
        {n: (1 + size * draw.normal(size=width[int(n)]), size * draw.normal(size=width[int(n)])) for n in names}
    )
    x = normal(5, 4, seed=seed).double()
    merged = steering.merge(net, strength, probe=x)
    net.eval()
    merged.eval()
    torch.testing.assert_close(merged(x), steered(steering, net, x, strength=strength), rtol=1e-5, atol=1e-5)


def test_a_container_and_the_dropout_after_a_layer_fold_into_that_layer_in_the_order_of_the_hooks():
    net = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout()), torch.nn.Tanh()).eval()
    steering, x = random_map(net, ["0.0"]), normal(5, 4)
    maps = {site: (steering.weight("0.0") + k, steering.bias("0.0") - k) for k, site in enumerate(["0", "0.0", "0.1"])}
    steering = Steering(maps)
    plan = steering.merge_plan(net, probe=x)
    assert plan.sites[0].text == "exact, into the Linear's weight and bias (0.0)"
    merged = steering.merge(net, probe=x)
    torch.testing.assert_close(merged(x), steered(steering, net, x))
    torch.testing.assert_close(steering.unmerge(merged, probe=x)(x), net(x))


@pytest.mark.parametrize("form", ["rows", "columns", "table", "transposed", "scale"])
def test_maps_come_to_the_device_of_the_weights(form):
    """Here one that computes nothing, so that no GPU is needed: operands on two devices are refused there too."""

    class Kept(Journal):
        def put(self, module, name, value, like):
            assert value.device == like.device

    nn = torch.nn
    with torch.device("meta"):
        made = {"table": nn.Embedding(4, 4), "transposed": nn.ConvTranspose1d(4, 4, 1), "scale": nn.LayerNorm(4)}
        taken = Layer("", made.get(form, nn.Linear(4, 4)), form)
    scale, shift = torch.linspace(1, 2, 4).double(), torch.ones(4).double()
    taken.map_output(Kept(), scale, shift)
    taken.unmap_output(Kept(), scale, shift)
    if form in ("rows", "columns"):
        taken.shift_input(Kept(), shift)
        taken.scale_input(Kept(), scale)
        modulation = Modulation(taken, (0, 1), (2, 3), 1.0)
        AdaptiveFold("", scale[:2], shift[:2], None, modulations=(modulation,)).apply(taken.module, Kept())


def test_a_model_that_was_read_from_a_gguf_file_merges_into_one_that_can_be_saved():
    from types import SimpleNamespace

    model = script.make("Llama")
    model.quantization_method, model.is_quantized = SimpleNamespace(value="gguf"), True
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="gguf"))
    steering = random_map(model, ["model.layers.0.post_attention_layernorm"])
    with pytest.raises(ValueError, match="not serializable"):
        reloaded(model)
    assert relative(reloaded(steering.merge(model))(IDS)[0], steered(steering, model, IDS)) < 1e-5
    assert model.is_quantized, "the given model keeps what it has"


def test_strength_zero_and_identity_maps_change_nothing():
    net, x = Mlp().eval(), normal(5, 4)
    merged = random_map(net, ["second"]).merge(net, 0.0, probe=x)
    assert all(torch.equal(a, b) for a, b in zip(merged.state_dict().values(), net.state_dict().values(), strict=True))
    plan = Steering({"second": (np.ones(8), np.zeros(8))}).merge_plan(net)
    assert [(e.status, e.text) for e in plan.sites] == [("unchanged", "nothing to fold: the map is the identity")]


def test_the_plan_names_each_site_its_fold_and_the_class():
    model, sites = all_sites("Qwen2", r".*layernorm")
    before = snapshot(model)
    plan = random_map(model, sites).merge_plan(model)
    assert_untouched(model, before)
    assert plan.exact
    assert plan.model_class == "Qwen2ForCausalLM"
    assert plan.target == "LlamaForCausalLM with attention_bias and mlp_bias"
    text = str(plan)
    assert "4 of 4 sites fold exactly" in text
    assert "scale into the Qwen2RMSNorm, bias into the bias of q_proj, k_proj and v_proj" in text
    assert "scale into the Qwen2RMSNorm, bias into the bias of gate_proj and up_proj" in text
    assert repr(plan) == text


@pytest.mark.process
def test_the_merged_model_needs_no_lineas(tmp_path):
    """It can be pickled whole, and read where there is no lineas."""
    import subprocess
    import sys

    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())
    torch.save(random_map(net, ["0"]).merge(net, probe=normal(2, 4)), tmp_path / "net.pt")
    code = (
        "import sys, torch; net = torch.load(sys.argv[1], weights_only=False); "
        "print(net(torch.zeros(1, 4)).shape[1], net.lineas_merge['left_out'], 'lineas' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "net.pt"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert ran.stdout.split() == ["3", "[]", "False"]


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_the_script_makes():
    text = script.PAGE.read_text(encoding="utf-8")
    assert text.split(script.START)[1].split(script.END)[0].strip() == script.table()


def test_a_steering_that_is_in_the_weights_already_warns_when_it_is_put_on_or_merged_again():
    model, sites = all_sites("Llama", *TOGETHER["Llama"])
    one, other = random_map(model, sites, seed=1), random_map(model, sites, seed=2)
    merged = one.merge(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.attach(merged).remove()
        one.attach(merged, strict=False).remove()
        both = other.merge(merged)
    for steering in (one, other):
        with pytest.warns(
            UserWarning, match="got one with it in the weights, by merge: attached as well, it steers twice"
        ):
            steering.attach(both).remove()
    with pytest.warns(UserWarning, match="got one with it in the weights") as told:
        one.merge(merged)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = other.unmerge(both)
        assert relative(again(IDS)[0], merged(IDS)[0]) < 5e-5
        other.attach(again).remove()
    with pytest.warns(UserWarning, match="got one with it in the weights"):
        one.attach(again).remove()
    with pytest.warns(UserWarning, match="expected a steering that was merged into this model, got another one"):
        other.unmerge(merged)
