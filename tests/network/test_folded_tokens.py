"""Blocks that fold their tokens, (batch * tokens, channels), as OPT's do: fitted and steered as those that do not."""

from types import MethodType

import numpy as np
import pytest
import torch
from conftest import TEXTS, WordTokenizer, flat, normal, random_maps
from network_cases import fit, seeded
from torch import nn

import lineas

IDS = torch.randint(3, 60, (3, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
GENERATION = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def opt():
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24}
    config = hf.OPTConfig(vocab_size=64, max_position_embeddings=64, word_embed_proj_dim=16, **sizes)
    return seeded(lambda: hf.OPTForCausalLM(config))


def unfolded(model):
    """The same network, whose layers leave the tokens where they are."""

    def forward(self, hidden_states, **kwargs):
        h = hidden_states + self.self_attn(hidden_states=self.self_attn_layer_norm(hidden_states), **kwargs)[0]
        return h + self.fc2(self.activation_fn(self.fc1(self.final_layer_norm(h))))

    for layer in model.model.decoder.layers:
        layer.forward = MethodType(forward, layer)
    return model


def test_opt_does_fold_its_tokens():
    shapes = []
    model = opt()
    model.model.decoder.layers[0].final_layer_norm.register_forward_hook(lambda m, a, h: shapes.append(tuple(h.shape)))
    model(IDS)
    assert shapes == [(18, 16)]


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 5}, {"pooling": "last"}, {"pooling": "max"}, {"recipe": "published", "steps": 2}]
    + [{"method": method, "steps": None} for method in ("mean_act", "linear_act", "caa")],
    ids=str,
)
def test_a_fit_at_folded_tokens_gets_the_bits_of_one_that_leaves_them_apart(options):
    steering, expected = (fit(model, **options) for model in (opt(), unfolded(opt())))
    assert steering.sites == [f"model.decoder.layers.{k}.final_layer_norm" for k in range(2)]
    assert np.array_equal(flat(steering), flat(expected))
    assert not np.array_equal(flat(steering), np.repeat([1, 0], len(flat(steering)) // 2))
    assert steering.history == expected.history


def test_responses_at_folded_tokens_are_one_a_sample():
    found, expected = (
        lineas.evaluation.responses(model, TEXTS[0], tokenizer=WordTokenizer()) for model in (opt(), unfolded(opt()))
    )
    assert [values.shape for values in found.values()] == [(len(TEXTS[0]), 16)] * 2
    assert all(np.array_equal(values, expected[site]) for site, values in found.items())


@pytest.mark.parametrize("strength", [0.7, [0.0, 0.5, 2.0]], ids=["one", "by row"])
@pytest.mark.parametrize("position", ["all", "last", "prompt", "generated", lambda number: number % 2 == 1])
def test_positions_and_strengths_by_row_act_on_folded_tokens_as_on_others(position, strength):
    steering, said, written = random_maps(opt(), size=0.5), [], []
    with torch.no_grad():
        for model in (opt(), unfolded(opt())):
            base = model(IDS, attention_mask=MASK).logits
            with steering.apply(model, strength, position=position, count=True) as handle:
                said.append(model(IDS, attention_mask=MASK).logits)
                tokens = model.generate(IDS, attention_mask=MASK, num_beams=2, **GENERATION)
            written.append((tokens, handle.coverage()))
    assert torch.equal(*said)
    assert torch.equal(said[0][0], base[0]) == (strength != 0.7 or position == "generated")
    assert torch.equal(*(tokens for tokens, _ in written))
    assert written[0][1] == written[1][1]


def test_rows_change_while_a_steering_is_on():
    model, up, down = opt(), random_maps(opt()), random_maps(opt(), seed=1)
    alone = []
    with torch.no_grad():
        for one in (up, down):
            with one.apply(model):
                alone.append(model(IDS, attention_mask=MASK).logits)
        with lineas.attach(model, [up, down], 0) as handle:
            assert torch.equal(model(IDS, attention_mask=MASK).logits, alone[0])
            handle.select([1, 0, 1])
            got = model(IDS, attention_mask=MASK).logits
    torch.testing.assert_close(got, torch.stack([alone[k][row] for row, k in enumerate((1, 0, 1))]))
    assert not model._forward_pre_hooks


class Mixing(nn.Module):
    """Folds its tokens with those of one place together, or does not tell samples apart at all."""

    def __init__(self, order):
        super().__init__()
        self.order, self.inner = order, nn.Linear(4, 4)

    def forward(self, x):
        if self.order == "none":
            return x + self.inner(x[0])
        return x + self.inner(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], x.shape[0])).transpose(0, 1)


@pytest.mark.parametrize("order", ["by place", "none"])
def test_folded_tokens_that_do_not_lie_sample_by_sample_are_refused(order):
    net = seeded(lambda: nn.Sequential(Mixing(order)))
    sides = normal(12, 5, 4), normal(12, 5, 4, seed=1)
    with pytest.raises(ValueError, match=r"'0\.inner': expected samples in dimension 0 \(2 here\), got \((5|10), 4\)"):
        fit(net, sides=sides, sites="0.inner")


class Routed(nn.Module):
    """An expert that gets all tokens, in another order."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x):
        return self.experts[0](x.flatten(0, 1).flip(0)).flip(0).view(x.shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"position": "last"}, r"expected activations \(batch, tokens"), ({"strength": [1.0, 0.0]}, " rows")],
)
def test_as_many_tokens_as_there_are_at_an_expert_are_not_taken_for_folded_ones(options, message):
    net, steering = seeded(Routed), lineas.Steering({"experts.0": (np.full(4, 2.0), np.ones(4))})
    with steering.apply(net, **options), pytest.raises(ValueError, match=message):
        net(normal(2, 3, 4))
