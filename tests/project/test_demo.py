"""The demo's own code on the real model, with little of everything."""

import pytest
from conftest import load_example, minding_model, small_tokenizer

import lineas
from lineas.evaluation import calibration


@pytest.mark.slow
def test_the_demo_steers_the_real_model(real_model, tmp_path, monkeypatch, capsys):
    demo = load_example("demo")
    demo.FIT_ON = 16
    for name in ("TEXTS", "TOKENS"):  # that the model writes, on which a strength is priced
        monkeypatch.setattr(calibration, name, 16)
    out = tmp_path / "pictures" / "demo.png"
    steering, report = demo.run(max_evaluations=5, prompts=demo.PROMPTS[:4], count=2, sentences=8, out=str(out))
    assert (steering.info["samples"], steering.info["evaluations"]) == ([16, 16], 5)
    kept = [loss for loss, accepted in zip(*map(steering.history.get, ("loss", "accepted")), strict=True) if accepted]
    assert kept[-1] < 0.85 * kept[0], "the maps that C learned bring the two sets together"
    assert 0.05 < steering.info["scaled_by"] < 1, "strength 1 as it was fitted is dear"
    assert steering.dial.cost(1.0).value == pytest.approx(0.05, abs=1e-3)
    rows = report.rows()
    assert [row["strength"] for row in rows] == [0.0, 0.5, 1.0, 2.0]
    assert report.continuations(0.0) != report.continuations(1.0)
    assert 1 < rows[0]["perplexity"] < 1000
    assert rows[2]["perplexity"] < 1.2 * rows[0]["perplexity"]
    assert rows[3]["casual"] > rows[0]["casual"]
    assert out.read_bytes().startswith(b"\x89PNG")
    again = lineas.Steering.from_pretrained(out.with_suffix(""))
    assert (again.sites, again.dial) == (steering.sites, steering.dial)
    printed = capsys.readouterr().out
    for text in ("Loading", "Fitting 30 sites (17280 units)", "5 evaluations", "perplexity", demo.PROMPTS[0]):
        assert text in printed


@pytest.mark.slow
def test_the_demo_scores_texts_of_the_users_by_a_classifier_of_their_other_half(tmp_path, capsys):
    """SRC=, TGT= and MODEL=, here of a small model that lies in a folder."""
    demo, tokenizer = load_example("demo"), small_tokenizer()
    minding_model(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, texts in zip(("src", "tgt"), lineas.samples.formal_and_casual(24, 3), strict=True):
        (tmp_path / name).write_text("\n\n".join(texts), encoding="utf-8")
    steering, report = demo.run(
        src=str(tmp_path / "src"), tgt=str(tmp_path / "tgt"), model_path=str(tmp_path / "model"), max_evaluations=6,
        prompts=["A", "B"], count=2, sentences=2, out=str(tmp_path / "out.png"),
    )  # fmt: skip
    assert steering.info["samples"] == [12, 12]
    assert steering.info["model"] == "model"
    assert {"like_target", "perplexity"} <= set(report.measures)
    printed = capsys.readouterr().out
    assert f"Loading {tmp_path / 'model'}" in printed
    assert "like_target (probability)" in printed


def test_few_texts_are_all_for_the_fit():
    demo = load_example("demo")
    assert demo.halves(["a", "b"]) == (["a", "b"], [])
    fit, known = demo.halves([str(k) for k in range(100)])
    assert (len(fit), len(known)) == (32, 68)
