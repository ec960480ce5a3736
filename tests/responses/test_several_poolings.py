"""Several poolings at once: a unit has as many responses, and the loss is a mean over them too."""

import itertools

import numpy as np
import pytest
import torch
from conftest import TEXTS, Mlp, flat, normal
from oracle import THREADS, make_mask, run_python, same_tensor

import lineas
from lineas import evaluation, experts
from lineas.core import reference
from lineas.fitting.model_loss import ModelLoss
from lineas.fitting.ridge import sensitivity
from lineas.fitting.source_passes import SourcePasses
from lineas.network.data import Batch, as_batches
from lineas.network.sites import Site
from lineas.responses.pooling import POOLINGS, Part
from lineas.responses.probe import probe
from lineas.responses.runner import Runner

SITE = Site("x", None, "Any")
PAIRS = [*itertools.permutations(POOLINGS, 2), POOLINGS]


def pooled(h, dim, mask, pooling, scale, shift):
    batch = Batch((), {} if mask is None else {"attention_mask": mask}, len(h))
    return Part(batch, pooling).pooled(h, dim, "", SITE, scale, shift)


def twin(h, dim, mask, pooling, scale, shift):
    """Sample by sample and pooling by pooling, over the tokens that count."""
    out = reference.affine(h, scale, shift, dim)
    rows = out.movedim(dim, -1).reshape(len(h), -1, len(scale))
    counts = [slice(None)] * len(h) if mask is None else [mask[k] != 0 for k in range(len(h))]
    how = {
        "mean": lambda x: x.mean(0), "max": lambda x: x.amax(0), "min": lambda x: x.amin(0), "last": lambda x: x[-1],
    }  # fmt: skip
    return out, torch.cat([torch.stack([how[p](x[c]) for x, c in zip(rows, counts, strict=True)]) for p in pooling], 1)


CASES = {  # what a module returns, the dimension of its channels, and the mask
    "one token": (lambda: normal(3, 7), -1, None),
    "tokens": (lambda: normal(3, 5, 7), -1, "left"),
    "tokens, masked here and there": (lambda: normal(3, 5, 7), -1, "arbitrary"),
    "tokens, transposed": (lambda: normal(3, 7, 5).transpose(1, 2), -1, "right"),
    "ties": (lambda: normal(3, 5, 7).round(), -1, "right"),
    "equal tokens": (lambda: normal(3, 1, 7).expand(3, 5, 7).clone(), -1, "left"),
    "image": (lambda: normal(3, 7, 2, 4), 1, None),
    "image in channels_last": (lambda: normal(3, 7, 2, 4).to(memory_format=torch.channels_last), 1, None),
}


@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pooling", PAIRS, ids=",".join)
def test_map_and_responses_are_the_twins_in_value_and_gradient(pooling, case, dtype):
    make, dim, mask = CASES[case]
    h = make()
    mask = None if mask is None else make_mask(mask, *h.shape[:2])
    scale, shift = (1 + 0.3 * normal(7, seed=1)), normal(7, seed=2)
    if dtype == torch.bfloat16:  # numbers that it holds, and whose maps it holds: so nothing is rounded
        h, scale, shift = (4 * h).round() / 4, (4 * scale).round() / 4, (4 * shift).round() / 4
    given = [x.clone().requires_grad_() for x in (h.to(dtype), scale, shift)]
    exact = [x.double().requires_grad_() for x in (h, scale, shift)]
    got, wanted = (f(x[0], dim, mask, pooling, *x[1:]) for f, x in ((pooled, given), (twin, exact)))
    slopes = normal(*h.shape, seed=3).to(dtype), normal(*wanted[1].shape, seed=4)
    assert got[0].dtype == dtype
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(got, given, [s.to(x.dtype) for s, x in zip(slopes, got, strict=True)])
    right = torch.autograd.grad(wanted, exact, [s.double() for s in slopes])
    eps = 4 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-5
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=eps, atol=10 * eps)


@pytest.mark.parametrize("pooling", PAIRS, ids=",".join)
def test_the_columns_of_each_pooling_are_those_of_it_alone(pooling):
    h, mask, scale, shift = normal(3, 5, 7), make_mask("left", 3, 5), 1 + normal(7, seed=1), normal(7, seed=2)
    out, responses = pooled(h, -1, mask, pooling, scale, shift)
    for name, columns in zip(pooling, responses.split(7, 1), strict=True):
        alone = pooled(h, -1, mask, name, scale, shift)
        assert same_tensor(out, alone[0])
        assert same_tensor(columns, alone[1])


def test_padding_that_is_not_finite_reaches_no_response():
    h, mask = normal(2, 4, 3), torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    h[mask == 0] = torch.nan
    maps = torch.ones(3), torch.zeros(3)
    _, responses = pooled(h, -1, mask, POOLINGS, *maps)
    torch.testing.assert_close(responses, twin(h, -1, mask, POOLINGS, *maps)[1])


# -- the loss --


def tokens_net():
    net = Mlp().double()
    return torch.nn.Sequential(net.first, torch.nn.Tanh(), net.second)  # on (samples, tokens, channels)


def problem_of(pooling, ridge=False, mapped="[02]", compared="[02]"):
    net = tokens_net()
    sides = [as_batches(normal(5, 6, 4, seed=s, shift=s).double(), "x", net) for s in (0, 1)]
    layout = probe(net, lineas.find_sites(net, "[02]"), sides[0][0])
    parts = (layout.part(lineas.find_sites(net, pattern)) for pattern in (mapped, compared))
    runner = Runner(net, *parts, pooling)
    held = {"ridge": sensitivity(net, runner.mapped, sides[1], 0), "strength": 0.5} if ridge else {}
    return ModelLoss(SourcePasses(runner, sides[0]), [runner.collect(sides[1])], **held)


def near_identity(problem):
    draw = np.random.default_rng(0)
    return problem.identity() + 0.1 * draw.normal(size=2 * sum(problem.sizes)).astype(np.float32)


@pytest.mark.parametrize("ridge", [False, True])
@pytest.mark.parametrize("pooling", [("mean", "max"), ("min", "last", "mean")])
def test_the_loss_is_the_mean_of_the_losses_of_each_pooling(pooling, ridge):
    whole, *each = (problem_of(how, ridge) for how in (pooling, *pooling))
    x = near_identity(whole)
    at, parts = whole.evaluate(x), [problem.evaluate(x) for problem in each]
    assert at.loss == pytest.approx(np.mean([part.loss for part in parts]), rel=1e-5)
    assert at.ridge == pytest.approx(parts[0].ridge, rel=1e-6)
    assert len(at.site_loss) == 2
    np.testing.assert_allclose(at.site_loss, np.mean([part.site_loss for part in parts], 0), rtol=1e-5)
    mean = np.mean([part.gradient() for part in parts], 0)
    np.testing.assert_allclose(at.gradient(), mean, rtol=1e-3, atol=1e-5 * np.abs(mean).max())
    curvature = np.mean([part.curvature() for part in parts], 0)
    np.testing.assert_allclose(at.curvature(), curvature, rtol=1e-5)


def test_the_curvature_is_that_of_a_units_own_share():
    """Of the last site, whose maps reach no other one: the second derivatives of the loss itself."""
    problem, units = problem_of(("mean", "max"), mapped="2", compared="2"), 8
    x, step = near_identity(problem), 1e-2
    assert problem.runner.compared.units == 2 * units
    curvature = problem.evaluate(x).curvature()

    def second(k, along):
        ahead, behind = x.copy(), x.copy()
        ahead[along] += step
        behind[along] -= step
        return (problem.evaluate(ahead).gradient()[k] - problem.evaluate(behind).gradient()[k]) / (2 * step)

    for k in (0, 3, 7):
        found = [second(k, k), second(k, k + units), second(k + units, k + units)]
        np.testing.assert_allclose(curvature[:, k], found, rtol=0.02, atol=1e-4)


def test_a_mapped_site_that_is_not_compared_has_no_curvature_of_its_own():
    problem = problem_of(("mean", "max"), compared="2")
    curvature = problem.evaluate(problem.identity()).curvature()
    assert curvature.shape == (3, 9 + 8)
    assert problem.runner.compared.units == 2 * 8
    assert np.isnan(curvature[:, :9]).all()
    assert np.isfinite(curvature[:, 9:]).all()


# -- the fit --


def fit(model, pooling, **options):
    sides = normal(12, 4), normal(11, 4, seed=1, shift=0.7)
    return lineas.fit(model, *sides, sites="first|second", pooling=pooling, progress=False, **options)


def same_fit(one, other):
    apart = {"seconds"}
    same = {key: value for key, value in one.info.items() if key not in apart}
    return (
        np.array_equal(flat(one), flat(other))
        and one.history == other.history
        and same == {key: value for key, value in other.info.items() if key not in apart}
    )


@pytest.mark.parametrize("method", ["lineas", "linear_act"])
def test_a_sequence_of_one_is_that_one_to_the_bit(method, llama, tokenizer):
    options = {"tokenizer": tokenizer, "method": method, "progress": False}
    one, other = (lineas.fit(llama, *TEXTS, pooling=pooling, **options) for pooling in ("max", ["max"]))
    assert same_fit(one, other)
    assert one.info["pooling"] == "max"


def test_where_there_is_one_token_every_pooling_is_the_mean():
    one, several = fit(Mlp(), "mean"), fit(Mlp(), ("mean", "max", "min"))
    assert several.history["loss"][0] == pytest.approx(one.history["loss"][0], rel=1e-6)
    assert several.info["ridge"] == pytest.approx(one.info["ridge"], rel=1e-6)
    assert several.history["loss"][1] == pytest.approx(one.history["loss"][1], rel=1e-4)
    np.testing.assert_allclose(flat(several), flat(one), atol=1e-3)
    pixel = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1)).eval()
    sides = normal(9, 3, 1, 1), normal(9, 3, 1, 1, seed=1, shift=1)
    mean, both = (
        lineas.fit(pixel, *sides, sites="0", pooling=pooling, progress=False) for pooling in ("mean", ("mean", "max"))
    )
    np.testing.assert_allclose(flat(both), flat(mean), atol=1e-4)


@pytest.mark.parametrize("loss", ["wasserstein", "excess", "significant"])
@pytest.mark.parametrize("pooling", [("mean", "max"), ("max", "min", "last")])
def test_the_fit_brings_each_of_the_poolings_nearer(pooling, loss, llama, tokenizer):
    options = {"tokenizer": tokenizer, "progress": False, "loss": loss}
    steering = lineas.fit(llama, *TEXTS, pooling=pooling, **options)
    assert steering.info["pooling"] == list(pooling)
    for name in pooling:
        told = {"tokenizer": tokenizer, "pooling": name}
        goal = evaluation.responses(llama, TEXTS[1], **told)
        before = evaluation.distance(evaluation.responses(llama, TEXTS[0], **told), goal)
        with steering.apply(llama):
            assert evaluation.distance(evaluation.responses(llama, TEXTS[0], **told), goal) < 0.6 * before


def test_batches_and_the_published_recipe_see_the_same_loss(llama, tokenizer):
    options = {"tokenizer": tokenizer, "progress": False, "pooling": ("mean", "max"), "ridge": 0, "loss": "wasserstein"}

    def first(**more):
        return lineas.fit(llama, *TEXTS, **options, **more).history["loss"][0]

    alone = first(steps=1)
    assert first(steps=1, batch_size=5) == pytest.approx(alone, rel=1e-4)
    assert first(steps=1, recipe="published") == pytest.approx(len(TEXTS[0]) * alone, rel=1e-4)


def test_a_model_in_half_precision_is_fitted(llama, tokenizer):
    options = {"tokenizer": tokenizer, "progress": False, "pooling": ("mean", "max")}
    whole = lineas.fit(llama, *TEXTS, **options)
    half = lineas.fit(llama.bfloat16(), *TEXTS, **options)
    assert half.history["loss"][0] == pytest.approx(whole.history["loss"][0], rel=0.05)
    assert half.history["loss"][-1] < 0.3 * half.history["loss"][0]


@pytest.mark.process
def test_a_fit_has_the_same_bits_for_any_number_of_threads():
    code = """
import hashlib, torch, lineas
torch.set_num_threads({threads})
torch.manual_seed(0)
class Layer(torch.nn.Module):
    "Entry by entry, so that torch has nothing to add up in an order of its own."
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(1 + 0.3 * torch.randn(3000))
    def forward(self, x):
        return torch.tanh(x * self.scale + 0.1)
net = torch.nn.Sequential(Layer(), Layer())
x, y = torch.randn(8, 6, 3000), 0.8 * torch.randn(8, 6, 3000) + 0.4
s = lineas.fit(net, x, y, sites=["0", "1"], pooling=("mean", "max"), max_evaluations=4, progress=False)
print(hashlib.sha256(b"".join(s.weight(n).tobytes() + s.bias(n).tobytes() for n in s.sites)).hexdigest())
"""
    told = {run_python(code.replace("{threads}", str(threads))) for threads in THREADS[:2]}
    assert len(told) == 1


def test_an_interrupted_fit_goes_on_to_the_same_bits_and_refuses_other_poolings(tmp_path):
    class Stop(Exception):
        pass

    def stop(entry):
        if entry.evaluations == 4:
            raise Stop

    whole = fit(Mlp(), ("mean", "max"))
    kept = {"checkpoint_dir": tmp_path, "resume_from": tmp_path}
    with pytest.raises(Stop):
        fit(Mlp(), ("mean", "max"), callbacks=[stop], **kept)
    with pytest.raises(ValueError, match=r"pooling: \['mean', 'max'\] there, 'mean' here"):
        fit(Mlp(), "mean", **kept)
    assert same_fit(fit(Mlp(), ["mean", "max"], **kept), whole)


def test_saved_info_and_card_name_all_of_them(tmp_path):
    fit(Mlp(), ("mean", "max"), max_evaluations=2).save_pretrained(tmp_path)
    assert lineas.Steering.from_pretrained(tmp_path).info["pooling"] == ["mean", "max"]
    assert '| pooling | `["mean", "max"]` |' in (tmp_path / "README.md").read_text()


# -- what is refused --


@pytest.mark.parametrize("wrong", [(), ("mean", "median"), ["max", "max"], ("mean", None), (("mean",), "max")])
def test_several_that_cannot_be_are_refused(wrong):
    known = "expected some of 'mean', 'max', 'min', 'last', each once; got "
    with pytest.raises(ValueError, match=f"^pooling: {known}"):
        fit(Mlp(), wrong)


@pytest.mark.parametrize("method", ["linear_act", "caa", lambda source, target: (source[0], target[0])])
def test_a_method_in_closed_form_takes_one(method):
    with pytest.raises(ValueError, match=r"pooling: expected one, since .* got \('mean', 'max'\)"):
        lineas.fit(Mlp(), *TEXTS, method=method, pooling=("mean", "max"))


def test_responses_and_experts_take_one(llama, tokenizer):
    expected = r"pooling: expected one, .* got \('mean', 'max'\)"
    options = {"tokenizer": tokenizer, "pooling": ("mean", "max")}
    for ask in (experts.rank, experts.significance):
        with pytest.raises(ValueError, match=expected):
            ask(llama, *TEXTS, **options)
    with pytest.raises(ValueError, match=expected):
        evaluation.responses(llama, TEXTS[0], **options)
