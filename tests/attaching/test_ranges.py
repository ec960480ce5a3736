"""Maps that hold within a range only: made, fitted, applied, combined, kept."""

import json

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, random_maps, tiny
from safetensors.numpy import load_file, save_file
from torch import nn

import lineas
from lineas import Steering, algebra, evaluation, transport

INF = np.inf
MAPS = {"0": ([2.0, 1.0, 0.5], [1.0, -3.0, 0.0])}
RANGES = {"0": ([-1.0, -INF, 0.0], [0.5, INF, 0.0])}


def net(units=3):
    """The site's activations are the input."""
    model = nn.Sequential(nn.Linear(units, units))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(units))
        model[0].bias.zero_()
    return model


def by_hand(z, steering, strength, site="0"):
    """The definition, in NumPy: channels last."""
    z = np.asarray(z, np.float64)
    low, high = steering.range(site)
    mapped = strength * (steering.weight(site) * z + steering.bias(site)) + (1 - strength) * z
    return np.where((z >= low) & (z <= high), mapped, z)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_unit_is_mapped_within_its_range_and_left_alone_elsewhere(strength, dtype):
    steering, model = Steering(MAPS, ranges=RANGES), net().to(dtype)
    z = torch.tensor([[-1.0, 5.0, 0.0], [0.5, -80.0, 0.25], [-1.5, 0.0, -0.25], [0.625, INF, 1.0]], dtype=dtype)
    z[3, 1] = 7.0
    with torch.no_grad(), steering.apply(model, strength):
        got = model(z)
    assert got.dtype == dtype
    expected = by_hand(z.double(), steering, strength)
    np.testing.assert_allclose(got.double(), expected, rtol=0.01 if dtype == torch.bfloat16 else 1e-6)
    assert torch.equal(got[2, [0, 2]], z[2, [0, 2]]), "the same bits outside"
    if strength == 0:
        assert torch.equal(got, z)


def test_a_range_that_holds_everything_is_no_range(llama):
    ids = torch.arange(3, 23).view(2, 10)
    plain = random_maps(llama, size=0.3)
    maps = {name: (plain.weight(name), plain.bias(name)) for name in plain.sites}
    wide = Steering(maps, ranges={n: (np.full_like(w, -INF), np.full_like(w, INF)) for n, (w, _) in maps.items()})
    with torch.no_grad():
        with plain.apply(llama):
            expected = llama(ids).logits
        with wide.apply(llama):
            assert torch.equal(llama(ids).logits, expected)


def test_few_units_of_many_numbers_are_held_to_their_ranges_too():
    weight, bias = np.ones(64), np.zeros(64)
    weight[5], bias[5] = 3.0, 1.0
    ends = np.full(64, -0.5), np.full(64, 0.5)
    steering, model = Steering({"0": (weight, bias)}, ranges={"0": ends}), net(64)
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), steering.apply(model):
        np.testing.assert_allclose(model(z), by_hand(z, steering, 1.0), rtol=1e-5, atol=1e-6)


def test_images_have_their_channels_in_front():
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3)[:, :, None, None])
    steering = Steering(MAPS, ranges=RANGES)
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), steering.apply(model):
        got = model(z).movedim(1, -1)
    np.testing.assert_allclose(got, by_hand(z.movedim(1, -1), steering, 1.0), rtol=1e-5, atol=1e-6)


def test_rows_have_their_own_ranges_and_strengths():
    ranged, free = Steering(MAPS, ranges=RANGES), Steering(MAPS)
    elsewhere = Steering(MAPS, ranges={"0": ([3.0] * 3, [4.0] * 3)})
    z, model = torch.full((5, 3), 0.25), net()
    z[4] = 3.5
    rows, strengths = ["ranged", "free", None, "elsewhere", "elsewhere"], [1.0, 1.0, 1.0, 1.0, 0.5]
    steerings = {"ranged": ranged, "free": free, "elsewhere": elsewhere}
    with torch.no_grad(), lineas.attach(model, steerings, rows, strengths):
        got = model(z)
    all_of_it = np.array([1.5, -2.75, 0.125])
    np.testing.assert_allclose(got[0], [1.5, -2.75, 0.25])
    np.testing.assert_allclose(got[1], all_of_it)
    np.testing.assert_allclose(got[2:4], z[2:4])
    np.testing.assert_allclose(got[4], by_hand(z[4], elsewhere, 0.5))


def test_positions_and_ranges_hold_together(llama):
    ids = torch.arange(3, 23).view(2, 10)
    site = lineas.find_sites(llama)[0].name

    def output():
        seen = []
        hook = llama.get_submodule(site).register_forward_hook(lambda module, args, out: seen.append(out))
        with torch.no_grad():
            llama(ids)
        hook.remove()
        return seen[0]

    plain = output()
    units = plain.shape[-1]
    steering = Steering({site: ([2.0] * units, [1.0] * units)}, ranges={site: ([0.0] * units, [INF] * units)})
    with steering.apply(llama, position=lambda at: at >= 6):
        got = output()
    expected = by_hand(plain, steering, 1.0, site)
    np.testing.assert_allclose(got[:, 6:], expected[:, 6:], rtol=1e-5, atol=1e-6)
    assert torch.equal(got[:, :6], plain[:, :6])
    assert (got[:, 6:] != plain[:, 6:]).any()
    assert (got[:, 6:] == plain[:, 6:]).any()


def test_gradients_pass_through_both_sides():
    steering, model = Steering(MAPS, ranges=RANGES), net()
    z = torch.tensor([[0.25, 1.0, 0.0], [9.0, 1.0, 5.0]], requires_grad=True)
    with steering.apply(model):
        model(z).sum().backward()
    np.testing.assert_allclose(z.grad, [[2.0, 1.0, 0.5], [1.0, 1.0, 1.0]])


# -- fitting --


@pytest.mark.parametrize("method", ["linear_act", "mean_act", "caa"])
def test_at_once_ranges_are_those_of_the_responses(method, llama, tokenizer):
    options = {"tokenizer": tokenizer, "pooling": "mean"}
    source = evaluation.responses(llama, NEGATIVE, **options)
    wide, held = (
        lineas.fit(
            llama, NEGATIVE, POSITIVE, method=method, schedule="at_once", within_range=within, progress=False, **options
        )
        for within in (False, True)
    )
    assert held.info["within_range"] is True
    assert "within_range" not in wide.info
    for name in wide.sites:
        assert wide.range(name) is None
        np.testing.assert_array_equal(held.weight(name), wide.weight(name))
        for end, expected in zip(held.range(name), (source[name].min(0), source[name].max(0)), strict=True):
            np.testing.assert_array_equal(end, expected)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_sequential_maps_come_from_earlier_ones_within_their_ranges(batch_size, llama, tokenizer):
    options = {"tokenizer": tokenizer, "batch_size": batch_size}
    target = evaluation.responses(llama, POSITIVE, tokenizer=tokenizer)
    maps, ranges = {}, {}
    for name in target:
        if maps:
            with Steering(maps, ranges=ranges).apply(llama):
                source = evaluation.responses(llama, NEGATIVE, name, tokenizer=tokenizer)[name]
        else:
            source = evaluation.responses(llama, NEGATIVE, name, tokenizer=tokenizer)[name]
        maps[name] = transport.linear_act(source, target[name])
        ranges[name] = source.min(0), source.max(0)
    got = lineas.fit(
        llama,
        NEGATIVE,
        POSITIVE,
        method="linear_act",
        schedule="sequential",
        within_range=True,
        progress=False,
        **options,
    )
    for name, (weight, bias) in maps.items():
        np.testing.assert_allclose(got.weight(name), weight, rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(got.bias(name), bias, rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(got.range(name), ranges[name], rtol=1e-4, atol=1e-5, err_msg=name)
    free = lineas.fit(
        llama, NEGATIVE, POSITIVE, method="linear_act", schedule="sequential", progress=False, **options
    )  # fmt: skip
    last = got.sites[-1]
    assert np.abs(free.bias(last) - got.bias(last)).max() > 1e-3, "the ranges of earlier sites matter"


def test_units_that_were_not_chosen_hold_everywhere(llama, tokenizer):
    site = lineas.find_sites(llama)[0].name
    got = lineas.fit(
        llama, NEGATIVE, POSITIVE, tokenizer=tokenizer, method="mean_act", units={site: [2, 3]}, within_range=True,
        progress=False,
    )  # fmt: skip
    low, high = got.range(site)
    assert np.flatnonzero(np.isfinite(low)).tolist() == np.flatnonzero(np.isfinite(high)).tolist() == [2, 3]


def test_a_fit_through_the_model_has_no_ranges(mlp):
    data = torch.randn(4, 6)
    with pytest.raises(ValueError, match="within_range goes with methods in closed form"):
        lineas.fit(mlp, data, data + 1, within_range=True, progress=False)


def test_a_fit_does_not_start_from_maps_with_ranges(mlp):
    data = torch.randn(4, 4)
    held = lineas.fit(mlp, data, data + 1, sites="first", method="mean_act", within_range=True, progress=False)
    with pytest.raises(ValueError, match="expected maps that hold everywhere"):
        lineas.fit(mlp, data, data + 1, sites="first", resume_from=held, progress=False)


# -- combining --


def test_scaled_restricted_and_mixed_with_nothing_keep_their_ranges():
    steering, model = Steering(MAPS, ranges=RANGES), net()
    other = Steering({"1": ([1.0], [2.0])})
    z = torch.tensor([[0.25, 1.0, 0.0], [9.0, 1.0, 5.0]])
    with torch.no_grad(), steering.apply(model, 0.5):
        expected = model(z)
    alike = {
        "scaled": steering.scaled(0.5),
        "interpolated": algebra.interpolate(other, steering, 0.5).restricted(["0"]),
        "composed": (other @ steering.scaled(0.5)).restricted(["0"]),
    }
    for how, made in alike.items():
        with torch.no_grad(), made.apply(model):
            np.testing.assert_allclose(model(z), expected, rtol=1e-6, err_msg=how)
    top = steering.restricted(top=1)
    np.testing.assert_array_equal(top.range("0"), RANGES["0"])
    assert (other @ other).range("1") is None


def test_what_lies_outside_does_not_count_as_movement():
    steering = Steering({"0": ([1.0, 1.0], [5.0, 1.0])}, ranges={"0": ([0.0, -9.0], [1.0, 9.0])})
    responses = {"0": np.array([[2.0, 2.0], [3.0, 3.0]])}
    assert steering.restricted(top=1, responses=responses).support()["0"].tolist() == [1]
    assert steering.restricted(top=1).support()["0"].tolist() == [0]


def test_what_would_not_be_exact_is_refused():
    ranged, free = Steering(MAPS, ranges=RANGES), Steering(MAPS)
    for how in (
        lambda: ranged.inverse(), lambda: ranged @ free, lambda: free @ ranged,
        lambda: algebra.interpolate(ranged, free, 0.5), lambda: algebra.interpolate(free, ranged, 0.5),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="within a range only: '0'"):
            how()


def test_weights_cannot_express_a_range():
    model = tiny("llama")
    plain = random_maps(model, size=0.1)
    first, *others = plain.sites
    maps = {name: (plain.weight(name), plain.bias(name)) for name in plain.sites}
    steering = Steering(maps, ranges={first: (np.full_like(maps[first][0], -1), np.full_like(maps[first][0], 1))})
    plan = steering.merge_plan(model)
    assert [entry.site for entry in plan.refused] == [first]
    assert "within a range only" in str(plan)
    with pytest.raises(ValueError, match="within a range only"):
        steering.merge(model)
    with pytest.warns(UserWarning, match=first):
        merged = steering.merge(model, partial=True)
    assert merged.lineas_merge["left_out"] == [first]
    assert others
    assert steering.merge_plan(model, 0.0).exact, "at strength 0 there is nothing to merge"


# -- keeping --


def test_ranges_are_kept_and_files_without_them_are_as_before(tmp_path):
    ranged, free = Steering({**MAPS, "1": ([2.0], [0.0])}, ranges=RANGES), Steering(MAPS)
    ranged.save_pretrained(tmp_path / "ranged")
    free.save_pretrained(tmp_path / "free")
    back = Steering.from_pretrained(tmp_path / "ranged")
    np.testing.assert_array_equal(back.range("0"), RANGES["0"])
    assert back.range("1") is None
    assert repr(back) == repr(ranged)
    assert "within ranges" in repr(ranged)
    assert "ranges" not in (tmp_path / "free" / "steering_config.json").read_text()
    assert set(load_file(tmp_path / "free" / "steering.safetensors")) == {"0.weight", "0.bias"}
    assert Steering.from_pretrained(tmp_path / "free").range("0") is None


@pytest.mark.parametrize("wrong", ["0", ["2"], ["0", "0"], [0], None, {"0": 1}])
def test_a_config_that_names_other_ranges_is_refused(wrong, tmp_path):
    Steering(MAPS, ranges=RANGES).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "steering_config.json").read_text())
    (tmp_path / "steering_config.json").write_text(json.dumps({**config, "ranges": wrong}))
    with pytest.raises(ValueError, match="expected ranges with names of sites, each once"):
        Steering.from_pretrained(tmp_path)


def test_a_reader_that_knows_no_ranges_does_not_lose_them_silently(tmp_path):
    Steering(MAPS, ranges=RANGES).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "steering_config.json").read_text())
    del config["ranges"]
    (tmp_path / "steering_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"disagrees.*low"):
        Steering.from_pretrained(tmp_path)


def test_ends_in_a_file_are_looked_at(tmp_path):
    Steering(MAPS, ranges=RANGES).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "steering.safetensors")
    tensors["0.low"][0] = np.nan
    save_file(tensors, tmp_path / "steering.safetensors")
    config = json.loads((tmp_path / "steering_config.json").read_text())
    del config["sha256"]
    (tmp_path / "steering_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="low <= high, got others in units 0"):
        Steering.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("ranges", "error", "message"),
    [
        ({"0": ([0.0], [1.0])}, ValueError, r"expected a range of low \(3,\) and high \(3,\), got \(1,\), \(1,\)"),
        ({"0": ([0.0] * 3, [1.0, -1.0, 1.0])}, ValueError, "low <= high, got others in units 1"),
        ({"0": ([np.nan] * 3, [1.0] * 3)}, ValueError, "in units 0, 1, 2"),
        ({"7": ([0.0] * 3, [1.0] * 3)}, LookupError, "no map for site '7'"),
    ],
)
def test_ranges_that_cannot_be_are_refused(ranges, error, message):
    with pytest.raises(error, match=message):
        Steering(MAPS, ranges=ranges)
