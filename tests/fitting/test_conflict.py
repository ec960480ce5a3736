"""How two steerings stand to each other, from their maps and from what they do to the output."""

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, Mlp, WordTokenizer, assert_untouched, random_maps, snapshot, tiny

import lineas
from lineas import evaluation
from lineas.maps.kinds import WithinRange


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def maps(llama, seed, size=0.1):
    return size * random_maps(llama, seed)


def flat(steering, half):
    return np.concatenate([getattr(steering, half)(name) for name in steering.sites]).astype(float)


def test_it_says_how_alike_moves_are_and_what_another_order_would_change(llama):
    a, b = maps(llama, 0), maps(llama, 1)
    found = lineas.conflict(a, b)
    assert [one.site for one in found.sites] == a.sites
    moves = [np.concatenate([flat(one, "weight") - 1, flat(one, "bias")]) for one in (a, b)]
    assert found.alike == pytest.approx(moves[0] @ moves[1] / np.prod([np.linalg.norm(m) for m in moves]), abs=1e-6)
    apart = flat(b @ a, "bias") - flat(a @ b, "bias")
    length = np.hypot(*(np.linalg.norm(flat(one, "bias")) for one in (a, b)))
    assert found.order == pytest.approx(np.linalg.norm(apart) / length, rel=1e-3)
    assert all(one.shared == one.units == len(a.weight(one.site)) for one in found.sites)
    assert found.on_output is found.kept is found.prices is found.order_price is None


def test_sites_of_one_of_them_alone_count_for_neither(llama):
    a, b = maps(llama, 0), maps(llama, 1)
    first, second, third = a.sites
    found = lineas.conflict(a.restricted([first, second]), b.restricted([second, third]))
    assert [one.site for one in found.sites] == [second]
    assert abs(found.alike) < abs(found.sites[0].alike)
    apart = lineas.conflict(a.restricted([first]), b.restricted([third]))
    assert (apart.sites, apart.alike, apart.order) == ((), 0.0, 0.0)


def test_on_the_output_equal_ones_help_and_opposed_ones_cancel(llama):
    a = maps(llama, 0)
    before = snapshot(llama)
    told = {"model": llama, "texts": POSITIVE, "tokenizer": WordTokenizer()}
    same, opposed = lineas.conflict(a, a, **told), lineas.conflict(a, -1.0 * a, **told)
    assert_untouched(llama, before)
    assert same.on_output == pytest.approx(1)
    assert opposed.on_output == pytest.approx(-1)
    assert opposed.prices[2] == pytest.approx(0, abs=1e-6 * opposed.prices[0])
    assert same.order_price == pytest.approx(0, abs=1e-12)


def test_prices_are_those_that_a_fit_predicts_and_a_dial_measures(llama):
    a, b = maps(llama, 0, 0.02), maps(llama, 1, 0.02)
    found = lineas.conflict(a, b, llama, POSITIVE, tokenizer=WordTokenizer())
    for steering, price in zip((a, b, a + b), found.prices, strict=True):
        dial = lineas.calibrate(
            steering, llama, POSITIVE, price="kl", budget=price, tokenizer=WordTokenizer(), progress=False
        )
        # Seven texts, one label each: a form that few samples know.
        assert 0.3 < dial.strength_for(f"{price} nats") < 3
    a_only, b_only, both = found.prices
    assert both == pytest.approx(a_only + b_only + 2 * found.on_output * np.sqrt(a_only * b_only))


def test_it_writes_its_own_texts_and_prints_what_it_found(llama):
    found = lineas.conflict(maps(llama, 0), maps(llama, 1), llama, tokenizer=WordTokenizer())
    said = str(found)
    assert all(site in said for site in maps(llama, 0).sites)
    assert "on the output" in said
    assert len(said.splitlines()) == 3 + 1 + 3
    assert found.kept is None


def test_what_stays_of_an_effect_is_told_by_what_the_other_does_to_it(llama):
    tokenizer = WordTokenizer()
    options = {"tokenizer": tokenizer, "progress": False, "ridge": 0.0, "max_evaluations": 4}
    a = lineas.fit(llama, NEGATIVE, POSITIVE, **options)
    sets = (NEGATIVE, POSITIVE)

    def effect(steering):
        with steering.apply(llama):
            after = [np.log(evaluation.perplexity(llama, texts, tokenizer=tokenizer)) for texts in sets]
        before = [np.log(evaluation.perplexity(llama, texts, tokenizer=tokenizer)) for texts in sets]
        return after[0] - after[1] - before[0] + before[1]

    sign = 1.0 if effect(0.2 * a) > 0 else -1.0
    a, half = sign * 0.2 * a, sign * 0.1 * a
    found = lineas.conflict(a, half, llama, POSITIVE, sets=(sets, sets), tokenizer=tokenizer)
    assert found.kept == pytest.approx((1 + effect(half) / effect(a), 1 + effect(a) / effect(half)), rel=1e-3)
    assert "stay while both are on" in str(found)
    with pytest.warns(UserWarning, match="sets: b alone makes its targets no likelier"):
        found = lineas.conflict(a, -1.0 * a, llama, POSITIVE, sets=(sets, sets), tokenizer=tokenizer)
    assert np.isfinite(found.kept[0])
    assert np.isnan(found.kept[1])
    with pytest.raises(ValueError, match="two pairs"):
        lineas.conflict(a, a, llama, POSITIVE, sets=sets[:1], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="sets: expected a model"):
        lineas.conflict(a, a, sets=(sets, sets))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda a, m: lineas.conflict(a, "b"), TypeError, "b: expected a Steering, got str"),
        (lambda a, m: lineas.conflict(a, within_ranges(a)), ValueError, "what two steerings have in common"),
        (lambda a, m: lineas.conflict(a, a, texts=["x"]), ValueError, "texts: expected a model"),
        (lambda a, m: lineas.conflict(a, of_two_units(a)), ValueError, "the same number of units"),
        (lambda a, m: lineas.conflict(a, a, Mlp(), torch.ones(3, 4)), LookupError, "layers"),
        (lambda a, m: lineas.conflict(of_mlp(), of_mlp(), Mlp(), torch.randn(5, 4)), ValueError, "expected logits"),
        (lambda a, m: lineas.conflict(of_mlp(), of_mlp(), Mlp()), TypeError, "texts: expected inputs of a Mlp"),
        (lambda a, m: lineas.conflict(of_mlp(), of_mlp(), m, torch.ones(2, 3).long()), LookupError, "first"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(llama, call, error, words):
    with pytest.raises(error, match=words):
        call(maps(llama, 0), llama)


def of_mlp(units=None):
    units = units or Mlp().first.out_features
    return lineas.Steering({"first": (np.ones(units), np.ones(units))})


def within_ranges(a):
    name = a.sites[0]
    units = len(a.weight(name))
    kinds = {name: WithinRange(-np.ones(units), np.ones(units))}
    return lineas.Steering({name: (a.weight(name), a.bias(name))}, kinds=kinds)


def of_two_units(a):
    return lineas.Steering({a.sites[0]: ([1, 1], [0, 0])})
