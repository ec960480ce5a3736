"""Blocks before the first mapped site run once, and nothing else changes."""

import numpy as np
import pytest
import torch
from conftest import assert_untouched, normal, snapshot, tiny
from passes import Count, evaluate, problem_of

import lineas
from lineas.network.blocks import neighbours

pytestmark = pytest.mark.usefixtures("random_state_stays")


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
    # Evaluations after the first; of the look, two replays, and a pass that ended at the first map.
    assert late.calls - early.calls == evaluations - 1 + 2 - 1


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
