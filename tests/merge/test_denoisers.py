"""Steerings of diffusers' denoisers merge into the same class, with the weights that plain diffusers loads."""

import itertools
import re

import denoisers
import numpy as np
import pytest
import torch
from conftest import assert_untouched, normal, snapshot
from network_cases import steering_of

import lineas
from lineas.merge import probing
from lineas.merge.probing import Probe


def output(model, batch):
    with torch.no_grad():
        return model(**batch)[0]


def steered(steering, model, batch, strength=1.0):
    with steering.apply(model, strength):
        return output(model, batch)


def relative(got, expected):
    return float((got.float() - expected.float()).abs().max() / expected.float().abs().max())


def reloaded(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, torch_dtype=model.dtype).eval()


def assert_merges(model, batch, names, folder, strength=0.5):
    """As one steering, on numbers and with a batch size that the merge did not see; the merged model is returned."""
    steering, before = steering_of(model, batch(2), names), snapshot(model)
    plan = steering.merge_plan(model, strength, probe=batch(2))
    assert plan.exact, str(plan)
    assert plan.target == plan.model_class
    merged = steering.merge(model, strength, probe=batch(2))
    assert_untouched(model, before)
    other = batch(3, seed=5)
    expected = steered(steering, model, other, strength)
    assert relative(expected, output(model, other)) > 1e-2, "the steering does something"
    assert type(merged) is type(model)
    assert relative(output(merged, other), expected) < 1e-5
    assert relative(output(reloaded(merged, folder), other), expected) < 1e-5
    plain = steering.unmerge(merged, strength, probe=batch(2))
    assert relative(output(plain, other), output(model, other)) < 1e-5
    return merged


def changed(model, merged):
    after = merged.state_dict()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, after[name])}


def matching(model, pattern):
    return [site.name for site in lineas.find_sites(model, pattern)]


# -- norms of transformers, which linear layers modulate --

# Tuples' first items, one of them by its number; the norms inside; norms that the block modulates; the last norm; of
# SD3's first block the second of the two outputs.
STREAMS = [
    f"transformer_blocks.{k}.{norm}"
    for k in (0, 1)
    for norm in ("norm1:0", "norm1.norm", "norm1_context", "norm1_context.norm", "norm2")
]
NORMS = {
    "flux": [
        *STREAMS, "transformer_blocks.0.norm2_context", "transformer_blocks.1.norm2_context",
        "single_transformer_blocks.0.norm", "single_transformer_blocks.0.norm.norm", "norm_out", "norm_out.norm",
    ],
    "sd3": [
        *STREAMS, "transformer_blocks.0.norm1:5", "transformer_blocks.0.norm2_context", "norm_out", "norm_out.norm",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_all_adaptive_norms_of_a_transformer_merge_into_the_layers_that_modulate_them(name, tmp_path):
    model, batch = getattr(denoisers, name)()
    merged = assert_merges(model, batch, NORMS[name], tmp_path)
    assert all(re.search(r"norm\w*\.linear\.(weight|bias)$", parameter) for parameter in changed(model, merged))


@pytest.mark.parametrize("name", NORMS)
def test_the_plan_names_the_layer_whose_rows_take_the_map(name):
    model, batch = getattr(denoisers, name)()
    plan = steering_of(model, batch(2), ["transformer_blocks.0.norm2"]).merge_plan(model, probe=batch(2))
    assert str(plan).endswith("exact: into the rows of transformer_blocks.0.norm1.linear that scale and shift it")


class Gates(torch.nn.Module):
    """A norm of diffusers, and on top something that no linear layer could take a map from or give one to."""

    def __init__(self, norm, takes):
        super().__init__()
        self.norm, self.takes = norm, takes

    def forward(self, x, emb):
        out = self.norm(*self.takes(x, emb))
        return sum(
            torch.tanh(item).mean(tuple(range(1, item.ndim))) for item in (out if type(out) is tuple else (out,))
        )


def plain(x, emb):
    return x, emb


def images(x, emb):
    return x[:, :, :, None].transpose(1, 2), emb


def two_streams(x, emb):
    return x, 2 * x[:, :2], emb


def labels(x, emb):
    return x, torch.tensor([3, 8]), torch.tensor([1, 0]), x.dtype


def made_before(x, emb):
    return x, None, emb


# The class, its arguments, how it is called, its outputs that are sites, beside the norm inside.
ADAPTIVE = {
    "AdaLayerNormZero": ((8,), {}, lambda x, emb: (x, None, None, None, emb), ["norm"]),
    "AdaLayerNormZero, labels": ((8, 5, "fp32_layer_norm"), {}, labels, ["norm"]),
    "AdaLayerNormZeroSingle": ((8,), {}, plain, ["norm:0"]),
    "SD35AdaLayerNormZeroX": ((8,), {}, plain, ["norm", "norm:5"]),
    "AdaLayerNormContinuous": ((8, 8), {}, plain, ["norm"]),
    "AdaLayerNormContinuous, RMS": ((8, 8), {"norm_type": "rms_norm"}, plain, ["norm"]),
    "AdaLayerNorm": ((8,), {"output_dim": 16}, lambda x, emb: (x, None, emb[0]), ["norm"]),
    "AdaLayerNorm, labels": ((8, 5), {}, lambda x, emb: (x, torch.tensor(3)), ["norm"]),
    "AdaLayerNorm, chunks of rows": ((8,), {"chunk_dim": 1}, made_before, ["norm"]),
    "AdaGroupNorm": ((8, 8, 2), {}, images, ["norm"]),
    "CogVideoXLayerNormZero": ((8, 8), {}, two_streams, ["norm:0", "norm:1"]),
    "CogView3PlusAdaLayerNormZeroTextImage": ((8, 8), {}, two_streams, ["norm:0", "norm:5"]),
}


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_every_adaptive_norm_of_diffusers_takes_maps_of_its_outputs_and_of_the_norm_inside(name, strength):
    from diffusers.models import normalization

    arguments, options, takes, sites = ADAPTIVE[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = getattr(normalization, name.partition(",")[0])(*arguments, **options)
        net = Gates(norm, takes).double().eval().requires_grad_(False)
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    batch = {"x": normal(2, 6, 8).double(), "emb": normal(2, 8, seed=1).double()}
    sites = [*sites, *(f"norm.{inside}" for inside, _ in norm.named_children() if inside.startswith("norm"))]
    assert len(sites) >= (1 if name == "AdaGroupNorm" else 2), "AdaGroupNorm has no module inside"
    for chosen in [sites, *([site] for site in sites)]:
        steering = steering_of(net, batch, chosen, size=0.5)
        merged = steering.merge(net, strength, probe=batch)
        with torch.no_grad():
            before, after = net(**batch), merged(**batch)
            with steering.apply(net, strength):
                expected = net(**batch)
            assert relative(expected, before) > 1e-2
            assert relative(after, expected) < 1e-6, chosen  # maps are float32 in hooks
            torch.testing.assert_close(steering.unmerge(merged, strength, probe=batch)(**batch), before)


class Modulated(torch.nn.Module):
    """A norm without weights, modulated in the order, and in the way, that a test says."""

    def __init__(self, way, rows=3, bias=True):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.norm, self.linear = torch.nn.LayerNorm(8, elementwise_affine=False), torch.nn.Linear(5, 8 * rows, bias)
            self.other, self.table = torch.nn.Linear(5, 16), torch.nn.Parameter(torch.randn(8))
        self.way = way

    def forward(self, x, emb):
        return torch.tanh(self.way(self, self.norm(x), self.linear(emb)[:, None], emb[:, None]))


BATCH = {"x": normal(2, 6, 8), "emb": normal(2, 5, seed=1)}


def in_order(first, second, third):
    def way(net, n, made, emb):
        part = dict(zip((first, second, third), made.chunk(3, -1), strict=True))
        return part["gate"] * (n * (1 + part["scale"]) + part["shift"])

    return way


def interleaved(net, n, made, emb):
    gate, shift, scale = made.unflatten(-1, (8, 3)).unbind(-1)
    return shift.float().clone() + (scale + 0.5) * n + gate.tanh()


def without_a_one(net, n, made, emb):
    shift, scale, _ = made.chunk(3, -1)
    return torch.add(scale.contiguous() * n, shift)


@pytest.mark.parametrize(
    "way",
    [*(in_order(*order) for order in itertools.permutations(["scale", "shift", "gate"])), interleaved, without_a_one],
)
def test_whatever_the_order_of_the_chunks_the_right_rows_take_the_map(way):
    net = Modulated(way)
    steering = steering_of(net, BATCH, ["norm"], size=0.5)
    merged = steering.merge(net, probe=BATCH)
    assert changed(net, merged) == {"linear.weight", "linear.bias"}
    with torch.no_grad():
        expected = net(**BATCH)
        torch.testing.assert_close(steering.unmerge(merged, probe=BATCH)(**BATCH), expected)
        with steering.apply(net):
            assert relative(merged(**BATCH), net(**BATCH)) < 1e-5


def test_rows_that_are_all_zero_as_in_a_new_adaptive_norm_are_found_all_the_same():
    """What moves a norm's output cannot be told from values here: nothing does."""
    net = Modulated(lambda net, n, made, emb: n * (1 + parts(made)[2]) + parts(made)[1])
    for parameter in net.linear.parameters():
        parameter.data.zero_()
    steering = steering_of(net, BATCH, ["norm"])
    merged = steering.merge(net, probe=BATCH)
    with torch.no_grad(), steering.apply(net):
        assert relative(merged(**BATCH), net(**BATCH)) < 1e-5
    assert merged.linear.bias[:8].abs().max() == 0, "rows that modulate nothing stay"


def test_a_scale_without_a_shift_takes_the_scale_of_a_map_and_refuses_its_bias():
    net = Modulated(lambda net, n, made, emb: n * (1 + made), rows=1, bias=False)
    scales = lineas.Steering({"norm": (np.linspace(0.5, 2, 8), np.zeros(8))})
    assert "linear has no bias, and Modulated would not load one" in str(scales.merge_plan(net, probe=BATCH))
    plain = Modulated(lambda net, n, made, emb: n * made, rows=1, bias=False)
    merged = scales.merge(plain, probe=BATCH)
    with torch.no_grad(), scales.apply(plain):
        assert relative(merged(**BATCH), plain(**BATCH)) < 1e-5
    refused = steering_of(plain, BATCH, ["norm"]).merge_plan(plain, probe=BATCH).refused
    assert "linear scales it, but no rows of it alone shift it" in refused[0].text


def parts(made):
    return made.chunk(3, -1)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (lambda net, n, made, emb: n * (1 + parts(made)[0].tanh()) + parts(made)[1],
         "what modulates it is aten.tanh in the model itself, not rows of one linear layer"),
        (lambda net, n, made, emb: n * (1 - parts(made)[0]) + parts(made)[1], "what modulates it is aten.rsub in"),
        (lambda net, n, made, emb: n * (1 + parts(made)[0] + net.table) + parts(made)[1],
         r"what modulates it is linear \+ table, not rows of one linear layer"),
        (lambda net, n, made, emb: n * (1 + parts(made)[0]) + net.other(emb)[..., 8:], "no rows of it alone shift it"),
        (lambda net, n, made, emb: n * (1 + parts(made)[0]) + parts(made)[0],
         "it takes the same rows of linear for more than one thing"),
        (lambda net, n, made, emb: n * (1 + parts(made)[0]) + parts(made)[1] + parts(made)[1].sin(),
         "the rows of linear that modulate it also go to aten.sin in the model itself"),
        (lambda net, n, made, emb: n * (1 + parts(made)[0]) + parts(made)[1] * made.mean(),
         "no rows of it alone shift it"),
        (lambda net, n, made, emb: n * (1 + parts(made)[0]) + parts(made)[1] + n,
         "linear modulates it, but it also goes to aten.add in the model itself"),
        (lambda net, n, made, emb: (p := n * (1 + parts(made)[0])) + parts(made)[1] + p.sin(),
         "no rows of it alone shift it"),
        (lambda net, n, made, emb: n * (1 + parts(made)[0].mul_(2)) + parts(made)[1], "has no weight of its own"),
        (lambda net, n, made, emb: n.flip(-1) * (1 + parts(made)[0]) + parts(made)[1], "also goes to aten.flip"),
        (lambda net, n, made, emb: (n.transpose(0, 1).mT * (1 + parts(made)[0][0, 0, 0]) + parts(made)[1].mT[:1]),
         "LayerNorm has no weight of its own"),
    ],
)  # fmt: skip
def test_what_modulates_in_another_way_is_refused_by_name(way, message):
    net = Modulated(way)
    steering, before = steering_of(net, BATCH, ["norm"]), snapshot(net)
    for inplace in (False, True):
        with pytest.raises(ValueError, match=message):
            steering.merge(net, probe=BATCH, inplace=inplace)
    assert_untouched(net, before)


class Twice(torch.nn.Module):
    """Two norms, which one linear layer modulates with the same rows, or each with its own."""

    def __init__(self, shared):
        super().__init__()
        self.first, self.second = (torch.nn.LayerNorm(8, elementwise_affine=False) for _ in range(2))
        self.linear, self.shared = torch.nn.Linear(5, 32), shared

    def forward(self, x, emb):
        a, b, c, d = self.linear(emb)[:, None].chunk(4, -1)
        x = torch.tanh(self.first(x) * (1 + a) + b)
        return torch.tanh(self.second(x) * (1 + (a if self.shared else c)) + (b if self.shared else d))


def test_rows_that_modulate_another_norm_as_well_are_refused_and_other_rows_of_one_layer_are_not():
    own, shared = Twice(shared=False), Twice(shared=True)
    steering = steering_of(own, BATCH, ["first", "second"])
    merged = steering.merge(own, probe=BATCH)
    with torch.no_grad(), steering.apply(own):
        assert relative(merged(**BATCH), own(**BATCH)) < 1e-5
    with pytest.raises(
        ValueError, match="first: refused: .*the rows of linear that modulate it also go to aten.mul in"
    ):
        steering.merge(shared, probe=BATCH)


def test_a_map_of_the_modulating_layer_itself_comes_before_that_of_what_it_modulates():
    net = Modulated(in_order("shift", "scale", "gate"))
    names = ["norm", "linear"]
    steering = steering_of(net, BATCH, names, size=0.5)
    merged = steering.merge(net, probe=BATCH)
    with torch.no_grad():
        expected = net(**BATCH)
        torch.testing.assert_close(steering.unmerge(merged, probe=BATCH)(**BATCH), expected)
        with steering.apply(net):
            assert relative(merged(**BATCH), net(**BATCH)) < 1e-5


def test_norms_that_a_table_and_a_shared_layer_modulate_are_refused_by_name():
    model, batch = denoisers.pixart()
    for site, table in (
        ("transformer_blocks.1.norm2", "transformer_blocks.1.scale_shift_table"),
        ("norm_out", "scale_s"),
    ):
        steering = steering_of(model, batch(2), [site])
        with pytest.raises(
            ValueError, match=rf"{site}: .*what modulates it is {table}\S* \+ adaln_single.*, not rows of"
        ):
            steering.merge(model, probe=batch(2))
    assert_same_elsewhere = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2", "proj_out"]
    steering = steering_of(model, batch(2), assert_same_elsewhere)
    assert steering.merge_plan(model, probe=batch(2)).exact


def test_a_norm_of_queries_takes_the_scale_of_a_map_and_refuses_its_bias_by_name(tmp_path):
    model, batch = denoisers.flux()
    site = "transformer_blocks.0.attn.norm_q"
    scales = lineas.Steering({site: (np.linspace(0.5, 2, 16), np.zeros(16))})
    merged = scales.merge(model, probe=batch(2))
    other = batch(3, seed=5)
    assert relative(output(reloaded(merged, tmp_path), other), steered(scales, model, other)) < 1e-5
    with pytest.raises(ValueError, match=f"{site}: refused: RMSNorm has no bias; its output also goes to aten.cat in"):
        steering_of(model, batch(2), [site]).merge(model, probe=batch(2))


# -- UNets --


@pytest.mark.parametrize("name", ["unet", "sdxl", "ddpm"])
def test_norms_convolutions_and_linear_layers_of_a_unet_merge_together(name, tmp_path):
    model, batch = getattr(denoisers, name)()
    names = matching(
        model, r".*norm\d?|.*conv\w*|.*conv\w*|.*proj_(in|out)|.*time_emb_proj|.*to_out\.0|.*ff\.net\.[02](\.proj)?"
    )
    names = [site for site in names if not re.search(r"conv_act|net\.0$", site)]
    kinds = {type(model.get_submodule(site)).__name__ for site in names}
    assert kinds == {"GroupNorm", "Conv2d", "Linear"} | ({"LayerNorm"} if name != "ddpm" else set())
    merged = assert_merges(model, batch, names, tmp_path, strength=0.2)
    assert {parameter.rpartition(".")[0] for parameter in changed(model, merged)} == set(names)


def test_a_unet_that_scales_and_shifts_by_the_time_merges(tmp_path):
    model, batch = denoisers.ddpm(resnet_time_scale_shift="scale_shift")
    names = [*matching(model, r".*resnets.*norm\d"), *matching(model, r".*time_emb_proj")]
    assert_merges(model, batch, names, tmp_path)


@pytest.mark.parametrize("inplace", [False, True])
def test_an_option_of_the_config_gives_a_bias_its_place(inplace, tmp_path):
    model, batch = denoisers.pixart(attention_bias=False)
    site, other = "transformer_blocks.0.attn1.to_q", batch(3, seed=5)
    steering = steering_of(model, batch(2), [site], size=0.5)
    expected, config = steered(steering, model, other), dict(model.config)
    plan = steering.merge_plan(model, probe=batch(2))
    assert plan.target == "PixArtTransformer2DModel with attention_bias"
    merged = steering.merge(model, inplace=inplace, probe=batch(2))
    loaded = reloaded(merged, tmp_path)
    assert relative(output(loaded, other), expected) < 1e-5
    public = [name for name in config if not name.startswith("_")]
    assert {name: loaded.config[name] for name in public} == {
        **{name: config[name] for name in public}, "attention_bias": True,
    }  # fmt: skip
    assert inplace or dict(model.config) == config


@pytest.mark.parametrize("name", ["unet", "sdxl"])
def test_a_layer_of_a_unet_without_a_bias_is_refused_by_name(name):
    model, batch = getattr(denoisers, name)()
    site = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    with pytest.raises(ValueError, match=f"{site} has no bias, and UNet2DConditionModel has no place for one"):
        steering_of(model, batch(2), [site]).merge(model, probe=batch(2))


def test_a_block_that_returns_its_output_a_second_time_is_refused():
    """As a skip connection, which a hook on the block leaves as it is."""
    model, batch = denoisers.ddpm()
    steering = steering_of(model, batch(2), ["down_blocks.0"])
    with pytest.raises(ValueError, match="down_blocks.0: refused: its module returns the tensor a second time"):
        steering.merge(model, probe=batch(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["flux", "unet"])
def test_half_precision_merges_to_its_rounding(name, dtype):
    model, batch = getattr(denoisers, name)()
    model = model.to(dtype)
    inputs = {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.ndim and "ids" not in key else value
        for key, value in batch(2).items()
    }
    names = NORMS["flux"] if name == "flux" else matching(model, r".*norm\d?")
    merged = steering_of(model, inputs, names).merge(model, probe=inputs)
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
    assert (
        merged.lineas_merge["error"]
        < {torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
        < merged.lineas_merge["effect"]
    )


# -- probes --


def test_a_probe_may_hold_nested_dicts_and_values_that_are_no_tensors(monkeypatch):
    """All of it goes where the model is, here to a device that computes nothing, and a message has the shapes."""
    model, batch = denoisers.sdxl()
    given = batch(2) | {"cross_attention_kwargs": {"scale": 1.0}, "nothing": [torch.zeros(2), (torch.ones(3), None)]}
    with pytest.raises(ValueError, match=r"does not take it, .*'text_embeds': \(2, 10\).*\[\(2,\), \(\(3,\), None\)\]"):
        Probe(model, given).first(model, lambda model, run: run())
    monkeypatch.setattr(probing, "device_of", lambda model: torch.device("meta"))
    held = Probe(model, given).kwargs
    assert held["added_cond_kwargs"]["text_embeds"].device.type == "meta"
    assert held["nothing"][1][0].device.type == "meta"
    assert held["cross_attention_kwargs"] == {"scale": 1.0}
    assert given["added_cond_kwargs"]["text_embeds"].device.type == "cpu", "what was given stays as it is"
