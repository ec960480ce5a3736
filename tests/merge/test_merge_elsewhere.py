"""Merged where the weights are, in parts in two processes or offloaded: the merged whole, to the bit, on disk too."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import Mlp, count_hooks, normal, random_maps, snapshot, tiny
from merge_cases import SITES, assert_same, assert_saved_as, full_state, logits, maps_of, merges
from processes import play, played, refused, told
from test_merge import script

from lineas import Steering, serving
from lineas.network.weights import FOLDER, Weights

# -- offloaded by accelerate --


def on_cpu(model, folder):
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def by_parts(model, folder):
    """All weights of an MLP come with it."""
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"), preload_module_classes=["LlamaMLP"])


def on_disk(model, folder):
    from accelerate import disk_offload

    return disk_offload(model, str(folder / "disk"), execution_device=torch.device("cpu"))


def loaded_there(model, folder):
    """As transformers does it: weights stay in the files of the checkpoint."""
    model.save_pretrained(folder / "plain", max_shard_size="20KB")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "lm_head": "disk"}
    places |= {"model.layers.1": "disk", "model.layers.2": "disk", "model.norm": "disk"}
    return type(model).from_pretrained(folder / "plain", device_map=places).eval()


def bytes_of(folder):
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize(
    ("offloaded", "inplace"),
    [(on_cpu, False), (on_disk, False), (on_disk, True), (loaded_there, True), (by_parts, True)],
)
def test_an_offloaded_model_merges_where_it_is_saves_in_several_files_and_unmerges(offloaded, inplace, tmp_path):
    steering = maps_of(tiny("llama"), *SITES)
    whole = steering.merge(tiny("llama"))
    model = offloaded(tiny("llama"), tmp_path)
    files, plain, hooks = bytes_of(tmp_path), logits(model), count_hooks(model)
    merged = steering.merge(model, inplace=inplace)
    assert (merged is model) == inplace
    assert "meta" in {weight.device.type for weight in merged.parameters()}
    assert torch.equal(logits(merged), logits(whole))
    assert merged.lineas_merge["error"] < 2e-6
    if not inplace:
        assert torch.equal(logits(model), plain)
    assert count_hooks(merged) == hooks
    assert {name: file for name, file in bytes_of(tmp_path).items() if name in files} == files
    merged.hf_device_map = {"": "disk"}  # as transformers notes it where it has offloaded the model itself
    merged.save_pretrained(tmp_path / "merged", max_shard_size="20KB")
    assert_saved_as(tmp_path / "merged", whole)
    steering.unmerge(merged, inplace=True)
    assert torch.equal(logits(merged), logits(steering.unmerge(whole)))


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("name", ["Phi-3", "Gemma"])
def test_an_offloaded_model_becomes_one_of_the_class_that_has_room_and_stays_on_the_disk(name, tmp_path):
    steering = random_maps(script.make(name), size=0.3)
    whole = steering.merge(script.make(name))
    merged = steering.merge(on_disk(script.make(name), tmp_path))
    assert type(merged) is type(whole)
    assert {weight.device.type for weight in merged.parameters()} == {"meta"}
    assert torch.equal(logits(merged), logits(whole))
    merged.save_pretrained(tmp_path / "merged", max_shard_size="10KB")
    assert_saved_as(tmp_path / "merged", whole)


def test_what_changed_of_weights_on_a_disk_is_on_the_disk_and_goes_with_the_model(tmp_path):
    model = on_disk(tiny("llama"), tmp_path)
    merged = maps_of(tiny("llama")).merge(model)
    assert maps_of(tiny("llama"), *SITES).merge(merged, inplace=True) is merged
    module = merged.model.layers[0].mlp.down_proj
    mapping, _ = Weights(merged)._stored(module, "weight")
    folder = Path(vars(mapping)[FOLDER].name)
    assert sum(path.stat().st_size for path in folder.iterdir()) >= 3 * module.weight.numel() * 4
    assert FOLDER not in vars(Weights(model)._stored(model.model.layers[0].mlp.down_proj, "weight")[0])
    del merged, module, mapping
    import gc

    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("offloaded", [on_cpu, on_disk])
def test_a_merge_that_fails_leaves_an_offloaded_model_as_it_was(offloaded, tmp_path):
    model = offloaded(tiny("llama"), tmp_path)
    before, state = logits(model), snapshot(model)
    with pytest.raises(RuntimeError, match="nothing was changed"):
        maps_of(tiny("llama"), *SITES).merge(model, inplace=True, tolerance=0)
    assert torch.equal(logits(model), before)
    assert snapshot(model).keys() == state.keys()
    assert not model.config.mlp_bias
    assert not any("bias" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("offloaded", [on_cpu, on_disk])
def test_offloaded_weights_that_have_two_places_are_refused(offloaded, tmp_path):
    model = offloaded(tiny("gpt2"), tmp_path)
    with pytest.raises(ValueError, match="wte.weight is shared with lm_head.weight"):
        Steering({"transformer.wte": (np.full(16, 0.9), np.zeros(16))}).merge(model)
    if offloaded is on_disk:  # where what is no model of transformers has two files, and so two weights
        return
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
    net[2].weight = net[0].weight
    with pytest.raises(ValueError, match=r"2.weight is shared with 0.weight"):
        Steering({"2": (np.full(4, 0.9), np.zeros(4))}).merge(on_cpu(net, tmp_path), probe=normal(3, 4))


# -- spread over two processes --


def mesh():
    return dist.device_mesh.init_device_mesh("cpu", (2,))


def by_block(model):
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh())
    return fully_shard(model, mesh=mesh())


def nested(model):
    """Layers by themselves too, and the last norm with the output layer, as accelerate does it."""
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        for part in (layer.self_attn, layer.post_attention_layernorm, layer.mlp.down_proj):
            fully_shard(part, mesh=mesh())
    fully_shard([model.model.norm, model.lm_head], mesh=mesh(), reshard_after_forward=False)
    return by_block(model)


def split(model):
    """By tensor parallelism, in the MLPs."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    styles = {"gate_proj": ColwiseParallel, "up_proj": ColwiseParallel, "down_proj": RowwiseParallel}
    plan = {f"model.layers.{k}.mlp.{name}": style() for k in range(3) for name, style in styles.items()}
    return parallelize_module(model, mesh(), plan)


def kept(rank):
    """As a checkpoint of all processes together, which each of them reads again."""
    import torch.distributed.checkpoint as dcp

    steering, folder = maps_of(tiny("llama")), Path(os.environ["LINEAS_KEPT"])
    whole = steering.merge(tiny("llama"))
    model = steering.merge(by_block(tiny("llama")), inplace=True)
    dcp.save(model.state_dict(), checkpoint_id=folder)
    state = {name: torch.zeros_like(value) for name, value in whole.state_dict().items()}
    dcp.load(state, checkpoint_id=folder)
    assert_same(state, whole.state_dict())
    return "as expected"


def planned(rank):
    """As transformers splits a model, from a folder to a folder."""
    import transformers as hf
    from transformers.distributed import DistributedConfig

    folder = Path(os.environ["LINEAS_PLANNED"])
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=64))
    if rank == 0:
        plain.save_pretrained(folder / "plain")
    dist.barrier()
    steering = maps_of(plain, "model.embed_tokens", SITES[0])
    whole = steering.merge(plain)
    model = hf.LlamaForCausalLM.from_pretrained(folder / "plain", distributed_config=DistributedConfig(tp_size=2))
    steering.merge(model, inplace=True)
    spread = {
        name: str(weight.placements) for name, weight in model.named_parameters() if hasattr(weight, "placements")
    }
    assert spread["model.layers.0.mlp.up_proj.bias"] == "(Shard(dim=0),)"
    assert spread["model.layers.0.mlp.down_proj.bias"] == "(Replicate(),)"
    torch.testing.assert_close(logits(model), logits(whole))
    model.save_pretrained(folder / "merged", max_shard_size="10KB")
    dist.barrier()
    assert_saved_as(folder / "merged", whole)
    return "as expected"


def odd_sizes(rank):
    """Weights of 9 rows, a part of which is larger than the other; nothing of transformers."""
    from torch.distributed.fsdp import fully_shard

    draw, x = np.random.default_rng(0), normal(5, 4)
    units = {site: module.out_features for site, module in Mlp().named_modules() if hasattr(module, "out_features")}
    steering = Steering({site: (1 + draw.normal(size=n), draw.normal(size=n)) for site, n in units.items()})
    model = steering.merge(fully_shard(Mlp().eval(), mesh=mesh()), inplace=True, probe=x)
    state = full_state(model)
    if rank == 0:
        assert_same(state, steering.merge(Mlp().eval(), probe=x).state_dict())
    return "as expected"


def fails(rank):
    """A failed merge leaves every part, the config and the module tree as they were."""
    for spread in (by_block, split):
        model, plain = spread(tiny("llama")), tiny("llama").state_dict()
        with pytest.raises(RuntimeError, match="nothing was changed"):
            maps_of(tiny("llama"), *SITES).merge(model, inplace=True, tolerance=0)
        assert not model.config.mlp_bias
        state = full_state(model)
        if rank == 0:
            assert_same(state, plain)
    return "as expected"


def older(rank):
    from torch.distributed.fsdp import FullyShardedDataParallel

    maps_of(tiny("llama")).merge(FullyShardedDataParallel(tiny("llama"), device_id=torch.device("cpu")), inplace=True)


def tied(rank):
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(tiny("gpt2"), mesh=mesh())
    Steering({"transformer.wte": (np.full(16, 0.9), np.zeros(16))}).merge(model, inplace=True)


def cast(rank):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = fully_shard(tiny("llama"), mesh=mesh(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    maps_of(tiny("llama")).merge(model, inplace=True)


REFUSED = {
    "a copy": (
        lambda rank: maps_of(tiny("llama")).merge(by_block(tiny("llama"))),
        "ValueError: inplace: expected True for a model that is spread over processes",
    ),
    "another class": (
        lambda rank: random_maps(tiny("qwen2")).merge(by_block(tiny("qwen2")), inplace=True),
        "ValueError: inplace: only LlamaForCausalLM .* can hold the merged Qwen2ForCausalLM.* expected a model in one",
    ),
    "another strength": (
        lambda rank: maps_of(tiny("llama")).merge(by_block(tiny("llama")), 1.0 + rank, inplace=True),
        "ValueError: steering, strength, probe: expected the same in every process",
    ),
    "the older FSDP": (older, "ValueError: model: it is sharded over processes; merge first, then shard"),
    "tied": (tied, "(?s)ValueError: 1 of 1 sites .*wte.weight is shared with lm_head.weight"),
    "cast": (
        cast,
        "(?s)ValueError: 3 of 3 sites .*gate_proj has no bias, and beside weights that are cast to torch.bfloat16",
    ),
    "an adapter": (
        lambda rank: serving.to_peft(maps_of(tiny("llama")), by_block(tiny("llama")), "nowhere"),
        "ValueError: model: .* is sharded over processes; merge first",
    ),
}


def scenes(folder: Path):
    return {
        **{spread.__name__: merges(spread, folder) for spread in (by_block, nested)},
        "split": merges(split, folder, apart=1e-5),
        "kept": kept,
        "planned": planned,
        "odd sizes": odd_sizes,
        "fails": fails,
        **{name: refused(run) for name, (run, _) in REFUSED.items()},
    }


def worker(rank: int, folder: Path) -> None:
    os.environ.update(LINEAS_KEPT=str(folder / "kept"), LINEAS_PLANNED=str(folder), RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(LOCAL_RANK=str(rank))
    play(scenes(folder), folder, rank)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two processes left."""
    folder = tmp_path_factory.mktemp("merged")
    assert played(worker, folder) == [0, 0]
    return folder


needs_processes = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch < 2.6 has no fully_shard"),
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_processes) for name in scenes(Path()) if name not in REFUSED]
)
def test_a_model_in_parts_merges_where_it_is_and_is_the_merged_whole_in_memory_and_on_disk(folder, name):
    assert [told(folder, name, rank) for rank in range(2)] == ["as expected"] * 2


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_processes) for name in REFUSED])
def test_what_no_process_can_do_with_its_part_is_refused_in_all(folder, name):
    for rank in range(2):
        message = told(folder, name, rank)
        assert re.match(REFUSED[name][1], message), message
