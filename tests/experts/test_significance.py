"""Tests of units: p-values, false discoveries, what limits them, and that noise passes no more often than it may."""

import numpy as np
import pytest
import torch
from conftest import assert_untouched, normal, snapshot

import lineas
from lineas import evaluation, experts
from lineas.experts import Significance, significant


def shifted(n=24, m=20, units=60, moved=6, by=3.0, seed=0):
    """Two sites of `units` units; the first `moved` of the second site differ."""
    draw = np.random.default_rng(seed)
    one, other = ({name: draw.normal(size=(count, units)) for name in ("a", "b")} for count in (n, m))
    one["b"][:, :moved] += by
    return one, other


# -- false discoveries --


@pytest.mark.parametrize("method", ["bh", "by"])
@pytest.mark.parametrize("shape", [(1,), (7,), (1000,), (5, 8)])
def test_adjusted_p_values_are_those_of_scipy(method, shape):
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(len(shape)).random(shape) ** 3
    values.flat[0] = 1.0
    values.flat[-1] = values.flat[len(values.flat) // 2]  # a tie
    expected = scipy_stats.false_discovery_control(values, axis=None, method=method).reshape(shape)
    np.testing.assert_allclose(experts.false_discovery(values, method), expected, rtol=1e-12)


def test_what_is_no_p_value_or_method_is_refused():
    for values in ([0.5, 1.1], [-0.1], [np.nan], []):
        with pytest.raises(ValueError, match="p_values: expected at least one, all from 0 to 1"):
            experts.false_discovery(values)
    with pytest.raises(ValueError, match="method: expected 'bh' or 'by', got 'holm'"):
        experts.false_discovery([0.5], "holm")
    with pytest.raises(TypeError, match="p_values: expected real numbers"):
        experts.false_discovery(["0.5"])


# -- the test itself --


def test_p_values_distances_and_nulls_are_those_of_lineas_ot(llama, texts, tokenizer):
    before = snapshot(llama)
    found = experts.significance(llama, *texts, tokenizer=tokenizer, n_permutations=500, seed=3, p=1)
    assert_untouched(llama, before)
    positive, negative = (evaluation.responses(llama, side, tokenizer=tokenizer) for side in texts)
    site = found.sites[1]
    null = lineas.ot.permutation_null(positive[site], negative[site], 1, n_permutations=500, seed=3)
    np.testing.assert_allclose(found.p_value(site), null.p_value)
    np.testing.assert_allclose(found.expected(site), null.mean, rtol=1e-6)
    distance = lineas.ot.wasserstein_1d(positive[site], negative[site], 1)
    np.testing.assert_allclose(found.distance(site), distance, rtol=1e-6)
    assert found.info["model"] == "LlamaForCausalLM"
    assert found.info["p"] == 1


def test_moved_units_pass_and_others_do_not_more_often_than_they_may():
    found = Significance.from_responses(*shifted())
    for method in ("bh", "by"):
        units = found.units(0.05, method)
        assert set(range(6)) <= set(units["b"].tolist())
        assert sum(map(len, units.values())) <= 8
        for site in found.sites:
            assert np.array_equal(units[site], np.flatnonzero(found.q_value(site, method) <= 0.05))
    assert len(found.units(0.5)["a"]) >= len(found.units(0.05)["a"])
    assert {numbers.dtype for numbers in units.values()} == {np.dtype(np.int64)}
    again = Significance.from_responses(*shifted())
    assert all(np.array_equal(again.p_value(site), found.p_value(site)) for site in found.sites)


def test_the_top_units_have_the_lowest_p_values_and_among_those_the_largest_excess():
    found = Significance.from_responses(*shifted(moved=6))
    keys = {
        (site, unit): (found.p_value(site)[unit], -found.distance(site)[unit] / found.expected(site)[unit])
        for site in found.sites
        for unit in range(60)
    }
    for k in (1, 3, 6, 40, 119):
        units = found.top(k)
        taken = {(site, int(unit)) for site in units for unit in units[site]}
        assert len(taken) == k
        assert max(keys[unit] for unit in taken) < min(keys[unit] for unit in keys.keys() - taken)
    with pytest.raises(ValueError, match="k: expected a number of units from 1 to 120, got 121"):
        found.top(121)


def test_noise_passes_no_more_often_than_the_level_says():
    passed = 0
    for seed in range(40):
        found = Significance.from_responses(*shifted(n=8, m=8, units=20, moved=0, seed=seed))
        passed += any(map(len, found.units(0.2).values()))
    assert passed <= 14  # a binomial of 40 at 0.2 is above with a probability of 0.01


def test_p_values_of_noise_are_valid_in_every_stage(monkeypatch):
    monkeypatch.setattr(significant, "FIRST", 50)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 12, 4000))
    _, values = significant.staged(x, y, 2, 2000, seed=1)
    for level in (0.002, 0.01, 0.05, 0.3, 0.8):
        assert np.mean(values <= level) <= level + 3 * (level / 4000) ** 0.5
    assert np.mean(values <= 0.3) > 0.2  # and not just large


# -- stages --


def test_stages_grow_to_the_limit():
    assert significant.stages(300) == [300]
    assert significant.stages(1000) == [1000]
    assert significant.stages(1001) == [1000, 1001]
    assert significant.stages(20_000) == [1000, 20_000]
    assert significant.stages(345_600) == [1000, 20_000, 345_600]
    assert significant.relabellings(None, {"a": 576}) == 20_000
    assert significant.relabellings(None, {"a": 50_000}) == 50_000
    assert significant.relabellings(7, {"a": 50_000}) == 7


def test_units_that_are_far_apart_have_the_p_values_of_all_relabellings_and_others_of_fewer():
    one, other = shifted()
    found = Significance.from_responses(one, other)
    everything = lineas.ot.permutation_null(one["b"], other["b"], n_permutations=20_000)
    first = lineas.ot.permutation_null(one["b"], other["b"], n_permutations=1000)
    went_on = first.p_value <= 20 / 1001
    assert went_on[:6].all()
    assert not went_on.all()
    np.testing.assert_array_equal(found.p_value("b")[went_on], everything.p_value[went_on])
    np.testing.assert_array_equal(found.p_value("b")[~went_on], first.p_value[~went_on])
    assert found.p_value("b")[:6].max() == 1 / 20_001


@pytest.mark.parametrize("method", ["bh", "by"])
@pytest.mark.parametrize("moved", [1, 2, 3, 5, 11, 12, 13, 30])
def test_least_says_how_few_units_can_pass_together(method, moved):
    found = Significance.from_responses(*shifted(moved=moved, by=100.0), n_permutations=199)
    low = sum(int((found.p_value(site) == 1 / 200).sum()) for site in found.sites)
    passed = found.units(0.05, method)["b"]
    assert (set(range(moved)) <= set(passed.tolist())) == (low >= found.least(0.05, method))
    assert found.least() == 12  # 120 units / 200 / 0.05


def test_the_summary_says_what_passed_where_and_what_limits_it():
    found = Significance.from_responses(*shifted(), n_permutations=999)
    text = found.summary(0.1, "by")
    passed = sum(map(len, found.units(0.1, "by").values()))
    assert f"{passed} of 120 units" in text
    assert "q = 0.1 (Benjamini-Yekutieli), 24 + 20 samples" in text
    assert f"lowest possible p-value 0.001: at least {found.least(0.1, 'by')} must have it" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["b", "60", str(len(found.units(0.1, "by")["b"]))] in [row[:3] for row in rows]
    assert repr(found).startswith("Significance(")


# -- stability and agreement --


def test_moved_units_are_found_again_in_the_other_half():
    strong = Significance.from_responses(*shifted(by=8.0), n_permutations=2000)
    stable = strong.stability(draws=2)
    assert stable.jaccard > 0.7
    assert stable.by_chance < 0.3
    none = Significance.from_responses(*shifted(moved=0, by=0.0), n_permutations=999)
    assert not none.stability(0.01, draws=2).jaccard > 0.5


def test_significant_units_agree_with_auroc_experts():
    one, other = shifted(moved=10)
    found = Significance.from_responses(one, other)
    ranking = experts.Ranking.from_responses(one, other, metric="auroc")
    shared = experts.overlap(found.units(), ranking.top(10), found.sizes)
    assert shared.jaccard > 0.8
    assert shared.by_chance < 0.2


def test_what_makes_no_sense_is_refused():
    found = Significance.from_responses(*shifted(units=4, moved=1), n_permutations=99)
    for level in (0, 1, "0.05"):
        for call in (found.units, found.least, found.stability):
            with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
                call(level)
    with pytest.raises(LookupError, match="no test of site 'c'; there is a, b"):
        found.p_value("c")
    with pytest.raises(ValueError, match="n_permutations: expected a whole number of at least 1, got 0"):
        Significance.from_responses(*shifted(units=4, moved=1), n_permutations=0)
    with pytest.raises(ValueError, match="at least 4 samples in each set"):
        Significance.from_responses(*shifted(n=3, units=4, moved=1), n_permutations=99).stability()


def test_a_wrong_number_of_relabellings_is_refused_before_the_model_runs():
    for wrong in ("10", 2.5, 0):
        with pytest.raises(ValueError, match=f"n_permutations: expected a whole number of at least 1, got {wrong!r}"):
            experts.significance(lambda *_: pytest.fail("it ran"), normal(4, 2), normal(4, 2), n_permutations=wrong)


def test_a_plain_network_and_tensors_will_do():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 6))
    found = experts.significance(net, normal(20, 4), normal(20, 4, seed=1) + 4, "0", n_permutations=999)
    assert len(found.units()["0"]) >= 4
