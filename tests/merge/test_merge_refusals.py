"""What cannot be merged exactly is refused, with the reason, or left out with the error measured; nothing changes."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_untouched, normal, snapshot
from test_merge import IDS, random_map, relative, reloaded, script, steered
from torch import nn

import lineas
from lineas import Steering
from lineas.merge import folding, layers, merging


def refuses(model, sites, message, **options):
    """Both the plan and the merge; the model stays as it is."""
    steering, before = random_map(model, sites), snapshot(model)
    probe = {"probe": options["probe"]} if "probe" in options else {}
    assert not steering.merge_plan(model, **probe).exact
    for inplace in (False, True):
        with pytest.raises(ValueError, match=message):
            steering.merge(model, inplace=inplace, **options)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("name", "site", "message"),
    [
        ("Gemma 2", "model.layers.0.pre_feedforward_layernorm",
         "gate_proj and .*up_proj have no bias, and Gemma2ForCausalLM has no place for one"),
        ("Gemma 2", "model.layers.0.post_attention_layernorm",
         "Gemma2RMSNorm has no bias; its output also goes to aten.add in model.layers.0, not to linear layers alone"),
        ("Mistral", "model.norm",
         "lm_head has no bias, and MistralForCausalLM has no place for one, nor has LlamaForCausalLM with"),
        ("Llama", "model.layers.0", "LlamaDecoderLayer has no weight of its own; its output also goes to aten.pow in "),
        ("Llama", "model.layers.0.mlp.act_fn", "its output also goes to aten.mul in model.layers.0.mlp"),
        ("GPT-2", "lm_head", "lm_head has no bias"),
    ],
)  # fmt: skip
def test_a_site_whose_bias_has_no_place_is_refused(name, site, message):
    model = script.make(name)
    steering, before = Steering({site: (np.full(d := 24 if "act" in site else 64 if "head" in site else 16, 0.9),
                                        np.full(d, 0.1))}), snapshot(model)  # fmt: skip
    with pytest.raises(ValueError, match=message):
        steering.merge(model)
    with pytest.raises(ValueError, match="partial=True leaves them out"):
        steering.merge(model)
    assert_untouched(model, before)


def test_a_partial_merge_leaves_out_warns_and_reports_the_measured_error():
    model = script.make("Llama")
    names = ["model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm", "model.norm"]
    steering = random_map(model, names)
    with pytest.warns(UserWarning, match=r"merged 2 of 3 sites; on the probe, outputs are .*Left out: model.norm: ref"):
        merged = steering.merge(model, partial=True)
    assert merged.lineas_merge["left_out"] == ["model.norm"]
    only = Steering({name: (steering.weight(name), steering.bias(name)) for name in names[:2]})
    assert relative(reloaded(merged)(IDS)[0], steered(only, model, IDS)) < 1e-5
    ids = merging.Probe(model).kwargs["input_ids"]
    measured = relative(merged(ids)[0], steered(steering, model, ids))
    assert merged.lineas_merge["error"] == pytest.approx(measured, rel=1e-3)
    assert 0.001 < measured < 1
    with pytest.raises(ValueError, match="not one of 1 sites can be merged; model.norm: refused"):
        random_map(model, ["model.norm"]).merge(model, partial=True)
    with pytest.raises(ValueError, match="expected a model into which this whole steering was merged.*model.norm"):
        steering.unmerge(merged)


def test_another_class_cannot_be_had_in_place():
    model = script.make("Qwen2")
    steering, before = random_map(model, ["model.layers.0.post_attention_layernorm"]), snapshot(model)
    with pytest.raises(ValueError, match="inplace: only LlamaForCausalLM .* can hold the merged Qwen2ForCausalLM"):
        steering.merge(model, inplace=True)
    assert_untouched(model, before)


class Net(nn.Module):
    """A norm whose output goes to two linear layers, and, on request, to more."""

    def __init__(self, also=None, bias=True):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.norm = nn.RMSNorm(6)
            self.left, self.right = nn.Linear(6, 6, bias=bias), nn.Linear(6, 6)
        self.also = also or (lambda net, h: 0)

    def forward(self, x):
        h = self.norm(x)
        return torch.tanh(self.left(h)) * torch.tanh(self.right(h)) + self.also(self, h)


X = normal(5, 6)


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (lambda net, h: 0.1 * h, "aten.mul in the model itself"),
        (lambda net, h: h.clone().sin(), "aten.sin in the model itself"),
        (lambda net, h: nn.functional.linear(h, net.left.weight), "aten.(mm|t|linear).* in the model itself"),
        (lambda net, h: net.left(2 * h), "in left, not to linear layers alone|in the model itself"),
        (lambda net, h: h[:, :3].exp().sum(), "aten.exp in the model itself"),
    ],
)  # fmt: skip
def test_a_norm_whose_output_goes_elsewhere_too_is_refused(also, message):
    """Only what reads the tensor, or a copy or view of it, counts; names and shapes would have passed all of these."""
    refuses(Net(also), ["norm"], message, probe=X)


def test_shapes_may_be_read_and_views_and_copies_taken_where_linear_layers_read_them():
    net = Net(lambda net, h: torch.zeros_like(h).sum() + torch.tanh(net.right(h.clone().view(1, 5, 6)))[0])
    steering = random_map(net, ["norm"], size=0.3)
    torch.testing.assert_close(steering.merge(net, probe=X)(X), steered(steering, net, X))


def test_a_layer_that_reads_other_tensors_too_cannot_take_the_bias():
    net = Net(lambda net, h: net.left(torch.ones(5, 6)))
    refuses(net, ["norm"], "its output also goes to .* in left", probe=X)


def test_a_plain_layer_without_a_bias_is_refused_and_told_how():
    refuses(Net(bias=False), ["norm"], "left has no bias, and Net would not load one; build it with one", probe=X)
    refuses(Net(bias=False), ["left"], "left has no bias", probe=X)


def test_an_output_of_the_model_itself_is_refused():
    net = nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6))
    refuses(net, ["1"], "RMSNorm has no bias; its output is an output of the model", probe=X)


def test_weights_that_other_layers_share_are_refused():
    net = Net()
    net.right.weight = net.left.weight
    refuses(net, ["left"], "left.weight is shared with right.weight", probe=X)


def test_weights_that_others_read_without_a_call_of_the_layer_are_refused():
    net = Net(lambda net, h: nn.functional.linear(h, net.left.weight))
    refuses(net, ["left"], r"left.weight also goes to aten.(mm|linear|matmul) in the model itself", probe=X)
    net = Net(lambda net, h: net.right.bias.exp())
    refuses(net, ["right"], "right: refused: right.bias also goes to aten.exp in the model itself", probe=X)


def test_a_layer_that_runs_twice_is_merged_and_a_shared_consumer_with_one_source_too():
    class Twice(Net):
        def forward(self, x):
            return self.right(torch.tanh(super().forward(super().forward(x))))

    net = Twice(bias=True)
    steering = random_map(net, ["left"], size=0.3)
    torch.testing.assert_close(steering.merge(net, probe=X)(X), steered(steering, net, X))
    refuses(net, ["norm"], "in right, not to linear layers alone", probe=X)


class QuantLinear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.abs().max() / 127
        self.register_buffer("qweight", (linear.weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.qweight * self.scale, self.bias)


def test_quantised_layers_are_refused_as_sites_and_as_consumers():
    net = Net().requires_grad_(False)
    net.left = QuantLinear(net.left)
    steering = Steering({"left": (np.full(6, 0.9), np.ones(6))})
    assert "the weights of this QuantLinear are quantised" in str(steering.merge_plan(net, probe=X))
    refuses(net, ["norm"], "its output goes to left: the weights of this QuantLinear are quantised", probe=X)
    whole = nn.Linear(6, 6)
    whole._parameters["weight"] = nn.Parameter(whole.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(layers.CannotFoldError, match="quantised .*torch.int8"):
        layers.layer("whole", whole, 6)


def test_computed_and_offloaded_weights_are_refused():
    net = Net()
    nn.utils.parametrizations.weight_norm(net.left)
    refuses(net, ["left"], "computed from other parameters", probe=X)
    with pytest.raises(layers.CannotFoldError, match="not in memory"):
        layers.layer("", nn.Linear(2, 2, device="meta"), 2)


def test_a_subclass_with_a_forward_of_its_own_is_not_trusted():
    class Loud(nn.Linear):
        def forward(self, x):
            return torch.relu(super().forward(x))

    class Cubic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return x * self.weight**3

    for odd in (Loud(6, 6), Cubic()):
        net = nn.Sequential(nn.Linear(6, 6), odd, nn.Tanh())
        steering = Steering({"1": (np.full(6, 0.9), np.ones(6))})
        assert "has a forward of its own" in str(steering.merge_plan(net, probe=X))


def test_two_maps_of_one_tensor_are_refused_where_a_bias_would_pass_the_others_scale():
    net = nn.Sequential(nn.RMSNorm(6), nn.Identity(), nn.Linear(6, 3))
    steering = random_map(net, ["0"])
    both = Steering({name: (steering.weight("0"), steering.bias("0")) for name in ("0", "1")})
    with pytest.raises(ValueError, match="1: refused: 0 maps the same tensor"):
        both.merge(net, probe=X)


# -- the check of the result --


def test_a_merge_that_goes_wrong_is_noticed_and_taken_back(monkeypatch):
    """The check does not believe the fold: here, every bias is off by a tenth."""
    right = folding.Fold.apply
    monkeypatch.setattr(folding.Fold, "apply", lambda self, *a: right(replace(self, shift=1.1 * self.shift), *a))
    for name in ("GPT-2", "Llama", "Qwen2"):
        model = script.make(name)
        steering, before = random_map(model, [site.name for site in lineas.find_sites(model)]), snapshot(model)
        config, keys = copy.deepcopy(model.config.to_dict()), list(model.state_dict())
        for inplace in (False, True) if name != "Qwen2" else (False,):
            with pytest.raises(RuntimeError, match=r"outputs differ by .*, expected at most .*nothing was changed"):
                steering.merge(model, inplace=inplace)
        assert_untouched(model, before)
        assert model.config.to_dict() == config
        assert list(model.state_dict()) == keys
        assert steering.merge(model, tolerance=0.5) is not model


def test_a_merge_of_nothing_is_noticed_even_where_the_map_is_small(monkeypatch):
    monkeypatch.setattr(layers.Layer, "map_output", lambda *a, **k: None)
    model = script.make("GPT-2")
    steering = random_map(model, ["transformer.h.1.ln_2"], size=1e-4)
    with pytest.raises(RuntimeError, match="is not the steered one"):
        steering.merge(model)


def test_values_that_overflow_are_refused():
    net = nn.Sequential(nn.Linear(6, 6)).half()
    steering = Steering({"0": (np.full(6, 1e6), np.zeros(6))})
    before = snapshot(net)
    with pytest.raises(ValueError, match="Linear.weight: the merged values overflow torch.float16"):
        steering.merge(net, inplace=True, probe=X.half())
    assert_untouched(net, before)


@pytest.mark.parametrize(
    ("probe", "kind", "message"),
    [
        (None, ValueError, "Net is not a language model of transformers.*pass one as probe="),
        (3, TypeError, "probe: expected a tensor, a tuple .* got int"),
        (normal(2, 5), ValueError, r"probe: Net does not take it, \[\(2, 5\)\]: RuntimeError"),
        ({"y": X}, ValueError, "probe: Net does not take it.*TypeError"),
    ],
)  # fmt: skip
def test_a_wrong_probe(probe, kind, message):
    net = Net()
    before = snapshot(net)
    with pytest.raises(kind, match=message):
        random_map(net, ["norm"]).merge(net, probe=probe)
    assert_untouched(net, before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": [1.0, 2.0]}, TypeError, "strength: expected a number, got list"),
        ({"tolerance": "x"}, TypeError, "tolerance: expected a number, got str"),
        ({"tolerance": -1}, ValueError, "tolerance: expected at least 0, got -1"),
    ],
)
def test_what_is_no_number_is_refused_before_the_model_runs(options, error, message, monkeypatch):
    net = Net()
    steering = random_map(net, ["norm"])
    monkeypatch.setattr(net, "forward", lambda *args: pytest.fail("the model ran"))
    for call in (steering.merge, steering.unmerge):
        with pytest.raises(error, match=message):
            call(net, **options)


def test_without_a_probe_the_plan_says_what_it_can():
    plan = random_map(Net(), ["norm", "left"]).merge_plan(Net())
    assert [entry.status for entry in plan.sites] == ["refused", "exact"]
    assert "can only be seen with a probe=" in plan.sites[0].text


def test_a_site_that_does_not_run_is_refused():
    net = Net()
    net.spare = nn.Linear(6, 6)
    refuses(net, ["spare"], "its module did not run on the probe", probe=X)


def test_maps_of_another_shape_and_a_steered_model_are_refused():
    net = Net()
    steering = Steering({"left": (np.ones(5), np.ones(5))})
    with pytest.raises(ValueError, match=r"weight \(5,\), the model's Linear has \(6,\)"):
        steering.merge(net, probe=X)
    container = nn.Sequential(nn.Sequential(nn.Linear(6, 6)), nn.Tanh())
    with pytest.raises(ValueError, match=r"weight \(5,\), the model produced \(5, 6\)"):
        Steering({"0": (np.ones(5), np.ones(5))}).merge(container, probe=X)
    right = random_map(net, ["left"])
    with right.apply(net), pytest.raises(RuntimeError, match="a steering is on this model, at left"):
        right.merge(net, probe=X)
    with pytest.raises(TypeError, match="expected a torch.nn.Module, got str"):
        right.merge("net", probe=X)


def test_unmerge_names_the_units_that_have_no_inverse():
    net = Net()
    weight = np.array([1, 0, 2, 0.5, 0, 1.0])
    steering = Steering({"left": (weight, np.ones(6))})
    merged = steering.merge(net, probe=X)
    with pytest.raises(ValueError, match=r"at strength 1.0 these units have scale 0: \{'left': \[1, 4\]\}"):
        steering.unmerge(merged, probe=X)
    half = steering.merge(net, 0.5, probe=X)
    torch.testing.assert_close(steering.unmerge(half, 0.5, probe=X)(X), net(X))
