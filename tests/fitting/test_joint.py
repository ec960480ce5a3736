"""lineas.fit_jointly: steerings of several concepts, none of which undoes what another is for."""

import warnings

import numpy as np
import pytest
import torch
from conftest import (
    NEGATIVE,
    POSITIVE,
    SOURCE,
    TARGET,
    TEXTS,
    Mlp,
    WordTokenizer,
    assert_untouched,
    flat,
    minding_model,
    normal,
    small_tokenizer,
    snapshot,
    tiny,
)

import lineas
from lineas import evaluation
from lineas.fitting import contrast as contrasts
from lineas.fitting import joint
from lineas.fitting.walls import STIFF, Walled
from lineas.network.data import as_batches
from lineas.network.sites import find_sites
from lineas.network.state import frozen
from lineas.responses.probe import probe
from lineas.responses.runner import Runner

QUIET = {"progress": False}
OTHERS = (
    ["they walk home", "we look up there", "you talk a lot", "he plays"],
    ["do they walk home ?", "do we look ?", "do you ?", "does he play ?"],
)
IN_WORDS = {"tokenizer": WordTokenizer(), "ridge": 0.1, **QUIET}


class Plain(torch.nn.Module):
    """Gives what it gets, so that a bias does to the output what it says."""

    def __init__(self, units=3):
        super().__init__()
        self.only = torch.nn.Linear(units, units, bias=False)
        with torch.no_grad():
            self.only.weight.copy_(torch.eye(units))

    def forward(self, x):
        return self.only(x)


def shifted(*by):
    inputs = normal(48, len(by))
    return inputs, inputs + torch.tensor(by)


@pytest.fixture(scope="module")
def llama_pair():
    """A pair of concepts for the tiny Llama of which the second, fitted apart, undoes the first."""
    first, second = TEXTS, OTHERS
    apart = [lineas.fit(tiny("llama"), *sides, **IN_WORDS) for sides in (first, second)]
    if gradient_of(first) @ moves(apart[1]) > 0:
        second = OTHERS[::-1]
        apart[1] = lineas.fit(tiny("llama"), *second, **IN_WORDS)
    return {"film": first, "asking": second}, dict(zip(("film", "asking"), apart, strict=True))


def moves(steering):
    x = flat(steering).astype(float)
    x[: len(x) // 2] -= 1
    return x


def runner_of(model, inputs):
    layout = probe(model, find_sites(model), inputs)
    return Runner(model, layout, layout, "mean")


def batches_of(texts, model):
    return as_batches(texts, "src", model, WordTokenizer())


def gradient_of(sides, model=None):
    """The gradient of how much likelier a token of the targets is than one of the sources."""
    model = model or tiny("llama")
    source, target = (batches_of(list(side), model) for side in sides)
    with frozen(model):
        runner = runner_of(model, source[0])
        return contrasts.likelihood(runner, target) - contrasts.likelihood(runner, source)


# -- the contrast, and the walls --


def test_a_contrast_is_what_small_maps_do_to_the_likelihood_of_targets_and_sources():
    model = tiny("llama")
    g = gradient_of(TEXTS)
    sites = find_sites(model)
    along = np.random.default_rng(0).normal(size=len(g)) * np.abs(g).mean() + g
    sizes = {site.name: site.units for site in sites}

    def measured(size):
        x = np.concatenate([np.ones(len(g) // 2), np.zeros(len(g) // 2)]) + size * along / np.linalg.norm(along)
        steering = lineas.Steering.from_flat(sizes, sizes.values(), x.astype(np.float32))
        with steering.apply(model):
            read = [np.log(evaluation.perplexity(model, list(t), tokenizer=WordTokenizer())) for t in TEXTS]
        return read[0] - read[1]

    slope = (measured(0.01) - measured(-0.01)) / 0.02
    assert slope == pytest.approx(g @ along / np.linalg.norm(along), rel=0.01)


def test_padding_on_either_side_and_the_size_of_batches_make_no_difference():
    model = tiny("llama")
    right = batches_of(list(TEXTS[1]), model)
    found = []
    left = {"input_ids": right[0].kwargs["input_ids"].clone(), "attention_mask": right[0].mask.clone()}
    for row, count in enumerate(left["attention_mask"].sum(1).tolist()):
        for part in left.values():
            part[row] = part[row].roll(part.shape[1] - count)
    for batches in (
        right,
        as_batches(left, "src", model),
        as_batches(list(TEXTS[1]), "src", model, WordTokenizer(), 3),
    ):
        with frozen(model):
            found.append(contrasts.likelihood(runner_of(model, batches[0]), batches))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-3, atol=1e-5 * np.abs(found[0]).max())


def test_where_likelihoods_have_no_gradient_the_loss_stands_for_them(monkeypatch):
    sets = {"film": TEXTS, "asking": OTHERS}
    options = {**IN_WORDS, "max_evaluations": 4}
    by_likelihood = lineas.fit_jointly(tiny("llama"), sets, **options)
    monkeypatch.setattr(contrasts, "likelihood", lambda runner, batches: np.zeros(2 * runner.mapped.units))
    without = lineas.fit_jointly(tiny("llama"), sets, **options)
    monkeypatch.setattr(contrasts, "writes_texts", lambda model: False)
    by_loss = lineas.fit_jointly(tiny("llama"), sets, **options)
    for name in sets:
        np.testing.assert_array_equal(flat(without[name]), flat(by_loss[name]))
        assert not np.array_equal(flat(by_loss[name]), flat(by_likelihood[name]))


def test_the_walled_problem_has_the_gradient_that_differences_show(monkeypatch):
    seen = []

    def fast(problem, x, penalty, record, **options):
        rng = np.random.default_rng(0)
        at = (x + 0.1 * rng.normal(size=len(x))).astype(np.float32)
        gradient = problem.evaluate(at).gradient().astype(float)
        for _ in range(4):
            along = rng.normal(size=len(x))
            far, near = (problem.evaluate((at + s * along).astype(np.float32)) for s in (1e-3, -1e-3))
            seen.append((gradient @ along, (far.loss - near.loss) / 2e-3, far.ridge))
        record(problem.evaluate(x), 0.0, 0.0)
        return x, "enough"

    monkeypatch.setattr(joint.optim, "fast", fast)
    sets = {"up": (SOURCE, TARGET), "down": (TARGET, SOURCE + 0.2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lineas.fit_jointly(Mlp(), sets, sites="first|second", ridge=0.0, loss="wasserstein", **QUIET)
    assert len(seen) == 8
    assert max(ridge for *_, ridge in seen) > 0, "a wall is met"
    for told, shown, _ in seen:
        assert told == pytest.approx(shown, rel=0.02, abs=1e-3)


def test_a_wall_lets_through_what_its_stiffness_says():
    class Bowl:  # half the square of the distance to -g, of which a wall against g stops nearly all
        sizes, samples, free = (2,), 1, None
        goal = np.array([0.0, -1.0, -2.0, 0.5])

        def identity(self):
            return np.array([1, 1, 0, 0], np.float32)

        def evaluate(self, x, scale=1.0):
            away = x - self.identity() - self.goal
            return lineas.fitting.walls.Evaluation(
                float(away @ away) / 2, np.zeros(1), lambda: away.astype(np.float32), x, lambda: np.ones((3, 2))
            )

    g = np.array([0.0, 1.0, 2.0, 0.0])
    x = np.array([1, 1, 0, 0], np.float32)
    problem = Walled(Bowl(), [g])
    for _ in range(4000):
        x = x - np.float32(0.5 / STIFF) * problem.evaluate(x).gradient()
    left = g @ (x - Bowl().identity()) / (g @ Bowl().goal)
    assert left == pytest.approx(1 / (1 + STIFF), rel=1e-2)
    assert x[3] == pytest.approx(0.5, abs=1e-3), "across it nothing is held"
    helping = Walled(Bowl(), [-g]).evaluate(x + np.float32(0.1) * Bowl().goal.astype(np.float32))
    assert helping.ridge == 0


# -- the fits --


@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_one_concept_alone_is_a_fit_bit_for_bit(name):
    make, sides, options = {
        "mlp": (Mlp, (SOURCE, TARGET), {"sites": "first|second"}),
        "llama": (lambda: tiny("llama"), TEXTS, {"tokenizer": WordTokenizer()}),
    }[name]
    alone = lineas.fit(make(), *sides, **options, **QUIET)
    found = lineas.fit_jointly(make(), {"only": sides}, **options, **QUIET)
    assert list(found) == ["only"]
    np.testing.assert_array_equal(flat(found["only"]), flat(alone))
    assert found["only"].history == alone.history
    assert {**found["only"].info, "seconds": 0} == {**alone.info, "seconds": 0}


def test_what_cancels_where_two_are_fitted_apart_stays_where_they_are_fitted_jointly():
    sets = {"a": shifted(1.0, 0.0, 0.0), "b": shifted(-1.0, 3.0, 0.0)}
    options = {"sites": "only", "ridge": 0.0, "loss": "wasserstein", **QUIET}
    apart = [lineas.fit(Plain(), *sides, **options) for sides in sets.values()]
    np.testing.assert_allclose((apart[0] + apart[1]).bias("only"), [0, 3, 0], atol=0.02)  # a is gone
    found = lineas.fit_jointly(Plain(), sets, **options)
    both = (found["a"] + found["b"]).bias("only")
    assert both[0] > 0.85
    assert both[1] > 2.9
    assert found["a"].bias("only")[0] > 0.85
    assert found["b"].bias("only")[1] > 2.9
    assert [found[name].info["beside"] for name in "ab"] == [["b"], ["a"]]


def test_in_a_language_model_none_makes_the_targets_of_another_less_likely(llama_pair):
    sets, apart = llama_pair
    found = lineas.fit_jointly(tiny("llama"), sets, **IN_WORDS)
    lost = {}
    for name, other in (("film", "asking"), ("asking", "film")):
        g = gradient_of(sets[name])
        before, after = (g @ moves(one) / np.linalg.norm(g) for one in (apart[other], found[other]))
        lost[name] = before
        assert after > min(0.2 * before, 0) - 1e-4
        assert np.corrcoef(moves(found[other]), moves(apart[other]))[0, 1] > 0.8, "little else changes"
    assert lost["film"] < -1e-3, "something would have been lost"


def test_three_concepts_go_together_and_each_knows_the_others():
    sets = {"a": shifted(1.0, 0.0, 0.0), "b": shifted(-1.0, 3.0, 0.0), "c": shifted(-0.5, -1.0, 2.0)}
    found = lineas.fit_jointly(Plain(), sets, sites="only", ridge=0.0, loss="wasserstein", **QUIET)
    assert list(found) == list(sets)
    assert found["b"].info["beside"] == ["a", "c"]
    total = (found["a"] + found["b"] + found["c"]).bias("only")
    assert (total > [0.7, 2.4, 1.9]).all()


def test_the_same_seed_gives_the_same_bits_and_the_order_of_concepts_changes_none(llama_pair):
    sets, _ = llama_pair
    first, again = (lineas.fit_jointly(tiny("llama"), sets, **IN_WORDS, max_evaluations=4) for _ in range(2))
    turned = lineas.fit_jointly(tiny("llama"), dict(reversed(sets.items())), **IN_WORDS, max_evaluations=4)
    for name in sets:
        np.testing.assert_array_equal(flat(first[name]), flat(again[name]))
        np.testing.assert_array_equal(flat(first[name]), flat(turned[name]))


def test_each_costs_the_budget():
    words = small_tokenizer()
    model = minding_model(len(words))
    sets = {"kind": lineas.samples.movie_reviews(8), "casual": lineas.samples.formal_and_casual(8)}
    options = {"tokenizer": words, "max_evaluations": 4, "budget": "0.02 nats", "max_length": 12, **QUIET}
    found = lineas.fit_jointly(model, sets, **options)
    for one in found.values():
        assert one.info["budget"] == "0.02 nats"
        assert one.strength_for("0.02 nats") == pytest.approx(1, rel=1e-3)


def test_penalties_units_and_callbacks_are_those_of_a_fit():
    sets, heard = {"up": (SOURCE, TARGET), "wide": (SOURCE, 2 * TARGET)}, []
    free = {"first": [0, 3], "second": [1]}
    found = lineas.fit_jointly(Mlp(), sets, sites="first|second", units=free, callbacks=[heard.append], **QUIET)
    for one in found.values():
        assert {site: set(units) <= set(free[site]) for site, units in one.support().items()} == dict.fromkeys(
            free, True
        )
    assert len(heard) == sum(len(one.history["loss"]) for one in found.values())
    strong = lineas.penalties.L1(0.005)
    sparse = lineas.fit_jointly(Mlp(), sets, sites="first|second", penalty=strong, **QUIET)
    dense = lineas.fit_jointly(Mlp(), sets, sites="first|second", **QUIET)
    for name in sets:
        assert sum(map(len, sparse[name].support().values())) < sum(map(len, dense[name].support().values()))


def test_steerings_are_saved_and_loaded_one_by_one(tmp_path, llama_pair):
    found = lineas.fit_jointly(tiny("llama"), llama_pair[0], **IN_WORDS, max_evaluations=3)
    for name, one in found.items():
        one.save_pretrained(tmp_path / name)
        again = lineas.Steering.from_pretrained(tmp_path / name)
        np.testing.assert_array_equal(flat(again), flat(one))
        assert again.info["beside"] == one.info["beside"]


# -- what it leaves alone, says and refuses --


def test_the_model_is_as_it_was_however_it_ends(llama_pair):
    model = tiny("llama").train()
    before = snapshot(model)
    lineas.fit_jointly(model, llama_pair[0], **IN_WORDS, max_evaluations=3)
    assert_untouched(model, before)

    def stop(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lineas.fit_jointly(model, llama_pair[0], **IN_WORDS, callbacks=[stop])
    assert_untouched(model, before)
    with pytest.raises(ValueError, match="asking: src"):
        lineas.fit_jointly(model, {**llama_pair[0], "asking": ([], POSITIVE)}, **IN_WORDS)
    assert_untouched(model, before)


def test_opposed_concepts_and_those_that_change_nothing_are_told_of_by_name():
    turned = NEGATIVE, POSITIVE
    with pytest.warns(UserWarning, match=r"good, bad: what brings the one's targets nearer .* \(cosine -1.00\)"):
        lineas.fit_jointly(
            tiny("llama"), {"good": turned, "bad": turned[::-1]}, **IN_WORDS, max_evaluations=3
        )  # fmt: skip
    sets = {"up": (SOURCE, TARGET), "none": (SOURCE, SOURCE)}
    with pytest.warns(UserWarning, match="none: the maps change nothing"):
        lineas.fit_jointly(Mlp(), sets, sites="first", **QUIET)


PAIR = (SOURCE, TARGET)


@pytest.mark.parametrize(
    ("concepts", "options", "error", "words"),
    [
        ([PAIR], {}, TypeError, "concepts: expected a dict of name -> .* got list"),
        ({}, {}, ValueError, "concepts: expected at least one, got none"),
        ({1: PAIR}, {}, TypeError, r"concepts: expected names \(str\), got int 1"),
        ({"up": SOURCE}, {}, TypeError, r"expected a pair \(src, tgt\) for 'up', got Tensor"),
        ({"up": (SOURCE,)}, {}, TypeError, r"expected a pair \(src, tgt\) for 'up', got 1 of them"),
        ({"up": PAIR, "no": (SOURCE[:1], TARGET)}, {}, ValueError, "no: src: expected at least 2"),
        ({"up": PAIR, "no": (SOURCE * torch.nan, TARGET)}, {}, ValueError, "no: src"),
        ({"up": PAIR, "no": PAIR}, {"sites": "nowhere"}, LookupError, "nowhere"),
        ({"up": PAIR}, {"recipe": "published", "resume_from": None}, TypeError, "recipe, resume_from: not for several"),
        ({"up": PAIR}, {"method": "caa"}, TypeError, "method: not for several"),
        ({"up": PAIR}, {"checkpoint_dir": "x"}, TypeError, "checkpoint_dir: not for several"),
        ({"up": PAIR}, {"distributed": True}, TypeError, "distributed: not for several"),
        ({"up": PAIR}, {"gate": True}, TypeError, "gate: not for several concepts.*cannot be added"),
        ({"up": PAIR}, {"sights": "first"}, TypeError, "expected options of fit, got sights; .*sites"),
        ({"up": PAIR}, {"loss": "l2"}, ValueError, "loss: expected one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_jointly_is_refused(concepts, options, error, words):
    with pytest.raises(error, match=words):
        lineas.fit_jointly(Mlp(), concepts, **{"sites": "first", **QUIET, **options})
