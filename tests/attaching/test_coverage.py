"""Counts of steered tokens; models with an encoder; what was compiled; nothing left behind; what is refused."""

import numpy as np
import pytest
import torch
from conftest import IDS, Mlp, assert_untouched, normal, random_maps, snapshot, tiny
from test_positions import NEW, OPTIONS, POSITIONS, PROMPTS, chosen, odd, padded

import lineas
from lineas import Steering

MASK = torch.ones_like(IDS)
FED = NEW - 1  # generated tokens that go in again


def counts(coverage):
    (both,) = set(coverage.values())  # all sites alike
    return tuple(both)


# -- coverage --


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}], ids=str)
@POSITIONS
def test_coverage_counts_real_tokens_and_steered_ones(model, steering, position, options, side):
    ids, mask = padded(side)
    with torch.inference_mode(), steering.apply(model, position=position, count=True) as handle:
        model.generate(ids, attention_mask=mask, **OPTIONS, **options)
    full = torch.cat([mask, torch.ones(3, FED).long()], 1)
    assert counts(handle.coverage()) == (
        sum(PROMPTS) + 3 * FED,
        int(chosen(position, full, PROMPTS).sum() if position != "all" else full.sum()),
    )
    assert list(handle.coverage()) == steering.sites


def test_coverage_goes_on_over_passes_and_modes(model, steering):
    with steering.apply(model, position="last") as handle:
        assert counts(handle.coverage()) == (0, 0)
        with torch.inference_mode():
            model(IDS)
        model(IDS[:2]).logits.sum().backward()
        ids, mask = padded("left")
        out = model(ids, attention_mask=mask, use_cache=True)
        assert counts(handle.coverage()) == (18 + 12 + 10, 3 + 2 + 3)
        longer = torch.cat([mask, torch.ones(3, 1).long()], 1)
        model(IDS[:, :1], attention_mask=longer, past_key_values=out.past_key_values)
        with handle.prompt(2):
            model(IDS[:1])
    assert counts(handle.coverage()) == (49, 8 + 3 + 5)
    assert handle.coverage()[steering.sites[0]].steered == 16


def test_rows_that_are_not_steered_do_not_count_as_steered(model, steering):
    name = steering.sites[1]
    other = Steering({name: (steering.weight(name), steering.bias(name))})
    ids, mask = padded("left")
    with lineas.attach(model, {"all": steering, "one": other}, ["all", None, "one"], position="prompt") as handle:
        model(ids, attention_mask=mask)
        model.generate(ids, attention_mask=mask, num_beams=2, **{**OPTIONS, "max_new_tokens": 1})
        seen = handle.coverage()
        handle.set_strength(0.0)
        model(IDS)
        handle.select("all", 1.0)
        model(IDS)
    assert seen == {site: (10 + 20, 3 + 6 + (1 + 2) * (site == name)) for site in steering.sites}
    assert handle.coverage()[name] == (30 + 36, 12 + 18)
    assert handle.coverage()[steering.sites[0]] == (30 + 36, 9 + 18)


def test_coverage_prints_as_a_table(model, steering):
    with steering.apply(model, position="last") as handle:
        model(IDS)
    lines = repr(handle.coverage()).splitlines()
    assert lines[0].split() == ["site", "tokens", "seen", "steered"]
    assert [line.split() for line in lines[1:]] == [[site, "18", "3"] for site in steering.sites]


def test_without_counting_there_is_no_coverage_and_no_cost(model, steering):
    modules = {module: len(module._forward_hooks) for module in model.modules()}
    with steering.apply(model) as handle:
        model(IDS)  # after which it is known what runs
        more = {module for module in model.modules() if len(module._forward_hooks) != modules[module]}
        assert more == {model.get_submodule(site) for site in steering.sites}
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert "generate" not in vars(model)
        with pytest.raises(RuntimeError, match="expected count=True when the steering was attached"):
            handle.coverage()
    with steering.apply(model, position="last", count=False) as handle, pytest.raises(RuntimeError, match="count=True"):
        handle.coverage()


# -- an encoder and a decoder --


def pair():
    import transformers as hf

    config = hf.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.T5ForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"decoder_input_ids": IDS[:, :2]}, {"use_cache": False}], ids=str
)
@POSITIONS
def test_an_encoders_tokens_are_prompt_and_a_decoders_start_is(position, options):
    model = pair()
    encoder, decoder = (
        lineas.find_sites(model, rf"{half}\.block\.\d\.layer\.\d\.layer_norm") for half in ("encoder", "decoder")
    )
    draw = np.random.default_rng(0)
    steering = Steering({site.name: draw.normal(1, 0.3, (2, 16)) for site in [*encoder, *decoder]})
    ids, mask = padded("right")
    with steering.apply(model, position=position, count=True) as handle:
        out = model.generate(ids, attention_mask=mask, **{**OPTIONS, "output_scores": True, **options})
    start = 3 if "decoder_input_ids" in options else 1  # its start token comes before what was given
    text = out.sequences[:, :-1]
    parts = {
        "encoder": chosen(position, mask, PROMPTS),
        "decoder": chosen(position, torch.ones_like(text), [start] * 3),
    }
    coverage = handle.coverage()
    if not options:
        assert coverage[encoder[0].name] == (10, 10 if position == "all" else parts["encoder"].sum())
        assert coverage[decoder[0].name] == (
            text.numel(),
            text.numel() if position == "all" else parts["decoder"].sum(),
        )
    for part, sites in (("encoder", encoder), ("decoder", decoder)):
        for site in sites:
            w, b = (torch.tensor(values(site.name)) for values in (steering.weight, steering.bias))
            model.get_submodule(site.name).register_forward_hook(
                lambda module, args, h, w=w, b=b, steered=parts[part]: torch.where(steered[..., None], h * w + b, h)
            )
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, decoder_input_ids=text, use_cache=False).logits[:, start - 1 :]
    if "num_beams" in options:
        likely = expected.log_softmax(-1).gather(2, out.sequences[:, start:, None]).sum((1, 2)) / NEW
        torch.testing.assert_close(out.sequences_scores, likely, atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=1e-5, rtol=0)


def test_strengths_by_row_in_both_halves():
    model, (ids, mask) = pair(), padded("right")
    draw = np.random.default_rng(0)
    steering = Steering({site.name: draw.normal(1, 0.3, (2, 16)) for site in lineas.find_sites(model)})
    with steering.apply(model, [1.0, 0.0, 2.0]):
        together = model.generate(ids, attention_mask=mask, num_beams=2, **OPTIONS).sequences
    for row, strength in enumerate([1.0, 0.0, 2.0]):
        with steering.apply(model, strength):
            alone = model.generate(ids[[row]], attention_mask=mask[[row]], num_beams=2, **OPTIONS).sequences
        assert torch.equal(together[[row]], alone)


# -- compiled --


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "before"), [("last", True), (odd, False)], ids=["compiled first", "attached first"]
)
def test_a_compiled_model_gives_what_it_gives_as_written(position, before, fresh_compiler):
    model = tiny("llama", layers=2)  # a compiler takes a second a layer, and compiles it a dozen times
    steering = random_maps(model, size=0.3)
    ids, mask = padded("left")
    plain = model.generate(ids, attention_mask=mask, **OPTIONS).sequences
    if before:
        model.compile(backend="eager")
        assert torch.equal(model.generate(ids, attention_mask=mask, **OPTIONS).sequences, plain)
    strengths = [1.0, 0.0, 2.0]
    handle = steering.attach(model, strengths, position=position, count=True)
    if not before:
        model.compile(backend="eager")
    outs = [
        model.generate(ids, attention_mask=mask, **OPTIONS, **more) for more in ({}, {"cache_implementation": "static"})
    ]
    with torch.no_grad():
        bare = model(ids, attention_mask=mask).logits
        with handle.prompt([1, 2, 1]):
            said = model(ids, attention_mask=mask).logits
    coverage = handle.coverage()
    handle.set_strength(0.5)
    other = model.generate(ids, attention_mask=mask, **OPTIONS)
    handle.remove()
    assert torch.equal(model.generate(ids, attention_mask=mask, **OPTIONS).sequences, plain)

    model = tiny("llama", layers=2)
    with steering.apply(model, strengths, position=position, count=True) as handle, torch.no_grad():
        expected = model.generate(ids, attention_mask=mask, **OPTIONS)
        model.generate(ids, attention_mask=mask, **OPTIONS)
        torch.testing.assert_close(bare, model(ids, attention_mask=mask).logits, atol=1e-5, rtol=0)
        with handle.prompt([1, 2, 1]):
            torch.testing.assert_close(said, model(ids, attention_mask=mask).logits, atol=1e-5, rtol=0)
        assert coverage == handle.coverage()
    for out in outs:
        assert torch.equal(out.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(out.logits), torch.stack(expected.logits), atol=1e-5, rtol=0)
    with steering.apply(model, 0.5, position=position):
        expected = model.generate(ids, attention_mask=mask, **OPTIONS)
    assert torch.equal(other.sequences, expected.sequences)


# -- nothing left behind --


def test_handles_leave_no_trace_in_whatever_order_they_go(model, steering):
    state, own = snapshot(model), dict(vars(model))
    plain = model.generate(IDS, attention_mask=MASK, **OPTIONS)
    others = [random_maps(model, seed=seed, size=0.3) for seed in (1, 2)]
    handles = [
        steering.attach(model, position="last"), others[0].attach(model, [1, 2, 0]),
        others[1].attach(model, position=odd),
    ]  # fmt: skip
    assert not torch.equal(model.generate(IDS, attention_mask=MASK, **OPTIONS).sequences, plain.sequences)
    for k in (1, 0, 2):
        handles[k].remove()
        assert ("generate" in vars(model)) == (k != 2)
    assert_untouched(model, state)
    assert dict(vars(model)) == own
    again = model.generate(IDS, attention_mask=MASK, **OPTIONS)
    assert torch.equal(torch.stack(again.logits), torch.stack(plain.logits))


def test_two_steerings_with_positions_of_their_own_add_up(model, steering):
    other = random_maps(model, seed=1, size=0.3)
    with steering.apply(model, position="prompt"), other.apply(model, position="generated"):
        out = model.generate(IDS, attention_mask=MASK, **OPTIONS)
    merged = [steering, other]
    hooks = []
    text = out.sequences[:, :-1]
    for name in steering.sites:
        (w, b), (v, c) = ((torch.tensor(s.weight(name)), torch.tensor(s.bias(name))) for s in merged)
        prompt = (torch.arange(text.shape[1]) < 6)[:, None]
        change = lambda m, args, h, w=w, b=b, v=v, c=c, p=prompt: torch.where(p, w * h + b, v * h + c)  # noqa: E731
        hooks.append(model.get_submodule(name).register_forward_hook(change))
    with torch.no_grad():
        expected = model(text).logits[:, 5:]
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=1e-5, rtol=0)


def test_a_generate_of_somebody_elses_is_used_and_put_back(model, steering):
    calls = []

    def own(*args, **kwargs):
        calls.append(1)
        return type(model).generate(model, *args, **kwargs)

    model.generate = own
    with steering.apply(model, position="last"):
        model.generate(IDS, attention_mask=MASK, **OPTIONS)
        ours = model.generate
        assert ours.__name__ == "own"
    assert model.generate is own
    handle = steering.attach(model, position="last")
    wrapped = model.generate
    model.generate = lambda *args, **kwargs: wrapped(*args, **kwargs)
    handle.remove()
    assert len(model.generate(IDS, attention_mask=MASK, **OPTIONS).sequences) == 3
    assert len(calls) == 2


def test_an_error_in_a_pass_is_forgotten(model, steering):
    with steering.apply(model, position="last") as handle:
        expected = model(IDS).logits
        broken = model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.generate(IDS, attention_mask=MASK, **OPTIONS)
        broken.remove()
        assert handle._tokens.ongoing.passes == []
        assert torch.equal(model(IDS).logits, expected)


# -- refused --


def test_positions_that_do_not_exist_are_refused(model, steering):
    with pytest.raises(
        ValueError, match="position: expected one of 'all', 'last', 'prompt', 'generated', or a func.* 'first'"
    ):
        steering.attach(model, position="first")
    with pytest.raises(TypeError, match="position: expected one of .* got int"):
        steering.attach(model, position=3)
    for wrong, got in ((lambda p: p, "int64"), (lambda p: True, "bool"), (lambda p: (p > 1)[:, :1], r"\(3, 1\)")):
        with steering.apply(model, position=wrong), pytest.raises(TypeError, match=rf"bool \(3, 6\), got .*{got}"):
            model(IDS)
    assert "generate" not in vars(model)


def test_networks_without_tokens_are_refused():
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.Flatten())
    image = Steering({"0": ([2.0] * 3, [1.0] * 3)})
    with pytest.raises(
        ValueError, match=r"site '0' \(Conv2d\): expected a site with the tokens .*only position=\"all\""
    ):
        image.attach(net, position="last")
    flat = Steering({"second": ([2.0] * 8, [1.0] * 8)})
    with (
        flat.apply(Mlp(), position="last") as handle,
        pytest.raises(ValueError, match=r"\(batch, tokens, channels\), got \(2, 8\)"),
    ):
        handle._modules[0](normal(2, 9))


def test_passes_whose_tokens_cannot_be_known_are_refused(model, steering):
    with steering.apply(model, position="last") as handle:
        with pytest.raises(ValueError, match="expected to run inside a call of the steered model"):
            model.model(IDS)
        with pytest.raises(ValueError, match=r"attention_mask: expected \(3, 6\), got \(3, 1, 6, 6\)"):
            model(IDS, attention_mask=torch.ones(3, 1, 6, 6).bool())
        with pytest.raises(ValueError, match="got cu_seq_lens_q"):
            model(IDS, cu_seq_lens_q=torch.tensor([0, 6]))
        cache = model(IDS, use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"attention_mask: expected \(3, 7\), got \(3, 1\)"):
            model(IDS[:, :1], attention_mask=MASK[:, :1], past_key_values=cache)
        with handle.prompt([1, 2]), pytest.raises(ValueError, match="prompt: expected one for each of 3 rows, got 2"):
            model(IDS)
        with handle.prompt([1, 2]), pytest.raises(ValueError, match="prompt: expected one for each of 3 rows, got 2"):
            model.generate(IDS, attention_mask=MASK, **OPTIONS)
        with pytest.raises(ValueError, match="generate: expected no guidance_scale"):
            model.generate(IDS, attention_mask=MASK, guidance_scale=2.0, **OPTIONS)
        for wrong in (-1, 1.5, [], [[1]], True):
            with pytest.raises(ValueError, match="prompt: expected"), handle.prompt(wrong):
                pass
    model, draw = pair(), np.random.default_rng(0)
    site = "decoder.block.0.layer.1.EncDecAttention.k"
    with pytest.raises(ValueError, match="expected a site with the tokens of the model's input"):
        Steering({site: draw.normal(size=(2, 16))}).attach(model, position="last")
    with (
        Steering({"decoder.final_layer_norm": draw.normal(size=(2, 16))}).apply(model, position="last"),
        pytest.raises(ValueError, match="assisted generation with an encoder-decoder"),
    ):
        model.generate(IDS, prompt_lookup_num_tokens=2)
