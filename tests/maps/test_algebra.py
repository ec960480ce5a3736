"""Invert, compose, scale, mix, cut down, compare: as numbers, and through a model."""

import math

import numpy as np
import pytest
import torch
from conftest import IDS, count_hooks, normal, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import lineas
from lineas import Steering
from lineas.algebra import interpolate, overlap
from lineas.maps.algebra import merged_order

NAMES = ("a.0", "a.1", "a.2", "a.10")
SIZES = dict(zip(NAMES, (1, 3, 4, 2), strict=True))


def draw_steering(seed: int, names=NAMES, sizes=SIZES, small=0.2) -> Steering:
    """Weights away from zero, either sign; biases of any size around one."""
    draw = np.random.default_rng(seed)
    return Steering(
        {
            name: (
                draw.choice([-1, 1], sizes[name]) * draw.uniform(small, 3, sizes[name]),
                draw.normal(size=sizes[name]),
            )
            for name in names
        }
    )


def llama_steering(seed: int, sites: str | None = None, size=0.2) -> Steering:
    draw, found = np.random.default_rng(seed), lineas.find_sites(tiny("llama"), sites)
    return Steering({s.name: (1 + size * draw.normal(size=s.units), size * draw.normal(size=s.units)) for s in found})


steerings = st.builds(
    draw_steering, st.integers(0, 2**31), st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(tuple)
)
strengths = st.floats(-3, 3, width=32)


def assert_close(a: Steering, b: Steering, tolerance=1e-5):
    assert set(a.sites) == set(b.sites)
    for name in a.sites:
        np.testing.assert_allclose(a.weight(name), b.weight(name), tolerance, tolerance)
        np.testing.assert_allclose(a.bias(name), b.bias(name), tolerance, tolerance)


def identity(names) -> Steering:
    return Steering({name: (np.ones(SIZES[name]), np.zeros(SIZES[name])) for name in names})


# -- inverse --


@settings(max_examples=50, deadline=None)
@given(steerings)
def test_the_inverse_undoes_a_steering_from_both_sides(a):
    assert_close(a.inverse() @ a, identity(a.sites))
    assert_close(a @ a.inverse(), identity(a.sites))
    assert_close(a.inverse().inverse(), a)


def test_the_inverse_undoes_a_steering_through_a_model(llama):
    before = llama(IDS).logits
    for strength in (1.0, 0.6):
        a = llama_steering(1)
        with a.apply(llama, strength):
            assert not torch.allclose(llama(IDS).logits, before, atol=1e-2)
            with a.scaled(strength).inverse().apply(llama):
                torch.testing.assert_close(llama(IDS).logits, before, rtol=1e-4, atol=1e-4)


def test_units_that_cannot_be_inverted_are_named():
    a = Steering({"x": ([1, 0, 2, 1e-39], [0, 0, 0, 0]), "y": ([1.0], [1.0]), "z": ([0.0] * 11, [1.0] * 11)})
    with pytest.raises(ValueError, match=r"cannot be inverted: 'x': 1, 3; 'z': 0, 1, 2, 3, 4, 5, 6, 7 and 3 more$"):
        a.inverse()
    with pytest.raises(ValueError, match=r"cannot be inverted: 'x': 0$"):
        Steering({"x": ([1e-30], [1e30])}).inverse()  # 1 / w is a float32, b / w is not


# -- composition --


@settings(max_examples=50, deadline=None)
@given(steerings, steerings, steerings)
def test_composition_is_associative_and_has_a_neutral_element(a, b, c):
    assert_close((a @ b) @ c, a @ (b @ c), 1e-4)
    assert_close(a @ identity(a.sites), a, 0)
    assert_close(identity(a.sites) @ a, a, 0)


@settings(max_examples=50, deadline=None)
@given(steerings, steerings, st.floats(-5, 5))
def test_composition_maps_as_one_map_after_the_other(a, b, z):
    both = a @ b
    assert set(both.sites) == {*a.sites, *b.sites}
    for name in both.sites:
        expected = np.full(SIZES[name], z)
        for part in (b, a):
            if name in part.sites:
                expected = part.weight(name) * expected + part.bias(name)
        np.testing.assert_allclose(both.weight(name) * z + both.bias(name), expected, 1e-4, 1e-4)


def test_a_composition_does_what_both_do_when_attached_one_after_the_other(llama):
    a, b = llama_steering(1), llama_steering(2, r"model\.layers\.[01]\.(post_attention_layernorm|mlp\.down_proj)")
    with b.apply(llama), a.apply(llama):
        expected = llama(IDS).logits
    with (a @ b).apply(llama):
        torch.testing.assert_close(llama(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    with (b @ a).apply(llama):
        assert not torch.allclose(llama(IDS).logits, expected, rtol=1e-2, atol=1e-2)


def test_what_cannot_be_composed_is_refused():
    a, b = Steering({"x": ([1.0, 1], [0, 0])}), Steering({"x": ([1.0], [0])})
    with pytest.raises(ValueError, match=r"site 'x': expected the same number of units, got 1 and 2"):
        a @ b
    huge = Steering({"x": ([1e30], [0])})
    with pytest.raises(
        ValueError, match=r"site 'x': expected finite maps, composed they are beyond float32 in units 0"
    ):
        huge @ huge
    here, there = (Steering({"x": ([2.0], [0])}, info={"position": p}) for p in ("all", "last"))
    for mixed in (lambda: here @ there, lambda: interpolate(here, there, 0.5)):
        with pytest.raises(ValueError, match="expected steerings of one position, got '(all|last)' and '(last|all)'"):
            mixed()
    with pytest.raises(TypeError):
        a @ 2


# -- scaling and mixing --


def test_scaled_has_the_bits_of_the_steering_at_that_strength(llama):
    a = llama_steering(3)
    for strength in (0.0, 0.3, -1.7, 2.0):
        with a.apply(llama, strength):
            expected = llama(IDS).logits
        with a.scaled(strength).apply(llama):
            assert torch.equal(llama(IDS).logits, expected)


@settings(max_examples=50, deadline=None)
@given(steerings, strengths, strengths)
def test_scaling_twice_is_scaling_by_the_product(a, s, t):
    assert_close(a.scaled(s).scaled(t), a.scaled(s * t), 1e-4)
    assert_close(a.scaled(1), a, 0)
    assert_close(a.scaled(0), identity(a.sites), 0)


@settings(max_examples=50, deadline=None)
@given(steerings, steerings, strengths)
def test_interpolation_has_both_ends_and_is_linear_between(a, b, t):
    def whole(steering):  # the identity at the other's sites
        return steering @ identity({*a.sites, *b.sites})

    assert_close(interpolate(a, b, 0), whole(a), 0)
    assert_close(interpolate(a, b, 1), whole(b), 0)
    assert_close(interpolate(a, b, t), interpolate(b, a, 1 - t), 1e-4)
    assert_close(interpolate(identity(a.sites), a, t), a.scaled(t), 1e-5)


@pytest.mark.parametrize(
    ("bad", "error"), [("1", TypeError), (True, TypeError), (math.inf, ValueError), (None, TypeError)]
)
def test_a_strength_or_t_that_is_no_finite_number_is_refused(bad, error):
    a = draw_steering(0)
    with pytest.raises(error, match="strength: expected a"):
        a.scaled(bad)
    with pytest.raises(error, match="t: expected a"):
        interpolate(a, a, bad)
    with pytest.raises(ValueError, match="scaled they are beyond float32 in units 0"):
        a.scaled(1e39)


# -- arithmetic --


@settings(max_examples=50, deadline=None)
@given(steerings, steerings, strengths)
def test_steerings_add_and_scale_as_moves_do(a, b, t):
    assert_close(a + b, b + a)
    assert_close(t * (a + b), t * a + t * b, 1e-4)
    assert_close(a - b, a + -b)
    assert_close(a - a, identity(a.sites), 1e-5)
    assert_close(2 * a, a + a)
    assert_close(a / 2, a * 0.5)
    assert_close(np.float64(0.5) * a, a.scaled(0.5))
    assert_close(np.float32(0.5) * a, a * np.float32(0.5))
    assert_close(-a, a.scaled(-1))


@given(steerings, steerings)
def test_the_order_of_a_composition_is_what_it_differs_by_from_a_sum(a, b):
    both = [name for name in a.sites if name in b.sites]
    for name in both:
        shared = (a + b).weight(name) - (a @ b).weight(name)
        np.testing.assert_allclose(shared, -(a.weight(name) - 1) * (b.weight(name) - 1), 1e-3, 1e-4)


def test_a_sum_adds_both_moves_to_an_activation():
    a, b = llama_steering(0), llama_steering(1)
    name = a.sites[0]
    plain = tiny("llama").get_submodule(name)(torch.ones(1, 1, 16))
    moves = []
    for steering in (a, b, a + b):
        fresh = tiny("llama")
        with steering.restricted([name]).apply(fresh):
            moves.append(fresh.get_submodule(name)(torch.ones(1, 1, 16)) - plain)
    torch.testing.assert_close(moves[2], moves[0] + moves[1])


@pytest.mark.parametrize("other", [1, "a", None])
def test_what_is_no_steering_is_not_added(other):
    a = llama_steering(0)
    for act in (lambda: a + other, lambda: other + a, lambda: a - other):
        with pytest.raises(TypeError, match="unsupported operand|can only concatenate"):
            act()
    for act in (lambda: a * "2", lambda: "2" * a, lambda: a / None):
        with pytest.raises(TypeError):
            act()
    with pytest.raises(ZeroDivisionError):
        _ = a / 0


# -- restriction --


def test_restriction_to_sites_by_pattern_or_names(llama):
    a = llama_steering(4)
    only = a.restricted(r".*\.1\..*")
    assert only.sites == [a.sites[1]] == a.restricted([a.sites[1]]).sites
    assert np.array_equal(only.weight(a.sites[1]), a.weight(a.sites[1]))
    hooks = count_hooks(llama)
    with only.apply(llama):
        assert count_hooks(llama) == hooks + 2, "the site's, and one for the first pass"
    assert a.restricted([a.sites[2], a.sites[0]]).sites == [a.sites[0], a.sites[2]]


def test_the_top_units_are_those_that_move_most_over_the_responses():
    a = Steering({"x": ([3, 1, 1, 1], [0, 0.5, 0, -0.6]), "y": ([1, 1.125], [0.125, 0])})
    top = a.restricted(top=2)  # the norm of (w - 1, b): 2, 0.5, 0, 0.6 and 0.125, 0.125
    assert {name: units.tolist() for name, units in top.support().items()} == {"x": [0, 3], "y": []}
    assert top.weight("x").tolist() == [3, 1, 1, 1]
    np.testing.assert_array_equal(top.bias("x"), np.float32([0, 0, 0, -0.6]))
    tie = a.restricted("y", top=1).support()
    assert tie["y"].tolist() == [0]
    responses = {"x": np.zeros((5, 4)), "y": np.full((5, 2), 100.0)}  # unit 0 of x is never away from 0, so never moves
    assert a.restricted(top=1, responses=responses).support()["y"].tolist() == [1]
    assert a.restricted(top=3, responses=responses).support()["x"].tolist() == [1, 3]
    assert_close(a.restricted(top=100), a, 0)


@settings(max_examples=30, deadline=None)
@given(steerings, st.integers(1, 12))
def test_what_is_left_out_moved_less_than_what_was_kept(a, top):
    kept = a.restricted(top=top)
    moves = {n: np.hypot(a.weight(n) - 1, a.bias(n)) for n in a.sites}
    inside = {n: (kept.weight(n) == a.weight(n)) & (kept.bias(n) == a.bias(n)) for n in a.sites}
    assert sum(mask.sum() for mask in inside.values()) == min(top, sum(len(mask) for mask in inside.values()))
    least = min(moves[n][inside[n]].min() for n in a.sites if inside[n].any())
    assert all((moves[n][~inside[n]] <= least + 1e-6).all() for n in a.sites)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": "a"}, LookupError, "no site matches 'a' over its whole name; nearest names"),
        ({"sites": ["a.3"]}, LookupError, "no map for site 'a.3'; nearest names"),
        ({"sites": []}, ValueError, "expected at least one name"),
        ({"sites": "a.[("}, ValueError, r"sites: 'a.\[\(' is not a regular expression"),
        ({"sites": 3}, TypeError, "sites: expected a regular expression, names or None, got 3"),
        ({"top": 0}, ValueError, "top: expected a number of units of at least 1, got 0"),
        ({"top": 1.5}, ValueError, "top: expected"),
        ({"responses": {}}, ValueError, "expected them together with top="),
        ({"top": 1, "responses": {"a.1": np.ones((2, 3))}}, LookupError, "expected those of site 'a.0' too; nearest"),
        (
            {"top": 1, "responses": {"a.0": np.ones((2, 3))}},
            ValueError,
            r"expected finite \(samples, 1\), got \(2, 3\)",
        ),
        ({"top": 1, "responses": {"a.0": [[np.nan]]}}, ValueError, "expected finite"),
    ],
)
def test_restrictions_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        draw_steering(0).restricted(**options)


# -- overlap --


def test_overlap_counts_common_units_by_site_and_overall():
    a = Steering({"x": ([2, 2, 1, 1], [0] * 4), "y": ([1.0] * 3, [0] * 3), "z": ([2.0], [0])})
    b = Steering({"x": ([1, 2, 2, 1], [0] * 4), "y": ([1.0] * 3, [0] * 3), "w": ([2.0], [1])})
    found = overlap(a, b)
    assert found.jaccard == pytest.approx(1 / 5)
    assert found.by_chance == pytest.approx(1 / (1 + 4))  # 2 of 4 and 2 of 4 share 1; there are 3 and 3 in all
    assert found.sites["x"] == pytest.approx(1 / 3)
    assert math.isnan(found.sites["y"])
    assert set(found.sites) == {"x", "y"}
    assert overlap(a, a).jaccard == 1
    assert overlap(b, a)[:2] == found[:2]


def test_overlap_by_chance_is_what_random_supports_have():
    draw = np.random.default_rng(0)

    def chosen(share):
        return Steering(
            {n: (1.0 + (draw.permutation(d) < share * d), np.zeros(d)) for n, d in (("x", 400), ("y", 100))}
        )

    shares = [overlap(chosen(0.3), chosen(0.2)) for _ in range(200)]
    assert np.mean([o.jaccard for o in shares]) == pytest.approx(shares[0].by_chance, rel=0.03)


# -- what a result is --


def test_results_say_how_they_were_made_and_what_their_parents_share(tmp_path):
    a = Steering({"x": ([2.0], [1.0])}, info={"model": "org/m", "model_class": "M", "seed": 1}, history={"loss": [1.0]})
    b = Steering({"x": ([3.0], [1.0])}, info={"model": "org/m", "model_class": "N", "seed": 2})
    both = a @ b
    assert both.info == {"model": "org/m", "made": "the second of these after the first", "of": [b.info, a.info]}
    assert both.history == {}
    for made, how in (
        (a.inverse(), "inverse"), (a.scaled(0.5), "scaled by 0.5"), (interpolate(a, b, 0.25), "0.75 of the first"),
        (a.restricted(top=1), "restricted to 1 sites, the top 1"),
    ):  # fmt: skip
        assert made.info["made"].startswith(how)
        assert made.weight("x").dtype == np.float32
        assert f"made from others: {how}" in made.summary()
        made.save_pretrained(tmp_path)
        assert Steering.from_pretrained(tmp_path).info == made.info
    assert a.weight("x") == [2], "parents are left alone"


def test_sites_of_two_steerings_come_in_the_order_of_both():
    assert merged_order(["l.0.b", "l.0.a", "l.2"], ["l.0.a", "l.1", "l.2", "l.10"]) == [
        "l.0.b", "l.0.a", "l.1", "l.2", "l.10",
    ]  # fmt: skip
    assert merged_order(["l.9"], ["l.10", "l.11"]) == ["l.9", "l.10", "l.11"]
    assert sorted(merged_order(["a", "b"], ["b", "a"])) == ["a", "b"]  # no order agrees with both; none is lost


def test_composition_is_exact_in_float64_before_it_is_rounded_once():
    a, b = (Steering({"x": (normal(50, seed=k).numpy(), normal(50, seed=k + 9).numpy())}) for k in (1, 2))
    exact = a.weight("x").astype("d") * b.bias("x") + a.bias("x")
    assert np.array_equal((a @ b).bias("x"), exact.astype("f"))


@pytest.mark.parametrize("call", [lambda a, b: interpolate(a, b, 0.5), overlap])
def test_what_is_no_steering_is_refused(call):
    a = Steering({"a": ([1.0], [0.5])})
    for pair in ((a, "polite"), ("polite", a)):
        with pytest.raises(TypeError, match="expected two steerings, got str 'polite'"):
            call(*pair)
