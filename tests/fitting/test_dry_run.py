"""dry_run: what a fit would need, against what one does need."""

import tracemalloc

import numpy as np
import pytest
import torch
from conftest import LANGUAGE_MODELS, Mlp, normal, tiny
from torch import nn

import lineas
from lineas.fitting.dry_run import _blocks, _kept
from lineas.network.batch import Batch
from lineas.network.shadow import shadow
from lineas.network.sites import find_sites
from lineas.optim.quadratic import Quadratic
from lineas.responses.probe import probe
from lineas.responses.runner import Runner


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_activations_are_those_that_a_pass_keeps(kind):
    model = tiny(kind).requires_grad_(False)
    found = lineas.dry_run(model, 8, 16)
    batch = Batch((), {"input_ids": torch.randint(2, 60, (8, 16))}, 8)
    sites = find_sites(model)
    layout = probe(model, sites, batch, sites)
    real, checkpointed, _ = _kept(Runner(model, layout, layout, "mean"), batch, _blocks(model))
    assert 0.98 < found.activations / real < 1.12, "the kernels in C keep a little less"
    assert 0.98 < found.activations_checkpointed / checkpointed < 1.12
    assert checkpointed < 0.8 * real
    assert found.weights == sum(p.numel() * p.element_size() for p in {*model.parameters(), *model.buffers()})
    assert found.units == layout.units


def test_what_lies_on_the_host_is_what_a_fit_holds():
    net, src, tgt, held = Mlp().eval(), normal(6000, 4), normal(6000, 4, seed=1, shift=1.0), []
    options = {"sites": ["first", "second"], "progress": False, "ridge": 0, "loss": "wasserstein"}
    lineas.fit(net, src[:50], tgt[:50], **options)  # whatever is made once
    tracemalloc.start()
    hear = [lambda entry: held.append(tracemalloc.get_traced_memory()[0])]
    lineas.fit(net, src, tgt, max_evaluations=4, callbacks=hear, **options)
    tracemalloc.stop()
    found = lineas.dry_run(net, 6000, sites=["first", "second"], inputs=src[:1])
    assert 0.7 < found.responses / max(held) < 1.4


def test_the_optimiser_takes_what_it_says():
    one = Quadratic((5, 7))
    arrays = [value for value in vars(one).values() if isinstance(value, np.ndarray)]
    owned = {id(array.base if array.base is not None else array): array for array in arrays}
    held = sum((a.base if a.base is not None else a).nbytes for a in owned.values()) - one.offsets.nbytes
    from lineas.optim.quadratic import bytes_of

    assert bytes_of(12) == held


def test_a_model_of_seventy_billion_needs_no_memory():
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=2, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=128256, dtype=torch.bfloat16,
    )  # fmt: skip
    one, eight = (lineas.dry_run(config, 64, 64, processes=p, batch_size=4) for p in (1, 8))
    assert one.parameters == eight.parameters > 3e9
    assert one.weights == pytest.approx(2 * one.parameters, rel=0.01)
    assert one.evaluation_traffic == one.weight_traffic == 0
    assert eight.sharded_weights == eight.weights, "two blocks and what is outside of them are all of it"
    assert eight.weight_traffic == 3 * 2 * (eight.weights - eight.weights // 8), "two batches of a process: three trips"
    assert eight.evaluation_traffic == (56 * eight.units + 7 * 2 * eight.units) * 4
    assert one.activations == eight.activations
    mesh = lineas.dry_run(config, 64, 64, processes=16, slices=8, batch_size=4)
    assert mesh.sharded_weights == mesh.weights // 8
    config.num_hidden_layers = 40
    deep = lineas.dry_run(config, 64, 64, processes=16, slices=8, batch_size=4)
    gathered = (2 * deep.largest_block + deep.outside) / 8
    assert deep.sharded_weights == pytest.approx(deep.weights / 16 + gathered, rel=1e-6)
    assert deep.sharded_weights < 0.8 * deep.weights / 8
    config.num_hidden_layers = 2
    assert mesh.weight_traffic == 8 * 3 * (mesh.weights // 8 - mesh.weights // 16), "eight batches of a team"
    assert mesh.evaluation_traffic == (32 * mesh.units + 2 * mesh.units) * 4
    stream = 4 * 64 * 8192 * 2  # of a batch, into the block behind the first map; the first one's has no way back
    assert mesh.slice_traffic == 8 * 3 * 2 * 2 * 7 * stream // 8
    assert "passes in 8 slices" in str(mesh)
    assert "slices" not in str(eight)
    assert "70" not in str(one)
    assert "sharded" in str(eight)
    assert "sharded" not in str(one)
    whole = lineas.dry_run(config, 64, 64)
    assert whole.activations == pytest.approx(16 * one.activations, rel=0.02)
    assert lineas.dry_run(config, 64, 64, dtype=torch.float32).weights == pytest.approx(2 * one.weights, rel=0.01)


def test_the_network_is_left_as_it_was():
    model = tiny("llama")
    before = {name: (id(p), p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    model.train()
    lineas.dry_run(model, 4, 8)
    assert model.training
    for name, p in model.named_parameters():
        assert (id(p), p.requires_grad) == (before[name][0], before[name][2])
        assert torch.equal(p, before[name][1])
    assert not any(module._forward_hooks for module in model.modules())
    twin = shadow(model)
    assert {p.device.type for p in twin.parameters()} == {"meta"}


def test_tied_weights_count_once():
    tied = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    tied[1].weight = tied[0].weight
    assert lineas.dry_run(tied, 4, sites="0", inputs=torch.zeros(1, 6)).weights == 36 * 4


def test_half_of_the_responses_are_elsewhere_where_two_processes_fit():
    one, two = (lineas.dry_run(tiny("llama"), 64, 16, processes=p) for p in (1, 2))
    assert two.activations < 0.6 * one.activations
    assert two.evaluation_traffic == (32 * one.units + 2 * one.units) * 4


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        h = self.inner(x)
        return h if h.sum() > 0 else -h


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("a",), TypeError, "expected a network or a config of transformers, got str"),
        ((Mlp(), 1), ValueError, "samples"),
        ((Mlp(), (4, 0)), ValueError, "samples"),
        ((Mlp(), 4, 0), ValueError, "tokens"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        lineas.dry_run(*arguments, sites="first")


def test_slices_are_of_all_processes():
    with pytest.raises(ValueError, match="slices: expected a divisor of the 6 processes, got 4"):
        lineas.dry_run(Mlp(), 12, sites="first", inputs=torch.zeros(1, 4), processes=6, slices=4)


def test_a_network_whose_way_depends_on_numbers_is_refused():
    with pytest.raises(ValueError, match="expected a network that can run without numbers, got a Branching"):
        lineas.dry_run(Branching(), 4, sites="inner", inputs=torch.zeros(1, 4))
    with pytest.raises(TypeError, match="inputs: expected tensors with a sample in dimension 0"):
        lineas.dry_run(Mlp(), 4, sites="first", inputs={"x": 3})
    with pytest.raises(LookupError, match="nearest names"):
        lineas.dry_run(Mlp(), 4, sites=["firs"], inputs=torch.zeros(1, 4))
