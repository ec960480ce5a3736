"""Models with an encoder and a decoder: each site has the mask of its own tokens."""

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, TEXTS, WordTokenizer, assert_untouched, flat, snapshot
from network_cases import IDS, fit, mask_of, pair, seeded, t5, tokens
from torch import nn

import lineas
from lineas.core import reference
from lineas.network import data


def bart():
    import transformers as hf

    sizes = {f"{half}_{key}": n for half in ("encoder", "decoder") for key, n in (("layers", 2), ("ffn_dim", 24))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = hf.BartConfig(vocab_size=64, d_model=16, max_position_embeddings=32, **sizes, **heads)
    return hf.BartForConditionalGeneration(config)


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
