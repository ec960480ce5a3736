"""Which tokens are steered: cached generation against one full forward pass, whose steering is written out here."""

import copy

import pytest
import torch
from conftest import IDS, LANGUAGE_MODELS, normal, random_maps, tiny

from lineas import Steering

PROMPTS = [3, 6, 1]  # real tokens of three rows
NEW = 5
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
POSITIONS = pytest.mark.parametrize("position", CHOSEN, ids=[getattr(key, "__name__", key) for key in CHOSEN])


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


# -- every way to generate --


def generate(model, steering, position, side="left", **options):
    """One call of `generate`, checked against the full forward pass; left-padded unless told."""
    ids, mask = padded(side)
    if options.pop("one_row", False):
        ids, mask = IDS[1:2], torch.ones(1, 6).long()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        with steering.apply(model, position=position):
            return ids, mask, model.generate(ids, attention_mask=mask, **{**OPTIONS, **options})


def numbers(mask, new):
    """Position ids as `generate` counts them."""
    return torch.cat([mask, torch.ones(len(mask), new).long()], 1).cumsum(1).sub(1).clamp(min=0)


@POSITIONS
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 2}], ids=["static", "chunks"]
)
def test_static_caches_and_prompts_in_chunks(kind, options, position):
    model = tiny(kind)
    steering = random_maps(model, size=0.3)
    passes = []
    model.register_forward_hook(lambda module, args, out: passes.append(1))
    ids, mask, out = generate(model, steering, position, **options)
    assert len(passes) == (NEW - 1) + (3 if "prefill_chunk_size" in options else 1)
    check(model, steering, position, ids, mask, out, PROMPTS, numbers(mask, NEW - 1))
    expected = generate(model, steering, position)[2]
    assert torch.equal(out.sequences, expected.sequences)


@POSITIONS
def test_generation_without_a_cache(model, steering, position):
    ids, mask, out = generate(model, steering, position, use_cache=False)
    check(model, steering, position, ids, mask, out, PROMPTS, numbers(mask, NEW - 1))


@POSITIONS
@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2}, {"cache_implementation": "static"}], ids=str)
def test_sampling_with_a_seed(model, steering, position, options):
    cached = generate(model, steering, position, do_sample=True, top_k=0, **options)[2]
    uncached = generate(model, steering, position, do_sample=True, top_k=0, use_cache=False, **options)[2]
    assert torch.equal(cached.sequences, uncached.sequences)
    repeat = options.get("num_return_sequences", 1)
    mask = padded("left")[1].repeat_interleave(repeat, 0)
    lengths = [length for length in PROMPTS for _ in range(repeat)]
    position_ids = numbers(mask, NEW - 1)
    sequences = cached.sequences[:, :-1]
    mask = torch.cat([mask, torch.ones(len(mask), NEW - 1).long()], 1)
    inputs = {"input_ids": sequences, "attention_mask": mask, "position_ids": position_ids}
    expected = written_out(model, steering, chosen(position, mask, lengths), **inputs)[:, 5:]
    torch.testing.assert_close(torch.stack(cached.logits, 1), expected, atol=1e-5, rtol=0)


@POSITIONS
def test_beams(model, steering, position):
    options = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True, "length_penalty": 0.0}
    cached = generate(model, steering, position, **options)[2]
    uncached = generate(model, steering, position, use_cache=False, **options)[2]
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(cached.sequences_scores, uncached.sequences_scores, atol=1e-5, rtol=0)
    mask = padded("left")[1].repeat_interleave(2, 0)
    full = torch.cat([mask, torch.ones(len(mask), NEW).long()], 1)
    lengths = [length for length in PROMPTS for _ in range(2)]
    logits = written_out(
        model, steering, chosen(position, full, lengths), input_ids=cached.sequences, attention_mask=full,
        position_ids=numbers(mask, NEW),
    )  # fmt: skip
    likely = logits[:, 5:-1].log_softmax(-1).gather(2, cached.sequences[:, 6:, None]).sum((1, 2))
    torch.testing.assert_close(cached.sequences_scores, likely, atol=1e-4, rtol=0)


@POSITIONS
@pytest.mark.parametrize("helper", ["model", "lookup"])
def test_assisted_generation(model, steering, position, helper):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():  # right often, not always
            parameter.add_(0.02 * normal(*parameter.shape))
    options = {"assistant_model": other} if helper == "model" else {"prompt_lookup_num_tokens": 3}
    ids, mask, plain = generate(model, steering, position, one_row=True, max_new_tokens=12)
    passes = []
    hook = model.register_forward_hook(lambda module, args, kwargs, out: passes.append(out), with_kwargs=True)
    _, _, out = generate(model, steering, position, one_row=True, max_new_tokens=12, **options)
    hook.remove()
    assert torch.equal(out.sequences, plain.sequences)
    check(model, steering, position, ids, mask, out, [6])
    if helper == "model":
        assert len(passes) < 12, "several tokens passed at once"


@POSITIONS
def test_a_prompt_given_as_embeddings(model, steering, position):
    ids, mask = padded("left")
    expected = generate(model, steering, position)[2].sequences[:, 6:]
    with steering.apply(model, position=position), torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask, **OPTIONS).sequences, expected)


@pytest.mark.parametrize("position", ["all", odd], ids=["all", "odd"])
def test_a_conversation_that_goes_on_with_its_cache(model, steering, position):
    ids, mask = padded("left")
    with steering.apply(model, position=position):
        turn = model.generate(ids, attention_mask=mask, **{**OPTIONS, "max_new_tokens": 2})
        longer = torch.cat([mask, torch.ones(3, 2).long()], 1)
        whole = model.generate(turn.sequences, attention_mask=longer, **OPTIONS)
        again = model.generate(turn.sequences, attention_mask=longer, past_key_values=turn.past_key_values, **OPTIONS)
    assert torch.equal(again.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(again.logits), torch.stack(whole.logits), atol=1e-5, rtol=0)


@POSITIONS
def test_padding_that_generate_infers(model, steering, position):
    """Without a mask, pad tokens are padding, unless they end texts too."""
    ids, _ = padded("left")
    expected = generate(model, steering, position, eos_token_id=2)[2].sequences
    with steering.apply(model, position=position):
        options = {**OPTIONS, "eos_token_id": 2}
        assert torch.equal(model.generate(ids, **options).sequences, expected)
        assert torch.equal(model.generate(ids, **options, cache_implementation="static").sequences, expected)
        config = copy.deepcopy(model.generation_config)
        config.update(**options)
        assert torch.equal(model.generate(ids, config).sequences, expected)


# -- passes of one's own --


@POSITIONS
@pytest.mark.parametrize("mask_given", [True, False])
@pytest.mark.parametrize("static", [False, True])
def test_a_loop_of_ones_own_in_chunks(model, steering, position, mask_given, static):
    """Passes that go on from a cache are generated tokens, unless the prompt's length is said."""
    from transformers import DynamicCache, StaticCache

    ids = torch.cat([IDS, IDS.flip(0)[:, :3]], 1)
    mask, lengths = torch.ones(3, 9).long(), [6, 6, 6]
    if mask_given:
        mask, lengths = torch.cat([padded("left")[1], torch.ones(3, 3).long()], 1), PROMPTS
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": numbers(mask, 0)}
    expected = written_out(model, steering, chosen(position, mask, lengths), **inputs)

    def run(ends):
        cache = StaticCache(model.config, max_cache_len=16) if static else DynamicCache()
        logits, past = [], 0
        for end in ends:
            given = {"attention_mask": mask[:, :end]} if mask_given else {}
            columns = slice(past, end)
            out = model(
                ids[:, columns], past_key_values=cache, position_ids=inputs["position_ids"][:, columns], **given
            )
            logits.append(out.logits)
            past = end
        return torch.cat(logits, 1)

    with torch.no_grad(), steering.apply(model, position=position) as handle:
        got = run([6, 7, 8, 9])
        real = mask.bool()
        torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=0)
        with handle.prompt(lengths):
            torch.testing.assert_close(run([2, 5, 9])[real], expected[real], atol=1e-5, rtol=0)
            torch.testing.assert_close(model(**inputs).logits[real], expected[real], atol=1e-5, rtol=0)
        whole = model(**inputs).logits
    expected = written_out(model, steering, chosen(position, mask, mask.sum(1).tolist()), **inputs)
    torch.testing.assert_close(whole[real], expected[real], atol=1e-5, rtol=0)


def test_a_prompt_that_is_said_holds_in_generate_too(model, steering):
    ids, mask = padded("left")
    with steering.apply(model, position="generated") as handle:
        with handle.prompt(torch.tensor([0, 0, 0])):
            everything = model.generate(ids, attention_mask=mask, num_beams=2, **OPTIONS)
        with handle.prompt(1000):
            nothing = model.generate(ids, attention_mask=mask, num_beams=2, **OPTIONS)
    with steering.apply(model):
        assert torch.equal(everything.sequences, model.generate(ids, attention_mask=mask, num_beams=2, **OPTIONS)[0])
    assert torch.equal(nothing.sequences, model.generate(ids, attention_mask=mask, num_beams=2, **OPTIONS)[0])


class Tagger(torch.nn.Module):
    """A plain network with tokens."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = torch.nn.Linear(4, 5), torch.nn.Linear(5, 2)

    def forward(self, x, attention_mask=None):
        return self.out(torch.tanh(self.inner(x)))


def test_a_plain_network_with_tokens():
    net = Tagger()
    steering = Steering({"inner": ([2.0] * 5, [1.0] * 5)})
    x, mask = normal(2, 3, 4), torch.tensor([[0, 1, 1], [1, 1, 0]])
    base = net(x)
    with steering.apply(net):
        full = net(x)
    for given, last in ((None, [(0, 2), (1, 2)]), (mask, [(0, 2), (1, 1)])):
        with steering.apply(net, position="last"):
            out = net(x, given)
        for row in range(2):
            for column in range(3):
                assert torch.equal(out[row, column], (full if (row, column) in last else base)[row, column])
