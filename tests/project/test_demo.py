"""The demo's own code on the real model, with little of everything."""

import numpy as np
import pytest
from conftest import load_example

import lineas


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
