"""Weights spread over processes, by fully_shard and by tensor parallelism: the maps of one process that has them all.

Every pass is one of all processes. Whatever one of them has or does, all end, and all in the same way.
"""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import (
    NEGATIVE,
    POSITIVE,
    Mlp,
    WordTokenizer,
    count_hooks,
    flat,
    normal,
    random_maps,
    small_tokenizer,
    snapshot,
    tiny,
)
from processes import PATIENCE, play, played, told

import lineas
from lineas import evaluation, experts
from lineas.network.identity import weights_digest
from lineas.network.sharding import reshard
from lineas.network.state import frozen

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch < 2.6 has no fully_shard"),
]
IDS = torch.tensor([[3, 4, 5, 7], [9, 8, 7, 6]])
UNEVEN = 3, 7  # how many of the 12 and 10 texts the first process gets
LAYERS = range(3)


# -- ways to spread a model over both processes --


def mesh():
    return dist.device_mesh.init_device_mesh("cpu", (2,))


def by_block(model, where=None):
    from torch.distributed.fsdp import fully_shard

    where = where or mesh()
    for layer in model.model.layers:
        fully_shard(layer, mesh=where)
    return fully_shard(model, mesh=where)


def in_one(model):
    """All weights together, given back after every forward pass."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh(), reshard_after_forward=True)


def nested(model):
    """Parts of blocks by themselves too; blocks are checkpointed."""
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        for part in (layer.self_attn, layer.post_attention_layernorm, layer.mlp):
            fully_shard(part, mesh=mesh())
    model = by_block(model)
    for layer in model.model.layers:
        layer.gradient_checkpointing = True
    return model


def split(model, where=None, **more):
    """By tensor parallelism, in the MLPs."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = dict(more)
    for k in LAYERS:
        for name, style in (("gate", ColwiseParallel), ("up", ColwiseParallel), ("down", RowwiseParallel)):
            plan.setdefault(f"model.layers.{k}.mlp.{name}_proj", style())
    return parallelize_module(model, where or mesh(), plan)


def whole(model):
    return model


# -- fits --


def fit(rank=None, *, spread=by_block, parts=True, model=None, **options):
    """With a rank, on a model that is spread, and on a part of the samples; without, on all in one process."""
    model, sides = tiny("llama") if model is None else model, [NEGATIVE, POSITIVE]
    if rank is not None:
        model = spread(model)
        if parts:
            sides = [side[cut:] if rank else side[:cut] for side, cut in zip(sides, UNEVEN, strict=True)]
            options["distributed"] = True
    options = {"tokenizer": WordTokenizer(), "progress": False, **options}
    before = snapshot(model)
    steering = lineas.fit(model, *sides, **options)
    after = snapshot(model)
    for key in ("hooks", "modes", "requires_grad", "grad"):
        assert after[key] == before[key], key
    if rank is not None and spread is not whole:
        assert_in_parts(model, spread is not split)
    return steering


def assert_in_parts(model, all_of_them=True):
    kinds = [type(weight).__name__ == "DTensor" for weight in model.parameters()]
    assert all(kinds) if all_of_them else any(kinds)


EQUAL = {
    "blocks": {"steps": 4},
    "unequal batches": {"batch_size": 2, "steps": 1},
    "all in one": {"spread": in_one, "steps": 1},
    "nested, checkpointed": {"spread": nested, "steps": 1},
    "sites around and behind blocks": {"sites": r"model\.layers\.\d|model\.norm", "steps": 1},
    "compares the output": {"loss_sites": "output", "steps": 1},
    "published": {"recipe": "published", "steps": 2},
    "linear_act": {"method": "linear_act"},
    "mean_act in batches": {"method": "mean_act", "batch_size": 2},
    "caa": {"method": "caa"},
    "the same samples": {"parts": False, "steps": 1},
    "the same samples, sequential": {"parts": False, "method": "gaussian_act"},
    "split": {"spread": split, "parts": False, "steps": 2},
    "split, in batches": {"spread": split, "parts": False, "batch_size": 4, "steps": 1},
    "split, at attention and MLP": {"spread": split, "parts": False, "sites": r".*(self_attn|mlp)", "steps": 1},
    "split, linear_act": {"spread": split, "parts": False, "method": "linear_act"},
}


def half_precise(rank):
    """In float16, which may go back more than once through a pass: as with the whole model in each process."""
    options = {"batch_size": 5, "steps": 1}
    spread, not_spread = (
        flat(fit(rank, model=tiny("llama").half(), spread=spread, **options)) for spread in (by_block, whole)
    )
    assert np.array_equal(spread, not_spread)
    return "as expected"


SOURCE, TARGET = normal(13, 4), normal(11, 4, seed=1, shift=0.7)


def odd_sizes(rank=None):
    """Weights of 9 rows, a part of which is larger than the other."""
    from torch.distributed.fsdp import fully_shard

    options = {"sites": "first|second", "progress": False, "steps": 2}
    if rank is None:
        return lineas.fit(Mlp(), SOURCE, TARGET, **options)
    sides = [side[4:] if rank else side[:4] for side in (SOURCE, TARGET)]
    return lineas.fit(fully_shard(Mlp(), mesh=mesh()), *sides, distributed=True, **options)


FITS = {name: lambda rank, options=options: fit(rank, **options) for name, options in EQUAL.items()}


# -- what accelerate makes of a model, in a script that `accelerate launch` starts --

LAYER = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"]}


def accelerated(rank, sharded=False, **settings):
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    AcceleratorState._reset_state(True)
    model, accelerator = tiny("llama"), Accelerator(cpu=True, **settings)
    if sharded:  # of which accelerate thinks only where there are GPUs
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **LAYER)
        accelerator.state.distributed_type = DistributedType.FSDP
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    assert type(model) is not type(tiny("llama")), "it is another class, or within one"
    return fit(rank, model=model, spread=whole, steps=1)


ACCELERATED = {
    "accelerate": {},
    "accelerate, FSDP2": {"sharded": True},
    "accelerate, compiled": {"dynamo_backend": "eager"},
    "accelerate, FSDP2, compiled": {"dynamo_backend": "eager", "sharded": True},
}


# -- what is done with a steering --


def steered(model):
    steering, found = random_maps(tiny("llama"), size=0.3), {}
    steering.info["weights"] = weights_digest(tiny("llama"))  # which `attach` then compares
    with steering.apply(model), torch.no_grad():
        found["plain"] = model(IDS).logits
        found["generated"] = model.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    for position in ("last", "generated"):
        with steering.apply(model, 0.5, position=position):
            found[position] = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    handle = lineas.attach(model, {"a": steering}, rows=["a", None], strength=[0.7, 1.0])
    with torch.no_grad():
        found["rows"] = model(IDS).logits
    handle.remove()
    found |= {site: torch.from_numpy(h) for site, h in evaluation.responses(model, IDS).items()}
    return found


def looked_at(model):
    options = {"tokenizer": WordTokenizer(), "batch_size": 4}
    steering = random_maps(tiny("llama"))
    pooled = evaluation.responses(model, NEGATIVE, **options)
    ranking = experts.rank(model, POSITIVE, NEGATIVE, tokenizer=WordTokenizer())
    priced = lineas.calibrate(steering, model, POSITIVE, tokenizer=WordTokenizer(), progress=False)
    tokenizer = small_tokenizer()
    return {
        "responses": torch.from_numpy(np.concatenate([*pooled.values()], 1)),
        "ranking": torch.from_numpy(np.concatenate([ranking.score(site) for site in ranking.sites])),
        "perplexity": torch.tensor(evaluation.perplexity(model, NEGATIVE, **options)),
        "dial": str(priced),
        "written": evaluation.continuations(model, ["a b"], count=2, new_tokens=4, tokenizer=tokenizer),
    }


def gradients(model):
    """Of its own weights, after something else has frozen them for a while."""
    model(IDS)  # which leaves what is outside of blocks whole
    with frozen(model):
        reshard(model)
        assert not any(weight.requires_grad for weight in model.parameters())
    evaluation.responses(model, NEGATIVE, tokenizer=WordTokenizer())
    model(IDS).logits.square().sum().backward()
    return {
        name: weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
        for name, weight in model.named_parameters()
    }


def same_as_whole(look, *spreads):
    def scene(rank):
        expected = look(tiny("llama"))
        for spread in spreads:
            model = spread(tiny("llama"))
            hooks, found = count_hooks(model), look(model)
            assert count_hooks(model) == hooks
            for key, value in expected.items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(
                        found[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
                    )
                else:
                    assert found[key] == value, key
        return "as expected"

    return scene


def bytes_here(model):
    return sum(
        (weight.to_local() if hasattr(weight, "to_local") else weight).untyped_storage().nbytes()
        for weight in model.parameters()
    )


def memory(rank):
    """Bytes of weights: of the whole model; of this process before, at most during, and after a fit; and those that a
    block and what is outside of blocks have."""
    whole, model, during = tiny("llama"), by_block(tiny("llama")), []
    before = bytes_here(model)
    model(IDS)  # which leaves what is outside of blocks whole, and asking for gradients
    assert bytes_here(model) > before

    def note(module, *_):
        during.append(bytes_here(model))
        assert not any(weight.requires_grad for weight in model.parameters())

    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(note)
        layer.mlp.register_full_backward_hook(note)
    fit(rank, model=model, spread=lambda model: model, steps=1)
    block = bytes_here(whole.model.layers[0])
    return [bytes_here(whole), before, max(during), bytes_here(model), block, bytes_here(whole) - 3 * block]


# -- what must end, and how --


def refused(run, works=True):
    """What the error said, how long it took, and that the model then does what the whole one does, if it `works`."""

    def scene(rank):
        started, model = time.monotonic(), tiny("llama")
        try:
            run(rank, model)
        except Exception as error:
            said = f"{type(error).__name__}: {error}", time.monotonic() - started
        else:
            raise AssertionError("expected an error")
        if hasattr(model, "reshard"):
            assert_in_parts(model)
            assert all(weight.requires_grad for weight in model.parameters())
        if works:
            with torch.no_grad():
                assert torch.allclose(model(IDS).logits, tiny("llama")(IDS).logits, atol=1e-5)
        return said

    return scene


def no_memory(output):
    raise MemoryError("no memory left")


def not_finite(output):
    return output * float("nan")


def failing_at(number, act, **options):
    """In the second process, at this and all later calls of a part of the model."""

    def run(rank, model):
        calls = []

        def hook(module, args, output):
            calls.append(1)
            return act(output) if rank and len(calls) >= number else output

        handle = model.model.layers[1].mlp.register_forward_hook(hook)
        try:
            fit(rank, model=model, **options)
        finally:
            handle.remove()

    return refused(run)


def callback(entry):
    raise ZeroDivisionError("in a callback")


def older(rank, model):
    from torch.distributed.fsdp import FullyShardedDataParallel

    fit(rank, model=model, spread=lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")))


def sequence(**more):
    from torch.distributed.tensor.parallel import RowwiseParallel, SequenceParallel

    return {
        "model.layers.0.post_attention_layernorm": SequenceParallel(**more),
        "model.layers.0.mlp.down_proj": RowwiseParallel(),
    }


def sliced_logits(model):
    from torch.distributed.tensor.parallel import ColwiseParallel

    return split(model, lm_head=ColwiseParallel())


def sliced_perplexity(rank, model):
    evaluation.perplexity(sliced_logits(model), NEGATIVE, tokenizer=WordTokenizer())


def split_fit(rank, model, spread=split, **options):
    fit(rank, model=model, spread=spread, parts=False, steps=1, **options)


def of_rank(both):
    return lambda rank, model: fit(rank, model=model, spread=by_block, **{key: v[rank] for key, v in both.items()})


def other_samples(rank, model):
    lineas.fit(by_block(model), NEGATIVE[rank:], POSITIVE, tokenizer=WordTokenizer(), progress=False)


def other_texts(rank, model):
    evaluation.responses(by_block(model), NEGATIVE[rank:], tokenizer=WordTokenizer())


def empty(rank, model):
    sides = [] if rank else NEGATIVE, POSITIVE
    lineas.fit(by_block(model), *sides, tokenizer=WordTokenizer(), progress=False, distributed=True)


def column_steered(rank, model):
    steering = lineas.Steering({"model.layers.0.mlp.up_proj": (np.ones(24) * 2, np.ones(24))})
    model = split(model)
    with steering.apply(model):
        model(IDS)


def merged(rank, model):
    random_maps(tiny("llama")).merge(split(model))


ANY = "RuntimeError: process . .* expected the others at the same point; process . "
SPLIT = r"ValueError: site '{}': expected all units in every process, got another part"
REFUSED = {  # the scene; what the first process says, and the second
    "empty": (refused(empty), f"{ANY}failed: ValueError: src", "ValueError: src: expected at least 2"),
    "not finite, targets": (
        failing_at(2, not_finite, batch_size=5),
        f"{ANY}failed: NonFiniteError: tgt",
        "NonFiniteError: tgt: site",
    ),
    "not finite, sources": (
        failing_at(4, not_finite, batch_size=5, ridge=0),  # after a look, and two passes for targets
        *["NonFiniteError: src: process 1: site 'model.layers.2.post_attention_layernorm'"] * 2,
    ),
    "within a pass": (
        failing_at(4, no_memory),
        f"{ANY}failed: MemoryError: no memory left",
        "MemoryError: no memory left",
    ),
    "within the first pass": (failing_at(1, no_memory), f"{ANY}failed: MemoryError", "MemoryError: no memory left"),
    "callback": (
        refused(lambda rank, model: fit(rank, model=model, callbacks=[callback] if rank else [])),
        f"{ANY}failed: ZeroDivisionError",
        "ZeroDivisionError: in a callback",
    ),
    "other limits": (refused(of_rank({"max_evaluations": (9, 2)})), ANY, ANY),
    "other sites": (
        refused(of_rank({"sites": (r".*mlp", r"model\.layers\.1\.mlp")})),
        *["RuntimeError: process(es disagree| . )"] * 2,
    ),
    "other samples": (
        refused(other_samples),
        *["ValueError: src, tgt: expected the same samples in every process"] * 2,
    ),
    "other texts": (refused(other_texts), *["ValueError: inputs: expected the same in every process that shares"] * 2),
    "the older FSDP": (
        refused(older, works=False),
        *["ValueError: model: expected whole weights, or those that fully_shard"] * 2,
    ),
    "columns": (
        refused(lambda *a: split_fit(*a, sites=r".*up_proj")),
        *[SPLIT.format("model.layers.0.mlp.up_proj")] * 2,
    ),
    "a part without weights": (
        refused(lambda *a: split_fit(*a, sites=r".*act_fn")),
        *[SPLIT.format("model.layers.0.mlp.act_fn")] * 2,
    ),
    "parts of tokens": (
        refused(lambda *a: split_fit(*a, spread=lambda model: split(model, **sequence())), works=False),
        *[r"TypeError: site 'model.layers.0.post_attention_layernorm': .* got a DTensor"] * 2,
    ),
    "parts of words": (
        refused(lambda *a: split_fit(*a, spread=sliced_logits), works=False),
        *["ValueError: the model's output: expected all units in every process"] * 2,
    ),
    "parts of words, perplexity": (
        refused(sliced_perplexity, works=False),
        *["ValueError: the model's output: expected all units in every process"] * 2,
    ),
    "parts of samples": (
        refused(lambda rank, model: fit(rank, model=model, spread=split)),
        *["ValueError: src, tgt: expected the same samples in every process"] * 2,
    ),
    "a map on columns": (refused(column_steered), *[r"ValueError: site 'model.layers.0.mlp.up_proj'.* \(24,\)"] * 2),
    "merging": (refused(merged), *["ValueError: inplace: expected True for a model that is spread over processes"] * 2),
}
SCENES = {
    **FITS,
    **{name: lambda rank, how=how: accelerated(rank, **how) for name, how in ACCELERATED.items()},
    "odd sizes": odd_sizes,
    "half precise": half_precise,
    "steered": same_as_whole(steered, by_block, nested, split),
    "looked at": same_as_whole(looked_at, by_block, split),
    "gradients": same_as_whole(gradients, by_block, in_one),
    "memory": memory,
    **{name: scene for name, (scene, *_) in REFUSED.items()},
}


def worker(rank: int, folder: Path) -> None:
    play(SCENES, folder, rank)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two processes left."""
    folder = tmp_path_factory.mktemp("spread")
    assert played(worker, folder) == [0, 0]
    return folder


@pytest.mark.parametrize("name", EQUAL)
def test_the_maps_are_those_of_one_process_with_the_whole_model(folder, name):
    first, second = (np.load(folder / f"{name}.{rank}.npy") for rank in range(2))
    assert np.array_equal(first, second)
    alone = fit(**{key: value for key, value in EQUAL[name].items() if key not in ("spread", "parts")})
    moved = np.abs(flat(alone) - np.repeat([1, 0], len(first) // 2)).max()
    assert np.abs(first - flat(alone)).max() < 1e-5 * moved
    assert_told_alike(folder, name, alone)


def test_parts_of_weights_need_not_be_of_one_size(folder):
    first, second = (np.load(folder / f"odd sizes.{rank}.npy") for rank in range(2))
    alone = odd_sizes()
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, flat(alone), atol=2e-6 * np.abs(first).max())
    assert_told_alike(folder, "odd sizes", alone)


@pytest.mark.parametrize("name", ACCELERATED)
def test_what_accelerate_prepared_is_fitted_with_the_names_and_maps_of_the_bare_model(folder, name):
    first, second = (np.load(folder / f"{name}.{rank}.npy") for rank in range(2))
    alone = fit(steps=1)
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, flat(alone), atol=2e-6 * np.abs(first).max())
    assert_told_alike(folder, name, alone)
    assert all(told(folder, name, rank)["sites"] == alone.sites for rank in range(2))


def assert_told_alike(folder, name, alone):
    for rank in range(2):
        info, history = (told(folder, name, rank)[key] for key in ("info", "history"))
        np.testing.assert_allclose(history.get("loss", []), alone.history.get("loss", []), rtol=1e-4)
        for key in ("samples", "weights", "model_class", "evaluations", "stopped"):
            assert info[key] == alone.info[key], key


@pytest.mark.parametrize("name", ["half precise", "steered", "looked at", "gradients"])
def test_a_model_that_is_spread_does_what_the_whole_one_does(folder, name):
    assert [told(folder, name, rank) for rank in range(2)] == ["as expected"] * 2


def test_a_process_has_half_of_the_weights_and_for_a_while_those_of_a_block_and_of_what_is_outside_of_blocks(folder):
    for rank in range(2):
        whole, before, during, after, block, outside = told(folder, "memory", rank)
        assert before == after == whole / 2
        assert during == before + (block + outside) / 2
        assert during <= lineas.dry_run(tiny("llama"), processes=2).sharded_weights


@pytest.mark.parametrize("name", REFUSED)
def test_a_failure_of_one_process_is_an_error_in_all_and_the_model_goes_on(folder, name):
    for rank, expected in enumerate(REFUSED[name][1:]):
        message, seconds = told(folder, name, rank)
        assert re.match(expected, message), message
        assert seconds < PATIENCE


def test_a_model_whose_plain_weights_are_parts_by_its_own_account_is_refused():
    model = Mlp()
    model.tp_size = 2
    with pytest.raises(ValueError, match="expected the weights of a model of tp_size 2 as DTensors"):
        lineas.fit(model, torch.ones(3, 4), torch.ones(3, 4), sites="first")
