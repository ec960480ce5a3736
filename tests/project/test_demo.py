"""The demo's own code on the real model, with little of everything; and perplexity and sampling on a tiny one."""

import math

import numpy as np
import pytest
import torch
from conftest import assert_untouched, load_example, snapshot

import lineas
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


@pytest.mark.slow
def test_the_demo_steers_the_real_model(real_model, tmp_path, capsys):
    demo = load_example("demo")
    out = tmp_path / "pictures" / "demo.png"
    steering, report = demo.run(
        max_evaluations=5, l1=2e-6, prompts=lineas.samples.PROMPTS[:4], count=2, sentences=8, out=str(out)
    )
    assert steering.info["evaluations"] == 5
    kept = [loss for loss, accepted in zip(*map(steering.history.get, ("loss", "accepted")), strict=True) if accepted]
    assert kept[-1] < 0.85 * kept[0], "the maps that C learned bring the two sets together"
    rows = report.rows()
    assert [row["strength"] for row in rows] == [0.0, 0.5, 1.0]
    assert report.continuations(0.0) != report.continuations(1.0)
    assert 1 < rows[0]["perplexity"] < 1000
    assert rows[2]["perplexity"] < 1.15 * rows[0]["perplexity"]
    assert np.all(np.abs([row["sentiment"] for row in rows]) <= 1)
    assert out.read_bytes().startswith(b"\x89PNG")
    again = lineas.Steering.from_pretrained(out.with_suffix(""))
    assert again.sites == steering.sites
    printed = capsys.readouterr().out
    for text in ("Loading", "Fitting 30 sites (17280 units)", "5 evaluations", "perplexity", lineas.samples.PROMPTS[0]):
        assert text in printed


@pytest.mark.slow
def test_the_demo_takes_other_texts(real_model, tmp_path):
    demo = load_example("demo")
    for name in ("src", "tgt"):
        (tmp_path / name).write_text(f"first {name} text\n\nsecond {name} text\n", encoding="utf-8")
    steering, _ = demo.run(
        src=str(tmp_path / "src"), tgt=str(tmp_path / "tgt"), max_evaluations=2, prompts=["A", "B"], count=1,
        sentences=2, out=str(tmp_path / "out.png"),
    )  # fmt: skip
    assert steering.info["samples"] == [2, 2]
