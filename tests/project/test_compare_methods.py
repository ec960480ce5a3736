"""examples/compare_methods.py: what it measures on a small model, and what its table says of given rows."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_untouched, load_example, small_model, small_tokenizer, snapshot

import lineas


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for more
    yield load_example("compare_methods")
    torch.set_num_threads(threads)


def rows_of(compare, path, task="sentiment", seeds=(0, 1, 2)):
    """Rows of methods whose price and effect at each strength are as given; effects are larger with every seed."""
    rows = []
    for seed in seeds:
        zero = {"task": task, "seed": seed, "evaluations": 3, "seconds": 2.0, "support": 7, "held_out": 2.0}
        rows.append({**zero, "method": "none", "strength": 0.0, "perplexity": 100.0, "effect": 0.5})
        for method, at in path.items():
            for strength, price, effect in at:
                own = {"strength": strength, "perplexity": 100 * (1 + price), "effect": 0.5 + effect * (1 + seed)}
                rows.append({**zero, "method": method, **own, "held_out": 1.0})
    return rows


PATHS = {"lineas": [(1.0, 0.1, 0.2), (2.0, 0.3, 0.4)], "caa": [(0.5, 0.2, 0.1), (1.0, 0.02, 0.3)]}


def test_effects_at_a_price_are_read_off_the_line_between_strengths(compare):
    rows = rows_of(compare, PATHS)
    assert compare.effect_at(rows, "sentiment", "lineas", 0.05)[0] == pytest.approx(0.1)
    assert compare.effect_at(rows, "sentiment", "lineas", 0.2)[0] == pytest.approx(0.3)
    assert compare.effect_at(rows, "sentiment", "lineas", 0.5)[0] == pytest.approx(0.4), "no further than it went"
    assert compare.effect_at(rows, "sentiment", "caa", 0.11)[2] == pytest.approx(3 * 0.2), "by price, not by strength"
    assert compare.effect_at(rows, "sentiment", "aura", 0.05) == {}


def test_an_effect_that_hurts_counts_as_such(compare):
    rows = rows_of(compare, {"lineas": [(1.0, 0.3, 0.1)], "repe": [(0.5, -0.01, 0.3), (1.0, 0.2, -0.4)]})
    assert compare.effect_at(rows, "sentiment", "repe", 0.1)[0] == pytest.approx(-0.2)


def test_the_table_has_a_line_for_each_method_measured_with_intervals_over_draws(compare):
    head, rule, *lines = compare.table(rows_of(compare, PATHS), "sentiment")
    assert head.count("|") == rule.count("|") == lines[0].count("|")
    assert [line.split("|")[1].strip() for line in lines] == ["lineas", "caa"]
    cells = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    assert cells[:5] == ["lineas", "3", "2", "7", "0.50"]
    assert cells[6] == f"{0.4:+.3f} ± {4.3027 * 0.2 / 3**0.5:.3f}", "Student's t over three draws"
    assert lines[1].split("|")[-3].strip().startswith("+0.022"), "less the default, draw by draw"


def test_a_page_keeps_its_words_and_gets_tables_and_a_picture(compare, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("# Words\n\n<!-- sentiment -->\nold\n<!-- end of sentiment -->\n\nmore words\n")
    compare.write(rows_of(compare, PATHS), page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Words")
    assert text.endswith("more words\n")
    assert "| caa |" in text
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_method_is_fitted_and_measured_and_nothing_twice(compare, monkeypatch):
    tokenizer = small_tokenizer()
    model = small_model(len(tokenizer))
    monkeypatch.setattr(compare, "NEUTRAL", 4)
    monkeypatch.setattr(compare, "FITTED", 6)
    monkeypatch.setattr(compare, "HELD_OUT", 5)
    monkeypatch.setattr(compare, "RUIN", 1e6)
    before = snapshot(model)
    draw = compare.Draw(model, tokenizer, "sentiment", 0, 16)
    rows = list(compare.run(draw, compare.METHODS, (0.5, 1.0), []))
    assert_untouched(model, before)
    assert {(row["method"], row["strength"]) for row in rows} == {
        ("none", 0.0), *((method, strength) for method in compare.METHODS for strength in (0.5, 1.0))
    }  # fmt: skip
    zero = next(row for row in rows if row["method"] == "none")
    assert zero["perplexity"] == pytest.approx(
        lineas_perplexity(compare, model, tokenizer), rel=1e-6
    ), "strength 0 is the model itself"  # fmt: skip
    assert all(np.isfinite(row["effect"]) for row in rows)
    assert all(row["support"] > 0 for row in rows if row["method"] != "lineas, L1")
    assert len({round(row["perplexity"], 6) for row in rows if row["strength"] == 1.0}) >= 10
    json.dumps(rows)
    assert not list(compare.run(draw, compare.METHODS, (0.5, 1.0), rows))
    (first,) = (row for row in rows if (row["method"], row["strength"]) == ("caa", 1.0))
    again = list(compare.run(draw, ["caa"], (1.0,), [row for row in rows if row is not first]))
    assert {**again[0], "seconds": 0} == {**first, "seconds": 0}, "the same draw, the same figures"


def test_nothing_is_sampled_where_the_price_is_ruin(compare, monkeypatch):
    tokenizer = small_tokenizer()
    for name, value in {"NEUTRAL": 4, "FITTED": 6, "HELD_OUT": 5, "RUIN": -0.5}.items():
        monkeypatch.setattr(compare, name, value)
    draw = compare.Draw(small_model(len(tokenizer)), tokenizer, "sentiment", 0, 16)
    rows = list(compare.run(draw, ["caa"], (0.5, 1.0), []))
    assert len(rows) == 3
    assert all("perplexity" in row and "effect" not in row for row in rows)


def test_strengths_follow_until_the_price_is_reached(compare, monkeypatch):
    draw = compare.Draw(None, None, "sentiment", 0, 16)

    def measured(law, **own):
        """Of a method whose price is a law of the strength."""
        monkeypatch.setattr(
            compare.Draw, "measure", lambda self, _, strength: {"perplexity": 100 * (1 + law(strength))}
        )
        nothing = lineas.Steering({"a": ([1.0], [0.0])}, info={"evaluations": 1, "seconds": 1.0})
        monkeypatch.setitem(compare.METHODS, "caa", compare.Method(lambda draw: nothing, (1.0, 2.0)))
        monkeypatch.setattr(compare, "NONE", compare.METHODS["caa"]._replace(strengths=(0.0,)))
        return [row["strength"] for row in compare.run(draw, ["caa"], own.get("strengths"), [])]

    assert measured(lambda s: 0.03 * s) == [0, 1, 2, 3, 4.5], "larger ones, until one costs more"
    assert measured(lambda s: 0.06 * s) == [0, 1, 2]
    assert measured(lambda s: 0.06 * s**5) == [0, 1, 2, 1.5], "or smaller ones, where the next is ruin"
    assert measured(lambda s: 0.06 * s**5, strengths=(1.0,)) == [0, 1], "only what was asked for"
    assert measured(lambda s: 2 * s) == [0, 1, 2, 0.5, 0.25], "also where all are ruin"
    assert measured(lambda s: 0.0) == [0, 1, 2, 3, 4.5], "and not for ever"


def test_the_picture_leaves_out_means_of_the_draws_that_are_left(compare, monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    rows = rows_of(compare, {"caa": [(0.5, 0.2, 0.1), (1.0, 0.4, 0.3)]})
    del rows[-1]["effect"]  # of strength 1, in one draw of three
    drawn, plot, names, text = [], Axes.plot, [], Axes.text

    def listen(self, x, y, **options):
        drawn.append(x)
        return plot(self, x, y, **options)

    def read(self, x, y, name, **options):
        names.append(name)
        return text(self, x, y, name, **options)

    monkeypatch.setattr(Axes, "plot", listen)
    monkeypatch.setattr(Axes, "text", read)
    compare.draw_fronts(rows, tmp_path / "fronts.png")
    assert len(drawn) == 1
    assert drawn[0] == pytest.approx([0.0, 20.0])
    assert names == ["caa"]


def test_every_method_is_in_one_panel_of_the_picture(compare):
    shown = [method for some in compare.FAMILIES.values() for method in some]
    assert sorted([*shown, "lineas"]) == sorted(compare.METHODS)
    assert max(map(len, compare.FAMILIES.values())) <= len(compare.COLOURS) == len(compare.STYLES)


def lineas_perplexity(compare, model, tokenizer):
    from lineas import evaluation, samples

    return evaluation.perplexity(model, sorted(samples.neutral_sentences(4), key=len), tokenizer=tokenizer)


def test_no_sentence_is_in_two_sets_and_prompts_provoke(compare):
    for task in compare.TASKS:
        for seed in range(2):
            sets, prompts = compare.sentences(task, seed)
            assert [len(texts) for texts in sets] == [32, 32, 50, 50]
            assert not set(sets[0]) & set(sets[2])
            assert not set(sets[1]) & set(sets[3])
            if task == "toxicity":
                used = [text for texts in sets for text in texts]
                assert not any(" ".join(text.split()).startswith(prompt) for text in used for prompt in prompts)


def test_the_page_has_the_tables_of_the_rows_that_are_kept(compare):
    rows = [json.loads(line) for line in compare.JSON.read_text(encoding="utf-8").splitlines()]
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for task in compare.TASKS:
        block = page.split(f"<!-- {task} -->\n")[1].split(f"\n<!-- end of {task} -->")[0]
        assert block.splitlines() == compare.table(rows, task)
