"""SGLang and vLLM: the maps where their models have the sites, seen on a stand-in with their contract."""

import copy
import json
import runpy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import IDS, tiny
from engine_stand_in import Engine, Layer, PPMissingLayer, register
from torch import nn

import lineas
from lineas.serving import engine_map
from lineas.serving.engine_map import EngineMap
from lineas.serving.places import place
from lineas.serving.sglang import forward_hooks, hook_factory, watch_factory
from lineas.serving.vllm import WorkerExtension

SITES = {
    "norms": r"model\.layers\.\d\.(input|post_attention)_layernorm",
    "q, k, v": r".*\.[qkv]_proj",
    "one of q, k, v": r".*\.k_proj",
    "gate and up": r".*\.(gate|up)_proj",
    "attention and MLP": r".*\.(self_attn|mlp)",
    "their last layers": r".*\.(o_proj|down_proj)",
    "blocks": r"model\.layers\.\d",
    "last norm": r"model\.norm",
}


def maps_at(model, sites, seed=0, ranges=False):
    draw = np.random.default_rng(seed)
    units = {site.name: site.units or model.config.hidden_size for site in lineas.find_sites(model, sites)}
    maps = {name: (1 + 0.3 * draw.normal(size=d), 0.3 * draw.normal(size=d)) for name, d in units.items()}
    within = {name: (np.full(d, -0.5), np.full(d, 0.5)) for name, d in units.items()} if ranges else None
    return lineas.Steering(maps, ranges=within)


def steered(model, steering, strength=1.0):
    with torch.no_grad(), steering.apply(model, strength):
        return model(IDS).logits


def assert_close(got, wanted, base):
    assert not torch.allclose(wanted, base, atol=1e-2), "or the test would see nothing"
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.fixture
def folder(llama, tmp_path):
    maps_at(llama, SITES["norms"]).save_pretrained(tmp_path / "steering")
    return tmp_path / "steering"


def test_the_stand_in_computes_what_transformers_does(llama):
    torch.testing.assert_close(Engine(llama).logits(IDS), llama(IDS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_hooks_of_sglang_do_what_the_attached_steering_does(llama, sites, tmp_path):
    steering = maps_at(llama, sites)
    steering.save_pretrained(tmp_path)
    engine = Engine(llama)
    assert not register(engine, json.dumps(forward_hooks(tmp_path, 0.7)))
    assert_close(engine.logits(IDS), steered(llama, steering, 0.7), llama(IDS).logits)


def test_maps_within_a_range_stay_in_it(llama, tmp_path):
    steering = maps_at(llama, SITES["q, k, v"], ranges=True)
    steering.save_pretrained(tmp_path)
    engine = Engine(llama)
    register(engine, json.dumps(forward_hooks(tmp_path)))
    assert_close(engine.logits(IDS), steered(llama, steering), llama(IDS).logits)


def test_a_model_can_be_compiled_with_hooks_that_never_ran_into_one_graph(llama, folder):
    engine = Engine(llama)
    register(engine, json.dumps(forward_hooks(folder)))
    torch.compiler.reset()
    engine.model.forward = torch.compile(engine.model.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        engine.logits(IDS), steered(llama, lineas.Steering.from_pretrained(folder)), atol=1e-5, rtol=1e-4
    )


def test_half_precision_stays_and_the_residual_is_not_touched(llama, folder):
    (hook,) = (hook_factory(spec["config"]) for spec in forward_hooks(folder)[:1])
    h, residual = torch.randn(5, 16, dtype=torch.bfloat16), torch.randn(5, 16, dtype=torch.bfloat16)
    mapped, same = hook(nn.Identity(), (), (h, residual))
    assert mapped.dtype == torch.bfloat16
    assert same is residual
    assert not torch.equal(mapped, h)


# -- tensor parallelism: a rank has a slice --


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("in_a_group", [False, True])  # as the newer SGLang says it
def test_every_rank_maps_its_heads(ranks, in_a_group):
    """4 heads of queries, 2 of keys and values, each 3 wide: of 4 ranks, two have the same keys."""
    sites, sizes = [f"model.layers.0.self_attn.{x}_proj" for x in "qkv"], (12, 6, 6)
    draw = np.random.default_rng(0)
    maps = lineas.Steering({site: draw.normal(size=(2, d)) for site, d in zip(sites, sizes, strict=True)})
    whole = [torch.randn(5, d) for d in sizes]
    wanted = [z * torch.tensor(maps.weight(s)) + torch.tensor(maps.bias(s)) for s, z in zip(sites, whole, strict=True)]
    copies = max(1, ranks // 2)
    parts = 2 * [ranks, ranks // copies, ranks // copies]  # of q, k, v, and of what they become
    for rank in range(ranks):
        known = {"head_size": 3, "num_heads": 4 // ranks, "num_kv_heads": max(1, 2 // ranks), "total_num_kv_heads": 2}
        group = {"tp_group": SimpleNamespace(rank_in_group=rank, world_size=ranks)}
        told = group if in_a_group else {"tp_size": ranks, "tp_rank": rank}
        layer = SimpleNamespace(**known, **told, num_kv_head_replicas=copies)
        mine = 2 * [rank, rank // copies, rank // copies]
        heads = [z.chunk(n, -1)[k] for z, n, k in zip([*whole, *wanted], parts, mine, strict=True)]
        got, _ = EngineMap(maps, [place(site) for site in sites], 1.0)(layer, (), (torch.cat(heads[:3], -1), None))
        torch.testing.assert_close(got, torch.cat(heads[3:], -1))


def test_every_rank_maps_its_part_of_gate_and_up_and_of_fused_sites():
    sites = ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
    draw = np.random.default_rng(0)
    apart = lineas.Steering({site: draw.normal(size=(2, 8)) for site in sites})
    fused = lineas.Steering({"model.layers.0.mlp.gate_up_proj": [
        np.concatenate([part(site) for site in sites]) for part in (apart.weight, apart.bias)]})  # fmt: skip
    z = torch.randn(5, 16)
    wanted = z * torch.tensor(fused.weight(fused.sites[0])) + torch.tensor(fused.bias(fused.sites[0]))
    for rank in range(2):
        layer = SimpleNamespace(output_sizes=[8, 8], tp_size=2, tp_rank=rank)
        mine = [torch.cat([half.chunk(2, -1)[rank] for half in x.chunk(2, -1)], -1) for x in (z, wanted)]
        for maps in (apart, fused):
            got, _ = EngineMap(maps, [place(site) for site in maps.sites], 1.0)(layer, (), (mine[0], None))
            torch.testing.assert_close(got, mine[1])


def test_columns_of_a_layer_are_those_of_the_rank():
    maps = lineas.Steering({"transformer.h.0.mlp.c_fc": (np.ones(8), np.arange(8.0))})
    hook = EngineMap(maps, [place(maps.sites[0])], 1.0)
    got, _ = hook(SimpleNamespace(tp_size=2, tp_rank=1), (), (torch.zeros(1, 4), None))
    assert got.tolist() == [[4, 5, 6, 7]]


def test_a_slice_of_an_unknown_rank_is_refused():
    maps = lineas.Steering({"transformer.h.0.mlp.c_fc": (np.ones(8), np.ones(8))})
    with pytest.raises(ValueError, match="which of 2 slices it has, and it does not"):
        EngineMap(maps, [place(maps.sites[0])], 1.0)(SimpleNamespace(tp_size=2), (), torch.zeros(1, 4))


@pytest.mark.parametrize("sites", [SITES["attention and MLP"], SITES["their last layers"], SITES["blocks"]])
@pytest.mark.parametrize("told", ["by attributes", "by a group", "not at all"])
def test_what_ranks_add_up_is_refused_under_tensor_parallelism(llama, sites, told, tmp_path, monkeypatch):
    maps_at(llama, sites).save_pretrained(tmp_path)
    engine = Engine(llama)
    monkeypatch.setattr(engine_map, "_processes", lambda: 2)
    for layer in (module for module in engine.modules() if isinstance(module, Layer)):
        if told == "by attributes":
            layer.tp_size = 2
        else:
            monkeypatch.delattr(Layer, "tp_size", raising=False)
        if told == "by a group":
            layer.tp_group = SimpleNamespace(rank_in_group=1, world_size=2)
    register(engine, json.dumps(forward_hooks(tmp_path)))
    with pytest.raises(ValueError, match="is summed over ranks"):
        engine.logits(IDS)


# -- what is refused --


@pytest.mark.parametrize(("site", "why"), [
    ("model.embed_tokens", "tables in ways of their own"),
    ("lm_head", "never call it"),
    ("model.layers.0.self_attn.q_norm", "rotary embedding"),
    ("model.layers.0.mlp.act_fn", "activation"),
    ("model.layers.0.mlp.experts.3.down_proj", "experts"),
    ("model.layers.0.mlp.gate", "router"),
    ("model.layers.0.self_attn:1", "one of several"),
    ("encoder.layer.0.output", "no rule"),
    ("model.layers.0.mixer.norm", "no rule"),
])  # fmt: skip
def test_a_site_that_engines_have_nowhere_is_refused_by_name(site, why, tmp_path):
    lineas.Steering({site: ([1, 1], [1, 1]), "model.norm": ([1, 1], [1, 1])}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"1 of 2 sites cannot be mapped in an engine:\n  {site}: .*{why}"):
        forward_hooks(tmp_path)


def test_the_first_of_a_tuple_is_the_output_itself():
    assert place("model.layers.3.self_attn:0").module == "model.layers.3.self_attn"
    assert place("model.layers.3:0").part == "stream"


def test_another_number_of_units_is_refused_with_both(llama, tmp_path):
    lineas.Steering({"model.norm": ([1, 1], [1, 1])}).save_pretrained(tmp_path)
    engine = Engine(llama)
    register(engine, json.dumps(forward_hooks(tmp_path)))
    with pytest.raises(ValueError, match=r"weight \(2,\), model.norm of the engine has 16"):
        engine.logits(IDS)


def test_a_bias_that_is_not_added_yet_and_a_layer_that_is_not_fused_are_refused():
    maps = lineas.Steering({"model.layers.0.mlp.down_proj": ([1, 1], [1, 1])})
    with pytest.raises(ValueError, match="skip_bias_add"):
        EngineMap(maps, [place(maps.sites[0])], 1.0)(nn.Identity(), (), (torch.zeros(3, 2), torch.ones(2)))
    maps = lineas.Steering({"model.layers.0.mlp.up_proj": ([1, 1], [1, 1])})
    with pytest.raises(ValueError, match="expected model.layers.0.mlp.gate_up_proj to be a fused layer"):
        EngineMap(maps, [place(maps.sites[0])], 1.0)(nn.Identity(), (), torch.zeros(3, 2))


@pytest.mark.parametrize(
    "output", [torch.zeros(3, 2), (torch.zeros(3, 2), None), (torch.zeros(3, 2), torch.zeros(3, 3))]
)
def test_a_block_that_keeps_the_residual_stream_elsewhere_is_refused(output):
    maps = lineas.Steering({"model.layers.0": ([1, 1], [1, 1])})
    with pytest.raises(ValueError, match="expected the block to return the residual stream"):
        EngineMap(maps, [place("model.layers.0")], 1.0)(nn.Identity(), (), output)


def test_a_block_that_adds_by_itself_returns_the_site():
    maps, h = lineas.Steering({"transformer.h.0": ([1, 1], [1, 1])}), torch.zeros(3, 2)
    block = nn.Identity()
    assert torch.equal(EngineMap(maps, [place("transformer.h.0")], 1.0)(block, (), h), h + 1)
    block.ffn_boundary = "as SGLang calls where it keeps the stream"
    with pytest.raises(ValueError, match="expected the block to return the residual stream"):
        EngineMap(maps, [place("transformer.h.0")], 1.0)(block, (), h)


@pytest.mark.parametrize("output", [
    ((torch.zeros(3, 2).to(torch.float8_e4m3fn), torch.ones(3, 1)), torch.zeros(3, 2)),
    (torch.zeros(3, 2).to(torch.float8_e4m3fn), torch.ones(3, 1)),
])  # fmt: skip
def test_a_norm_that_quantises_its_output_is_refused(output):
    maps = lineas.Steering({"model.norm": ([1, 1], [1, 1])})
    with pytest.raises(ValueError, match="model.norm: expected activations, got"):
        EngineMap(maps, [place("model.norm")], 1.0)(nn.Identity(), (), output)


@pytest.mark.parametrize(("change", "message"), [
    ({"strenght": 1.0}, "got strenght"),
    ({"sites": []}, "those of none"),
    ({"sites": ["model.norm", "model.layers.0.mlp"]}, "those of model.norm, model.layers.0.mlp"),
    ({"steering": None}, "expected 'steering'"),
])  # fmt: skip
def test_a_config_that_sglang_would_pass_on_is_checked(folder, change, message):
    config = {**forward_hooks(folder)[0]["config"], **change}
    with pytest.raises(ValueError, match=message):
        hook_factory({key: value for key, value in config.items() if value is not None})


@pytest.mark.parametrize("strength", ["much", float("nan")])
def test_a_strength_is_a_finite_number(folder, strength):
    with pytest.raises((TypeError, ValueError), match="strength: expected"):
        forward_hooks(folder, strength)


def test_a_steering_that_was_saved_anew_is_read_anew(llama, folder):
    (spec, *_) = forward_hooks(folder)
    h = torch.randn(3, 16)
    before = hook_factory(spec["config"])(nn.Identity(), (), h)
    maps_at(llama, SITES["norms"], seed=1).save_pretrained(folder)
    assert not torch.equal(hook_factory(spec["config"])(nn.Identity(), (), h), before)


# -- nothing stays unsteered in silence --


def test_a_name_that_no_module_has_is_an_error_of_the_first_pass(llama, folder):
    engine = Engine(llama)
    del engine.model.layers[2]
    assert register(engine, json.dumps(forward_hooks(folder))) == [
        f"lineas model.layers.2.{x}_layernorm" for x in ("input", "post_attention")
    ]
    with pytest.raises(RuntimeError, match=r"2 of 6 modules of 'model' run without their maps: layers\.2\.input_lay"):
        engine.logits(IDS)


def test_a_module_that_is_not_called_is_an_error_of_the_first_pass(llama, folder):
    engine = Engine(llama)
    register(engine, json.dumps(forward_hooks(folder)))
    norm = engine.model.layers[1].input_layernorm
    norm.__class__ = type("Direct", (type(norm),), {"__call__": lambda self, *args: self.forward(*args)})
    with pytest.raises(RuntimeError, match=r"1 of 6 modules of 'model' run without their maps"):
        engine.logits(IDS)


def test_a_module_that_a_fused_kernel_stands_for_later_is_an_error_of_that_pass(llama, folder):
    engine = Engine(llama)
    register(engine, json.dumps(forward_hooks(folder)))
    engine.logits(IDS)
    norm = engine.model.layers[1].input_layernorm
    norm.__class__ = type("Direct", (type(norm),), {"__call__": lambda self, *args: self.forward(*args)})
    with pytest.raises(RuntimeError, match=r"run without their maps: layers\.1\.input_layernorm$"):
        engine.logits(IDS)


@pytest.mark.parametrize(("where", "getter"), [
    ("runtime_context", "get_server_args"), ("server_args", "get_global_server_args"),
])  # fmt: skip
def test_cuda_graphs_in_which_no_hook_runs_are_refused(folder, where, getter, monkeypatch):
    config = forward_hooks(folder)[-1]["config"]
    for name in ("sglang", "sglang.srt"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.warns(UserWarning, match="it does not tell: add --disable-cuda-graph"):
        watch_factory(config)
    told = SimpleNamespace(disable_cuda_graph=False)
    monkeypatch.setitem(sys.modules, f"sglang.srt.{where}", SimpleNamespace(**{getter: lambda: told}))
    with pytest.raises(RuntimeError, match="add --disable-cuda-graph"):
        watch_factory(config)
    told.disable_prefill_cuda_graph = told.disable_decode_cuda_graph = True
    watch_factory(config)


def test_blocks_of_another_stage_of_the_pipeline_are_not_missed(llama, folder):
    engine = Engine(llama)
    engine.model.layers[2] = PPMissingLayer()
    engine.model.layers[2].forward = lambda positions, hidden, residual: (hidden, residual)
    register(engine, json.dumps(forward_hooks(folder)))
    engine.logits(IDS)


def test_a_pass_without_tokens_is_none(llama, folder):
    engine = Engine(llama)
    register(engine, json.dumps(forward_hooks(folder)))
    engine.model.layers[0].forward = lambda positions, hidden, residual: (hidden, hidden)
    engine.model(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="run without their maps"):
        engine.logits(IDS)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_program_prints_what_the_option_takes(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sglang", str(folder), "--strength", "0.5"])
    runpy.run_module("lineas.serving.sglang", run_name="__main__")
    assert json.loads(capsys.readouterr().out) == forward_hooks(folder, 0.5)


# -- vLLM --


@pytest.fixture
def worker(llama):
    """A worker as vLLM makes one: the extension is one of its bases."""

    class Worker(WorkerExtension):
        model_config = SimpleNamespace(enforce_eager=True)
        model = Engine(llama)

        def get_model(self):
            return self.model

    return Worker()


def test_a_worker_of_vllm_steers_at_one_strength_after_another(llama, folder, worker):
    steering, base = lineas.Steering.from_pretrained(folder), worker.model.logits(IDS)
    for strength in (1.0, 0.4):
        assert worker.lineas_steer(str(folder), strength) == 6
        assert len(worker.lineas_silent()) == 6
        assert_close(worker.model.logits(IDS), steered(llama, steering, strength), base)
        assert worker.lineas_silent() == []
    worker.lineas_stop()
    assert torch.equal(worker.model.logits(IDS), base)


def test_a_worker_that_cannot_says_so_and_stays_as_it_was(folder, worker, tmp_path):
    worker.lineas_steer(str(folder))
    before = worker.model.logits(IDS)
    lineas.Steering({"model.layers.7.mlp": ([1] * 16, [1] * 16)}).save_pretrained(tmp_path / "other")
    with pytest.raises(LookupError, match=r"has no module 'model\.layers\.7\.mlp'"):
        worker.lineas_steer(str(tmp_path / "other"))
    assert torch.equal(worker.model.logits(IDS), before)
    worker.model_config = SimpleNamespace(enforce_eager=False)
    with pytest.raises(RuntimeError, match="enforce_eager=True"):
        worker.lineas_steer(str(folder))


def test_a_worker_of_one_stage_takes_the_blocks_that_it_has(folder, worker):
    worker.model = copy.deepcopy(worker.model)
    worker.model.model.layers[0] = PPMissingLayer()
    assert worker.lineas_steer(str(folder)) == 4


def test_the_extension_brings_no_name_that_a_worker_may_have():
    assert all(name.startswith("lineas_") for name in vars(WorkerExtension) if not name.startswith("__"))


def test_gpt2_has_its_layers_fused_already():
    names = {site.name for site in lineas.find_sites(tiny("gpt2"), r".*\.h\.0\.(ln_.|attn|mlp|.*\.c_.*)|.*\.ln_f")}
    assert len(names) == 9
    assert {place(name).module for name in names} == names


def test_a_gate_which_hooks_cannot_follow_is_refused(tmp_path):
    maps = lineas.Steering({"model.norm": ([1, 1], [1, 1])}).gated(lineas.Gate("model.norm", [1, 1], 0.0))
    maps.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="an engine's hooks: expected steerings without a gate"):
        forward_hooks(tmp_path)
    with pytest.raises(ValueError, match="an engine's hooks: expected steerings without a gate"):
        EngineMap(maps, [place("model.norm")], 1.0)
    with pytest.raises(ValueError, match="expected steerings without a gate"):
        lineas.serving.to_gguf(maps, tmp_path / "a.gguf")
