"""Rankings of units, what several concepts share, files of rankings, and their pictures."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import ROOT, assert_untouched, load_example, normal, snapshot

import lineas
from lineas import evaluation, experts
from lineas.experts import Ranking

mpl.use("Agg")
SIZES = {"a": 3, "b": 2}


def planted(n=20, m=30, seed=0):
    """Responses in which unit 1 of a is high on the positive inputs, and unit 0 of b low; the others are noise."""
    draw = np.random.default_rng(seed)
    positive = {name: draw.normal(size=(n, d)) for name, d in SIZES.items()}
    negative = {name: draw.normal(size=(m, d)) for name, d in SIZES.items()}
    positive["a"][:, 1] += 6
    positive["b"][:, 0] -= 6
    return positive, negative


def lists(units):
    return {name: numbers.tolist() for name, numbers in units.items()}


# -- ranking --


@pytest.mark.parametrize("metric", ["average_precision", "auroc"])
def test_scores_are_those_of_each_sites_responses(llama, texts, tokenizer, metric):
    before = snapshot(llama)
    ranking = experts.rank(llama, *texts, tokenizer=tokenizer, metric=metric, batch_size=5, pooling="last")
    assert_untouched(llama, before)
    positive, negative = (evaluation.responses(llama, side, tokenizer=tokenizer, pooling="last") for side in texts)
    assert ranking.sites == list(positive)
    assert ranking.info == {"model": "LlamaForCausalLM", "pooling": "last", "positive": 12, "negative": 10}
    for site in ranking.sites:
        expected = getattr(experts, metric)(positive[site], negative[site])
        np.testing.assert_allclose(ranking.score(site), expected, atol=1e-3)  # other batches, other rounding
    same = Ranking.from_responses(positive, negative, metric=metric)
    np.testing.assert_allclose(same.score(site), getattr(experts, metric)(positive[site], negative[site]), rtol=1e-12)


def test_planted_experts_come_first_and_either_way_finds_the_low_one_too():
    one_way, either = (Ranking.from_responses(*planted(), either_way=either) for either in (False, True))
    assert lists(one_way.top(1)) == {"a": [1], "b": []}
    assert one_way.score("a")[1] == 1
    assert one_way.score("b")[0] < 0.4
    assert lists(either.top(2)) == lists(either.above(0.99)) == {"a": [1], "b": [0]}
    assert (either.sign("a")[1], either.sign("b")[0]) == (1, -1)
    assert set(one_way.sign("b")) == {1}
    assert lists(one_way.above(1.1)) == {"a": [], "b": []}
    assert sum(map(len, one_way.top(5).values())) == 5


def test_of_units_with_equal_scores_the_first_are_taken():
    values = {"a": np.tile([[1.0], [2.0]], 3), "b": np.tile([[1.0], [2.0]], 2)}
    assert lists(Ranking.from_responses(values, values).top(4)) == {"a": [0, 1, 2], "b": [0]}


def test_units_have_the_form_of_a_support(llama, texts, tokenizer, steering):
    ranking = experts.rank(llama, *texts, tokenizer=tokenizer)
    support = steering.support()
    for units in (ranking.top(7), ranking.above(0.7)):
        assert list(units) == list(support)
        assert {numbers.dtype for numbers in units.values()} == {numbers.dtype for numbers in support.values()}
    assert experts.overlap(ranking.top(48), support, ranking.sizes).jaccard > 0.9


def test_examples_are_the_inputs_on_which_a_unit_is_most_active_or_least_where_it_is_low(llama, texts, tokenizer):
    ranking = experts.rank(llama, *texts, tokenizer=tokenizer, either_way=True, metric="auroc")
    values = [evaluation.responses(llama, side, tokenizer=tokenizer) for side in texts]
    signs = set()
    for expert in ranking.experts(12, examples=4):
        all_values = np.concatenate([side[expert.site][:, expert.unit] for side in values])
        order = np.sort(-expert.sign * all_values)[:4] * -expert.sign
        np.testing.assert_allclose([example.response for example in expert.examples], order, atol=1e-4)
        for example in expert.examples:
            assert example.input == texts[0 if example.positive else 1][example.number]
        signs.add(expert.sign)
        assert expert.score == ranking.score(expert.site)[expert.unit]
    assert signs == {1, -1}
    scores = [expert.score for expert in ranking.experts(12, examples=0)]
    assert scores == sorted(scores, reverse=True)


def test_the_summary_shows_experts_inputs_and_sites_and_nothing_that_a_terminal_obeys(llama, tokenizer):
    dangerous = ["red \x1b[31m film"] * 3
    ranking = experts.rank(llama, dangerous, ["a calm day", "more of it"], tokenizer=tokenizer)
    text = ranking.summary(2, examples=5)
    assert "\x1b" not in text
    assert "red  [31m film" in text
    assert text.count(" unit ") == 2
    assert all(site in text for site in ranking.sites)
    tensors = experts.rank(torch.nn.Sequential(torch.nn.Linear(4, 3)), normal(5, 4), normal(6, 4), "0")
    assert "input 4" in tensors.summary(1, examples=20)


# -- stability --


@pytest.mark.parametrize("how", ["halves", "bootstrap"])
def test_planted_experts_are_stable_and_noise_is_not(how):
    ranking = Ranking.from_responses(*planted(), either_way=True)
    stable = ranking.stability(2, how=how, draws=6)
    assert (stable.jaccard, stable.deviation, stable.draws) == (1, 0, 6)
    assert stable.by_chance < 0.5
    draw = np.random.default_rng(0)
    noise = Ranking.from_responses({"a": draw.normal(size=(20, 400))}, {"a": draw.normal(size=(20, 400))})
    found = noise.stability(40, draws=10)
    assert found.jaccard < 0.1
    assert found.by_chance == pytest.approx(4 / 76)
    assert found == noise.stability(40, draws=10)
    assert found != noise.stability(40, draws=10, seed=1)


def test_halves_share_no_sample_and_have_all_of_an_even_set():
    for first, second in experts.sets.halves(6, 9, draws=5, seed=0):
        assert sorted([*first[0], *second[0]]) == list(range(6))
        assert len(first[1]) == len(second[1]) == 4
        assert not set(first[1]) & set(second[1])


def test_a_threshold_that_no_unit_reaches_has_no_stability():
    found = Ranking.from_responses(*planted()).stability(threshold=2.0, draws=3)
    assert np.isnan(found.jaccard)
    assert found.draws == 3


# -- concepts --


def concept_sets():
    up, side = torch.tensor([5.0, 0, 0, 0]), torch.tensor([0, 5.0, 0, 0])
    return {
        "up": normal(8, 4, seed=1) + up, "up too": normal(7, 4, seed=2) + up, "side": normal(9, 4, seed=3) + side,
        "plain": normal(6, 4, seed=4),
    }  # fmt: skip


class Counting(torch.nn.Sequential):
    samples = 0

    def forward(self, x):
        self.samples += len(x)
        return super().forward(x)


def wide():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Counting(torch.nn.Linear(4, 200))


@pytest.mark.parametrize("shared", [False, True])
def test_each_concept_is_ranked_as_alone_though_the_model_runs_over_each_set_once(shared):
    net, sets = wide(), concept_sets()
    negative = normal(11, 4, seed=9) if shared else None
    rankings = experts.rank_concepts(net, sets, negative, sites="0", metric="auroc")
    runs, samples = len(sets) + shared, sum(map(len, sets.values())) + (11 if shared else 0)
    assert net.samples == samples + 2 * runs  # a look with two samples at each set
    for name, positive in sets.items():
        others = negative if shared else torch.cat([values for other, values in sets.items() if other != name])
        alone = experts.rank(net, positive, others, "0", metric="auroc")
        np.testing.assert_allclose(rankings[name].score("0"), alone.score("0"), rtol=1e-12)
        assert rankings[name].info["concept"] == name
        assert rankings[name].info["negative"] == len(others)


def test_examples_of_a_concept_name_the_right_input_of_the_others(llama, tokenizer):
    sets = {"one": ["red wine", "old wine"], "two": ["a fast car", "my car"], "three": ["wet snow", "deep snow"]}
    rankings = experts.rank_concepts(llama, sets, tokenizer=tokenizer)
    alone = {
        text: values
        for texts in sets.values()
        for text, values in zip(texts, _rows(evaluation.responses(llama, texts, tokenizer=tokenizer)), strict=True)
    }
    for name, ranking in rankings.items():
        expert = ranking.experts(1, examples=6)[0]
        assert {example.input for example in expert.examples} == set(alone)
        for example in expert.examples:
            assert example.positive == (example.input in sets[name])
            assert example.response == pytest.approx(alone[example.input][expert.site][expert.unit], abs=1e-4)


def _rows(values):
    return [{site: array[k] for site, array in values.items()} for k in range(len(next(iter(values.values()))))]


def test_related_concepts_share_experts_and_the_matrix_says_so():
    rankings = experts.rank_concepts(wide(), concept_sets(), sites="0")
    sizes = rankings["up"].sizes
    found = experts.similarity({name: ranking.top(30) for name, ranking in rankings.items()}, sizes)
    assert found.pairs()[0][:2] == ("up", "up too")
    assert found.pairs()[0][2] > 2 * max(found.pairs()[1][2], found.by_chance[0, 1])
    assert np.array_equal(found.jaccard, found.jaccard.T)
    assert np.array_equal(np.diag(found.jaccard), np.ones(4))
    assert found.by_chance[0, 1] == pytest.approx(4.5 / 55.5)
    assert found.jaccard[0, 1] == experts.overlap(rankings["up"].top(30), rankings["up too"].top(30), sizes).jaccard
    text = str(found)
    assert text.splitlines()[-1].endswith("by chance 8.1")
    assert f"{100 * found.jaccard[0, 1]:.0f}" in text.splitlines()[1]


# -- sets of units --


def test_overlap_takes_numbers_and_masks_and_agrees_with_that_of_steerings():
    a, b = lineas.Steering({"0": ([2, 2, 1, 1], [0] * 4)}), lineas.Steering({"0": ([1, 2, 2, 1], [0] * 4)})
    expected = lineas.algebra.overlap(a, b)
    mask = {"0": np.array([False, True, True, False])}
    assert experts.overlap(a.support(), b.support(), {"0": 4}) == expected
    assert experts.overlap({"0": [1, 0, 1]}, mask, {"0": 4}) == expected


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"c": [0]}, "no site 'c'; there is a, b"),
        ({"a": [3]}, "units of 'a': expected 0 to 2, got 3"),
        ({"a": [-1]}, "units of 'a': expected 0 to 2, got -1"),
        ({"a": [[0]]}, "units of 'a': expected whole numbers"),
        ({"b": np.ones(3, bool)}, r"units of 'b': expected a mask \(2,\), got \(3,\)"),
    ],
)
def test_units_that_a_site_does_not_have_are_refused(units, message):
    with pytest.raises((LookupError, TypeError, ValueError), match=message):
        experts.overlap(units, {}, SIZES)


# -- what is refused --


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.top(0), "k: expected a number of units from 1 to 5, got 0"),
        (lambda r: r.top(6), "k: expected a number of units from 1 to 5, got 6"),
        (lambda r: r.stability(), "expected one of k and threshold, got k=None and threshold=None"),
        (lambda r: r.stability(2, threshold=0.5), "expected one of k and threshold"),
        (lambda r: r.stability(2, how="thirds"), "how: expected 'halves' or 'bootstrap', got 'thirds'"),
        (lambda r: r.stability(2, draws=0), "draws: expected a number of at least 1, got 0"),
        (lambda r: Ranking.from_responses(*planted(3, 9)).stability(2), "at least 4 samples in each set"),
        (lambda r: Ranking.from_responses(*planted(), metric="f1"), "metric: expected one of 'average_precision', 'au"),
        (lambda r: Ranking.from_responses({}, {}), "at the same sites, got none and none"),
        (lambda r: Ranking.from_responses({"a": [[1.0]]}, {"b": [[1.0]]}), "at the same sites, got 'a' and 'b'"),
        (lambda r: Ranking.from_responses({"a": [[1.0]]}, {"a": [[np.nan]]}), "site 'a'.*expected finite values"),
        (lambda r: Ranking.from_responses({"a": [[1.0]]}, {"a": [[1.0, 2]]}), r"site 'a'.*got \(1, 1\) and \(1, 2\)"),
        (
            lambda r: Ranking.from_responses({"a": [[1.0]], "b": [[1.0], [2]]}, {"a": [[1.0]], "b": [[1.0]]}),
            r"positive: expected as many samples at every site, got \[1, 2\]",
        ),
        (lambda r: experts.rank_concepts(None, {"a": ["b", "c"]}), "at least two, or a negative set beside one, got 1"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Ranking.from_responses(*planted()))


def test_a_site_that_was_not_ranked_is_not_there():
    with pytest.raises(LookupError, match="no scores for site 'c'; there is a, b"):
        Ranking.from_responses(*planted()).score("c")


def test_an_unknown_metric_is_refused_before_the_model_runs():
    for call in (experts.rank, lambda net, *sets, **how: experts.rank_concepts(net, dict(enumerate(sets)), **how)):
        with pytest.raises(ValueError, match="metric: expected"):
            call(lambda *_: pytest.fail("it ran"), ["a", "b"], ["c", "d"], metric="f1")


# -- the example --


@pytest.mark.slow
def test_the_example_finds_related_concepts_sharing_experts(real_model, tmp_path, capsys):
    example = load_example("expert_units")
    out = tmp_path / "pictures" / "experts.png"
    rankings, found = example.run(count=6, draws=2, out=str(out))
    assert set(rankings) == {name for pair in example.RELATED for name in pair}
    assert found["related"] > 2 * found["others"]
    assert found["auroc"] > 0.8
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Units in common among the top 500 of 17280" in printed


def test_the_examples_sentences_are_as_many_for_each_concept_and_none_twice():
    from csv import DictReader

    with open(ROOT / "examples" / "concepts.csv", encoding="utf-8") as file:
        rows = [(row["concept"], row["text"]) for row in DictReader(file)]
    assert len({text for _, text in rows}) == len(rows) == 192
    assert {sum(name == concept for name, _ in rows) for concept, _ in rows} == {16}


def test_messages_name_the_set_and_concepts_are_a_dict(llama, tokenizer):
    good = ["one two", "three four"]
    for sets, name in (((["one"], good), "positive"), ((good, []), "negative")):
        with pytest.raises(ValueError, match=f"^{name}: expected at least 2 samples, got {len(min(sets, key=len))}"):
            experts.rank(llama, *sets, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"^concepts\['b'\]: expected at least 2 samples, got 0"):
        experts.rank_concepts(llama, {"a": good, "b": []}, tokenizer=tokenizer)
    with pytest.raises(TypeError, match="concepts: expected a dict of name -> inputs, got list"):
        experts.rank_concepts(llama, [good, good], tokenizer=tokenizer)
    with pytest.raises(TypeError, match="threshold: expected a number, got str"):
        Ranking.from_responses(*planted()).above("0.5")
