"""Models that are offloaded, half precise, quantised, compiled, wrapped, or have two halves: what docs/ promises."""

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, Mlp, WordTokenizer, assert_untouched, count_hooks, normal, snapshot, tiny
from torch import nn

import lineas
from lineas.core import reference
from lineas.fitting.model_loss import ModelLoss
from lineas.fitting.source_passes import SourcePasses
from lineas.network import data
from lineas.network.state import frozen
from lineas.responses.probe import probe
from lineas.responses.runner import Runner

TEXTS = NEGATIVE, [text + " indeed" * (k % 3) for k, text in enumerate(POSITIVE)]
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])
SOURCE, TARGET = normal(14, 4), normal(11, 4, seed=1, shift=0.7)


def fit(model, **options):
    sides = options.pop("sides", TEXTS)
    return lineas.fit(model, *sides, tokenizer=WordTokenizer(), **{"progress": False, "steps": 4, **options})


def flat(steering):
    return np.concatenate([part(name) for part in (steering.weight, steering.bias) for name in steering.sites])


def moved_by(steering):
    return flat(steering) - np.repeat([1, 0], len(flat(steering)) // 2)


def distance(one, other):
    """How far apart two steerings are, relative to how far the second is from doing nothing."""
    assert one.sites == other.sites
    return np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(moved_by(other))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def plain():
    """A fit of the tiny Llama as everybody has it."""
    return fit(tiny("llama"))


@pytest.fixture(scope="module")
def steered(plain):
    """What the plain model says under that steering, and without."""
    model = tiny("llama")
    with torch.no_grad(), plain.apply(model):
        logits = model(IDS).logits
    return logits, model(IDS).logits.detach()


# -- offloaded and spread by a device map --


def cpu_offloaded(model, folder):
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def disk_offloaded(model, folder):
    from accelerate import disk_offload

    return disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def dispatched(model, folder):
    """The first layer stays, the rest is on disk."""
    from accelerate import dispatch_model

    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    places |= {f"model.layers.{k}": "disk" if k else "cpu" for k in range(3)}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


OFFLOADED = [cpu_offloaded, disk_offloaded, dispatched]


def places(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.device.type, tensor.requires_grad) for name, tensor in tensors}


@pytest.mark.parametrize("offloaded", OFFLOADED)
def test_an_offloaded_model_gets_the_same_bits_and_is_left_where_it_was(offloaded, tmp_path, plain, steered):
    model = tiny("llama")
    model.model.layers[1].requires_grad_(False)
    model = offloaded(model, tmp_path)
    before, hooks = places(model), count_hooks(model)
    assert {"meta"} <= {device for device, _ in before.values()}
    steering = fit(model)
    assert np.array_equal(flat(steering), flat(plain))
    assert steering.history["loss"] == plain.history["loss"]
    assert places(model) == before
    assert count_hooks(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, steered[1])
        with steering.apply(model):
            assert torch.equal(model(IDS).logits, steered[0])
    assert places(model) == before


class Blocks(nn.Module):
    """Modules with weights of their own around the sites, which accelerate loads until their forward pass ends."""

    class Block(nn.Module):
        def __init__(self, dim=4):
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(dim)), nn.Linear(dim, dim)

        def forward(self, x):
            return x + self.scale * torch.tanh(self.inner(x))

    def __init__(self):
        super().__init__()
        self.shift, self.blocks = nn.Parameter(torch.zeros(4)), nn.Sequential(self.Block(), self.Block())

    def forward(self, x):
        return self.blocks(x + self.shift)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_loaded_around_a_site_are_dropped_again(fails):
    options = {"sides": (SOURCE, TARGET), "sites": r"blocks\.\d\.inner"}
    expected, model = fit(seeded(Blocks), **options), cpu_offloaded(seeded(Blocks), None)
    before = places(model)
    assert {device for device, _ in before.values()} == {"meta"}
    assert np.array_equal(flat(fit(model, **options)), flat(expected))
    assert places(model) == before


def test_a_model_that_was_never_loaded_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match='model: expected weights, got none: they are on the "meta" device'):
        fit(model, sides=(SOURCE, TARGET), sites="0")


# -- bfloat16 and float16 --


def rounded(dtype):
    """The tiny Llama with weights of that precision, and the same weights in float32."""
    return tiny("llama").to(dtype), tiny("llama").to(dtype).float()


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_half_precise_model_gets_float32_maps_near_those_of_the_float32_model(dtype, close):
    half, full = rounded(dtype)
    before = snapshot(half)
    steering = fit(half)
    assert flat(steering).dtype == np.float32
    assert distance(steering, fit(full)) < close
    assert_untouched(half, before)
    with steering.apply(half):
        logits = half(IDS).logits
    assert logits.dtype == dtype
    with steering.apply(full):
        torch.testing.assert_close(logits.float(), full(IDS).logits, atol=0.1, rtol=0.1)


def problem(model, src, tgt, **options):
    (source,), (target,) = (data.as_batches(side, "src", model, WordTokenizer()) for side in (src, tgt))
    layout = probe(model, lineas.find_sites(model, **options), source)
    runner = Runner(model, layout, layout, "mean")
    return ModelLoss(SourcePasses(runner, [source]), [runner.collect([target])])


@pytest.mark.parametrize("scale", [1.0, 2.0**-12, 2.0**-24])
def test_slopes_too_small_for_float16_reach_the_maps(scale):
    """With many sites, units and samples each response's slope is tiny; here the loss is made so by a factor."""
    gradients = []
    for model in rounded(torch.float16):
        with frozen(model):
            loss = problem(model, *TEXTS)
            gradients.append(loss.evaluate(loss.identity(), scale).gradient() / np.float32(scale))
    half, full = gradients
    assert np.linalg.norm(half - full) < 0.01 * np.linalg.norm(full)


def chain(factor, dtype):
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))).to(dtype)
    for layer, weight in zip(net, (1, factor, factor), strict=True):
        layer.weight.data = weight * torch.ones(4, 4, dtype=dtype)
    return net


def test_slopes_that_overflow_in_float16_are_scaled_down_until_they_do_not():
    source, target = (1e-4 * side for side in (SOURCE, TARGET))
    gradients = []
    for dtype in (torch.float16, torch.float32):
        net = chain(200, dtype)
        with frozen(net):
            loss = problem(net, source.half().to(dtype), target.half().to(dtype), pattern=["0", "2"])
            gradients.append(loss.evaluate(loss.identity()).gradient())
    assert np.linalg.norm(gradients[0] - gradients[1]) < 0.01 * np.linalg.norm(gradients[1])


# -- 8 bits --


class Int8Linear(nn.Module):
    """Weights as integers and a scale a row, multiplied out in the forward pass, as weight-only backends do."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.out_features = linear.out_features

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale).T


class NoBackwardLinear(Int8Linear):
    def forward(self, x):
        return super().forward(x.detach())


class SteppedLinear(Int8Linear):
    """Activations are rounded too: there is a gradient, and it is zero."""

    def forward(self, x):
        return super().forward((127 * x).round() / 127)


def exchanged(model, make):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            model.set_submodule(name, make(module))
    return model.eval()


def multiplied_out(linear):
    int8 = Int8Linear(linear)
    linear.weight.data = int8.weight * int8.scale
    return linear


def test_a_model_with_8_bit_weights_gets_the_maps_of_its_weights_multiplied_out(plain):
    int8, same = exchanged(tiny("llama"), Int8Linear), exchanged(tiny("llama"), multiplied_out)
    before = snapshot(int8)
    steering = fit(int8, sites=r".*\.(post_attention_layernorm|down_proj)")
    assert_untouched(int8, before)
    assert distance(steering, fit(same, sites=steering.sites)) < 1e-4
    assert 1e-4 < distance(fit(int8), plain) < 0.1


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*TypedStorage is deprecated")
@pytest.mark.parametrize("kind", ["detached", "rounded", "torch.ao"])
def test_quantised_layers_without_a_backward_pass_are_refused_not_ignored(kind):
    """The residual stream passes a gradient on beside them: a wrong one, without any error."""
    if kind == "torch.ao":
        if not hasattr(torch.ao.quantization, "quantize_dynamic") or not torch.backends.quantized.supported_engines:
            pytest.skip("this torch quantises nothing")
        model = torch.ao.quantization.quantize_dynamic(tiny("llama"), {nn.Linear}, dtype=torch.qint8)
    else:
        model = exchanged(tiny("llama"), NoBackwardLinear if kind == "detached" else SteppedLinear)
    hooks, seen = count_hooks(model), []
    with pytest.raises(ValueError, match=r"without a backward pass .*model\.layers\.0\.mlp\.gate_proj .* and \d+ more"):
        fit(model, callbacks=[seen.append])
    assert seen == []
    assert count_hooks(model) == hooks
    first = "model.layers.0.post_attention_layernorm"
    assert fit(model, sites=[first]).sites == [first], "what lies behind the last loss site does not matter"


# -- compiled --


class Recorder:
    """A backend that compiles nothing and counts how often it was asked to."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def whole(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def layers_in_place(model, backend):
    for layer in model.blocks:
        layer.compile(backend=backend)
    return model


def layers(model, backend):
    for k, layer in enumerate(model.blocks):
        model.blocks[k] = torch.compile(layer, backend=backend)
    return model


def forward_only(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)
    return model


COMPILED = [whole, in_place, layers_in_place, layers, forward_only]
SITES = ["blocks.0.inner", "blocks.1"]


def fit_blocks(model):
    return fit(model, sides=(SOURCE, TARGET), sites=SITES)


@pytest.fixture(scope="module")
def maps():
    """A steering of `Blocks`, and what they say with it and without."""
    model = seeded(Blocks)
    steering = fit_blocks(model)
    with torch.no_grad(), steering.apply(model):
        steered = model(SOURCE)
    base = model(SOURCE).detach()
    assert not torch.allclose(steered, base, atol=1e-2)
    return steering, steered, base


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_compiled_model_is_fitted_as_it_was_written(compiled, maps, fresh_compiler):
    recorder = Recorder()
    model = compiled(seeded(Blocks), recorder)
    with torch.no_grad():
        expected = model(SOURCE)
        graphs = recorder.graphs
        assert graphs
        steering = fit_blocks(model)
        assert steering.sites == SITES
        assert np.array_equal(flat(steering), flat(maps[0]))
        assert torch.equal(model(SOURCE), expected)
    assert recorder.graphs == graphs, "neither was anything compiled, nor did the model forget that it is"


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("compiled", COMPILED)
def test_a_steering_acts_on_a_compiled_model_and_stops_acting(compiled, grad, maps, fresh_compiler):
    model = compiled(seeded(Blocks), "eager")
    steering, steered, base = maps
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            torch.testing.assert_close(model(SOURCE), base)
            with steering.apply(model):
                torch.testing.assert_close(model(SOURCE), steered)
            with steering.apply(model, 0.0):
                torch.testing.assert_close(model(SOURCE), base)
        torch.testing.assert_close(model(SOURCE), base)


def test_a_steering_acts_where_only_the_caller_compiled(maps, fresh_compiler):
    model, (steering, steered, base) = seeded(Blocks), maps
    call = torch.compile(lambda x: model(x), backend="eager")
    torch.testing.assert_close(call(SOURCE), base)
    with steering.apply(model):
        torch.testing.assert_close(call(SOURCE), steered)
    torch.testing.assert_close(call(SOURCE), base)


def test_compiled_modules_are_of_their_class_again_in_whatever_order_handles_go(maps, fresh_compiler):
    model, (steering, steered, base) = torch.compile(seeded(Blocks), backend="eager"), maps
    block = model.get_submodule("blocks.1")
    kind, half = type(block), lineas.Steering({"blocks.1": (np.full(4, 0.5), np.zeros(4))})
    first, second = half.attach(model), steering.attach(model)
    assert isinstance(block, kind)
    assert (type(block).__name__, type(block).__qualname__) == (kind.__name__, kind.__qualname__)
    model(SOURCE)
    first.remove()
    torch.testing.assert_close(model(SOURCE), steered)
    second.remove()
    torch.testing.assert_close(model(SOURCE), base)
    assert type(block) is kind


@pytest.mark.slow
def test_a_compiled_language_model_too(plain, steered, fresh_compiler):
    model = torch.compile(tiny("llama"), backend="eager")
    torch.testing.assert_close(model(IDS).logits, steered[1])
    assert np.array_equal(flat(fit(model)), flat(plain))
    with plain.apply(model):
        torch.testing.assert_close(model(IDS).logits, steered[0])
    torch.testing.assert_close(model(IDS).logits, steered[1])


# -- wrapped --


def test_a_wrapped_model_has_the_sites_of_what_it_wraps(plain, steered):
    model = nn.DataParallel(tiny("llama"))
    hooks = count_hooks(model)
    assert [site.name for site in lineas.find_sites(model)] == plain.sites
    assert np.array_equal(flat(fit(model)), flat(plain))
    with plain.apply(model):
        torch.testing.assert_close(model(IDS).logits, steered[0])
        with pytest.raises(RuntimeError, match="already on this model"):
            plain.attach(model)
    assert count_hooks(model) == hooks


def test_wrappers_of_wrappers_are_left_in_the_mode_they_were_in(fresh_compiler):
    model = nn.DataParallel(torch.compile(Mlp(), backend="eager"))
    model.train()
    before = snapshot(model)
    assert fit(model, sides=(SOURCE, TARGET), sites="first").sites == ["first"]
    assert_untouched(model, before)


# -- encoder and decoder --


def t5():
    import transformers as hf

    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, decoder_start_token_id=0))


def bart():
    import transformers as hf

    sizes = {f"{half}_{key}": n for half in ("encoder", "decoder") for key, n in (("layers", 2), ("ffn_dim", 24))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = hf.BartConfig(vocab_size=64, d_model=16, max_position_embeddings=32, **sizes, **heads)
    return hf.BartForConditionalGeneration(config)


def tokens(n, count, seed):
    return torch.randint(3, 60, (n, count), generator=torch.Generator().manual_seed(seed))


def mask_of(*lengths, tokens):
    return (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()


def pair(seed=0, encoder=6, decoder=6, **extra):
    """Four samples: as many tokens for encoder and decoder, and padding in different places."""
    return {
        "input_ids": tokens(4, encoder, seed), "attention_mask": mask_of(6, 2, 3, 5, tokens=encoder),
        "decoder_input_ids": tokens(4, decoder, seed + 9),
        "decoder_attention_mask": mask_of(1, 6, 4, 2, tokens=decoder),
    } | extra  # fmt: skip


def pooled_by_hand(model, inputs, path, mask):
    found = []
    with torch.no_grad():
        handle = model.get_submodule(path).register_forward_hook(lambda m, args, output: found.append(output))
        model(**inputs)
        handle.remove()
    weights = mask.float() / mask.sum(1, keepdim=True)
    return (found[0] * weights[:, :, None]).sum(1)


ENCODER_DECODER = [
    (t5, r"(en|de)coder\.block\.1\.layer\.[12]\.layer_norm", "decoder.block.0.layer.1.EncDecAttention.{}"),
    (bart, r"model\.(en|de)coder\.layers\.1\.fc1", "model.decoder.layers.0.encoder_attn.{}_proj"),
]


@pytest.mark.parametrize(("make", "pattern", "cross"), ENCODER_DECODER)
def test_every_site_is_pooled_with_the_mask_of_its_own_tokens(make, pattern, cross):
    """In the decoder, what cross-attention makes its keys of are the encoder's tokens; and all have equally many."""
    model = seeded(make)
    names = [site.name for site in lineas.find_sites(model, pattern)]
    names += [cross.format("k"), cross.format("q")]
    src, tgt = pair(), pair(seed=1)
    steering = fit(model, sides=(src, tgt), sites=names, loss="wasserstein", max_evaluations=1)
    losses = dict(zip(steering.info["loss_sites"], steering.history["site_loss"][0], strict=True))
    for name in names:
        of_encoder = ".encoder." in f".{name}" or name == cross.format("k")
        key = "attention_mask" if of_encoder else "decoder_attention_mask"
        responses = [pooled_by_hand(model, side, name, side[key]) for side in (src, tgt)]
        assert losses[name] == pytest.approx(float(reference.wasserstein(*responses).mean()), rel=1e-4), name


@pytest.mark.parametrize("make", [t5, bart])
def test_default_sites_of_both_halves_feed_the_mlp_in_fact(make):
    model = seeded(make)
    found = lineas.find_sites(model)
    assert [".decoder." in f".{site.name}" for site in found] == [False, False, True, True]
    outputs, inputs = [], []
    for site in found:
        model.get_submodule(site.name).register_forward_hook(lambda m, args, output: outputs.append(output))
    for name, module in model.named_modules():
        if name.endswith((".fc1", ".DenseReluDense")):
            module.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    model(**pair())
    assert len(outputs) == len(inputs) == 4
    assert all(a is b for a, b in zip(outputs, inputs, strict=True))


@pytest.mark.parametrize("make", [t5, bart])
def test_padding_of_either_half_counts_for_nothing(make):
    model = seeded(make)
    src, tgt = pair(), pair(seed=1)
    expected = fit(model, sides=(src, tgt)).history["loss"]
    longer = pair(decoder=8)
    longer["decoder_input_ids"][:, :6] = src["decoder_input_ids"]
    other = src["input_ids"].where(src["attention_mask"] != 0, 7)
    for changed in (longer | {"input_ids": src["input_ids"]}, src | {"input_ids": other}):
        np.testing.assert_allclose(fit(model, sides=(changed, tgt)).history["loss"], expected, rtol=2e-4)


@pytest.mark.parametrize("make", [t5, bart])
def test_from_texts_the_decoder_reads_the_token_that_generation_starts_from(make):
    model = seeded(make)
    start = model.generation_config.decoder_start_token_id
    before = snapshot(model)
    steering = fit(model)
    assert_untouched(model, before)
    assert steering.history["loss"][-1] < 0.5 * steering.history["loss"][0]
    (batch,) = data.as_batches(NEGATIVE, "src", model, WordTokenizer())
    assert batch.kwargs["decoder_input_ids"].tolist() == [[start]] * len(NEGATIVE)
    for other in (batch.kwargs, {k: v for k, v in batch.kwargs.items() if k != "decoder_input_ids"}):
        again = fit(model, sides=(other, TEXTS[1]))
        assert np.array_equal(flat(again), flat(steering))


@pytest.mark.parametrize("make", [t5, bart])
def test_given_labels_the_decoder_reads_what_precedes_them_and_their_padding_does_not_count(make):
    model = seeded(make)
    labels = tokens(4, 6, 9)
    counts = mask_of(1, 6, 4, 2, tokens=6)
    given = {key: value for key, value in pair().items() if not key.startswith("decoder")}
    (batch,) = data.as_batches(given | {"labels": labels.where(counts != 0, -100)}, "src", model)
    assert "labels" not in batch.kwargs
    assert batch.kwargs["decoder_attention_mask"].tolist() == counts.tolist()
    ids = batch.kwargs["decoder_input_ids"]
    assert ids[:, 0].tolist() == [model.config.decoder_start_token_id] * 4
    assert ids[1, 1:].tolist() == labels[1, :-1].tolist()


def test_labels_of_other_models_are_passed_on(llama):
    (batch,) = data.as_batches({"input_ids": IDS, "labels": IDS}, "src", llama)
    assert set(batch.kwargs) == {"input_ids", "labels"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_attention_mask": torch.ones(4, 5)}, r"decoder_attention_mask in the shape of decoder_input_ids"),
        ({"decoder_attention_mask": mask_of(0, 1, 1, 1, tokens=6)}, "sample 0 of a batch is all padding"),
        ({"decoder_attention_mask": torch.ones(4)}, r"expected decoder_attention_mask \(batch, tokens\), got \(4,\)"),
    ],
)
def test_a_bad_mask_of_the_decoder_is_refused(change, message):
    with pytest.raises(ValueError, match=f"src: .*{message}"):
        fit(seeded(t5), sides=(pair(**change), pair()))


def test_a_decoder_without_a_start_is_asked_for():
    model = seeded(t5)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="no decoder_start_token_id; pass decoder_input_ids"):
        fit(model)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_halves_are_told_apart_whatever_their_lengths(length):
    (batch,) = data.as_batches(pair(encoder=6, decoder=6), "src", nn.Module())
    cut = {key: value[:, :length] for key, value in batch.kwargs.items()}
    apart, count = data.Batch((), cut, 4).apart()
    assert count != length
    assert apart.kwargs["decoder_input_ids"].shape == apart.kwargs["decoder_attention_mask"].shape == (4, count)
    assert apart.kwargs["input_ids"].shape == (4, length)


@pytest.mark.parametrize("make", [t5, bart])
def test_a_steered_pair_generates_with_a_cache_what_it_generates_without(make):
    model = seeded(make)
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    plain = model.generate(IDS, use_cache=True, **options)
    with fit(model).apply(model, 3.0):
        cached, uncached = (model.generate(IDS, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, plain)


# -- images --


def vit():
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return hf.ViTModel(hf.ViTConfig(**sizes, image_size=16, patch_size=8))


def convnext():
    import transformers as hf

    return hf.ConvNextModel(hf.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=16))


class UNet(nn.Module):
    """As diffusion's are: images, a time and a context go in, a skip joins both halves, an output object comes out."""

    def __init__(self):
        super().__init__()
        self.time, self.context = nn.Linear(1, 8), nn.Linear(5, 8)
        self.down, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.middle, self.up = nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(16, 3, 2, stride=2)

    def forward(self, sample, timestep, encoder_hidden_states):
        h = torch.relu_(self.norm(self.down(sample)) + self.time(timestep[:, None])[:, :, None, None])
        middle = torch.tanh(self.middle(h) + self.context(encoder_hidden_states).mean(1)[:, :, None, None])
        return {"sample": self.up(torch.cat([h, middle], 1))}


def noisy(n, seed):
    return {
        "sample": normal(n, 3, 8, 8, seed=seed, shift=seed / 2), "timestep": torch.linspace(0, 1, n),
        "encoder_hidden_states": normal(n, 7, 5, seed=seed),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "sites", "sides", "units"),
    [
        (vit, None, [{"pixel_values": normal(8, 3, 16, 16, seed=k, shift=k / 2)} for k in (0, 1)], [16, 16]),
        (
            convnext,
            r".*\.dwconv|.*\.pwconv2",
            [normal(8, 3, 16, 16, seed=k, shift=k / 2) for k in (0, 1)],
            [8, 8, 16, 16],
        ),
        (UNet, ["down", "norm", "middle", "up"], [noisy(8, 0), noisy(9, 1)], [8, 8, 8, 3]),
    ],
)
def test_models_of_images_are_steered_along_their_channels(make, sites, sides, units):
    model = seeded(make)
    before = snapshot(model)
    steering = fit(model, sites=sites, sides=sides)
    assert [len(steering.weight(name)) for name in steering.sites] == units
    assert steering.history["loss"][-1] < 0.5 * steering.history["loss"][0]
    assert_untouched(model, before)
