"""What was attached stays until it is removed, whoever keeps the handle, and copies of a model have handles too."""

import copy
import gc
import importlib
import io
import pickle
import weakref

import pytest
import torch
from conftest import IDS, count_hooks, random_maps, tiny
from torch import nn

import lineas
from lineas import Steering

UP, DOUBLE = Steering({"0": ([1.0, 1.0], [5.0, 5.0])}), Steering({"0": ([2.0, 2.0], [0.0, 0.0])})
X = torch.ones(1, 2)


def net():
    return nn.Sequential(nn.Linear(2, 2)).eval().requires_grad_(False)


def test_a_steering_whose_handle_nobody_keeps_stays_on():
    model = net()
    base = model(X)
    UP.attach(model)
    gc.collect()
    torch.testing.assert_close(model(X), base + 5)
    DOUBLE.attach(model)
    gc.collect()
    torch.testing.assert_close(model(X), 2 * (base + 5))
    first, second = lineas.attached(model)
    assert repr(first) == "Handle(on: 1 steering at 1 site, strength 1.0, position 'all')"
    first.remove()
    torch.testing.assert_close(model(X), 2 * base)
    assert lineas.attached(model) == [second]
    lineas.detach(model)
    assert torch.equal(model(X), base)
    assert lineas.attached(model) == []
    assert not second.active
    assert repr(second).startswith("Handle(removed: ")


@pytest.mark.parametrize("position", ["generated", "last"])
def test_with_a_position_too_and_generate_is_given_back(position):
    model = tiny("llama").requires_grad_(False)
    steering, ids, hooks = random_maps(model, size=3.0), torch.arange(3, 11).view(1, 8), count_hooks(model)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    base = model.generate(ids, **options)
    with steering.apply(model, position=position):
        expected = model.generate(ids, **options)
    assert not torch.equal(expected, base)
    steering.attach(model, position=position)
    gc.collect()
    assert torch.equal(model.generate(ids, **options), expected)
    lineas.detach(model)
    assert "generate" not in vars(model)
    assert count_hooks(model) == hooks
    assert torch.equal(model.generate(ids, **options), base)


def test_a_model_that_nobody_keeps_goes_with_what_is_on_it():
    model = net()
    UP.attach(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_copy_of_a_steered_model_is_steered_by_a_handle_of_its_own():
    model = net()
    base = model(X)
    handle = UP.attach(model)
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(X), base + 5)
    with pytest.raises(RuntimeError, match="this steering is already on this model"):
        UP.attach(other)
    (found,) = lineas.attached(other)
    assert found is not handle
    found.set_strength(2.0)
    torch.testing.assert_close(other(X), base + 10)
    torch.testing.assert_close(model(X), base + 5)
    found.remove()
    assert torch.equal(other(X), base)
    torch.testing.assert_close(model(X), base + 5)
    handle.remove()
    assert torch.equal(model(X), base)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("saved", [through_pickle, through_a_file, copy.deepcopy])
@pytest.mark.parametrize("options", [{}, {"position": "last"}, {"strength": [1.0, 0.0, 2.0], "count": True}], ids=str)
def test_a_steered_model_can_be_saved_whole_and_is_steered_where_it_is_read(options, saved):
    importlib.import_module("torch._dynamo")  # from then on steered modules have classes of their own
    model, how = tiny("llama").requires_grad_(False), {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    base = [model(IDS).logits, model.generate(IDS, **how)]
    handle = random_maps(model, size=0.3).attach(model, **options)
    expected = [model(IDS).logits, model.generate(IDS, **how)]
    other = saved(model)
    assert all(map(torch.equal, [other(IDS).logits, other.generate(IDS, **how)], expected))
    (found,) = lineas.attached(other)
    found.remove()
    assert all(map(torch.equal, [other(IDS).logits, other.generate(IDS, **how)], base))
    assert "generate" not in vars(other)
    assert {type(module) for module in other.modules()} == {type(module) for module in tiny("llama").modules()}
    assert all(map(torch.equal, [model(IDS).logits, model.generate(IDS, **how)], expected))
    handle.remove()


def test_apply_without_a_with_block_says_so():
    model = net()
    with pytest.warns(RuntimeWarning, match="apply.* steers inside a `with` block, and was left without one"):
        UP.apply(model)  # collected at once
    assert lineas.attached(model) == []


def test_apply_serves_several_blocks_and_as_a_decorator(recwarn):
    model = net()
    base, applied = model(X), UP.apply(model)
    for _ in range(2):
        with applied as handle:
            torch.testing.assert_close(model(X), base + 5)
        assert not handle.active
    assert torch.equal(model(X), base)

    @UP.apply(model)
    def steered():
        return model(X)

    for _ in range(2):
        torch.testing.assert_close(steered(), base + 5)
    assert torch.equal(model(X), base)
    del applied, steered
    gc.collect()
    assert not recwarn.list


def test_what_cannot_be_attached_leaves_nothing():
    model = net()
    with pytest.raises(ValueError, match="expected a finite number"):
        UP.attach(model, float("nan"))
    with pytest.raises(LookupError), Steering({"7": ([1.0], [0.0])}).apply(model):
        pass
    assert lineas.attached(model) == []
    assert count_hooks(model) == count_hooks(net())
