"""Gates: how much of a steering acts, by what is read; cached generation against one pass that is written out here."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from conftest import IDS, LANGUAGE_MODELS, count_hooks, normal, random_maps, tiny
from test_positions import NEW, OPTIONS, PROMPTS, numbers, padded
from torch import nn

import lineas
from lineas import Gate, Steering
from lineas.attaching.caches import joined

POOLINGS = ("running", "token")


def gate_of(model, pooling, seed=0, site=None):
    """One that is open for some tokens, half open for others and shut for the rest."""
    site, read = site or lineas.find_sites(model)[0], []
    weight = torch.tensor(np.random.default_rng(seed).normal(size=site.units), dtype=torch.float32)
    module = model.get_submodule(site.path)
    hook = module.register_forward_hook(lambda module, args, h: read.append(h.float() @ weight))
    with torch.no_grad():
        model(IDS)
    hook.remove()
    scale = (5 if pooling == "running" else 2) / read[0].std()
    return Gate(site.name, scale * weight, float(-scale * read[0].mean()), pooling)


def openness_by_hand(h, gate, mask):
    """(rows, tokens), token by token."""
    scores = h.double() @ torch.tensor(gate.weight).double()
    found = torch.zeros(h.shape[:2], dtype=torch.float64)
    for row in range(len(h)):
        for column in range(h.shape[1]):
            seen = [k for k in range(column + 1) if mask[row, k]] if gate.pooling == "running" else [column]
            mean = scores[row, seen].mean() if seen else torch.zeros(())
            found[row, column] = 1 / (1 + torch.exp(-(mean + gate.bias)))
    return found


def written_out(model, steering, mask, strength=1.0, **inputs):
    """Logits of one pass without a cache, in which hooks of our own read and map."""
    opened, hooks = [], []

    def read(module, args, h):
        opened.append(openness_by_hand(h, steering.gate, mask)[..., None].float())

    hooks.append(model.get_submodule(steering.gate.site).register_forward_hook(read))
    for name in steering.sites:
        w, b = (torch.tensor(part(name)) for part in (steering.weight, steering.bias))
        hooks.append(
            model.get_submodule(name).register_forward_hook(
                lambda module, args, h, w=w, b=b: h + opened[-1] * strength * (h * w + b - h)
            )
        )
    with torch.no_grad():
        logits = model(**inputs, attention_mask=mask, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    assert opened[-1].max() - opened[-1].min() > 0.3, "this gate opens and shuts"
    return logits


def check(model, steering, ids, mask, out):
    """What `generate` gave against the whole text at once: ours, and written out."""
    sequences = out.sequences[:, :-1]
    longer = torch.cat([mask, torch.ones(len(mask), sequences.shape[1] - ids.shape[1]).long()], 1)
    inputs = {"input_ids": sequences, "position_ids": longer.cumsum(1).sub(1).clamp(min=0)}
    expected = written_out(model, steering, longer, **inputs)
    with torch.no_grad(), steering.apply(model):
        ours = model(**inputs, attention_mask=longer, use_cache=False).logits
    real = longer.bool()
    torch.testing.assert_close(ours[real], expected[real], atol=2e-5, rtol=0)
    got = torch.stack(out.logits, 1)
    torch.testing.assert_close(got, expected[:, ids.shape[1] - 1 :], atol=2e-5, rtol=0)


@pytest.fixture(params=POOLINGS)
def gated(request, model, steering):
    return steering.gated(gate_of(model, request.param))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_cached_generation_is_the_full_forward_pass(kind, pooling):
    model = tiny(kind)
    steering = random_maps(model, size=0.3).gated(gate_of(model, pooling))
    ids, mask = padded("left")
    with steering.apply(model):
        out = model.generate(ids, attention_mask=mask, **OPTIONS)
    check(model, steering, ids, mask, out)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2, "do_sample": True},
    ],
    ids=str,
)  # fmt: skip
def test_every_way_to_generate_gives_what_it_gives_without_a_cache(model, gated, options):
    ids, mask = padded("left")

    def generate(**more):
        with torch.random.fork_rng(), gated.apply(model):
            torch.manual_seed(3)
            return model.generate(ids, attention_mask=mask, **{**OPTIONS, "max_new_tokens": 9, **options, **more})

    cached, uncached = generate(), generate(use_cache=False)
    if not options:
        assert torch.equal(generate(prefill_chunk_size=2).sequences, cached.sequences)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=2e-5, rtol=0)


def test_beams_carry_their_own_sums(model, steering):
    """Likelihoods of what beams came to are those of one pass over it; with sums left in place they are not."""
    steering = steering.gated(gate_of(model, "running"))
    ids, mask = padded("left")
    options = {**OPTIONS, "max_new_tokens": 9, "num_beams": 3, "output_scores": True, "length_penalty": 0.0}
    with steering.apply(model):
        out = model.generate(ids, attention_mask=mask, **options)
        assert not torch.equal(out.beam_indices.sort(1).values, out.beam_indices), "beams changed places"
        longer = torch.cat([mask, torch.ones(3, 9).long()], 1)
        with torch.no_grad():
            logits = model(out.sequences, attention_mask=longer, position_ids=numbers(mask, 9), use_cache=False).logits
    likely = logits[:, 5:-1].log_softmax(-1).gather(2, out.sequences[:, 6:, None]).sum((1, 2))
    torch.testing.assert_close(out.sequences_scores, likely, atol=1e-4, rtol=0)


@pytest.mark.parametrize("helper", ["model", "lookup"])
def test_assisted_generation_whose_rejected_tokens_leave_nothing(model, gated, helper):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * normal(*parameter.shape))
    options = {"assistant_model": other} if helper == "model" else {"prompt_lookup_num_tokens": 3}
    with gated.apply(model):
        plain = model.generate(IDS[1:2], **{**OPTIONS, "max_new_tokens": 12})
        out = model.generate(IDS[1:2], **{**OPTIONS, "max_new_tokens": 12}, **options)
    assert torch.equal(out.sequences, plain.sequences)
    check(model, gated, IDS[1:2], torch.ones(1, 6).long(), out)


def run(model, ids, mask, ends, cache=None):
    """A loop of one's own; the logits of all columns, and the cache."""
    logits, past = [], 0 if cache is None else cache.get_seq_length()
    position_ids = mask.cumsum(1).sub(1).clamp(min=0)
    with torch.no_grad():
        for end in ends:
            out = model(
                ids[:, past:end], attention_mask=mask[:, :end], position_ids=position_ids[:, past:end],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            logits.append(out.logits)
            cache, past = out.past_key_values, end
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_loop_of_ones_own_in_chunks_with_a_cache_that_the_model_made(model, gated, side):
    ids, mask = padded(side)
    with gated.apply(model):
        whole, real = run(model, ids, mask, [6])[0], mask.bool()
        for ends in ([1, 2, 3, 4, 5, 6], [4, 6], [2, 5, 6]):
            torch.testing.assert_close(run(model, ids, mask, ends)[0][real], whole[real], atol=2e-5, rtol=0)


def test_a_copied_cut_selected_or_repeated_cache_takes_its_sums_along(model, gated):
    ids, mask = IDS, torch.ones(3, 6).long()
    with gated.apply(model):
        whole, _ = run(model, ids, mask, [6])
        _, cache = run(model, ids, mask, [4])
        for _ in range(2):  # a prefix that is used again and again
            rest, _ = run(model, ids, mask, [6], copy.deepcopy(cache))
            torch.testing.assert_close(rest, whole[:, 4:], atol=2e-5, rtol=0)
        other = torch.cat([ids[:, :4], IDS.flip(1)[:, :2]], 1)
        _, cut = run(model, other, mask, [6], copy.deepcopy(cache))
        cut.crop(-2)
        assert cut.get_seq_length() == 4
        torch.testing.assert_close(run(model, ids, mask, [6], cut)[0], whole[:, 4:], atol=2e-5, rtol=0)
        chosen = copy.deepcopy(cache)
        chosen.batch_select_indices(torch.tensor([2, 0]))
        torch.testing.assert_close(
            run(model, ids[[2, 0]], mask[:2], [6], chosen)[0], whole[[2, 0], 4:], atol=2e-5, rtol=0
        )
        twice = copy.deepcopy(cache)
        twice.batch_repeat_interleave(2)
        rows = [0, 0, 1, 1, 2, 2]
        torch.testing.assert_close(run(model, ids[rows], mask[rows], [6], twice)[0], whole[rows, 4:], atol=2e-5, rtol=0)


def test_a_cache_with_sums_goes_as_soon_as_nobody_has_it_and_may_be_saved(model, steering):
    mask, rows = torch.ones(3, 6).long(), [2, 1]
    with steering.gated(gate_of(model, "running")).apply(model):
        whole, _ = run(model, IDS, mask, [6])
        saved = pickle.loads(pickle.dumps(run(model, IDS, mask, [4])[1]))
        saved.batch_select_indices(torch.tensor(rows))
        torch.testing.assert_close(run(model, IDS[rows], mask[:2], [6], saved)[0], whole[rows, 4:], atol=2e-5, rtol=0)
        gc.collect()
        gc.disable()
        try:
            _, cache = run(model, IDS, mask, [4, 5])
            seen = weakref.ref(cache)
            del cache
            assert seen() is None, "it is in no circle, and the handle does not keep it"
        finally:
            gc.enable()


def test_a_cache_that_was_filled_without_the_gate_is_refused(model, steering):
    gated = steering.gated(gate_of(model, "running"))
    mask = torch.ones(3, 6).long()
    _, cache = run(model, IDS, mask, [4])
    with gated.apply(model), pytest.raises(ValueError, match=r"filled while this steering was on.*3 x 4.*read 0 x 0"):
        run(model, IDS, mask, [6], cache)
    with gated.apply(model):
        _, cache = run(model, IDS, mask, [4])
    _, cache = run(model, IDS, mask, [5], cache)
    with gated.apply(model), pytest.raises(ValueError, match=r"3 x 5.*the gate has read 3 x 4"):
        run(model, IDS, mask, [6], cache)
    expected = run(model, IDS, mask, [6])[0][:, 5:]
    assert cache.get_seq_length() == 5, "what was refused has not touched the cache"
    assert run(model, IDS, mask, [6], cache)[0].shape == expected.shape


def test_a_static_cache_is_refused_for_a_running_mean_and_works_for_single_tokens(model, steering):
    ids, mask = padded("left")
    options = {**OPTIONS, "cache_implementation": "static"}
    with steering.gated(gate_of(model, "running")).apply(model), pytest.raises(ValueError, match="dynamic cache"):
        model.generate(ids, attention_mask=mask, **options)
    gated = steering.gated(gate_of(model, "token"))
    with gated.apply(model):
        out = model.generate(ids, attention_mask=mask, **options)
    check(model, gated, ids, mask, out)


@pytest.mark.parametrize("position", ["last", "prompt", "generated"])
def test_positions_say_which_tokens_are_mapped_and_the_gate_how_far(model, gated, position):
    """All tokens count for the mean, mapped or not."""
    ids, mask = padded("left")

    def generate(**more):
        with gated.apply(model, position=position) as handle:
            out = model.generate(ids, attention_mask=mask, **OPTIONS, **more)
        return out, handle.coverage()

    (cached, seen), (uncached, _) = generate(), generate(use_cache=False)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=2e-5, rtol=0)
    assert 0 < next(iter(seen.values())).steered <= next(iter(seen.values())).seen
    with gated.gated(None).apply(model, position=position):
        always = model.generate(ids, attention_mask=mask, **OPTIONS)
    assert not torch.allclose(always.logits[-1], cached.logits[-1], atol=1e-3)


def test_sums_are_where_the_site_is_whatever_device_the_mask_is_on():
    """Of a model that is spread over devices, the mask is on the first one's."""
    scores, real = torch.empty(2, 3, device="meta"), torch.ones(2, 3, dtype=torch.bool)
    assert {part.device.type for part in joined(None, scores, real)} == {"meta"}


# -- rows, strengths, several steerings --


def test_each_row_has_its_own_openness_strength_and_steering(model, steering):
    one, two = steering.gated(gate_of(model, "running")), random_maps(model, 5, 0.3).gated(gate_of(model, "token", 4))
    plain = random_maps(model, 7, 0.3)
    ids, mask = padded("left")
    inputs = {"input_ids": ids, "position_ids": numbers(mask, 0)}
    alone = {}
    for key, maps in {"one": one, "two": two, "plain": plain}.items():
        with torch.no_grad(), maps.apply(model, 0.6):
            alone[key] = model(**inputs, attention_mask=mask).logits
    base = model(**inputs, attention_mask=mask).logits
    steerings = {"one": one, "two": two, "plain": plain}
    for rows in (["one", "two", "plain"], ["plain", None, "one"], ["two", "two", "one"]):
        with torch.no_grad(), lineas.attach(model, steerings, rows, 0.6):
            got = model(**inputs, attention_mask=mask).logits
        for k, key in enumerate(rows):
            real = mask[k].bool()
            torch.testing.assert_close(got[k][real], (base if key is None else alone[key])[k][real], atol=1e-5, rtol=0)
    with torch.no_grad(), one.apply(model, [0.0, 0.6, 0.6]):
        got = model(**inputs, attention_mask=mask).logits
        torch.testing.assert_close(got[1:][mask[1:].bool()], alone["one"][1:][mask[1:].bool()], atol=1e-5, rtol=0)
        torch.testing.assert_close(got[0][mask[0].bool()], base[0][mask[0].bool()], atol=1e-5, rtol=0)


def test_a_gate_that_is_open_changes_nothing_and_one_that_is_shut_everything(model, steering):
    site = lineas.find_sites(model)[0]
    with torch.no_grad():
        base = model(IDS).logits
        with steering.apply(model):
            steered = model(IDS).logits
        for pooling in POOLINGS:
            for bias, expected in ((100.0, steered), (-200.0, base)):
                with steering.gated(Gate(site.name, np.zeros(site.units), bias, pooling)).apply(model):
                    assert torch.equal(model(IDS).logits, expected)
        with steering.gated(gate_of(model, "running")).apply(model, 0.0):
            assert torch.equal(model(IDS).logits, base)


def test_it_leaves_no_trace(model, gated):
    before, hooks = model(IDS).logits, count_hooks(model)
    with gated.apply(model):
        model.generate(IDS, **OPTIONS)
        with pytest.raises(RuntimeError, match="already on this model"):
            gated.attach(model)
    assert torch.equal(model(IDS).logits, before)
    assert count_hooks(model) == hooks
    assert "generate" not in vars(model)


def test_gradients_flow_through_what_a_gate_lets_pass(model, steering):
    gated = steering.gated(gate_of(model, "running"))
    with gated.apply(model):
        model(IDS).logits.square().mean().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_activations_keep_their_dtype(steering, dtype):
    model = tiny("llama").to(dtype)
    with torch.no_grad(), steering.gated(gate_of(model, "running")).apply(model):
        assert model(IDS).logits.dtype == dtype


# -- the whole row --


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def test_pixels_are_read_as_a_whole():
    net, x = Pixels(), normal(5, 2, 6, 6)
    gate = Gate("a", [2.0, -1.0, 1.0], 0.1, "all")
    steering = Steering({"b": ([1.0] * 4, [5.0] * 4)})
    read = net.a(x).mean((2, 3)) @ torch.tensor(gate.weight) + gate.bias
    with torch.no_grad(), steering.gated(gate).apply(net):
        moved = net(x)
    expected = net(x) + 5 * torch.sigmoid(read).view(-1, 1, 1, 1)
    torch.testing.assert_close(moved, expected.detach(), atol=1e-5, rtol=1e-5)


def test_padding_does_not_count_in_a_whole_text():
    model = tiny("bert")
    site = lineas.find_sites(model)[0]
    steering = random_maps(model, size=0.3).gated(gate_of(model, "all", site=site))
    ids, mask = padded("right")
    with torch.no_grad(), steering.apply(model):
        together = model(ids, attention_mask=mask).last_hidden_state
        for row, length in enumerate(PROMPTS):
            alone = model(ids[row : row + 1, :length]).last_hidden_state
            torch.testing.assert_close(together[row : row + 1, :length], alone, atol=1e-5, rtol=0)


def test_a_whole_row_cannot_be_read_while_it_is_written(model, steering):
    with steering.gated(gate_of(model, "all")).apply(model):
        model(IDS)
        with pytest.raises(ValueError, match='goes on from a cache; a gate with pooling="running"'):
            model.generate(IDS, **OPTIONS)


def test_an_encoder_decoder_model_reads_in_its_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    sites = [f"decoder.block.{k}.layer.2.layer_norm" for k in range(2)]
    steering = Steering(
        {name: (1 + 0.5 * normal(16, seed=k), 3 * normal(16, seed=k + 5)) for k, name in enumerate(sites)}
    )
    gated = steering.gated(Gate(sites[0], 2 * normal(16, seed=9), 0.0))
    options = {**OPTIONS, "num_beams": 3, "output_scores": True}
    with gated.apply(model):
        cached, uncached = (model.generate(IDS, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(cached.sequences_scores, uncached.sequences_scores, atol=1e-5, rtol=0)
    early = "encoder.block.0.layer.1.layer_norm"
    of_encoder = steering.gated(Gate(early, normal(16), 0.0))
    with of_encoder.apply(model), pytest.raises(ValueError, match=f"its gate's site, '{early}', to run before it"):
        model.generate(IDS, **OPTIONS)


def test_a_model_with_adapters_is_read_through_what_wraps_it(model, steering):
    from peft import LoraConfig, get_peft_model

    gated = steering.gated(gate_of(model, "running"))
    with torch.no_grad(), gated.apply(model):
        expected = model(IDS).logits
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).eval()
    with torch.no_grad(), gated.apply(wrapped) as handle:
        torch.testing.assert_close(wrapped(IDS).logits, expected)
        assert handle.openness()[0].shape == IDS.shape
        out = wrapped.generate(input_ids=IDS, **OPTIONS)
    with torch.no_grad(), gated.apply(model):
        assert torch.equal(model.generate(IDS, **OPTIONS).sequences, out.sequences)


# -- what cannot be --


def test_a_gate_behind_a_map_or_on_another_model_is_refused(model, steering):
    first, _, last = lineas.find_sites(model)
    expected = f"'{first.name}'.*its gate's site, '{last.name}', to run before it"
    with steering.gated(gate_of(model, "running", site=last)).apply(model), pytest.raises(ValueError, match=expected):
        model(IDS)
    with pytest.raises(ValueError, match=r"weight \(5,\), the model's LlamaRMSNorm has \(16,\)"):
        steering.gated(Gate(first.name, [1.0] * 5, 0.0)).attach(model)
    with pytest.raises(LookupError, match="nearest names"):
        steering.gated(Gate("model.layers.0.post_attention_layernor", [1.0] * 16, 0.0)).attach(model)
    net, x = Pixels(), normal(5, 2, 6, 6)
    with pytest.raises(ValueError, match='only a gate with pooling="all"'):
        Steering({"b": ([1.0] * 4, [5.0] * 4)}).gated(Gate("a", [1.0] * 3, 0.0)).attach(net)
    with Steering({"b": ([1.0] * 4, [5.0] * 4)}).gated(Gate("a", [1.0] * 3, 0.0, "all")).apply(net):
        net(x)
        with pytest.raises(ValueError, match="inside a call of the steered model"):
            net.a(x)
        with pytest.raises(ValueError, match="to run before it"):
            net.b(net.a.forward(x))


def test_an_error_in_a_pass_leaves_the_next_one_right(model, gated):
    ids, mask = padded("left")
    with gated.apply(model):
        whole, _ = run(model, ids, mask, [6])
        with pytest.raises(IndexError):
            model(torch.full((3, 6), 1000))
        torch.testing.assert_close(run(model, ids, mask, [4, 6])[0][mask.bool()], whole[mask.bool()], atol=2e-5, rtol=0)


def test_a_copy_of_a_gated_model_is_gated(model, gated):
    with gated.apply(model):
        twin = copy.deepcopy(model)
        expected = model.generate(IDS, **OPTIONS).sequences
        assert torch.equal(twin.generate(IDS, **OPTIONS).sequences, expected)
    assert torch.equal(twin.generate(IDS, **OPTIONS).sequences, expected), f"{NEW} tokens"


def test_compiled_models_are_gated(model, gated):
    base = model(IDS).logits
    with torch.no_grad(), gated.apply(model):
        expected = model(IDS).logits
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(IDS).logits, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, base, atol=1e-3)
