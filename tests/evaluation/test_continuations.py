"""Perplexity and sampled continuations on a tiny model, against the model itself."""

import math

import pytest
import torch
from conftest import assert_untouched, snapshot, tiny

from lineas import evaluation


class IdTokenizer:
    """Texts are numbers: '3 4 5'."""

    pad_token_id, eos_token_id = None, 1

    def __call__(self, text, **options):
        return {"input_ids": [int(word) for word in text.split()]}

    def batch_decode(self, rows, skip_special_tokens=True):
        return [" ".join(map(str, row.tolist())) for row in rows]


def test_perplexity_is_that_of_each_text_alone(llama):
    texts = ["3 4 5 6 7", "8 9", "10 11 12"]
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[int(word) for word in text.split()]])
        losses = torch.nn.functional.cross_entropy(llama(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total, count = total + float(losses.sum().detach()), count + len(losses)
    before = snapshot(llama)
    got = evaluation.perplexity(llama, texts, tokenizer=IdTokenizer(), batch_size=2)
    assert_untouched(llama, before)
    assert got == pytest.approx(math.exp(total / count), rel=1e-4)


def test_continuations_are_seeded_ordered_and_leave_the_random_state_alone(llama):
    prompts = ["3 4 5 6 7", "8 9"]
    options = {"tokenizer": IdTokenizer(), "count": 3, "new_tokens": 5}
    before = snapshot(llama)
    texts = evaluation.continuations(llama, prompts, seed=1, **options)
    assert_untouched(llama, before)
    assert len(texts) == 6
    assert texts == evaluation.continuations(llama, prompts, seed=1, **options)
    assert texts != evaluation.continuations(llama, prompts, seed=2, **options)
    greedy = {**options, "count": 1, "top_p": 1e-6}  # only the likeliest token is left to sample
    together = evaluation.continuations(llama, prompts, **greedy)
    assert together == [t for p in prompts for t in evaluation.continuations(llama, [p], **greedy)]


def test_what_is_sampled_is_what_generate_samples_token_for_token(llama, monkeypatch):
    ids = torch.randint(1, llama.config.vocab_size, (5, 3), generator=torch.Generator().manual_seed(0))
    prompts = [" ".join(map(str, row)) for row in ids.tolist()]
    for top_k, top_p, temperature in (
        (None, 0.5, 1.0),
        (None, 0.9, 0.7),
        (None, 1.0, 2.0),
        (3, 0.9, 1.0),
        (0, 1.0, 1.0),
    ):
        monkeypatch.setattr(llama.generation_config, "top_k", top_k)
        torch.manual_seed(3)
        out = llama.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_p=top_p, temperature=temperature,
            max_new_tokens=8, pad_token_id=0,
        )  # fmt: skip
        options = {"tokenizer": IdTokenizer(), "new_tokens": 8, "top_p": top_p, "temperature": temperature}
        assert evaluation.continuations(llama, prompts, seed=3, **options) == IdTokenizer().batch_decode(out[:, 3:])


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_what_is_no_causal_language_model_is_refused(kind):
    model = tiny("bert") if kind == "bert" else t5()
    for call in (evaluation.perplexity, evaluation.continuations):
        with pytest.raises(TypeError, match=f"model: expected a causal language model, got {type(model).__name__}"):
            call(model, ["3 4", "5 6"], tokenizer=IdTokenizer())


def t5():
    import transformers as hf

    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).eval()


def test_a_model_that_returns_no_logits_is_refused(llama):
    class Headless(torch.nn.Module):
        def forward(self, input_ids, attention_mask, use_cache):
            return llama.model(input_ids, attention_mask)

    with pytest.raises(
        TypeError, match="model: expected a causal language model, got Headless, which returns no logits"
    ):
        evaluation.perplexity(Headless(), ["3 4", "5 6"], tokenizer=IdTokenizer())


def test_one_string_is_not_taken_for_prompts_of_a_letter_each(llama):
    for call in (evaluation.perplexity, evaluation.continuations):
        with pytest.raises(TypeError, match="expected a list of strings, got one string"):
            call(llama, "3 4", tokenizer=IdTokenizer())
    texts = evaluation.continuations(llama, (p for p in ["3 4", "5 6"]), tokenizer=IdTokenizer(), new_tokens=2)
    assert len(texts) == 2, "an iterator is as good as a list"
