"""lineas.path: fits from the strongest penalty down, as good as fits apart, and cheaper."""

import itertools

import numpy as np
import pytest
import torch
from conftest import TEXTS, Mlp, WordTokenizer, assert_untouched, normal, snapshot, tiny

import lineas
from lineas.penalties import L1, SparseGroupLasso

SIDES = normal(32, 4), normal(30, 4, seed=1, shift=0.7)
CASES = {
    "mlp": (Mlp, SIDES, {"sites": "first|second"}),
    "llama": (lambda: tiny("llama"), TEXTS, {"tokenizer": WordTokenizer()}),
}


def walk(name="mlp", **options):
    make, sides, own = CASES[name]
    return lineas.path(make(), *sides, **{**own, "progress": False, **options})


@pytest.fixture(scope="module")
def llama_path():
    return walk("llama")


def objective(steering):
    return [one for one, kept in zip(steering.history["objective"], steering.history["accepted"], strict=True) if kept][
        -1
    ]


def test_each_is_as_good_as_a_fit_of_its_own(llama_path):
    make, sides, own = CASES["llama"]
    evaluations = 0
    for strength, steering in list(zip(llama_path.strengths, llama_path.steerings, strict=True))[::3]:
        alone = lineas.fit(make(), *sides, penalty=L1(strength), progress=False, **own)
        assert objective(steering) <= 1.1 * objective(alone)
        evaluations += alone.info["evaluations"]
    assert len(llama_path.steerings[-1].history["loss"]) < 1.5 * evaluations, "ten for less than four and a half"


def test_units_come_one_after_another_and_the_first_is_nearly_nothing(llama_path):
    shares = llama_path.shares
    assert 0 < shares[0] <= 0.1
    assert shares[-1] > 0.8
    assert all(b >= 0.9 * a for a, b in itertools.pairwise(shares))
    losses = [row["loss"] for row in llama_path.rows()]
    assert all(b <= 1.02 * a for a, b in itertools.pairwise(losses))
    ratios = np.array(llama_path.strengths[1:]) / llama_path.strengths[:-1]
    np.testing.assert_allclose(ratios, 0.01 ** (1 / 9), rtol=1e-6)
    assert [one.info["penalty"] for one in llama_path.steerings[:2]] == [repr(L1(s)) for s in llama_path.strengths[:2]]


def test_the_strongest_penalty_is_the_one_that_just_leaves_nothing(llama_path):
    make, sides, own = CASES["llama"]
    with pytest.warns(UserWarning, match="the maps change nothing: the penalty leaves nothing"):
        none = lineas.fit(make(), *sides, penalty=L1(1.3 * llama_path.strengths[0]), progress=False, **own)
    assert not any(map(len, none.support().values()))


def test_a_steering_is_found_by_its_share(llama_path):
    shares = llama_path.shares
    assert llama_path.at(1.0) is llama_path.steerings[max(range(10), key=shares.__getitem__)]
    assert list(llama_path.by_share) == list(dict.fromkeys(f"{share:.2%}" for share in shares if share))
    third = llama_path.at("35%")
    assert sum(map(len, third.support().values())) / len(third.weights) == max(s for s in shares if s <= 0.35)
    with pytest.raises(
        LookupError, match=r"support: expected a share that some steering has at most, of .*%; got '0.1%'"
    ):
        llama_path.at("0.1%")
    for wrong in ("one", "0%", 0, 1.5, "101%"):
        with pytest.raises(ValueError, match="support: expected a share"):
            llama_path.at(wrong)


def test_a_path_ends_where_it_is_told_to():
    shares = walk(until="30%").shares
    assert shares[-1] > 0.3 >= max(shares[:-1])
    assert len(walk(count=3, least=0.5).strengths) == 3
    assert len(walk("llama", count=30).strengths) == 30, "more than the fifty evaluations of a fit"


def test_sites_are_chosen_by_another_penalty():
    found = walk(penalty=lambda s: SparseGroupLasso(0.0, s))
    sites = [sum(map(bool, map(len, one.support().values()))) for one in found.steerings]
    assert (sites[0], sites[-1]) == (1, 2)
    steering = found.steerings[0]
    moved = max(len(units) for units in steering.support().values())
    assert moved == max(steering.sizes.values()), "a site comes whole"


def test_a_path_is_the_same_twice_and_leaves_nothing_behind(random_state_stays):
    net = Mlp()
    before = snapshot(net)
    one, two = (lineas.path(net, *SIDES, sites="first", count=4, progress=False) for _ in range(2))
    assert_untouched(net, before)
    for a, b in zip(one.steerings, two.steerings, strict=True):
        assert np.array_equal(a.weights, b.weights)
    assert not np.array_equal(one.steerings[0].weights, one.steerings[-1].weights)


def test_a_path_is_shown_and_drawn(llama_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    lines = str(llama_path).splitlines()
    assert len(lines) == 11
    assert lines[0].split() == ["penalty", "units", "share", "loss", "predicted", "nats", "evaluations"]
    ax = llama_path.plot()
    assert len(ax.lines[0].get_xdata()) == sum(share > 0 for share in llama_path.shares)


def test_what_is_no_path_is_refused():
    for options, error, match in (
        ({"steps": 3}, TypeError, "steps: not for a path"),
        ({"budget": "5%"}, TypeError, "budget: not for a path"),
        ({"pooling_": "max"}, TypeError, "expected options of fit, got pooling_; nearest names: pooling"),
        ({"penalty": L1(0.1)}, TypeError, "penalty: expected a function of a strength, such as L1, got L1"),
        ({"least": 1}, ValueError, "least: expected a number between 0 and 1, got 1"),
        ({"count": 0}, ValueError, "count: expected a whole number of at least 1"),
        ({"until": "all"}, ValueError, "until: expected a share"),
        ({"penalty": lambda s: L1(0.0)}, ValueError, "penalty: expected a function whose penalties leave nothing"),
        ({"sites": "fourth"}, LookupError, "fourth"),
    ):
        with pytest.raises(error, match=match):
            walk(**options)


def test_sets_that_differ_by_chance_only_have_no_path():
    x = normal(32, 4)
    with pytest.raises(ValueError, match="expected sets that differ by more than chance explains"):
        lineas.path(Mlp(), x, x.flip(0), sites="first", progress=False)


def test_callbacks_hear_of_every_evaluation_and_may_end_the_path():
    heard = []
    found = walk(callbacks=[lambda entry: heard.append(entry.evaluations) or len(heard) >= 5])
    assert heard == [1, 2, 3, 4, 5]
    assert len(found.strengths) < 10
    assert found.steerings[-1].info["stopped"] == "a callback asked"


def test_chosen_units_are_all_that_moves():
    units = {"first": [0, 3], "second": []}
    last = walk(units=units).steerings[-1]
    assert last.support()["first"].tolist() == [0, 3]
    assert not len(last.support()["second"])
    assert torch.is_grad_enabled()
