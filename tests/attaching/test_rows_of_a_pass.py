"""Rows told apart where a module does not see the model's rows: it refuses, whatever their number happens to be."""

import pytest
import torch
from conftest import IDS, normal, tiny

import lineas
from lineas import Steering

STEERING = {"experts.0": ([2.0] * 8, [1.0] * 8), "experts.1": ([2.0] * 8, [1.0] * 8)}


class Mixture(torch.nn.Module):
    """Each token goes to one of two experts; the first gets as many tokens as there are rows, all of the second row."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(64, 8)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))

    def forward(self, input_ids):
        h = self.table(input_ids)
        out = torch.empty_like(h)
        first = torch.zeros(input_ids.shape, dtype=torch.bool)
        first[1, : len(first)] = True
        for expert, chosen in zip(self.experts, (first, ~first), strict=True):
            out[chosen] = expert(h[chosen])
        return out


REFUSED = r"site 'experts.0': expected activations of the 3 rows of the steered model, got \(3, 8\), perhaps of some"


@pytest.mark.parametrize("rows", [{"strength": [1.0, 0.0, 1.0]}, {"rows": [0, None, 0]}])
def test_experts_that_see_some_of_the_tokens_refuse_rows(rows):
    model = Mixture()
    base = model(IDS)
    with lineas.attach(model, [Steering(STEERING)], **{"rows": 0, **rows}), pytest.raises(ValueError, match=REFUSED):
        model(IDS)
    assert torch.equal(model(IDS), base)
    with Steering(STEERING).apply(model) as handle:  # all rows alike
        assert not torch.equal(model(IDS), base)
        handle.set_strength([1.0, 0.0, 1.0])
        with pytest.raises(ValueError, match=REFUSED):
            model(IDS)
        handle.set_strength(0.0)
        assert torch.equal(model(IDS), base)


def test_a_module_called_by_itself_refuses_rows_too():
    model = Mixture()
    with (
        Steering(STEERING).apply(model, strength=[1.0, 0.0, 1.0]),
        pytest.raises(ValueError, match=r"expected to run inside a call of the steered model, got \(3, 8\)"),
    ):
        model.experts[0](normal(3, 8))


def test_rows_without_tokens_are_rows():
    """A network that is given (batch, features) has activations (batch, channels)."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8))
    x = normal(3, 4)
    base = net(x)
    with Steering({"1": ([2.0] * 8, [1.0] * 8)}).apply(net, strength=[0.0, 1.0, 2.0]):
        expected = base + torch.tensor([[0.0], [1.0], [2.0]]) * (base + 1)
        torch.testing.assert_close(net(x), expected)


def test_other_rows_than_those_of_the_pass_are_refused_while_generating():
    """Parts of images, say, as many as three a row: which of them are whose cannot be told."""
    model = tiny("llama")
    model.parts = torch.nn.Linear(16, 16)
    steering = Steering({"parts": ([2.0] * 16, [1.0] * 16)})

    def see(module, args):
        model.parts(torch.zeros(9, 4, 16))

    model.model.layers[0].register_forward_pre_hook(see)
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with (
        steering.apply(model, strength=[0.0, 1.0, 1.0]),
        pytest.raises(ValueError, match=r"site 'parts': expected activations of the 3 rows .*got \(9, 4, 16\)"),
    ):
        model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
