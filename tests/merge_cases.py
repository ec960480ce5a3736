"""What the tests of merges have in common, of models in several processes too."""

from pathlib import Path

import numpy as np
import torch
from conftest import random_maps, tiny

from lineas import Steering

IDS = torch.tensor([[3, 4, 5, 7], [9, 8, 7, 6]])
GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
SITES = [f"model.layers.{k}.{part}" for k in (0, 2) for part in ("mlp.down_proj", "self_attn.o_proj")]


def maps_of(model, *sites):
    """At the default sites and at more, of 16 units each."""
    draw, some = np.random.default_rng(1), random_maps(model, size=0.3)
    more = {site: (1 + 0.3 * draw.normal(size=16), 0.3 * draw.normal(size=16)) for site in sites}
    return Steering({site: (some.weight(site), some.bias(site)) for site in some.sites} | more)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(got[key], expected[key])] == []


def assert_saved_as(folder, merged):
    """Several files, that one process reads as the merged model."""
    assert len(list(Path(folder).glob("model-*.safetensors"))) > 1
    loaded = type(merged).from_pretrained(folder).eval()
    assert_same(loaded.state_dict(), merged.state_dict())
    assert torch.equal(loaded.generate(IDS, **GREEDY), merged.generate(IDS, **GREEDY))


def full_state(model):
    """Of the whole model, in the first process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def merges(spread, folder, apart=0.0):
    """A scene: in place in every process, as one process does it with the whole model, with outputs this far apart."""

    def scene(rank):
        steering = maps_of(tiny("llama"), *SITES)
        whole = steering.merge(tiny("llama"))
        plain, merged = steering.unmerge(whole).state_dict(), whole.state_dict()
        model = spread(tiny("llama"))
        assert steering.merge_plan(model).exact
        assert steering.merge(model, inplace=True) is model
        torch.testing.assert_close(logits(model), logits(whole), atol=apart, rtol=0)
        assert model.lineas_merge["class"] == "LlamaForCausalLM"
        state = full_state(model)
        if rank == 0:
            assert_same(state, merged)
            model.save_pretrained(folder / spread.__name__, state_dict=state, max_shard_size="20KB")
            assert_saved_as(folder / spread.__name__, whole)
        slopes(whole)
        slopes(model)
        for name, weight in model.named_parameters():
            if weight.requires_grad:  # biases that are new have nobody who sums their gradients
                slope = getattr(weight.grad, "full_tensor", lambda found=weight.grad: found)()
                torch.testing.assert_close(slope, whole.get_parameter(name).grad, rtol=1e-4, atol=1e-4)
            else:
                assert name.endswith("bias")
        steering.unmerge(model, inplace=True)
        state = full_state(model)
        if rank == 0:
            assert_same(state, plain)
        return "as expected"

    return scene


def slopes(model):
    model(IDS).logits.square().sum().backward()
