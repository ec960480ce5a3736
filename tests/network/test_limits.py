"""Which tokens a model can take: those beyond it are named, and a model that goes on beyond its config is let."""

import pytest
import torch
from conftest import NEGATIVE, POSITIVE, WordTokenizer, tiny
from network_cases import fit

import lineas
from lineas.network.data import as_batches
from lineas.network.limits import most_tokens

LONG = " ".join(f"word{k}" for k in range(70))
SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 1,
         "max_position_embeddings": 24}  # fmt: skip


def of_config(name, **options):
    import transformers as hf

    config = getattr(hf, f"{name}Config")(**{**SMALL, **options})
    with torch.random.fork_rng():
        return hf.AutoModel.from_config(config).eval()


MODELS = {  # and how many tokens each takes; None where it goes on
    "gpt2": (lambda: tiny("gpt2"), 64),
    "bert": (lambda: tiny("bert"), 64),
    "llama": (lambda: tiny("llama"), None),
    "gemma2": (lambda: tiny("gemma2"), None),
    "roberta, whose first rows are for padding": (lambda: of_config("Roberta", intermediate_size=24), 22),
    "opt, whose table has two rows more": (lambda: of_config("OPT", ffn_dim=24, word_embed_proj_dim=16), 24),
    "bart": (lambda: of_config("Bart", d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24,
                               encoder_attention_heads=2, decoder_attention_heads=2, decoder_ffn_dim=24), 24),
    "gpt-j, whose table is no embedding": (lambda: of_config("GPTJ", n_embd=16, n_layer=1, n_head=2, rotary_dim=4,
                                                             n_positions=24), 24),
    "esm, whose table is not used": (lambda: of_config("Esm", intermediate_size=24, mask_token_id=2,
                                                       position_embedding_type="rotary"), None),
    "fsmt, whose table grows": (lambda: of_config("FSMT", src_vocab_size=64, tgt_vocab_size=64, d_model=16,
                                                  langs=["en", "de"], encoder_layers=1, decoder_layers=1,
                                                  encoder_attention_heads=2, decoder_attention_heads=2), None),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_limit_is_where_the_model_itself_fails(name):
    make, most = MODELS[name]
    model = make()
    assert most_tokens(model) == most

    def run(tokens):
        ids = torch.full((2, tokens), 5)
        with torch.no_grad():
            model(ids, **({"decoder_input_ids": ids[:, :2]} if model.config.is_encoder_decoder else {}))

    run(most or 100)
    if most is not None:
        with pytest.raises((IndexError, RuntimeError)):
            run(most + 1)


def evaluated(model, texts):
    return lineas.evaluate(model, texts=texts, prompts=(), tokenizer=WordTokenizer(), progress=False)


CALLS = {
    "fit": (lambda model, texts: fit(model, sides=(POSITIVE, texts)), "tgt"),
    "a method": (lambda model, texts: fit(model, sides=(texts, POSITIVE), method="caa", steps=None), "src"),
    "rank": (lambda model, texts: lineas.experts.rank(model, texts, POSITIVE, tokenizer=WordTokenizer()), "positive"),
    "significance": (
        lambda model, texts: lineas.experts.significance(model, POSITIVE, texts, tokenizer=WordTokenizer()),
        "negative",
    ),
    "evaluate": (evaluated, "texts"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_text_beyond_the_models_positions_is_named_with_its_tokens_and_the_limit(call):
    run, name = CALLS[call]
    said = (
        rf"^{name}: text 12 has 70 tokens, and this GPT2LMHeadModel positions for 64; .* max_length=64,.*: 'word0 wor"
    )
    with pytest.raises(ValueError, match=said):
        run(tiny("gpt2"), [*NEGATIVE, LONG])
    if call != "evaluate":  # which takes the shortest first
        with pytest.raises(ValueError, match=r"text 2 has 70 tokens.*\(2 of the first \d+ texts are too long\)"):
            run(tiny("gpt2"), [*NEGATIVE[:2], LONG, LONG, *NEGATIVE])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_long_texts_go_on_where_they_are_cut_or_the_model_computes_positions(kind):
    cut = {"max_length": 64} if kind == "gpt2" else {}
    sides = [*NEGATIVE, LONG], POSITIVE
    assert fit(tiny(kind), sides=sides, **cut).history["loss"]
    for text in (LONG, " ".join(LONG.split()[:64])):
        assert lineas.evaluation.perplexity(tiny(kind), [text, "a b"], tokenizer=WordTokenizer(), **cut) > 1


def test_tokens_beyond_the_positions_are_refused_unless_their_positions_are_given():
    model, ids = tiny("gpt2"), torch.full((3, 65), 5)
    for given, name in ((ids, "the tensor"), ({"input_ids": ids}, "input_ids")):
        with pytest.raises(
            ValueError, match=rf"src: expected at most 64 tokens.*{name} \(3, 65\): cut it to \[:, :64\]"
        ):
            as_batches(given, "src", model)
    positions = (torch.arange(65) % 64).expand(3, -1)
    (batch,) = as_batches({"input_ids": ids, "position_ids": positions}, "src", model)
    model(**batch.kwargs)
    as_batches(ids[:, :64], "src", model)


def test_a_prompt_that_leaves_no_room_for_what_shall_come_is_refused():
    class Tokenizer(WordTokenizer):
        def batch_decode(self, rows, skip_special_tokens=True):
            return ["" for _ in rows]

    def go_on(new_tokens):
        prompts = ["a b", " ".join(LONG.split()[:60])]
        return lineas.evaluation.continuations(tiny("gpt2"), prompts, tokenizer=Tokenizer(), new_tokens=new_tokens)

    assert len(go_on(5)) == 2
    with pytest.raises(ValueError, match=r"prompts: prompt 1 has 60 tokens, and new_tokens is 6; .* for 64 in all"):
        go_on(6)


def test_tokens_that_the_model_does_not_know_are_refused():
    with pytest.raises(
        ValueError, match=r"src: expected tokens below 64, .* LlamaForCausalLM .*; got \d+: is the token"
    ):
        fit(tiny("llama"), sides=([*NEGATIVE, LONG], POSITIVE), tokenizer=WordTokenizer(5000))
    with pytest.raises(ValueError, match=r"tgt: expected tokens below 64, .* got 64"):
        as_batches(torch.full((2, 3), 64), "tgt", tiny("bert"))
    pictures = {"input_ids": torch.full((2, 3), 64), "pixel_values": torch.zeros(2, 3)}  # a picture's own token
    assert as_batches(pictures, "src", tiny("llama"))
