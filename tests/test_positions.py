"""Which tokens are steered: cached generation against one full forward pass, whose steering is written out here."""

import copy

import pytest
import torch
from conftest import LANGUAGE_MODELS, assert_untouched, count_hooks, normal, snapshot, tiny
from test_steering import random_maps

import lineas
from lineas import Steering

PROMPTS = [3, 6, 1]  # real tokens of three rows
NEW = 5
IDS = torch.randint(2, 60, (3, 6), generator=torch.Generator().manual_seed(0))
OPTIONS = {
    "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "return_dict_in_generate": True,
    "output_logits": True,
}  # fmt: skip


def odd(positions):
    return positions % 2 == 1


CHOSEN = {  # by the number of a token in its row, and the length of the row's prompt
    "all": lambda number, length: True,
    "last": lambda number, length: number >= length - 1,
    "prompt": lambda number, length: number < length,
    "generated": lambda number, length: number >= length,
    odd: lambda number, length: number % 2 == 1,
}
POSITIONS = pytest.mark.parametrize("position", CHOSEN, ids=str)


def padded(side, lengths=PROMPTS):
    """IDS with padding, and their mask."""
    columns = torch.arange(IDS.shape[1])
    ends = torch.tensor(lengths)[:, None]
    mask = (columns < ends if side == "right" else columns >= IDS.shape[1] - ends).long()
    return IDS[: len(lengths)] * mask, mask


def chosen(position, mask, lengths):
    """(rows, columns) bool, token by token."""
    steered = torch.zeros_like(mask, dtype=torch.bool)
    for row, length in enumerate(lengths):
        for number, column in enumerate(mask[row].nonzero().flatten().tolist()):
            steered[row, column] = CHOSEN[position](number, length)
    return steered


def written_out(model, steering, steered, **inputs):
    """Logits of one pass without a cache in which hooks of our own steer the chosen tokens."""
    hooks = []
    for name in steering.sites:
        w, b = (torch.tensor(part(name)) for part in (steering.weight, steering.bias))
        hooks.append(
            model.get_submodule(name).register_forward_hook(
                lambda module, args, h, w=w, b=b: torch.where(steered[..., None], h * w + b, h)
            )
        )
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


class Recorded:
    """The position ids that `generate` gives its model, in one piece."""

    def __init__(self, model):
        self.columns = []
        model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module, args, kwargs):
        self.columns.append(kwargs["position_ids"])


def check(model, steering, position, ids, mask, out, lengths, position_ids=None):
    """What `generate` gave against the whole text at once: ours, and written out."""
    sequences = out.sequences[:, :-1]  # the last token came out, but never went in
    mask = torch.cat([mask, torch.ones(len(mask), sequences.shape[1] - ids.shape[1]).long()], 1)
    inputs = {"input_ids": sequences, "attention_mask": mask}
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    expected = written_out(model, steering, chosen(position, mask, lengths), **inputs)
    with torch.no_grad(), steering.apply(model, position=position) as handle, handle.prompt(lengths):
        ours = model(**inputs, use_cache=False).logits
    real = mask.bool()  # of padding nothing is promised
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=0)
    new = slice(ids.shape[1] - 1, None)
    got, expected, real = torch.stack(out.logits, 1), expected[:, new], real[:, new]
    torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=0)
    assert torch.equal(out.sequences[:, ids.shape[1] :][real], expected[real].argmax(-1))


@pytest.mark.parametrize("side", ["left", "right"])
@POSITIONS
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_cached_generation_is_the_full_forward_pass(kind, position, side):
    model = tiny(kind)
    steering = random_maps(model, size=0.3)
    ids, mask = padded(side)
    with steering.apply(model, position=position):
        seen = Recorded(model)
        out = model.generate(ids, attention_mask=mask, **OPTIONS)
    model._forward_pre_hooks.clear()
    check(model, steering, position, ids, mask, out, PROMPTS, torch.cat(seen.columns, 1))
