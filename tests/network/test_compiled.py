"""Models that are compiled or wrapped are fitted and steered as they were written."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import SOURCE, TARGET, Mlp, assert_untouched, count_hooks, flat, random_maps, snapshot, tiny
from network_cases import IDS, Blocks, fit, seeded
from torch import nn

import lineas


class Recorder:
    """A backend that compiles nothing and counts how often it was asked to."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def whole(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def layers_in_place(model, backend):
    for layer in model.blocks:
        layer.compile(backend=backend)
    return model


def layers(model, backend):
    for k, layer in enumerate(model.blocks):
        model.blocks[k] = torch.compile(layer, backend=backend)
    return model


def forward_only(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)
    return model


COMPILED = [whole, in_place, layers_in_place, layers, forward_only]
SITES = ["blocks.0.inner", "blocks.1"]


def fit_blocks(model):
    return fit(model, sides=(SOURCE, TARGET), sites=SITES)


@pytest.fixture(scope="module")
def maps():
    """A steering of `Blocks`, and what they say with it and without."""
    model = seeded(Blocks)
    steering = fit_blocks(model)
    with torch.no_grad(), steering.apply(model):
        steered = model(SOURCE)
    base = model(SOURCE).detach()
    assert not torch.allclose(steered, base, atol=1e-2)
    return steering, steered, base


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_compiled_model_is_fitted_as_it_was_written(compiled, maps, fresh_compiler):
    recorder = Recorder()
    model = compiled(seeded(Blocks), recorder)
    with torch.no_grad():
        expected = model(SOURCE)
        graphs = recorder.graphs
        assert graphs
        steering = fit_blocks(model)
        assert steering.sites == SITES
        assert np.array_equal(flat(steering), flat(maps[0]))
        assert torch.equal(model(SOURCE), expected)
    assert recorder.graphs == graphs, "neither was anything compiled, nor did the model forget that it is"


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("compiled", COMPILED)
def test_a_steering_acts_on_a_compiled_model_and_stops_acting(compiled, grad, maps, fresh_compiler):
    model = compiled(seeded(Blocks), "eager")
    steering, steered, base = maps
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            torch.testing.assert_close(model(SOURCE), base)
            with steering.apply(model):
                torch.testing.assert_close(model(SOURCE), steered)
            with steering.apply(model, 0.0):
                torch.testing.assert_close(model(SOURCE), base)
        torch.testing.assert_close(model(SOURCE), base)


@pytest.mark.parametrize("strength", [1.0, [1.0] * len(SOURCE)])
def test_a_steered_model_is_one_graph_from_its_first_call_on(strength, maps, fresh_compiler):
    recorder, (steering, steered, _) = Recorder(), maps
    model = torch.compile(seeded(Blocks), backend=recorder, fullgraph=True)
    with steering.apply(model, strength):
        torch.testing.assert_close(model(SOURCE), steered)
        assert recorder.graphs == 1
        torch.testing.assert_close(model(SOURCE), steered)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_steered_model_is_new_to_compilers_as_well(duplicate, maps, fresh_compiler):
    steering, steered, base = maps
    model = seeded(Blocks)
    call = torch.compile(lambda model: model(SOURCE), backend="eager")
    torch.testing.assert_close(call(model), base)
    with steering.apply(model):
        other = duplicate(model)
        torch.testing.assert_close(call(other), steered)
    torch.testing.assert_close(call(model), base)
    torch.testing.assert_close(call(other), steered)
    lineas.detach(other)
    torch.testing.assert_close(call(other), base)


def test_a_steering_acts_where_only_the_caller_compiled(maps, fresh_compiler):
    model, (steering, steered, base) = seeded(Blocks), maps
    call = torch.compile(lambda x: model(x), backend="eager")
    torch.testing.assert_close(call(SOURCE), base)
    with steering.apply(model):
        torch.testing.assert_close(call(SOURCE), steered)
    torch.testing.assert_close(call(SOURCE), base)


def test_compiled_modules_are_of_their_class_again_in_whatever_order_handles_go(maps, fresh_compiler):
    model, (steering, steered, base) = torch.compile(seeded(Blocks), backend="eager"), maps
    block = model.get_submodule("blocks.1")
    kind, half = type(block), lineas.Steering({"blocks.1": (np.full(4, 0.5), np.zeros(4))})
    first, second = half.attach(model), steering.attach(model)
    assert isinstance(block, kind)
    assert (type(block).__name__, type(block).__qualname__) == (kind.__name__, kind.__qualname__)
    model(SOURCE)
    first.remove()
    torch.testing.assert_close(model(SOURCE), steered)
    second.remove()
    torch.testing.assert_close(model(SOURCE), base)
    assert type(block) is kind


@pytest.mark.slow
def test_a_compiled_language_model_too(fitted_llama, llama_logits, fresh_compiler):
    model = torch.compile(tiny("llama"), backend="eager")
    torch.testing.assert_close(model(IDS).logits, llama_logits[1])
    assert np.array_equal(flat(fit(model)), flat(fitted_llama))
    with fitted_llama.apply(model):
        torch.testing.assert_close(model(IDS).logits, llama_logits[0])
    torch.testing.assert_close(model(IDS).logits, llama_logits[1])


# -- wrapped --


def test_a_wrapped_model_has_the_sites_of_what_it_wraps(fitted_llama, llama_logits):
    model = nn.DataParallel(tiny("llama"))
    hooks = count_hooks(model)
    assert [site.name for site in lineas.find_sites(model)] == fitted_llama.sites
    assert np.array_equal(flat(fit(model)), flat(fitted_llama))
    with fitted_llama.apply(model):
        torch.testing.assert_close(model(IDS).logits, llama_logits[0])
        with pytest.raises(RuntimeError, match="already on this model"):
            fitted_llama.attach(model)
    assert count_hooks(model) == hooks


def test_wrappers_of_wrappers_are_left_in_the_mode_they_were_in(fresh_compiler):
    model = nn.DataParallel(torch.compile(Mlp(), backend="eager"))
    model.train()
    before = snapshot(model)
    assert fit(model, sides=(SOURCE, TARGET), sites="first").sites == ["first"]
    assert_untouched(model, before)


def test_another_strength_is_no_reason_to_compile_anew():
    model, backend = tiny("llama"), Recorder()
    steering = random_maps(model)
    run = whole(model, backend)
    with torch.no_grad(), steering.attach(model) as handle:
        run(IDS)
        once = backend.graphs
        for strength in (0.5, 0.7, 1.3):
            handle.set_strength(strength)
            torch.testing.assert_close(run(IDS).logits, model(IDS).logits)
        assert backend.graphs == once
        for strengths in ([0.5] + [0.75] * (len(IDS) - 1), [0.25] + [1.0] * (len(IDS) - 1)):
            handle.set_strength(strengths)
            torch.testing.assert_close(run(IDS).logits, model(IDS).logits)
        assert backend.graphs == once + 1  # for rows that differ
