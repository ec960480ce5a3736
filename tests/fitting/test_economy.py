"""What a step leaves out: padding, blocks before the first map, second graphs; and that nothing else changes."""

import numpy as np
import pytest
import torch
from conftest import Mlp, assert_untouched, normal, snapshot, tiny
from passes import Count, assert_same, evaluate, problem_of
from torch.utils.checkpoint import checkpoint

import lineas
from lineas.network.state import frozen

# -- micro-batches --


pytestmark = pytest.mark.usefixtures("random_state_stays")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("batch_size", [1, 5, 11])
def test_small_batches_give_the_loss_and_gradient_of_one_big_batch(kind, batch_size, texts, tokenizer):
    model = tiny(kind).double().requires_grad_(False)
    whole, parts = (problem_of(model, *texts, tokenizer=tokenizer, batch_size=size) for size in (None, batch_size))
    assert len(parts.passes.batches) == -(-len(texts[0]) // batch_size)
    assert_same(evaluate(parts, times=2), evaluate(whole), rtol=1e-6)


def test_only_one_graph_lives_and_an_earlier_gradient_is_still_right(mlp):
    problem = problem_of(mlp.eval().requires_grad_(False), normal(14, 4), normal(11, 4, seed=1), sites="first|second")
    x = problem.identity()
    expected = problem.evaluate(x).gradient()
    first = problem.evaluate(x)
    problem.evaluate(x + np.float32(0.1))
    passes = Count(mlp.second)
    assert np.array_equal(first.gradient(), expected)
    assert passes.calls == 1, "its graph had gone"
    second = problem.evaluate(x)
    assert np.array_equal(second.gradient(), expected)
    assert passes.calls == 2, "its graph was there"


# -- the model's own checkpointing --


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_models_checkpointing_works_in_evaluation_mode(kind, batch_size, reentrant, texts, tokenizer):
    model = tiny(kind).requires_grad_(False)
    options = {"tokenizer": tokenizer, "batch_size": batch_size, "economize": False}
    expected = evaluate(problem_of(model, *texts, **options))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    problem = problem_of(model, *texts, **options)
    blocks = [
        module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 3
    ]  # one list of three blocks
    counts = [Count(next(m for m in block.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.Linear)
                         or "Norm" in type(m).__name__)) for block in blocks[0]]  # fmt: skip
    assert_same(evaluate(problem), expected, rtol=1e-6)
    batches = len(problem.passes.batches)
    passes = batches if batches == 1 else 2 * batches
    assert [count.calls for count in counts] == [passes + batches, passes + batches, passes]
    assert all("forward" not in vars(block) for block in blocks[0])


class Reentrant(Mlp):
    def forward(self, x):
        return self.third(checkpoint(self.second, torch.tanh(self.first(x)), use_reentrant=True))


def test_a_site_that_autograd_does_not_see_is_an_error():
    with pytest.raises(RuntimeError, match="'second': expected autograd to record it.*reentrant checkpoint"):
        evaluate(problem_of(Reentrant().requires_grad_(False), *SIDES_4, sites="first|second"))


SIDES_4 = normal(14, 4), normal(11, 4, seed=1, shift=0.7)


# -- precision --


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_products_in_bfloat16_give_the_same_maps_within_noise(dtype, texts, tokenizer):
    model = tiny("llama")
    options = {"tokenizer": tokenizer, "progress": False, "steps": 4}
    full, before, seen = lineas.fit(model, *texts, **options), snapshot(model), set()
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, a, out: seen.add(out.dtype))
    half = lineas.fit(model, *texts, compute_dtype=dtype, **options)
    handle.remove()
    assert seen == {torch.float32, torch.bfloat16}, "the look at the model is in its own precision, the fit is not"
    assert_untouched(model, before)
    assert half.info["compute_dtype"] == "bfloat16"
    np.testing.assert_allclose(half.history["loss"][0], full.history["loss"][0], rtol=0.03)
    moves = [np.concatenate([np.append(s.weight(n) - 1, s.bias(n)) for n in s.sites]) for s in (half, full)]
    assert moves[0].dtype == np.float32
    assert 0 < np.linalg.norm(moves[0] - moves[1]) < 0.1 * np.linalg.norm(moves[1])


@pytest.mark.parametrize("dtype", ["float32", "int8", torch.float64, "nonsense", ""])
def test_other_compute_dtypes_are_refused(mlp, dtype):
    with pytest.raises(ValueError, match="compute_dtype: expected 'bfloat16', 'float16' or None.*got"):
        lineas.fit(mlp, *SIDES_4, sites="first", compute_dtype=dtype)


def test_a_compute_dtype_is_a_dtype_or_a_name(mlp):
    with pytest.raises(TypeError, match="compute_dtype: expected a torch.dtype or its name, got int"):
        lineas.fit(mlp, *SIDES_4, sites="first", compute_dtype=16)


def test_small_slopes_are_not_lost_in_half_precision():
    with frozen(model := Mlp().half()):
        problem = problem_of(model, *(side.half() for side in SIDES_4), sites="first|second")
        x = problem.identity()
        expected, got = problem.evaluate(x).gradient(), problem.evaluate(x, scale=2.0**-20).gradient()
    assert np.abs(got).max() > 0
    np.testing.assert_allclose(got * 2.0**20, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
