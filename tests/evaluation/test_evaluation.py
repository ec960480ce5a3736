"""lineas.evaluate and its report: utility beside effect, seeds, strengths, intervals; on a tiny model, offline."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, WordTokenizer, assert_untouched, random_maps, snapshot, tiny
from scipy import stats

import lineas
from lineas import Steering, evaluation
from lineas.evaluation import Report

PROMPTS = ("this is a", "what great joy")
TEXTS = ["so it goes on and on", "a b c", "one two three four five six seven eight nine", "here we are again now"]


class Tokenizer(WordTokenizer):
    """Tokens become words again."""

    def batch_decode(self, rows, skip_special_tokens=True):
        return [" ".join(f"w{token}" for token in row.tolist()) for row in rows]


def length(texts):
    return [float(len(text)) for text in texts]


def evaluate(model, steering=None, **options):
    given = {
        "tokenizer": Tokenizer(), "prompts": PROMPTS, "texts": TEXTS, "scorers": {"length": length}, "count": 3,
        "new_tokens": 4, "progress": False, **options,
    }  # fmt: skip
    return lineas.evaluate(model, steering, **given)


@pytest.fixture(scope="module")
def world():
    """A model, a steering, and a report with everything in it."""
    model = tiny("llama")
    steering = random_maps(model, size=0.3)
    report = evaluate(
        model, {"all": steering, "last": steering.restricted(steering.sites[-1:])}, strengths=(1, 2.0), seeds=(0, 1, 2),
        src=NEGATIVE, tgt=POSITIVE,
    )  # fmt: skip
    return model, steering, report


def test_perplexity_and_continuations_are_those_of_the_parts(world):
    model, steering, report = world
    tokenizer = Tokenizer()
    options = {"tokenizer": tokenizer, "count": 3, "new_tokens": 4, "batch_size": 256}
    for strength in (0.0, 2.0):
        with steering.apply(model, strength):
            perplexity = evaluation.perplexity(model, TEXTS, tokenizer=tokenizer)
            texts = evaluation.continuations(model, PROMPTS, seed=1, **options)
        assert report.estimate("perplexity", strength, "all").value == pytest.approx(perplexity, rel=1e-6)
        assert report.continuations(strength, "all", seed=1) == texts
    every = report.continuations(2.0, "all")
    assert len(every) == 3 * len(texts)
    found = report.estimate("length", 2.0, "all")
    assert found.value == pytest.approx(np.mean(length(every)))
    for n in (1, 2, 3):
        each = [evaluation.distinct(report.continuations(2.0, "all", seed), n) for seed in (0, 1, 2)]
        assert report.estimate(f"distinct_{n}", 2.0, "all").value == pytest.approx(np.mean(each))


def test_kl_is_that_of_each_text_alone(world):
    """Padding counts nowhere: not in the sums, not in the mean."""
    model, steering, report = world
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([Tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            base = model(ids).logits[0].double().log_softmax(-1)
            with steering.apply(model, 2.0):
                steered = model(ids).logits[0].double().log_softmax(-1)
        total, count = total + float((steered.exp() * (steered - base)).sum()), count + ids.numel()
    assert total / count > 0.01, "the steering does something"
    assert report.estimate("kl", 2.0, "all").value == pytest.approx(total / count, rel=1e-4)
    alone = evaluation.kl_divergence(model, TEXTS, steering, 2.0, tokenizer=Tokenizer(), batch_size=2)
    assert alone == pytest.approx(total / count, rel=1e-4)
    assert report.estimate("kl").value == 0


def test_a_report_keeps_each_texts_figures_in_the_order_of_the_texts(world):
    model, _, report = world
    base = {o.measure: o for o in report.outcomes if o.steering is None}
    words = [len(text.split()) for text in TEXTS]
    assert base["kl"].counts == tuple(map(float, words))
    assert base["perplexity"].counts == tuple(n - 1.0 for n in words)
    alone = [math.log(evaluation.perplexity(model, [text] * 2, tokenizer=Tokenizer())) for text in TEXTS]
    each = np.divide(base["perplexity"].totals, base["perplexity"].counts)
    assert each == pytest.approx(alone, rel=1e-4)


def test_held_out_distance_is_that_of_a_fit_relative_to_no_steering(world):
    """At the sites of all steerings, so that they are compared on the same ones."""
    model, steering, report = world
    fitted = lineas.fit(
        model, NEGATIVE, POSITIVE, tokenizer=Tokenizer(), sites=steering.sites, loss="wasserstein", max_evaluations=1,
        progress=False,
    )  # fmt: skip
    options = {"sites": steering.sites, "tokenizer": Tokenizer()}
    goal = evaluation.responses(model, POSITIVE, **options)
    before = evaluation.distance(evaluation.responses(model, NEGATIVE, **options), goal)
    assert before == pytest.approx(fitted.history["loss"][0], rel=1e-4)
    assert report.estimate("held_out").value == 1
    for name, maps in (("all", steering), ("last", steering.restricted(steering.sites[-1:]))):
        with maps.apply(model, 2.0):
            after = evaluation.distance(evaluation.responses(model, NEGATIVE, **options), goal)
        assert report.estimate("held_out", 2.0, name).value == pytest.approx(after / before, rel=1e-4)


def test_the_model_and_the_random_state_are_left_alone_also_after_an_error(model, steering):
    before = snapshot(model)
    numpy_before = np.random.get_state()[1].tolist()  # noqa: NPY002 -- what somebody else may draw from
    evaluate(model, steering, src=NEGATIVE, tgt=POSITIVE)
    assert_untouched(model, before)
    with pytest.raises(RuntimeError, match="no score"):
        evaluate(model, steering, scorers=fail)
    assert_untouched(model, before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


def fail(texts):
    raise RuntimeError("no score")


def test_seeds_are_reproducible_and_matter(model, steering):
    first = evaluate(model, steering, seeds=(3, 4))
    assert first == evaluate(model, steering, seeds=(3, 4))
    assert first.continuations(1.0, seed=3) != first.continuations(1.0, seed=4)
    assert first.continuations(1.0, seed=4) == evaluate(model, steering, seeds=4).continuations(1.0)


def test_position_is_that_of_apply(model, steering):
    """In a plain pass over texts there is no generated token; while the model goes on from prompts, there are."""
    report = evaluate(model, steering, position="generated")
    assert report.estimate("kl", 1.0).value == 0
    with steering.apply(model, position="generated"):
        texts = evaluation.continuations(
            model, PROMPTS, tokenizer=Tokenizer(), count=3, new_tokens=4, batch_size=256
        )  # fmt: skip
    assert report.continuations(1.0) == texts != report.continuations()


def test_the_base_model_is_always_there_and_once(world):
    _, _, report = world
    assert report.steerings == ["all", "last"]
    assert report.strengths("all") == [1.0, 2.0]
    cells = [(row["steering"], row["strength"]) for row in report.rows()]
    assert cells == [(None, 0.0), ("all", 1.0), ("all", 2.0), ("last", 1.0), ("last", 2.0)]
    assert report.rows()[0]["perplexity_change"] == 0


def test_strength_zero_and_no_steering_are_the_base_model(model, steering):
    alone = evaluate(model)
    assert [row["strength"] for row in alone.rows()] == [0.0]
    with_zero = evaluate(model, steering, strengths=(0.0, 1.0))
    assert [row["strength"] for row in with_zero.rows()] == [0.0, 1.0]
    assert with_zero.estimate("perplexity") == alone.estimate("perplexity")


def test_what_is_on_already_is_told_and_kept(model, steering):
    options = {"strengths": 1.0, "count": 1, "new_tokens": 2}
    assert "attached" not in evaluate(model, steering, **options).settings[0]
    with (
        random_maps(model, 5).apply(model, position="last"),
        pytest.warns(UserWarning, match="1 steerings are on this model: its figures without steering"),
    ):
        (settings,) = evaluate(model, steering, **options).settings
    assert [entry["position"] for entry in settings["attached"]] == ["last"]


def test_intervals_over_samples_are_students(model, steering):
    """With one seed. A mean over tokens is a ratio of sums over texts, a perplexity the exponential of one."""
    report = evaluate(model, steering, confidence=0.9)
    scores = length(report.continuations(1.0))
    found = report.estimate("length", 1.0)
    t = stats.t.ppf(0.95, len(scores) - 1)
    assert found[:2] == pytest.approx((np.mean(scores), stats.sem(scores)))
    assert (found.low, found.high) == pytest.approx((found.value - t * found.error, found.value + t * found.error))
    assert (found.over, found.n) == ("samples", len(scores))
    apart = np.subtract(scores, length(report.continuations()))
    assert report.change("length", 1.0)[:2] == pytest.approx((np.mean(apart), stats.sem(apart)))
    losses = next(outcome for outcome in report.outcomes if (outcome.measure, outcome.strength) == ("perplexity", 1.0))
    total, count = np.array(losses.totals), np.array(losses.counts)
    rate = total.sum() / count.sum()
    error = np.sqrt(len(total) * np.var(total - rate * count, ddof=1)) / count.sum()
    half = stats.t.ppf(0.95, len(total) - 1) * error
    found = report.estimate("perplexity", 1.0)
    ends = np.exp([rate, rate - half, rate + half])
    assert (found.value, found.low, found.high, found.n) == pytest.approx((*ends, len(TEXTS)))


def test_intervals_over_seeds_are_students_where_there_are_several(world):
    _, _, report = world
    means = [np.mean(length(report.continuations(1.0, "all", seed))) for seed in (0, 1, 2)]
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    found = report.estimate("length", 1.0, "all")
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(means), low, high))
    assert (found.over, found.n) == ("seeds", 3)
    assert report.estimate("perplexity", 1.0, "all").over == "samples", "texts are not drawn"


def test_several_runs_count_as_samples_of_one_method(model):
    """As of steerings that were fitted on other data: seeds within a run are averaged first."""
    runs = [evaluate(model, {"mine": random_maps(model, seed)}, strengths=1.0, seeds=(0, seed)) for seed in (1, 2, 3)]
    both = runs[0] + runs[1] + runs[2]
    for name in ("length", "perplexity", "self_bleu"):
        values = [run.estimate(name, 1.0).value for run in runs]
        found = both.estimate(name, 1.0)
        assert found[:2] == pytest.approx((np.mean(values), stats.sem(values)))
        assert (found.over, found.n) == ("runs", 3)
    gains = [run.change("perplexity", 1.0).value for run in runs]
    assert both.change("perplexity", 1.0)[:2] == pytest.approx((np.mean(gains), stats.sem(gains)))
    assert len(both.settings) == 3
    assert "3 runs" in str(both)


def test_a_report_goes_to_json_and_back(world, tmp_path):
    _, _, report = world
    text = report.to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == text
    assert Report.from_json(text) == Report.from_json(tmp_path / "report.json") == report
    assert Report.from_json(text).estimate("length", 1.0, "all") == report.estimate("length", 1.0, "all")


def test_json_has_no_nan_and_reads_it_back(model):
    report = evaluate(model, new_tokens=1, prompts=("a",), count=1)  # no text has two words
    assert math.isnan(report.estimate("distinct_2").value)
    text = report.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert math.isnan(Report.from_json(text).estimate("distinct_2").value)
    assert "distinct_2" in str(report)


@pytest.mark.parametrize("text", ["{}", '{"format": "lineas evaluation", "version": 9}', '{"a": ', "{1}"])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"expected what Report\.to_json writes"):
        Report.from_json(text)


@pytest.mark.parametrize(
    ("key", "value"), [("strength", "1"), ("totals", ["a"]), ("totals", []), ("measure", "mood"), ("run", 9)]
)
def test_json_that_no_report_writes_is_refused_at_once(key, value, model, steering):
    content = json.loads(evaluate(model, steering, strengths=1.0).to_json())
    content["outcomes"][-1][key] = value
    with pytest.raises(ValueError, match=r"expected what Report\.to_json writes"):
        Report.from_json(json.dumps(content))


def test_a_table_has_a_line_for_each_strength_and_says_what_intervals_are_over(world):
    _, _, report = world
    text = str(report)
    assert max(map(len, text.splitlines()[:-3])) <= 120
    for row in ("base model         0", "all                1", "last               2"):
        assert row in text
    assert "perplexity, kl over 4 texts" in text
    assert "length, distinct_2, self_bleu over 3 seeds" in text
    assert "lower: perplexity, kl, self_bleu, held_out; higher: length, distinct_2" in text
    value, low, high = (report.rows()[2][f"length{end}"] for end in ("", "_low", "_high"))
    assert f"{value:.3f} +- {(high - low) / 2:.3f}" in text
    assert "distinct_1" in report.table(["distinct_1"])
    assert "perplexity" not in report.table(["distinct_1"])
    with pytest.raises(LookupError, match="measures: expected some of perplexity, kl, .*; got lenght"):
        report.table(["lenght"])


def test_markdown_and_html_have_the_same_cells_and_escape_names(model, steering):
    report = evaluate(model, {"<b> | \x1b[2J": steering}, strengths=1.0, scorers={"\x1b[2J": length})
    cell = f"{report.estimate('perplexity', 1.0).value:.1f}"
    markdown, html = report.to_markdown(), report._repr_html_()
    assert markdown.splitlines()[1].startswith("| --- | ---: |")
    assert len({line.count(" | ") for line in markdown.splitlines()[:4]}) == 1
    assert cell in markdown
    assert cell in html
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "\x1b" not in markdown + html + str(report)


def test_a_report_is_drawn_with_a_line_for_each_steering(world):
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    mpl.use("Agg")
    _, _, report = world
    ax = report.plot()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(legend) == ["all", "base model", "last", "standard error"]
    assert ax.get_ylabel() == "length"
    lines = {line.get_label(): line for line in ax.lines}
    drawn = [report.estimate("perplexity", s, "last").value for s in (0.0, 1.0, 2.0)]
    assert lines["last"].get_xdata().tolist() == drawn
    assert report.plot("distinct_2").get_ylabel() == "distinct_2"
    with pytest.raises(LookupError, match="expected perplexity or pixel_change, and an effect, among"):
        report.plot("mood")


def test_a_plain_network_has_a_held_out_distance(mlp):
    inputs = [torch.randn(20, 4, generator=torch.Generator().manual_seed(k)) + k for k in range(2)]
    steering = lineas.fit(mlp, *inputs, sites="first", progress=False)
    report = lineas.evaluate(mlp, steering, strengths=1, texts=(), prompts=(), src=inputs[0], tgt=inputs[1])
    assert list(report.measures) == ["held_out"]
    assert report.estimate("held_out", 1.0).value < 0.5
    assert math.isnan(report.estimate("held_out", 1.0).low), "one number has no interval"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steering": [1]}, TypeError, "steering: expected a Steering or a dict of them by name, got list"),
        ({"steering": {"a": 1}}, TypeError, "expected str -> Steering, got 'a' -> int"),
        ({"strengths": (1.0, math.nan)}, ValueError, "strengths: expected a finite number"),
        ({"seeds": ()}, ValueError, "seeds: expected at least one"),
        ({"src": NEGATIVE}, ValueError, "expected src and tgt, or neither; got only src"),
        ({"strengths": "12"}, TypeError, "strengths: expected numbers, got str '12'"),
        ({"strengths": ["1"]}, TypeError, "strengths: expected a number, got str"),
        ({"strengths": None}, TypeError, "strengths: expected numbers, got NoneType"),
        ({"strengths": True}, TypeError, "strengths: expected a number, got bool"),
        ({"seeds": "01"}, TypeError, "seeds: expected whole numbers, got str '01'"),
        ({"seeds": 1.5}, ValueError, "seeds: expected a whole number, got 1.5"),
        ({"texts": "a text"}, TypeError, "texts: expected a list of strings, got one string"),
        ({"texts": ["one", None]}, TypeError, "texts: expected strings, got None at position 1"),
        ({"prompts": "a text"}, TypeError, "prompts: expected a list of strings, got one string"),
        ({"prompts": 3}, TypeError, "prompts: expected a list of strings, or of chats, got int"),
        ({"texts": (), "prompts": ()}, ValueError, "expected something to measure: .* got none of them"),
        ({"count": 0}, ValueError, "count: expected a whole number of at least 1, got 0"),
        ({"new_tokens": "24"}, ValueError, "new_tokens: expected a whole number of at least 1, got '24'"),
        ({"temperature": 0}, ValueError, "temperature: expected a number above 0, got 0; top_p=1e-6"),
        ({"top_p": 90}, ValueError, "top_p: expected a number above 0, at most 1, got 90"),
        ({"confidence": 95}, ValueError, "confidence: expected a number between 0 and 1, got 95"),
        ({"scorers": {"kl": length}}, ValueError, "scorers: expected other names than perplexity, kl, .*; got kl"),
        ({"scorers": "sentimant"}, ValueError, "expected 'sentiment', 'toxicity', 'hf:' .*got 'sentimant'"),
        ({"position": "first"}, ValueError, "position: expected one of 'all'"),
        ({"steering": Steering({"gone": ([1.0], [1.0])})}, LookupError, "gone"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(options, error, message, model, steering, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    with pytest.raises(error, match=message):
        evaluate(model, **{"steering": steering, **options})


def test_texts_without_anything_to_measure_are_refused(model, steering):
    with pytest.raises(ValueError, match="texts: expected some with at least 2 tokens"):
        evaluate(model, steering, texts=["a", "b"])
    with pytest.raises(ValueError, match="src, tgt: expected sets that the model responds to differently"):
        evaluate(model, steering, src=TEXTS, tgt=TEXTS)


def test_asking_for_what_is_not_there_says_what_is(world):
    _, _, report = world
    with pytest.raises(LookupError, match="measure: expected one of perplexity, kl, length, .*; got 'mood'"):
        report.estimate("mood")
    with pytest.raises(LookupError, match=r"length was not measured at strength 3; there is 0, 1, 2"):
        report.estimate("length", 3.0, "all")
    with pytest.raises(LookupError, match="steering: expected one of all, last; got None"):
        report.estimate("length", 1.0)
    with pytest.raises(LookupError, match="no continuations at strength 1, seed 7"):
        report.continuations(1.0, "all", seed=7)
    other = evaluate(tiny("llama"), scorers=evaluation.Scorer("length", length, "lower"))
    with pytest.raises(ValueError, match="expected one meaning of length"):
        report + other
