"""What a step leaves out: padding, blocks before the first map, second graphs; and that nothing else changes."""

import itertools

import numpy as np
import pytest
import torch
from conftest import Mlp, assert_untouched, normal, snapshot, tiny
from torch.utils.checkpoint import checkpoint

import lineas
from lineas.fitting.model_loss import ModelLoss
from lineas.fitting.source_passes import SourcePasses
from lineas.network.blocks import neighbours
from lineas.network.data import _groups, as_batches
from lineas.network.state import frozen, seeded
from lineas.responses.probe import probe
from lineas.responses.runner import Runner, Savings


def problem_of(model, src, tgt, *, tokenizer=None, sites=None, loss_sites=None, economize=True, batch_size=None):
    sources, targets = (as_batches(side, "src", model, tokenizer, batch_size) for side in (src, tgt))
    mapped = lineas.find_sites(model, sites)
    compared = mapped if loss_sites is None else lineas.find_sites(model, loss_sites)
    layout = probe(model, [*dict.fromkeys([*mapped, *compared])], sources[0])
    where = model, layout.part(mapped), layout.part(compared), "mean"
    runner = Runner(*where)
    if economize:
        runner = Runner(*where, savings=runner.possible_savings([*sources, *targets]))
    return ModelLoss(SourcePasses(runner, sources), [runner.collect([batch]) for batch in targets])


def evaluate(problem, seed=0, times=1):
    """Loss and gradient at random maps; `times` 2 lets what the first evaluation recorded serve."""
    for _ in range(times):
        x = problem.identity() + 0.1 * np.random.default_rng(seed).normal(size=2 * problem.runner.mapped.units)
        at = problem.evaluate(x.astype(np.float32))
        gradient = at.gradient()
    return at.loss, gradient


def assert_same(got, expected, rtol=2e-5):
    np.testing.assert_allclose(got[0], expected[0], rtol=rtol)
    assert np.linalg.norm(got[1] - expected[1]) <= rtol * np.linalg.norm(expected[1])


@pytest.fixture(autouse=True)
def random_state_stays():
    with seeded(0, torch.device("cpu")):
        yield


class Count:
    """How often a module runs, and on how many numbers."""

    def __init__(self, module):
        self.calls, self.numbers = 0, 0
        module.register_forward_hook(self)

    def __call__(self, module, args, output):
        self.calls += 1
        self.numbers += args[0].numel() if args else 0


def padded_ids(left=False, rows=7, columns=12):
    """Rows of 3 to `columns` tokens."""
    ids = torch.randint(2, 60, (rows, columns), generator=torch.Generator().manual_seed(rows))
    lengths = torch.linspace(3, columns, rows).long()[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]
    mask = (torch.arange(columns) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask.flip(1) if left else mask}


# -- padding --


@pytest.fixture
def free_passes(monkeypatch):
    """Every length then gets a pass of its own."""
    monkeypatch.setattr("lineas.network.data.PASS", {"cpu": 0})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "bert"])
def test_padding_is_not_computed_and_the_result_is_the_same(kind, texts, tokenizer, free_passes):
    model = tiny(kind).requires_grad_(False)
    plain, economic = (problem_of(model, *texts[::-1], tokenizer=tokenizer, economize=on) for on in (False, True))
    (batch,) = plain.passes.batches
    assert batch.mask.sum() < batch.mask.numel(), "there is padding"
    seen = Count(model.get_input_embeddings())
    expected = evaluate(plain)
    padded, seen.numbers = seen.numbers, 0
    assert_same(evaluate(economic), expected)
    assert (padded, seen.numbers) == (batch.mask.numel(), batch.mask.sum())


def test_responses_come_back_in_the_order_of_the_samples(llama, free_passes):
    inputs = padded_ids()
    problem = problem_of(llama, inputs, inputs)
    (batch,) = problem.passes.batches
    parts, order = problem.runner._plans[batch] if batch in problem.runner._plans else problem.runner._plan(batch)
    assert len(parts) > 1
    assert order is not None
    together = problem.runner.collect([batch])
    for k in range(batch.size):
        alone = problem.runner.collect([batch.rows(k, k + 1).trimmed()])
        np.testing.assert_allclose(together[k], alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("positions", [False, True])
def test_padding_on_the_left_is_cut_where_positions_are_given_and_only_there(kind, positions, free_passes):
    """GPT-2 would count its positions from another column."""
    model = tiny(kind).requires_grad_(False)
    inputs = padded_ids(left=True)
    if positions:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    plain, economic = (problem_of(model, inputs, inputs, economize=on) for on in (False, True))
    seen = Count(model.get_input_embeddings())
    expected = evaluate(plain)
    padded, seen.numbers = seen.numbers, 0
    assert_same(evaluate(economic), expected)
    assert seen.numbers == (inputs["attention_mask"].sum() if positions else padded)


class IgnoresMask(torch.nn.Module):
    """What a token becomes depends on all columns, padding or not."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = torch.nn.Embedding(60, 8), torch.nn.LayerNorm(8)

    def forward(self, input_ids, attention_mask, **rest):
        h = self.table(input_ids)
        return self.norm(h + h.mean(1, keepdim=True))


def test_padding_stays_where_a_model_looks_at_it(free_passes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = IgnoresMask().requires_grad_(False)
    inputs = padded_ids()
    economic = problem_of(model, inputs, inputs, sites="norm")
    assert not economic.runner.savings.cuts_padding
    assert_same(evaluate(economic), evaluate(problem_of(model, inputs, inputs, sites="norm", economize=False)))


def test_padding_stays_where_it_is_not_known_what_has_it(llama):
    inputs = padded_ids()
    (batch,) = as_batches({**inputs, "weights": torch.ones(inputs["input_ids"].shape)}, "src", llama)
    assert batch.groups() == []
    assert batch.trimmed() is batch
    (batch,) = as_batches({**inputs, "weights": torch.ones(7, 3)}, "src", llama)
    assert batch.groups() != []


def test_columns_that_all_rows_pad_are_cut(llama):
    inputs = padded_ids()
    wide = {k: torch.cat([v, torch.zeros(7, 30).long()], 1) for k, v in inputs.items()}
    problem = problem_of(llama, wide, wide)
    seen = Count(llama.get_input_embeddings())
    problem.runner.collect(problem.passes.batches)
    assert seen.numbers <= inputs["input_ids"].numel()


@pytest.mark.parametrize("lengths", [[3, 3, 3], [9, 1, 5, 5, 2], [40, 1, 1, 1, 41, 20], [7]])
@pytest.mark.parametrize("a_pass", [0, 1, 5, 30, 1000])
def test_groups_cost_the_least_of_all_ways_to_cut(lengths, a_pass):
    def cost(groups):
        return sum(len(group) * max(lengths[row] for row in group) + a_pass for group in groups)

    got = _groups(np.array(lengths), a_pass)
    assert sorted(row for group in got for row in group) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ways = []
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        groups = [[order[0]]]
        for row, new in zip(order[1:], cuts, strict=True):
            groups.append([row]) if new else groups[-1].append(row)
        ways.append(cost(groups))
    assert cost(got) == min(ways)


def test_published_batches_are_split_only_inside(llama, texts, tokenizer, free_passes):
    """The steps are those of the batches in order, whatever parts they pass in."""
    model = tiny("llama")
    options = {"tokenizer": tokenizer, "progress": False, "recipe": "published", "batch_size": 5, "steps": 6}
    got = lineas.fit(model, *texts, **options).history["loss"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "possible_savings", lambda self, batches, prefix=True: Savings())
        expected = lineas.fit(model, *texts, **options).history["loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# -- blocks before the first mapped site --


class Blocks(torch.nn.Module):
    """A residual block in a list; returns a tensor, or a tuple as older models do."""

    class Block(torch.nn.Module):
        def __init__(self, noise, as_tuple):
            super().__init__()
            self.inner, self.noise, self.as_tuple = torch.nn.Linear(6, 6), noise, as_tuple

        def forward(self, x):
            out = x + torch.tanh(self.inner(x)) + (self.noise * torch.randn_like(x) if self.noise else 0)
            return (out, None) if self.as_tuple else out

    def __init__(self, noise=(0, 0, 0, 0, 0), as_tuple=False, kind=torch.nn.ModuleList):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = kind([self.Block(n, as_tuple) for n in noise])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


class Chain(Blocks):
    def __init__(self):
        super().__init__(kind=lambda blocks: torch.nn.Sequential(*blocks))

    def forward(self, x):
        return self.blocks(x)


class SkipConnection(Blocks):
    """Every block's output is used again at the end, so that it must run."""

    def forward(self, x):
        seen = [x := block(x) for block in self.blocks[:3]]
        for block, early in zip(self.blocks[3:], seen, strict=False):
            x = block(x + early)
        return x


class InPlace(Blocks):
    def forward(self, x):
        for block in self.blocks:
            x = block(x).mul_(1.5)
        return x


SIDES = normal(14, 6), normal(11, 6, seed=1, shift=0.7)
LATE = r"blocks\.[34]\.inner"


@pytest.mark.parametrize("make", [Blocks, lambda: Blocks(as_tuple=True), Chain, lambda: Blocks((0, 0, 0, 0.3, 0))])
def test_blocks_before_the_first_map_run_once_and_no_bit_changes(make):
    model = make().requires_grad_(False)
    plain, economic = (problem_of(model, *SIDES, sites=LATE, economize=on) for on in (False, True))
    assert economic.runner.savings.skips_prefix
    expected = [evaluate(plain, seed) for seed in range(3)]
    early, late = Count(model.blocks[0].inner), Count(model.blocks[3].inner)
    got = [evaluate(economic, seed) for seed in range(3)]
    assert (early.calls, late.calls) == (1, 3)
    for a, b in zip(got, expected, strict=True):
        assert a[0] == b[0]
        assert np.array_equal(a[1], b[1])


@pytest.mark.parametrize("make", [SkipConnection, InPlace, lambda: Blocks((0.3, 0, 0, 0.3, 0))])
def test_blocks_run_again_where_something_else_depends_on_them(make):
    """A long connection, outputs that are written into, random numbers that later blocks would draw otherwise."""
    model = make().requires_grad_(False)
    plain, economic = (problem_of(model, *SIDES, sites=LATE, economize=on) for on in (False, True))
    early = Count(model.blocks[0].inner)
    got = [evaluate(economic, seed) for seed in range(3)]
    assert early.calls == 3
    for a, b in zip(got, [evaluate(plain, seed) for seed in range(3)], strict=True):
        assert a[0] == b[0]


def test_nothing_is_skipped_inside_a_compiled_model():
    model = Blocks().requires_grad_(False)
    (site,) = lineas.find_sites(model, ["blocks.4.inner"])
    assert len(neighbours(model, site)[0]) == 4
    model.compile(backend="eager")
    assert neighbours(model, site) == []
    (site,) = lineas.find_sites(torch.compile(Blocks(), backend="eager"), r".*blocks\.4\.inner")
    assert neighbours(torch.compile(Blocks(), backend="eager"), site) == []


def test_noise_in_early_blocks_alone_is_drawn_once():
    model = Blocks((0.3, 0, 0, 0, 0)).requires_grad_(False)
    assert problem_of(model, *SIDES, sites=LATE).runner.savings.skips_prefix


def test_an_output_written_into_later_is_noticed_and_computed_again():
    """The look with a single sample went well, but then the model behaves otherwise."""

    class Sometimes(Blocks):
        def forward(self, x):
            for k, block in enumerate(self.blocks):
                x = block(x)
                if k == 2 and len(x) > 1:
                    x.mul_(1.5)
            return x

    model = Sometimes().requires_grad_(False)
    plain, economic = (problem_of(model, *SIDES, sites=LATE, economize=on) for on in (False, True))
    assert economic.runner.savings.skips_prefix
    early = Count(model.blocks[0].inner)
    for seed in range(3):
        assert evaluate(economic, seed)[0] == evaluate(plain, seed)[0]
    assert early.calls == 6


@pytest.mark.parametrize("batch_size", [None, 5])
def test_loss_sites_before_the_first_map_are_served(batch_size):
    model = Blocks().requires_grad_(False)
    options = {"sites": LATE, "loss_sites": r"blocks\.[0134]\.inner", "batch_size": batch_size}
    plain, economic = (problem_of(model, *SIDES, economize=on, **options) for on in (False, True))
    early = Count(model.blocks[0].inner)
    for seed in range(3):
        x = plain.identity() + np.float32(0.1 * (seed + 1))
        a, b = (problem.evaluate(x) for problem in (plain, economic))
        np.testing.assert_array_equal(a.site_loss, b.site_loss)
        np.testing.assert_array_equal(a.gradient(), b.gradient())
    batches = len(economic.passes.batches)
    passes = 1 if batches == 1 else 2
    assert early.calls == 3 * passes * batches + batches


def test_early_blocks_of_a_language_model_run_once_for_each_batch(texts, tokenizer):
    model = tiny("llama")
    early, late = Count(model.model.layers[1].self_attn), Count(model.model.layers[2].mlp.down_proj)
    steering = lineas.fit(
        model, *texts, tokenizer=tokenizer, sites=r".*\.2\.(post_attention_layernorm|mlp)", progress=False,
        max_evaluations=6,
    )  # fmt: skip
    evaluations = len(steering.history["loss"])
    assert evaluations >= 3
    assert late.calls - early.calls == evaluations - 1 + 2  # those after the first; the replays of the look


def test_a_record_takes_no_more_than_its_room():
    model = Blocks().requires_grad_(False)
    problem = problem_of(model, *SIDES, sites=LATE, batch_size=5)
    each = 5 * 6 * 4  # a hidden state of five samples, in bytes
    problem.runner._room = each + 1
    early = Count(model.blocks[0].inner)
    evaluate(problem)
    count = len(problem.passes.batches)
    assert early.calls == count * 2 - 1, "the first batch's record served its gradient, others had none"
    assert 0 <= problem.runner._room <= 1


@pytest.mark.parametrize("at", range(1, 8))
def test_an_error_at_any_moment_leaves_the_forward_methods_alone(at):
    model = Blocks()
    own = model.blocks[1].forward
    model.blocks[1].forward = own  # as wrappers of other libraries do
    calls = []

    def interrupt(module, args, output):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt

    model.blocks[4].register_forward_hook(interrupt)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        lineas.fit(model, *SIDES, sites=r"blocks\.[34]", progress=False)
    assert_untouched(model, before)
    assert [vars(block).get("forward") for block in model.blocks] == [None, own, None, None, None]


# -- micro-batches --


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("batch_size", [1, 5, 11])
def test_small_batches_give_the_loss_and_gradient_of_one_big_batch(kind, batch_size, texts, tokenizer):
    model = tiny(kind).double().requires_grad_(False)
    whole, parts = (problem_of(model, *texts, tokenizer=tokenizer, batch_size=size) for size in (None, batch_size))
    assert len(parts.passes.batches) == -(-len(texts[0]) // batch_size)
    assert_same(evaluate(parts, times=2), evaluate(whole), rtol=1e-6)


def test_only_one_graph_lives_and_an_earlier_gradient_is_still_right(mlp):
    problem = problem_of(mlp.eval().requires_grad_(False), normal(14, 4), normal(11, 4, seed=1), sites="first|second")
    x = problem.identity()
    expected = problem.evaluate(x).gradient()
    first = problem.evaluate(x)
    problem.evaluate(x + np.float32(0.1))
    passes = Count(mlp.second)
    assert np.array_equal(first.gradient(), expected)
    assert passes.calls == 1, "its graph had gone"
    second = problem.evaluate(x)
    assert np.array_equal(second.gradient(), expected)
    assert passes.calls == 2, "its graph was there"


# -- the model's own checkpointing --


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_models_checkpointing_works_in_evaluation_mode(kind, batch_size, reentrant, texts, tokenizer):
    model = tiny(kind).requires_grad_(False)
    options = {"tokenizer": tokenizer, "batch_size": batch_size, "economize": False}
    expected = evaluate(problem_of(model, *texts, **options))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    problem = problem_of(model, *texts, **options)
    blocks = [
        module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 3
    ]  # one list of three blocks
    counts = [Count(next(m for m in block.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.Linear)
                         or "Norm" in type(m).__name__)) for block in blocks[0]]  # fmt: skip
    assert_same(evaluate(problem), expected, rtol=1e-6)
    batches = len(problem.passes.batches)
    passes = batches if batches == 1 else 2 * batches
    assert [count.calls for count in counts] == [passes + batches, passes + batches, passes]
    assert all("forward" not in vars(block) for block in blocks[0])


class Reentrant(Mlp):
    def forward(self, x):
        return self.third(checkpoint(self.second, torch.tanh(self.first(x)), use_reentrant=True))


def test_a_site_that_autograd_does_not_see_is_an_error():
    with pytest.raises(RuntimeError, match="'second': expected autograd to record it.*reentrant checkpoint"):
        evaluate(problem_of(Reentrant().requires_grad_(False), *SIDES_4, sites="first|second"))


SIDES_4 = normal(14, 4), normal(11, 4, seed=1, shift=0.7)


# -- precision --


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_products_in_bfloat16_give_the_same_maps_within_noise(dtype, texts, tokenizer):
    model = tiny("llama")
    options = {"tokenizer": tokenizer, "progress": False, "steps": 4}
    full, before, seen = lineas.fit(model, *texts, **options), snapshot(model), set()
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, a, out: seen.add(out.dtype))
    half = lineas.fit(model, *texts, compute_dtype=dtype, **options)
    handle.remove()
    assert seen == {torch.float32, torch.bfloat16}, "the look at the model is in its own precision, the fit is not"
    assert_untouched(model, before)
    assert half.info["compute_dtype"] == "bfloat16"
    np.testing.assert_allclose(half.history["loss"][0], full.history["loss"][0], rtol=0.03)
    moves = [np.concatenate([np.append(s.weight(n) - 1, s.bias(n)) for n in s.sites]) for s in (half, full)]
    assert moves[0].dtype == np.float32
    assert 0 < np.linalg.norm(moves[0] - moves[1]) < 0.1 * np.linalg.norm(moves[1])


@pytest.mark.parametrize("dtype", ["float32", "int8", torch.float64, "nonsense", ""])
def test_other_compute_dtypes_are_refused(mlp, dtype):
    with pytest.raises(ValueError, match="compute_dtype: expected 'bfloat16', 'float16' or None.*got"):
        lineas.fit(mlp, *SIDES_4, sites="first", compute_dtype=dtype)


def test_a_compute_dtype_is_a_dtype_or_a_name(mlp):
    with pytest.raises(TypeError, match="compute_dtype: expected a torch.dtype or its name, got int"):
        lineas.fit(mlp, *SIDES_4, sites="first", compute_dtype=16)


def test_small_slopes_are_not_lost_in_half_precision():
    with frozen(model := Mlp().half()):
        problem = problem_of(model, *(side.half() for side in SIDES_4), sites="first|second")
        x = problem.identity()
        expected, got = problem.evaluate(x).gradient(), problem.evaluate(x, scale=2.0**-20).gradient()
    assert np.abs(got).max() > 0
    np.testing.assert_allclose(got * 2.0**20, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
