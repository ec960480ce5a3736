"""Gradient checkpointing of a steered model: its gradients, and a warning where they will be wrong."""

import copy
import warnings

import pytest
import torch
from conftest import IDS, normal, random_maps, tiny
from torch import nn
from torch.utils.checkpoint import checkpoint

import lineas
from lineas import Steering

STEERING = Steering({"inner": ([2.0] * 4, [1.0] * 4)})
WARNS = "taken off before the backward of {} passes under reentrant checkpointing"


class Checkpointed(nn.Module):
    """With blocks that are checkpointed once, or once more within."""

    def __init__(self, use_reentrant, nested=False):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.use_reentrant, self.nested = use_reentrant, nested

    def forward(self, x):
        return self.last(checkpoint(self.outer if self.nested else self.block, x, use_reentrant=self.use_reentrant))

    def outer(self, x):
        return checkpoint(self.block, x, use_reentrant=self.use_reentrant)

    def block(self, x):
        return torch.tanh(self.inner(x))


def gradient(model, steering, x):
    x = x.clone().requires_grad_()
    with steering.apply(model):
        model(x).sum().backward()
    return x.grad


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_are_those_without_checkpointing(use_reentrant, nested):
    model, x = Checkpointed(use_reentrant, nested), normal(3, 4)
    plain = nn.Sequential(model.inner, nn.Tanh(), model.last)
    expected = gradient(plain, Steering({"0": ([2.0] * 4, [1.0] * 4)}), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")  # torch's own, of the pass below
        got = gradient(model, STEERING, x)
        with torch.no_grad(), STEERING.apply(model):
            model(x)  # waits for nothing
        with STEERING.apply(model.eval()):
            model(x)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("nested", [False, True])
def test_a_steering_that_is_off_before_backward_warns(nested):
    model, x = Checkpointed(True, nested), normal(3, 4).requires_grad_()
    with pytest.warns(UserWarning, match=WARNS.format(2)), STEERING.apply(model):
        first, second = model(x).sum(), model(x).sum()
    handle = STEERING.attach(model)
    first, second = model(x).sum(), model(x).sum()
    first.backward()
    copied = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=WARNS.format(1)):
        handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lineas.detach(copied)
    del second


def test_language_models_warn_too():
    model = tiny("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    steering = random_maps(model)
    with pytest.warns(UserWarning, match=WARNS.format(1)), steering.apply(model):
        loss = model(IDS, labels=IDS, use_cache=False).loss
    del loss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steering.apply(model):
            model(IDS, labels=IDS, use_cache=False).loss.backward()
