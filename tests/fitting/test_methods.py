"""fit(method=) other than "lineas": maps are the method's formula on responses; and chosen units, and pooling."""

import copy

import numpy as np
import pytest
import torch
from conftest import TEXTS, assert_untouched, normal, snapshot, tiny

import lineas
from lineas import Steering, directions, evaluation, transport
from lineas.fitting.methods import METHODS

FORMULAS = {
    "mean_act": transport.mean_act, "gaussian_act": transport.gaussian_act, "linear_act": transport.linear_act,
    "aura": transport.aura, "det0": transport.det0, "caa": directions.caa, "actadd": directions.actadd,
    "iti_c": directions.iti_c, "repe": directions.repe,
}  # fmt: skip


def all_units(model):
    return {site.name: np.ones(site.units, bool) for site in lineas.find_sites(model)}


def fit(model, tokenizer, method, *, src=TEXTS[0], tgt=TEXTS[1], **options):
    if method == "det0":
        options.setdefault("units", all_units(model))
    return lineas.fit(model, src, tgt, tokenizer=tokenizer, method=method, progress=False, **options)


def assert_maps(steering, expected, atol=1e-5):
    assert steering.sites == list(expected)
    for name, (weight, bias) in expected.items():
        np.testing.assert_allclose(steering.weight(name), weight, atol=atol, err_msg=name)
        np.testing.assert_allclose(steering.bias(name), bias, atol=atol, err_msg=name)


def test_every_method_is_here():
    assert set(FORMULAS) == set(METHODS)


@pytest.mark.parametrize("method", FORMULAS)
def test_at_once_is_the_formula_on_responses_of_the_unsteered_model(method, llama, tokenizer):
    pooling = METHODS[method].pooling
    source, target = (evaluation.responses(llama, t, tokenizer=tokenizer, pooling=pooling) for t in TEXTS)
    before = snapshot(llama)
    steering = fit(llama, tokenizer, method, schedule="at_once")
    assert_untouched(llama, before)
    assert_maps(steering, {name: FORMULAS[method](source[name], target[name]) for name in source})
    assert steering.info["method"] == method
    assert (steering.info["schedule"], steering.info["pooling"]) == ("at_once", pooling)
    assert "recipe" not in steering.info, "nothing was fitted"


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_sequential_refits_each_site_under_the_maps_of_all_earlier_ones(method, batch_size, llama, tokenizer):
    pooling = METHODS[method].pooling
    target = evaluation.responses(llama, TEXTS[1], tokenizer=tokenizer, pooling=pooling)
    maps = {}
    for name in target:
        handle = Steering(maps).attach(llama) if maps else None
        source = evaluation.responses(llama, TEXTS[0], name.replace(".", r"\."), tokenizer=tokenizer, pooling=pooling)
        if handle:
            handle.remove()
        maps[name] = FORMULAS[method](source[name], target[name])
    before = snapshot(llama)
    steering = fit(llama, tokenizer, method, schedule="sequential", batch_size=batch_size)
    assert_untouched(llama, before)
    assert_maps(steering, maps, atol=1e-4)
    assert steering.info["evaluations"] == (1 if batch_size is None else 3)


@pytest.mark.parametrize("schedule", ["at_once", "sequential"])
def test_each_set_passes_through_the_network_once(schedule, llama, tokenizer):
    seen = []
    with llama.model.embed_tokens.register_forward_hook(lambda module, args, output: seen.append(len(output))):
        fit(llama, tokenizer, "linear_act", schedule=schedule, src=["a b c"] * 6 + ["d e f"] * 6, tgt=["g h i"] * 10)
    assert sorted(seen)[-2:] == [10, 12]
    assert max(sorted(seen)[:-2]) <= 2, "only looks at a sample or two come before"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "bert"])
def test_after_sequential_mean_act_every_site_has_the_mean_of_the_target(kind, tokenizer):
    model = tiny(kind)
    target = evaluation.responses(model, TEXTS[1], tokenizer=tokenizer)
    gaps = {}
    for schedule in ("sequential", "at_once"):
        with fit(model, tokenizer, "mean_act", schedule=schedule).apply(model):
            steered = evaluation.responses(model, TEXTS[0], tokenizer=tokenizer)
        gaps[schedule] = max(np.abs(steered[name].mean(0) - target[name].mean(0)).max() for name in target)
    assert gaps["sequential"] < 1e-4
    assert gaps["at_once"] > 1e-2, "there, later sites feel the earlier maps"


def test_what_the_papers_do_is_the_default(llama, tokenizer):
    found = {}
    for method in METHODS:
        info = fit(llama, tokenizer, method).info
        found[method] = info["schedule"], info["pooling"]
    act, experts, direction = ("sequential", "mean"), ("at_once", "max"), ("at_once", "last")
    assert found == {
        "mean_act": act, "gaussian_act": act, "linear_act": act, "aura": experts, "det0": experts, "caa": direction,
        "actadd": direction, "iti_c": direction, "repe": direction,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["caa", "actadd", "iti_c", "repe", "mean_act"])
def test_directions_stretch_nothing(method, llama, tokenizer):
    steering = fit(llama, tokenizer, method)
    assert all((steering.weight(name) == 1).all() for name in steering.sites)
    assert all(np.abs(steering.bias(name)).max() > 0 for name in steering.sites)


def test_activation_addition_takes_a_single_pair(llama, tokenizer):
    steering = fit(llama, tokenizer, "actadd", src=["I talk about cats"], tgt=["I talk about dogs"])
    more = fit(llama, tokenizer, "actadd", src=["I talk about cats", "x y"], tgt=["I talk about dogs", "z"])
    assert_maps(more, {name: (steering.weight(name), steering.bias(name)) for name in steering.sites})
    with pytest.raises(ValueError, match="src: expected at least 2 samples, got 1"):
        fit(llama, tokenizer, "caa", src=["I talk about cats"])


def test_a_function_is_a_method(llama, tokenizer):
    def halve(source, target):
        return np.full(source.shape[1], 0.5), np.median(target, 0) - 0.5 * np.median(source, 0)

    source, target = (evaluation.responses(llama, t, tokenizer=tokenizer, pooling="max") for t in TEXTS)
    steering = fit(llama, tokenizer, halve, pooling="max")
    assert_maps(steering, {name: halve(source[name], target[name]) for name in source})
    assert (steering.info["method"], steering.info["schedule"]) == ("halve", "at_once")
    sequential = fit(llama, tokenizer, halve, pooling="max", schedule="sequential")
    assert not np.allclose(sequential.bias(sequential.sites[-1]), steering.bias(steering.sites[-1]), atol=1e-3)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((np.ones(9), np.zeros(8)), r"site 'first': expected a finite bias \(9,\) from the method, got \(8,\)"),
        (
            (np.ones((9, 9)), np.zeros(9)),
            r"site 'first': expected a finite weight \(9,\) from the method, got \(9, 9\)",
        ),
        ((np.full(9, np.inf), np.zeros(9)), r"expected a finite weight .* got \(9,\) with NaN or infinity"),
    ],
)
def test_what_a_function_returns_is_looked_at(found, message, mlp):
    before = snapshot(mlp)
    with pytest.raises(ValueError, match=message):
        lineas.fit(mlp, normal(4, 4), normal(4, 4), sites="first", method=lambda x, y: found, progress=False)
    assert_untouched(mlp, before)


def test_a_model_that_draws_random_numbers_draws_the_same_for_both_schedules(mlp):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp

        def forward(self, x):
            return self.net(x + 0.1 * torch.randn_like(x))

    options = {"sites": "net.first", "method": "gaussian_act", "progress": False}
    both = normal(8, 4), normal(9, 4, seed=1)
    first, again, other = (
        lineas.fit(Noisy(), *both, schedule=schedule, seed=seed, **options)
        for schedule, seed in (("at_once", 0), ("sequential", 0), ("sequential", 1))
    )
    assert np.array_equal(first.bias("net.first"), again.bias("net.first"))
    assert not np.array_equal(first.bias("net.first"), other.bias("net.first"))


def test_images_and_plain_layers_have_maps_too(mlp):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Conv2d(5, 4, 3)).eval()
    target = normal(7, 3, 8, 8, seed=1, shift=1.0)
    steering = lineas.fit(net, normal(6, 3, 8, 8), target, sites="[02]", method="mean_act", progress=False)
    goal = evaluation.responses(net, target, "[02]")
    with steering.apply(net):
        steered = evaluation.responses(net, normal(6, 3, 8, 8), "[02]")
    for name in goal:
        np.testing.assert_allclose(steered[name].mean(0), goal[name].mean(0), atol=1e-4)


def test_responses_that_are_not_finite_name_inputs_and_site_and_leave_the_model_alone(mlp):
    bad = normal(6, 4)
    bad[3, 2] = torch.nan
    for schedule in ("at_once", "sequential"):
        for name, both in (("src", (bad, normal(6, 4))), ("tgt", (normal(6, 4), bad))):
            before = snapshot(mlp)
            with pytest.raises(ValueError, match=f"{name}: site 'first': expected finite responses"):
                lineas.fit(mlp, *both, sites="first|second", method="mean_act", schedule=schedule, progress=False)
            assert_untouched(mlp, before)


REFUSED = {
    "schedule with lineas": ({"schedule": "at_once"}, ValueError, "schedule goes with methods in closed form"),
    "unknown schedule": ({"method": "caa", "schedule": "twice"}, ValueError, "'at_once', 'sequential'; got 'twice'"),
    "unknown method": ({"method": "act"}, ValueError, "'linear_act'.*got 'act'"),
    "ridge": ({"method": "caa", "ridge": 1.0}, ValueError, "ridge: for method=\"lineas\" only"),
    "steps": ({"method": "caa", "steps": 3, "loss": "excess"}, ValueError, "loss, steps: for method"),
    "recipe": ({"method": "caa", "recipe": "published"}, ValueError, "recipe: for method"),
    "loss_sites": ({"method": "caa", "loss_sites": "third"}, ValueError, "loss_sites: for method"),
    "checkpoints": ({"method": "caa", "checkpoint_dir": "x"}, ValueError, "checkpoint_dir: for method"),
    "callbacks": ({"method": "caa", "callbacks": [print]}, ValueError, "callbacks: for method"),
    "det0 of all units": ({"method": "det0"}, ValueError, "units: expected.*'det0'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_a_fit_or_only_a_formula_can_take_is_refused(case, mlp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, error, message = REFUSED[case]
    before = snapshot(mlp)
    with pytest.raises(error, match=message):
        lineas.fit(mlp, normal(4, 4), normal(4, 4), sites="first|second", progress=False, **options)
    assert_untouched(mlp, before)
    assert not list(tmp_path.iterdir())


# -- chosen units --


@pytest.mark.parametrize("method", ["lineas", *FORMULAS])
def test_only_chosen_units_move(method, llama, tokenizer):
    first, second, third = (site.name for site in lineas.find_sites(llama))
    units = {first: [1, 4], third: np.arange(16) % 2 == 0}
    steering = fit(llama, tokenizer, method, units=units)
    moved = {name: found.tolist() for name, found in steering.support().items()}
    assert moved[second] == []
    assert set(moved[first]) <= {1, 4}
    assert set(moved[third]) <= set(range(0, 16, 2))
    assert steering.info["units"] == 10
    if method != "aura":  # which leaves alone units that do not respond to the source
        assert moved == {first: [1, 4], second: [], third: list(range(0, 16, 2))}


@pytest.mark.parametrize("options", [{}, {"recipe": "published", "steps": 20}, {"penalty": lineas.penalties.L1(1e-3)}])
def test_a_fit_of_chosen_units_still_lowers_the_loss_of_all(options, llama, tokenizer):
    units = {site.name: np.arange(6) for site in lineas.find_sites(llama)}
    steering = fit(llama, tokenizer, "lineas", units=units, **options)
    loss, every = steering.history["loss"], fit(llama, tokenizer, "lineas", **options).history["loss"]
    assert loss[0] == pytest.approx(every[0]), "the same loss, of all units"
    assert every[-1] < loss[-1] < loss[0]


def test_the_support_of_a_steering_can_be_refitted(llama, tokenizer):
    sparse = fit(llama, tokenizer, "lineas", penalty=lineas.penalties.L1(5e-3))
    again = fit(llama, tokenizer, "lineas", units=sparse.support())
    assert 0 < sum(map(len, sparse.support().values())) < 48
    assert {k: v.tolist() for k, v in again.support().items()} == {k: v.tolist() for k, v in sparse.support().items()}
    assert again.history["loss"][-1] < sparse.history["loss"][-1], "without what the penalty took"


BAD_UNITS = {
    "no dict": ([1, 2], TypeError, "expected a dict of site name -> units, got list"),
    "another site": ({"third": [0]}, LookupError, "'third' is not among the sites that are mapped; nearest"),
    "beyond": ({"first": [0, 9]}, ValueError, "units of 'first': expected 0 to 8, got 9"),
    "negative": ({"first": [-1]}, ValueError, "expected 0 to 8, got -1"),
    "short mask": ({"first": [True, False]}, ValueError, r"expected a mask \(9,\), got \(2,\)"),
    "fractions": ({"first": [0.5]}, TypeError, r"expected whole numbers \(k,\) or a mask \(9,\), got float64 \(1,\)"),
    "none at all": ({"first": [], "second": []}, ValueError, "expected at least one unit, got none at 2 sites"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_UNITS)
@pytest.mark.parametrize("method", ["lineas", "caa"])
def test_units_that_are_none_are_refused(case, method, mlp):
    units, error, message = BAD_UNITS[case]
    before = snapshot(mlp)
    with pytest.raises(error, match=message):
        lineas.fit(
            mlp, normal(4, 4), normal(4, 4), sites="first|second", units=units, method=method, progress=False
        )  # fmt: skip
    assert_untouched(mlp, before)


def test_a_checkpoint_of_other_units_is_refused(mlp, tmp_path):
    options = {"sites": "first", "progress": False, "checkpoint_dir": tmp_path}
    both = normal(6, 4), normal(6, 4, shift=1.0)
    lineas.fit(mlp, *both, units={"first": [0, 1]}, max_evaluations=2, **options)
    with pytest.raises(ValueError, match="units"):
        lineas.fit(mlp, *both, units={"first": [0, 2]}, max_evaluations=2, resume_from=tmp_path, **options)


@pytest.fixture(scope="module")
def painter():
    """The means over an image of the first norm's channels are the same for all images, up to 1e-8."""
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 3, padding=1)
    return torch.nn.Sequential(first, torch.nn.GroupNorm(8, 8), torch.nn.ReLU(), second, torch.nn.GroupNorm(2, 4))


@pytest.mark.parametrize("method", ["mean_act", "gaussian_act", "linear_act", "caa"])
def test_identical_sets_are_left_alone_however_they_are_batched(painter, method):
    x = normal(24, 3, 12, 12)
    others = torch.utils.data.DataLoader(x.flip(0), batch_size=1)
    steering = lineas.fit(painter, x, others, sites=["1", "4"], method=method, progress=False)
    plain = painter(x)
    with steering.apply(painter):
        assert (painter(x) - plain).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["gaussian_act", "linear_act"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deviations_that_are_rounding_scale_nothing(painter, method, dtype):
    x, y = normal(24, 3, 12, 12), normal(30, 3, 12, 12, seed=1) + 1
    model = copy.deepcopy(painter).to(dtype)
    steering = lineas.fit(model, x.to(dtype), y.to(dtype), sites=["1", "4"], method=method, progress=False)
    assert (steering.weight("1") == 1).all()
    assert np.abs(steering.bias("1")).max() < (1e-6 if dtype == torch.float32 else 0.01)
    assert np.abs(steering.weight("4") - 1).min() > 0.001


def test_a_small_deviation_that_is_none_of_rounding_is_matched():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(1e-3 * torch.eye(2))
        net[0].bias.fill_(1.0)
    x = normal(40, 2)
    steering = lineas.fit(net, x, 3 * x, sites="0", method="gaussian_act", progress=False)
    assert np.allclose(steering.weight("0"), 3, rtol=1e-2)


def test_what_stands_in_padding_says_nothing_of_rounding():
    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.site = torch.nn.Identity()

        def forward(self, inputs_embeds, attention_mask):
            return self.site(inputs_embeds)

    mask = torch.ones(12, 5)
    mask[:, 3:] = 0

    def weights(padding):
        sides = [torch.where(mask[:, :, None] > 0, normal(12, 5, 4, seed=k) * (1 + k), padding) for k in (0, 1)]
        given = [{"inputs_embeds": side, "attention_mask": mask} for side in sides]
        return lineas.fit(Reader(), *given, sites="site", method="gaussian_act", progress=False).weight("site")

    expected = weights(0.0)
    assert (expected != 1).all()
    assert np.abs(expected - 1).max() > 0.5
    for padding in (1e30, float("inf")):
        assert np.array_equal(weights(padding), expected)
