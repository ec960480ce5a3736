"""Each row of a batch with a strength, and a steering, of its own; other ones while it runs."""

import copy
import warnings

import numpy as np
import pytest
import torch
from conftest import IDS, Mlp, normal, random_maps
from hypothesis import given, settings
from hypothesis import strategies as st
from test_positions import OPTIONS, padded

import lineas
from lineas import Steering
from lineas.attaching.site_map import Chosen

MASK = torch.ones_like(IDS)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def alone(model, steering, strength, ids=IDS):
    with steering.apply(model, strength):
        return logits(model, ids)


# -- strength --


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_each_row_is_as_it_would_be_alone(model, steering, kind):
    strengths = [1.0, 0.0, -0.5]
    base = logits(model)
    with steering.apply(model, kind(strengths)):
        got = logits(model)
    for row, strength in enumerate(strengths):
        assert torch.equal(got[row], alone(model, steering, strength)[row])
    assert torch.equal(got[1], base[1]), "strength 0 is exactly the base model"
    assert not torch.allclose(got[0], base[0], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (3, 2, 2, 5)])
@pytest.mark.parametrize("first", [False, True])
def test_rows_of_any_shape_and_dtype_follow_the_formula(shape, dtype, first):
    w, b, s = (normal(*size, seed=seed) for seed, size in enumerate([(5,), (5,), (3,)]))
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(5) if first else torch.nn.LayerNorm(5)).eval().to(dtype)
    h = normal(*shape).to(dtype)
    h = h.movedim(-1, 1) if first else h
    if first and h.ndim == 4:
        net = torch.nn.Sequential(torch.nn.BatchNorm2d(5)).eval().to(dtype)
    base = net(h)
    with Steering({"0": (w, b)}).apply(net, s):
        got = net(h)
    assert got.dtype == dtype
    z = (base.movedim(1, -1) if first else base).double()
    s, w, b = (part.double().view(*size, *[1] * (z.ndim - 2), -1) for part, size in ((s, (3,)), (w, (1,)), (b, (1,))))
    expected = s * (w * z + b) + (1 - s) * z
    expected = expected.movedim(-1, 1) if first else expected
    torch.testing.assert_close(
        got, expected.to(dtype), rtol={torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 1e-4), atol=1e-4
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.sampled_from("ab")), min_size=1, max_size=5).flatmap(
        lambda rows: st.tuples(st.just(rows), st.lists(st.floats(-2, 2), min_size=len(rows), max_size=len(rows)))
    )
)
def test_any_choice_by_row_is_each_row_alone(choice):
    rows, strengths = choice
    net = Mlp().eval()
    draw = np.random.default_rng(0)
    maps = {
        "a": Steering({"first": draw.normal(size=(2, 9)), "second": draw.normal(size=(2, 8))}),
        "b": Steering({"third": draw.normal(size=(2, 3)), "first": draw.normal(size=(2, 9))}),
    }
    x = normal(len(rows), 4)
    with torch.no_grad():
        base = net(x)
        with lineas.attach(net, maps, rows, strengths):
            got = net(x)
        for row, (key, strength) in enumerate(zip(rows, strengths, strict=True)):
            if key is None or strength == 0:
                assert torch.equal(got[row], base[row])
            else:
                with maps[key].apply(net, strength):
                    torch.testing.assert_close(got[row], net(x)[row])


@pytest.mark.parametrize("options", [
    {}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}, {"num_return_sequences": 2, "do_sample": True},
    {"cache_implementation": "static"}, {"prefill_chunk_size": 2}, {"use_cache": False},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("position", ["all", "last"])
def test_in_generate_beams_and_samples_follow_their_row(model, steering, options, position):
    ids, mask = padded("left")
    strengths = [1.0, 0.0, 2.0]
    each = options.get("num_return_sequences", 1)
    options = {**OPTIONS, "return_dict_in_generate": False, "output_logits": False, **options}
    if options["do_sample"]:
        options["top_k"] = 1  # the same draws for whatever batch
    with steering.apply(model, strengths, position=position):
        together = model.generate(ids, attention_mask=mask, **options)
    for row, strength in enumerate(strengths):
        with steering.apply(model, strength, position=position):
            one = model.generate(ids[row : row + 1], attention_mask=mask[row : row + 1], **options)
        assert torch.equal(together[each * row : each * (row + 1)], one)


def test_another_strength_at_run_time(model, steering):
    base = logits(model)
    handle = steering.attach(model, 0.5)
    for strength in (2.0, 0.0, torch.tensor(1.0), 1):
        handle.set_strength(strength)
        assert handle.strength is strength
        with_handle = logits(model)
        handle.remove()
        assert torch.equal(with_handle, alone(model, steering, float(strength)))
        handle = steering.attach(model)
    handle.set_strength([0.0, 1.0, 2.0])
    got = logits(model)
    handle.set_strength(torch.zeros(3))
    assert torch.equal(logits(model), base)
    handle.set_strength(0.25)
    assert logits(model, IDS[:2]).shape[0] == 2, "a number goes with any batch again"
    handle.remove()
    assert torch.equal(got[2], alone(model, steering, 2.0)[2])
    with pytest.raises(RuntimeError, match="got one that was removed"):
        handle.set_strength(1.0)


def test_another_strength_between_tokens(model, steering):
    """What was computed stays in the cache; only later tokens follow the new strength."""
    with steering.apply(model, 1.0) as handle, torch.no_grad():
        first = model(IDS[:, :4], use_cache=True)
        handle.set_strength(-1.0)
        second = model(IDS[:, 4:], past_key_values=first.past_key_values)
    got = torch.cat([first.logits, second.logits], 1)
    signs = torch.tensor([1.0] * 4 + [-1.0] * 2)[:, None]
    hooks = []
    for name in steering.sites:
        w, b = (torch.tensor(part(name)) for part in (steering.weight, steering.bias))
        change = lambda module, args, h, w=w, b=b: h + signs * ((w - 1) * h + b)  # noqa: E731
        hooks.append(model.get_submodule(name).register_forward_hook(change))
    torch.testing.assert_close(got, logits(model), atol=1e-5, rtol=0)


def test_a_choice_that_is_refused_changes_nothing(model, steering):
    with steering.apply(model, 0.5) as handle:
        before = logits(model)
        for wrong in ("1", float("nan"), [], [1.0, None], [[1.0]], torch.ones(2, 2)):
            with pytest.raises((TypeError, ValueError), match="strength: expected a"):
                handle.set_strength(wrong)
        with pytest.raises(LookupError, match=r"rows: expected ids among 0, or None, got 7"):
            handle.select([0, 7])
        assert torch.equal(logits(model), before)
        assert (handle.rows, handle.strength) == (0, 0.5)


# -- several steerings --


def test_one_steering_is_for_all_rows_unless_told(model, steering):
    expected = alone(model, steering, 1.0)
    with lineas.attach(model, {"a": steering}) as handle:
        assert torch.equal(logits(model), expected)
        assert handle.rows == "a"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lineas.attach(model, {"a": steering}, rows=None), torch.no_grad():
            assert not torch.equal(logits(model), expected)
    for option in ("strict", "count"):
        with pytest.raises(TypeError, match=f"{option}: expected True or False, got 'no'"):
            lineas.attach(model, [steering], **{option: "no"})


def test_several_steerings_each_row_its_own(model, steering):
    other = random_maps(model, seed=1, size=0.3)
    base = logits(model)
    expected = {"a": alone(model, steering, 1.0), "b": alone(model, other, 1.0), None: base}
    with lineas.attach(model, {"a": steering, "b": other}) as handle:
        with pytest.warns(UserWarning, match="expected rows, or handle.select, .* nothing was steered"):
            assert torch.equal(logits(model), base), "nobody is steered before somebody is selected"
        for rows in (["a", None, "b"], ["b", "b", "a"], [None, None, None], ["b", "b", "b"]):
            handle.select(rows)
            got = logits(model)
            for row, key in enumerate(rows):
                assert torch.equal(got[row], expected[key][row]), (rows, row)
        handle.select("b")
        assert torch.equal(logits(model), expected["b"])
        handle.select([None, "a"], strength=[1.0, 3.0])
        got = logits(model, IDS[:2])
    assert torch.equal(got[0], base[0])
    assert torch.equal(got[1], alone(model, steering, 3.0, IDS[:2])[1])
    with lineas.attach(model, [steering, other], torch.tensor([1, 0, 1])):
        got = logits(model)
    assert torch.equal(got, torch.stack([expected[key][row] for row, key in enumerate("bab")]))


def test_steerings_of_other_sites_and_few_units():
    net = Mlp().eval()
    few = np.zeros(9)
    few[3] = 2.0
    maps = [Steering({"first": (1 + few, few)}), Steering({"third": ([1, 2, 3], [0, 1, 0])})]
    x = normal(4, 4)
    with lineas.attach(net, maps, [0, 1, None, 0]) as handle:
        assert list(handle._maps) == lineas.find_sites(net, ["first", "third"])
        got = net(x)
    for row, key in enumerate([0, 1, None, 0]):
        if key is None:
            assert torch.equal(got[row], net(x)[row])
        else:
            with maps[key].apply(net):
                torch.testing.assert_close(got[row], net(x)[row])


def test_a_copy_of_a_steered_model_is_steered_by_itself(model, steering):
    with steering.apply(model, [1.0, 0.0, 2.0], position="generated"):
        twin = copy.deepcopy(model)
        expected = model.generate(IDS, attention_mask=MASK, **OPTIONS).sequences
    assert torch.equal(twin.generate(IDS, attention_mask=MASK, **OPTIONS).sequences, expected)
    assert not torch.equal(model.generate(IDS, attention_mask=MASK, **OPTIONS).sequences, expected)


def test_gradients_flow_through_rows(model, steering):
    with steering.apply(model, [1.0, 0.0, 2.0], position="last"):
        model(IDS).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# -- refused --


@pytest.mark.parametrize("strength", [0.5, [0.5, 1.0, 0.0]])
def test_a_pass_without_autograd_spoils_no_later_one_with_it(model, steering, strength):
    with steering.apply(model, strength):
        with torch.inference_mode():
            model(IDS)
        model(IDS).logits.sum().backward()
    assert next(model.parameters()).grad is not None


@pytest.mark.parametrize("position", ["all", "last"])
@pytest.mark.parametrize("strength", [0.5, [0.5, 1.0, 0.0]])
def test_what_is_said_in_inference_mode_can_be_trained_through_later(model, steering, strength, position):
    def gradients():
        model.zero_grad()
        model(IDS).logits.square().sum().backward()
        return [weight.grad for weight in model.parameters()]

    with steering.apply(model, strength, position=position):
        expected = gradients()
    for first in (strength, 2.0):
        with torch.inference_mode():
            handle = steering.attach(model, first, position=position)
            handle.select([0, 0, 0])
            model(IDS)
            handle.select(0, strength)
        with handle:
            assert all(map(torch.equal, gradients(), expected))


@pytest.mark.parametrize("strength", [0.5, [0.5, 1.0, 0.0]])
def test_maps_are_gathered_once_for_all_tokens(model, steering, strength, monkeypatch):
    calls, real = [], Chosen.prepared
    monkeypatch.setattr(Chosen, "prepared", lambda self, *args: calls.append(id(self)) or real(self, *args))
    with steering.apply(model, strength):
        model.generate(IDS, attention_mask=MASK, **OPTIONS)
    assert len(set(calls)) == len(calls) == len(steering.sites)


def test_the_wrong_number_of_rows_is_refused_with_both(model, steering):
    with steering.apply(model, [1.0, 2.0]):
        with pytest.raises(ValueError, match="strength: expected one for each of 3 rows, got 2"):
            model(IDS)
        with pytest.raises(ValueError, match="strength: expected one for each of 4 rows, got 2"):
            model(IDS[[0, 1, 2, 0]])
        with pytest.raises(ValueError, match="strength: expected one for each of 3 rows, got 2"):
            model.generate(IDS, attention_mask=MASK, **OPTIONS)
        with pytest.raises(ValueError, match="strength: expected one for each of 1 rows, got 2"):
            model.generate(IDS[:1], num_beams=2, attention_mask=MASK[:1], **OPTIONS)
    with lineas.attach(model, [steering], [0, None]), pytest.raises(ValueError, match="rows: expected one .* 3 .* 2"):
        model(IDS)


def test_arguments_that_make_no_sense_are_refused(model, steering):
    class Odd:
        pass

    for steerings, error, message in (
        (steering, TypeError, "expected a list of steerings or a dict of them, got Steering"),
        ([], ValueError, "steerings: expected at least one, got none"),
        ({"a": Odd()}, TypeError, "expected a Steering for 'a', got Odd"),
    ):
        with pytest.raises(error, match=message):
            lineas.attach(model, steerings)
    with pytest.raises(ValueError, match="rows and strength: expected as many of both, got 3 and 2"):
        lineas.attach(model, [steering], [0, 0, None], [1.0, 2.0])
    with pytest.raises(ValueError, match="rows: expected an id for each row, got none"):
        lineas.attach(model, [steering], [])
    net = torch.nn.Sequential(torch.nn.Tanh())
    with pytest.raises(ValueError, match=r"weight \(3,\), another steering has \(2,\) units"):
        lineas.attach(net, [Steering({"0": ([1, 1], [0, 0])}), Steering({"0": ([1] * 3, [0] * 3)})])
    with lineas.attach(model, [steering]), pytest.raises(RuntimeError, match="already on this model"):
        lineas.attach(model, [random_maps(model, seed=1), steering])
