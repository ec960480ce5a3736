"""A steering's life: apply, attach, generate, look, save, load, refuse."""

import copy

import numpy as np
import pytest
import torch
from conftest import IDS, LANGUAGE_MODELS, assert_untouched, count_hooks, normal, random_maps, snapshot, tiny

from lineas import Steering
from lineas.core import ops, reference
from lineas.core import threads as thread_rules


@pytest.fixture
def steering(llama):
    return random_maps(llama)


# -- applying --


def test_strength_is_linear_between_the_base_model_and_the_map():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    steering = Steering({"0": ([2.0, 0.5, 1.0], [1.0, -1.0, 0.0])})
    x = normal(5, 4)
    base = net(x)
    mapped = base * torch.tensor([2.0, 0.5, 1.0]) + torch.tensor([1.0, -1.0, 0.0])
    for strength in (0.0, 0.3, 1.0, 2.0, -1.0):
        with steering.apply(net, strength):
            torch.testing.assert_close(net(x), strength * mapped + (1 - strength) * base)
    with steering.apply(net, 0.0):
        assert torch.equal(net(x), base), "strength 0 is exactly the base model"


def test_apply_leaves_no_trace_even_if_the_body_raises(llama, steering):
    before, state = llama(IDS).logits, snapshot(llama)
    with pytest.raises(RuntimeError), steering.apply(llama):
        assert not torch.allclose(llama(IDS).logits, before, atol=1e-3)
        raise RuntimeError
    assert torch.equal(llama(IDS).logits, before)
    assert_untouched(llama, state)


def test_attach_and_remove(llama, steering):
    before, hooks = llama(IDS).logits, count_hooks(llama)
    handle = steering.attach(llama, 0.5)
    assert handle.active
    assert not torch.equal(llama(IDS).logits, before)
    handle.remove()
    handle.remove()
    assert not handle.active
    assert torch.equal(llama(IDS).logits, before)
    with steering.attach(llama):
        pass
    assert count_hooks(llama) == hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_maps_follow_the_dtype_and_stay_float32_themselves(llama, steering, dtype):
    model = llama.to(dtype)
    name = steering.sites[0]
    seen = []
    with steering.apply(model):
        model.get_submodule(name).register_forward_hook(lambda m, a, o: seen.append(o))
        logits = model(IDS).logits
    assert seen[0].dtype == logits.dtype == dtype
    assert steering.weight(name).dtype == np.float32


def test_gradients_flow_through_an_attached_steering(llama, steering):
    with steering.apply(llama):
        llama(IDS).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in llama.parameters())


def test_the_hook_computes_what_the_reference_says():
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.Flatten(), torch.nn.Linear(27, 4))
    weight, bias = np.array([2.0, 0.5, -1.0]), np.array([1.0, 0.0, 3.0])
    x = normal(2, 2, 3, 3)
    h = net[0](x)
    expected = net[1:](reference.affine(h, torch.tensor(weight).float(), torch.tensor(bias).float(), 1))
    with Steering({"0": (weight, bias)}).apply(net):
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [torch.nn.Identity, torch.nn.Dropout])
def test_a_sparse_map_without_autograd_gives_the_same_in_c_and_leaves_the_modules_input_alone(kind, dtype, monkeypatch):
    used, sparse = [], ops.affine_sparse_
    monkeypatch.setattr(ops, "affine_sparse_", lambda *a, **k: [used.append(1), sparse(*a, **k)][1])
    weight, bias = np.ones(64), np.zeros(64)
    weight[[3, 40]], bias[[3, 63]] = (2.0, 0.5), (1.0, -1.0)
    net = torch.nn.Sequential(kind()).eval()
    h = normal(2, thread_rules.SMALL // 128, 64).to(dtype)
    before = h.clone()
    with Steering({"0": (weight, bias)}).apply(net, 0.7):
        with torch.no_grad():
            sparsely = net(h)
        with torch.inference_mode():
            assert torch.equal(net(h), sparsely)
        assert len(used) == 2
        assert torch.equal(net(h), sparsely)  # autograd is on: densely
        with torch.no_grad():
            assert torch.equal(net(h[:, :2]), sparsely[:, :2])  # too few numbers
            assert torch.equal(net(h.transpose(0, 1)), sparsely.transpose(0, 1))  # not contiguous
    assert len(used) == 2
    assert torch.equal(h, before)
    assert not torch.equal(sparsely, before)


# -- generation --


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_cached_generation_equals_the_uncached_full_forward(kind):
    model = tiny(kind)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with random_maps(model, size=0.3).apply(model):
        cached = model.generate(IDS, attention_mask=torch.ones_like(IDS), use_cache=True, **options)
        uncached = model.generate(IDS, attention_mask=torch.ones_like(IDS), use_cache=False, **options)
        ids = IDS
        for _ in range(8):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached, uncached)
    assert torch.equal(cached, ids)
    assert not torch.equal(cached, model.generate(IDS, attention_mask=torch.ones_like(IDS), **options))


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_left_padded_batch_generates_what_each_row_would_alone(kind):
    model = tiny(kind)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    rows = [IDS[0, :3], IDS[1, :6], IDS[2, :1]]
    ids = torch.stack([torch.cat([torch.zeros(6 - len(row)).long(), row]) for row in rows])
    mask = torch.stack([(torch.arange(6) >= 6 - len(row)).long() for row in rows])
    with random_maps(model, size=0.3).apply(model):
        together = model.generate(ids, attention_mask=mask, **options)[:, 6:]
        for row, got in zip(rows, together, strict=True):
            alone = model.generate(row[None], attention_mask=torch.ones(1, len(row)).long(), **options)[0, len(row) :]
            assert torch.equal(got, alone)


# -- refusing --


def test_a_model_of_other_widths_is_refused_with_both_in_the_message(steering):
    other = tiny("llama")
    name = steering.sites[1]
    other.get_submodule(name).weight = torch.nn.Parameter(torch.ones(20))
    hooks = count_hooks(other)
    with pytest.raises(ValueError, match=r"layers\.1.* weight \(16,\).* \(20,\) units"):
        steering.attach(other)
    assert count_hooks(other) == hooks


def test_other_widths_that_only_a_forward_pass_can_tell_are_refused_too():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())
    with (
        Steering({"1": (np.ones(5), np.zeros(5))}).apply(net),
        pytest.raises(ValueError, match=r"weight \(5,\), the model produced \(2, 3\)"),
    ):
        net(normal(2, 4))
    assert count_hooks(net) == 0


def test_a_model_without_the_sites_is_refused(steering):
    with pytest.raises(LookupError, match=r"no site 'model\.layers\.0\.post_attention_layernorm'; nearest names"):
        steering.attach(tiny("gpt2"))


def test_the_same_steering_twice_is_refused_but_another_may_join(llama, steering):
    before = llama(IDS).logits
    with steering.apply(llama):
        once, hooks = llama(IDS).logits, count_hooks(llama)
        with pytest.raises(RuntimeError, match="already on this model; remove its handle first"):
            steering.attach(llama)
        assert count_hooks(llama) == hooks
        with random_maps(llama, seed=1).apply(llama):
            assert not torch.equal(llama(IDS).logits, once)
        assert torch.equal(llama(IDS).logits, once)
        with steering.apply(tiny("llama")):
            pass
    assert torch.equal(llama(IDS).logits, before)


@pytest.mark.parametrize(
    ("strength", "error"), [("1", TypeError), (True, TypeError), (None, TypeError), (float("nan"), ValueError)]
)
def test_a_strength_that_is_no_finite_number_is_refused(llama, steering, strength, error):
    with pytest.raises(error, match="strength: expected a"):
        steering.attach(llama, strength)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_a_strength_of_numpy_is_a_number(llama, steering, kind):
    with steering.apply(llama, kind(2)):
        got = llama(IDS).logits
    with steering.apply(llama, 2.0):
        assert torch.equal(llama(IDS).logits, got)


def test_hidden_states_that_a_model_keeps_are_the_steered_ones(llama):
    """Also where it kept some before, which leaves hooks that were there first; and in the order of attaching."""
    ids = torch.arange(12).view(2, 6)
    fresh = copy.deepcopy(llama)
    plain = llama(ids, output_hidden_states=True).hidden_states
    site, width = "model.layers.1", plain[0].shape[-1]
    doubled = Steering({site: (np.full(width, 2.0), np.zeros(width))})
    shifted = Steering({site: (np.ones(width), np.ones(width))})
    for model in (llama, fresh):
        with doubled.apply(model), shifted.apply(model):
            kept = model(ids, output_hidden_states=True).hidden_states
        assert torch.equal(kept[1], plain[1])
        torch.testing.assert_close(kept[2], 2 * plain[2] + 1)
    assert torch.equal(llama(ids, output_hidden_states=True).hidden_states[2], plain[2])
