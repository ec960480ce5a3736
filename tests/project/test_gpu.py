"""On a GPU: the same maps as on the CPU, and no more waiting than the loss needs. Skipped where there is none."""

import gc
import warnings

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, WordTokenizer, assert_untouched, random_maps, snapshot, tiny

import lineas
from lineas import evaluation
from lineas.core import ops, reference
from lineas.fitting import ridge
from lineas.fitting.model_loss import ModelLoss
from lineas.fitting.ridge import sensitivity
from lineas.fitting.source_passes import SourcePasses
from lineas.network.calls import call
from lineas.network.data import as_batches
from lineas.responses import graphs as graph_module
from lineas.responses import trip
from lineas.responses.probe import probe
from lineas.responses.runner import Runner
from lineas.serving.engine_map import EngineMap
from lineas.serving.places import place

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
KINDS = ("llama", "gemma2", "gpt2")


def fit(model, **options):
    return lineas.fit(model, NEGATIVE, POSITIVE, tokenizer=WordTokenizer(), progress=False, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"ridge": 0.0, "max_evaluations": 4}, {"recipe": "published", "steps": 20}])
def test_the_maps_are_those_of_the_cpu(kind, options):
    model = tiny(kind)
    expected = fit(model, **options)
    model.cuda()
    before = snapshot(model)
    found = fit(model, **options)
    assert_untouched(model, before)
    for name in expected.sites:
        np.testing.assert_allclose(found.weight(name), expected.weight(name), atol=2e-3)
        np.testing.assert_allclose(found.bias(name), expected.bias(name), atol=2e-3)


@pytest.mark.parametrize("method", ["linear_act", "iti_c", "aura"])
@pytest.mark.parametrize("schedule", ["at_once", "sequential"])
def test_methods_in_closed_form_give_the_maps_of_the_cpu(method, schedule):
    model = tiny("llama")
    expected = fit(model, method=method, schedule=schedule)
    found = fit(model.cuda(), method=method, schedule=schedule)
    for name in expected.sites:
        np.testing.assert_allclose(found.bias(name), expected.bias(name), atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_steering_does_there_what_it_does_on_the_cpu(dtype):
    model = tiny("llama").to(dtype)
    steering, ids = random_maps(model), torch.randint(2, 60, (3, 6))
    with steering.apply(model), torch.no_grad():
        expected = model(ids).logits.float()
    model.cuda()
    with steering.apply(model), torch.no_grad():
        found = model(ids.cuda()).logits.float().cpu()
    torch.testing.assert_close(found, expected, atol=1e-4 if dtype == torch.float32 else 0.3, rtol=0.02)


def test_responses_and_merging_work_there():
    model = tiny("llama")
    expected = evaluation.responses(model, NEGATIVE, tokenizer=WordTokenizer())
    model.cuda()
    found = evaluation.responses(model, NEGATIVE, tokenizer=WordTokenizer())
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    merged = random_maps(model).merge(model)
    assert next(merged.parameters()).device.type == "cuda"


def problem_on_gpu(model, graphs):
    sources, targets = (
        [batch.to(torch.device("cuda")) for batch in as_batches(texts, "x", model, WordTokenizer())]
        for texts in (NEGATIVE, POSITIVE)
    )
    layout = probe(model, lineas.find_sites(model), sources[0])
    runner = Runner(model, layout, layout, "mean", graphs=graphs)
    return ModelLoss(SourcePasses(runner, sources), [runner.collect(targets)])


def syncs(call):
    """Where the host waited for the GPU in a call, but for `wait`."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [warning for warning in caught if "synchroniz" in str(warning.message)]


@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_waits_for_the_gpu_twice_for_responses_and_for_the_gradient(graphs, monkeypatch):
    model = tiny("llama").cuda().requires_grad_(False)
    problem = problem_on_gpu(model, graphs)
    x = problem.identity()
    problem.evaluate(x).gradient()  # whatever is made once
    assert problem.runner.graphs.facts() == {"graphs": graphs}
    waits = []
    for module in (trip, graph_module):
        monkeypatch.setattr(module, "wait", lambda device: waits.append(torch.cuda.current_stream().synchronize()))
    found = [w for w in syncs(lambda: problem.evaluate(x).gradient()) if not w.filename.endswith("streams.py")]
    own = [] if graphs else syncs(lambda: call(model, problem.passes.batches[0]))  # the model looks at its mask
    assert len(found) == len(own), [f"{w.filename}:{w.lineno}" for w in found]
    assert len(waits) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_graphs_do_at_any_maps_what_passes_do(kind, dtype):
    model = tiny(kind).to(dtype).cuda().requires_grad_(False)
    plain, graphs = (problem_on_gpu(model, on) for on in (False, True))
    for seed in range(4):
        draw = np.random.default_rng(seed)
        x = (plain.identity() + 0.1 * draw.normal(size=plain.identity().shape)).astype(np.float32)
        found, expected = graphs.evaluate(x), plain.evaluate(x)
        assert found.loss == pytest.approx(expected.loss, rel=1e-3)
        ours, theirs = found.gradient(), expected.gradient()
        assert np.linalg.norm(ours - theirs) <= torch.finfo(dtype).eps ** (2 / 3) * np.linalg.norm(theirs)
    assert graphs.runner.graphs.facts() == {"graphs": True}


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 3}, {"recipe": "published", "steps": 20, "batch_size": 3}, {"compute_dtype": "bfloat16"}],
)
def test_a_fit_with_graphs_ends_where_one_without_them_does(options):
    model = tiny("llama").cuda()
    options = {"max_evaluations": 6, "ridge": 0.0} | options if "recipe" not in options else options
    found, expected = (fit(model, graphs=on, **options) for on in (True, False))
    assert (found.info["graphs"], expected.info["graphs"]) == (True, False)
    for name in expected.sites:
        np.testing.assert_allclose(found.weight(name), expected.weight(name), atol=2e-3)
        np.testing.assert_allclose(found.bias(name), expected.bias(name), atol=2e-3)


def test_a_fit_leaves_no_memory_behind():
    model = tiny("llama").cuda()
    fit(model, max_evaluations=3)  # what is made once
    left = []
    for _ in range(4):
        gc.disable()
        fit(model, max_evaluations=3)
        torch.cuda.empty_cache()
        left.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        gc.enable()
    assert len(set(left)) == 1


class Odd(torch.nn.Module):
    """Three layers; what a graph cannot hold happens between the first map and the last."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(8, 8) for _ in range(3))
        self.how = how

    def forward(self, x):
        table = torch.zeros(8, device=x.device)
        h = self.first(x)
        if self.how == "waits" and h.sum().item() > 1e9:
            h = h + 1
        if self.how == "uploads":
            h = h + torch.arange(8.0).to(h.device)
        if self.how == "writes":
            table += 1
            h = h + table
        return self.third(torch.relu(self.second(torch.relu(h))))


@pytest.mark.parametrize("how", ["waits", "uploads", "writes"])
def test_what_a_graph_cannot_hold_is_fitted_the_ordinary_way(how):
    torch.manual_seed(0)
    model, options = Odd(how).cuda(), {"sites": ["first", "second"], "progress": False}
    sets = torch.randn(16, 8), torch.randn(16, 8) + 1
    expected = lineas.fit(model, *sets, graphs=False, **options)
    found = lineas.fit(model, *sets, **options)
    assert "graphs" in found.info
    assert found.info["graphs"] not in (True, False, "")
    for name in expected.sites:
        np.testing.assert_array_equal(found.weight(name), expected.weight(name))
    torch.randn(3, device="cuda").tolist()  # whose generator a failed capture must leave usable
    after = lineas.fit(Odd("").cuda(), *sets, **options)
    assert after.info["graphs"] is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 33, 130), (2, 300, 2304), (32, 1, 64)])
def test_kernels_are_their_twins_in_value_and_gradient(dtype, channels_first, shape):
    n, tokens, units = shape
    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=draw, device="cuda")

    h = normal(*((n, units, tokens) if channels_first else (n, tokens, units))).to(dtype)
    w, b, pool = normal(units), normal(units), torch.rand(n, tokens, device="cuda")
    pool[0, 0] = 0
    results = []
    for op, kind in ((ops.affine_pool, dtype), (reference.affine_pool, torch.float64)):
        leaves = [x.detach().to(kind if x is h else x.dtype).requires_grad_() for x in (h, w, b)]
        out, pooled = op(*leaves, pool.to(pooled_type(kind)), channels_first=channels_first)
        slopes = (
            torch.cos(torch.arange(out.numel(), device="cuda")).view(out.shape).to(out.dtype),
            torch.ones_like(pooled),
        )
        both = torch.autograd.grad((out, pooled), leaves, slopes, retain_graph=True)
        alone = torch.autograd.grad(pooled, leaves, slopes[1])
        results.append([out, pooled, *both, *alone])
    for ours, theirs in zip(*results, strict=True):
        assert (ours.double() - theirs.double()).norm() <= 4 * torch.finfo(dtype).eps * theirs.double().norm()


def pooled_type(dtype):
    return torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 1 << 14, 512), (3, 16, 9, 9), (4, 64, 256, 256)])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_map_is_its_twin_in_every_layout(dtype, shape, by_row):
    dim = 1 if len(shape) == 4 else -1
    sizes = [1] * len(shape)
    sizes[0], sizes[dim] = shape[0] if by_row else 1, shape[dim]
    w, b = (torch.randn(sizes, device="cuda") for _ in range(2))
    for layout in (torch.contiguous_format, torch.channels_last)[: 1 + (len(shape) == 4)]:
        h = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout)
        found, expected = ops.affine(h, w, b), h.double() * w + b
        assert (found.dtype, found.stride()) == (dtype, h.stride())
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(32, 32, 300), (5, 9, 64), (200, 100, 7), (1, 2, 3)])
def test_the_null_is_that_of_the_cpu(shape):
    n, m, units = shape
    x, y = np.random.default_rng(0).normal(size=(n, units)), np.random.default_rng(1).normal(size=(m, units)) + 0.3
    sets = x.astype(np.float32), y.astype(np.float32)
    sets[0][:, -1] = sets[1][:, -1] = 1  # a unit that never moves
    found, again, expected = (
        lineas.ot.permutation_null(*sets, n_permutations=300, seed=1, device=device)
        for device in ("cuda", "cuda", None)
    )
    for ours, ours_again, theirs in zip(found, again, expected, strict=True):
        np.testing.assert_array_equal(ours, ours_again)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_ridge_is_the_same_however_many_samples_pass_at_once(monkeypatch):
    model = tiny("llama").cuda().requires_grad_(False)
    targets = [batch.to(torch.device("cuda")) for batch in as_batches(POSITIVE, "x", model, WordTokenizer())]
    layout = probe(model, lineas.find_sites(model), targets[0])
    together = sensitivity(model, layout, targets, 0)
    monkeypatch.setattr(ridge, "LARGEST_ON_GPU", 1)
    apart = sensitivity(model, layout, targets, 0)
    np.testing.assert_allclose(together.curvature(), apart.curvature(), rtol=1e-3, atol=1e-6)
    assert together.rows.shape == (len(POSITIVE), 2 * layout.units)
    np.testing.assert_allclose(together.rows, apart.rows, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_static_cache_generates_what_a_dynamic_one_does(rows):
    model = tiny("llama").cuda()
    steering, ids = random_maps(model), torch.randint(2, 60, (rows, 6), device="cuda")
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with steering.apply(model) as handle:
        found = [model.generate(ids, cache_implementation=kind, **options) for kind in ("static", None)]
        assert torch.equal(*found)
        handle.set_strength(0.0)
        bare = model.generate(ids, cache_implementation="static", **options)
    assert torch.equal(bare, model.generate(ids, **options))


@pytest.mark.parametrize("where", ["one GPU", "over both"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merging_there_is_merging_and_taken_back(kind, where):
    model, ids = tiny(kind).cuda(), torch.randint(2, 60, (3, 6), device="cuda")
    if where == "over both":
        accelerate = pytest.importorskip("accelerate")
        places = {name: 0 for name, _ in model.named_children()}
        places["lm_head"] = "cpu"
        model = accelerate.dispatch_model(model, places, main_device=0, force_hooks=True)
    steering = random_maps(model)
    before = snapshot(model)
    with torch.no_grad():
        bare = model(ids).logits
        with steering.apply(model):
            expected = model(ids).logits
    assert {plan.site for plan in steering.merge_plan(model).sites} == set(steering.sites)
    merged = steering.merge(model)
    back = steering.unmerge(merged)
    with torch.no_grad():
        for found, goal in ((merged, expected), (back, bare)):
            torch.testing.assert_close(found(ids).logits, goal, atol=1e-4, rtol=1e-3)
    if where == "one GPU":  # weights that accelerate keeps elsewhere have no values to compare
        assert_untouched(model, before)


def test_eight_bit_weights_are_fitted_and_steered_there():
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny("llama").cuda().to(torch.bfloat16)
    plain = fit(model, max_evaluations=6)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    found = fit(model, max_evaluations=6)
    assert found.history["loss"][-1] < found.history["loss"][0]
    for name in plain.sites:
        assert np.linalg.norm(found.bias(name) - plain.bias(name)) < 0.5 * np.linalg.norm(plain.bias(name))
    ids = torch.randint(2, 60, (3, 6), device="cuda")
    with torch.no_grad():
        bare = model(ids).logits
        with found.apply(model):
            assert not torch.equal(model(ids).logits, bare)
    with pytest.raises(ValueError, match="quantised"):
        found.merge(model)


def test_a_hook_for_an_engine_is_recorded_in_a_cuda_graph_with_the_rest():
    site = "model.layers.0.post_attention_layernorm"
    steering = random_maps(tiny("llama"), size=0.3)
    hook = EngineMap(steering, [place(site)], 1.0)
    h, residual = (torch.randn(5, 16, device="cuda").bfloat16() for _ in range(2))
    norm = torch.nn.Identity()
    with torch.no_grad():
        hook(norm, (), (h, residual))  # engines warm up first
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            mapped, same = hook(norm, (), (h, residual))
        h.normal_()
        graph.replay()
    assert same is residual
    scale, shift = (torch.tensor(part(site), device="cuda") for part in (steering.weight, steering.bias))
    torch.testing.assert_close(mapped, (h * scale + shift).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_lets_through_there_what_it_does_on_the_cpu(dtype):
    """Its sums live with the cache on the GPU: beams with a cache give what they give without one."""
    model = tiny("llama")
    site = lineas.find_sites(model)[0]
    gate = lineas.Gate(site.name, np.random.default_rng(0).normal(size=site.units), 0.0)
    steering = random_maps(model, size=0.3).gated(gate)
    ids = torch.randint(2, 60, (3, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), steering.apply(model) as handle:
        model(ids)
        expected = handle.openness()[0]
    model.to("cuda", dtype)
    options = {"max_new_tokens": 6, "num_beams": 3, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad(), steering.apply(model) as handle:
        model(ids.cuda())
        found = handle.openness()[0]
        cached, uncached = (model.generate(ids.cuda(), use_cache=cache, **options) for cache in (True, False))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=0)
    if dtype == torch.float32:
        assert torch.equal(cached, uncached)
