"""Padding is not computed, and nothing else changes."""

import itertools

import numpy as np
import pytest
import torch
from conftest import tiny
from passes import Count, assert_same, evaluate, padded_ids, problem_of

import lineas
from lineas.network.batch import _groups
from lineas.network.data import as_batches
from lineas.responses.runner import Runner, Savings

pytestmark = pytest.mark.usefixtures("random_state_stays")


@pytest.fixture
def free_passes(monkeypatch):
    """Every length then gets a pass of its own."""
    monkeypatch.setattr("lineas.network.batch.PASS", {"cpu": 0})


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
