"""A trip there and back, and what stands beside its graphs; the capture itself is in `project/test_gpu`."""

import gc
import weakref

import numpy as np
import pytest
import torch
from passes import Count, problem_of

from lineas.fitting.model_loss import ModelLoss
from lineas.responses import graphs
from lineas.responses.trip import Trip

SIDES = tuple(torch.randn(6, 5, generator=torch.Generator().manual_seed(k)) for k in range(2))


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(*(torch.nn.Linear(5, 5) for _ in range(4))).requires_grad_(False)


def problem(batch_size=None) -> ModelLoss:
    return problem_of(net(), *SIDES, sites=["1", "2"], economize=False, batch_size=batch_size)


def away(of, seed=0):
    return (of.identity() + 0.1 * np.random.default_rng(seed).normal(size=of.identity().shape)).astype(np.float32)


def test_a_trip_comes_back_once_unless_it_keeps_what_it_needs():
    of = problem()
    trip, x = of.passes.trips[0], away(of)
    slopes = np.ones_like(trip.there(x, returns=True))
    first = trip.back(slopes, keeps=True)
    assert trip.can_return
    np.testing.assert_array_equal(trip.back(slopes), first)
    assert not trip.can_return
    trip.there(x, returns=False)
    assert not trip.can_return


def test_the_first_map_is_told_of_once_and_after_all_that_does_not_depend_on_maps():
    of = problem()
    runner, batch = of.runner, of.passes.batches[0]
    counts = [Count(layer) for layer in runner.model]
    seen = []
    runner.run(batch, torch.from_numpy(away(of)), before_maps=lambda: seen.append([c.calls for c in counts]))
    # The site's own module has run, and its hook is what asks for the map.
    assert seen in ([[1, 0, 0, 0]], [[1, 1, 0, 0]])


def test_on_a_cpu_nothing_is_wanted_and_nothing_said():
    of = problem()
    assert not graphs.Graphs(of.runner, wanted=True).wanted
    assert graphs.Graphs(of.runner, wanted=True).facts() == {}


class StandIn:
    """Does what a replay does, or something else, without a GPU."""

    off, made, keeps = 0.0, 0, False

    def __init__(self, runner, batch, pool, keeps):
        type(self).made += 1
        if self.off is None:
            raise RuntimeError("operation not permitted when stream is capturing\nand so on")
        self.trip, self.pool, self.is_fresh, self.calls = Trip(runner, batch), object(), False, 0
        self.trip._is_new = False
        self.keeps = keeps

    def there(self, x):
        self.calls, self.is_fresh = self.calls + 1, True
        return self.trip.there(x, returns=True) * (1 + self.off)

    def back(self, slopes):
        self.is_fresh = self.keeps
        return self.trip.back(slopes, keeps=self.keeps)


def as_on_gpu(monkeypatch, of, stand_in, free=1 << 40):
    """The problem's trips try graphs, which are stand-ins."""
    monkeypatch.setattr(graphs, "Replay", stand_in)
    monkeypatch.setattr(graphs, "memory_free", lambda device: free)
    shared = of.runner.graphs
    shared.wanted = shared.on_gpu = True
    shared.is_worth_it = lambda launching, waiting, kept: graphs.Graphs.is_worth_it(shared, 2.0, 1.0, kept)
    for trip in of.passes.trips:
        trip._is_new = True
    return shared


@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_proved_itself_is_used_from_then_on(monkeypatch, batch_size):
    plain, of = problem(batch_size), problem(batch_size)
    kind = type("Right", (StandIn,), {})
    shared = as_on_gpu(monkeypatch, of, kind)
    for seed in range(3):
        found, expected = of.evaluate(away(of, seed)), plain.evaluate(away(of, seed))
        assert found.loss == expected.loss
        np.testing.assert_array_equal(found.gradient(), expected.gradient())
        np.testing.assert_array_equal(found.gradient(), expected.gradient())  # again, at the same maps
    assert kind.made == len(of.passes.trips) == shared.captured
    assert shared.facts() == {"graphs": True}
    assert all(trip._replay.calls > 2 for trip in of.passes.trips)


def test_graphs_share_memory_and_only_the_last_that_ran_can_go_back(monkeypatch):
    of = problem(batch_size=3)
    as_on_gpu(monkeypatch, of, type("Shared", (StandIn,), {}))
    of.evaluate(away(of)).gradient()
    first, second = of.passes.trips
    first.there(away(of, 1), returns=True)
    assert first.can_return
    second.there(away(of, 1), returns=True)
    assert (first.can_return, second.can_return) == (False, True)


@pytest.mark.parametrize(
    ("off", "why"), [(0.01, "a replay gives other responses"), (None, "RuntimeError: operation not permitted when")]
)
def test_what_does_not_prove_itself_is_not_tried_again(monkeypatch, off, why):
    plain, of = problem(batch_size=2), problem(batch_size=2)
    kind = type("Wrong", (StandIn,), {"off": off})
    shared = as_on_gpu(monkeypatch, of, kind)
    for seed in range(2):
        np.testing.assert_array_equal(of.evaluate(away(of, seed)).gradient(), plain.evaluate(away(of, seed)).gradient())
    assert kind.made == 1
    assert shared.facts()["graphs"].startswith(why)
    assert "\n" not in shared.facts()["graphs"]


def test_there_is_a_most_and_the_rest_goes_the_ordinary_way(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    of = problem(batch_size=2)
    kind = type("Many", (StandIn,), {})
    shared = as_on_gpu(monkeypatch, of, kind)
    of.evaluate(away(of)).gradient()
    assert kind.made == shared.captured == 2
    assert [trip._replay is not None for trip in of.passes.trips] == [True, True, False]
    assert shared.facts() == {"graphs": "only 2 batches have graphs"}


@pytest.mark.parametrize(
    ("figures", "why"),
    [((1.0, 2.0, 10), "it is the GPU that a step waits for"), ((2.0, 1.0, 1000), "there is no memory")],
)
def test_what_would_gain_nothing_or_has_no_room_is_not_captured(monkeypatch, figures, why):
    of = problem()
    shared = graphs.Graphs(of.runner)
    shared.wanted = shared.on_gpu = True
    monkeypatch.setattr(graphs, "memory_free", lambda device: 2000)
    assert not shared.is_worth_it(*figures)
    assert shared.facts()["graphs"].startswith(why)
    assert shared.is_worth_it(2.0, 1.0, 10)


@pytest.mark.parametrize("how", ["offloaded", "checkpointed", "compiled", "on one GPU"])
def test_models_that_graphs_do_not_fit_are_known_beforehand(how, monkeypatch):
    runner = problem().runner
    if how == "offloaded":
        runner.model[0]._hf_hook = object()
    if how == "checkpointed":
        runner.checkpointing = [runner.model[0]]
    if how == "compiled":
        runner.model[0].compile()
    assert bool(graphs._unfit(runner)) == (how != "on one GPU")


def test_tensors_made_before_the_first_map_are_kept_and_writes_into_them_found():
    kept = graphs._Kept()
    with kept.open():
        early = torch.ones(3) + 1
        view = early[:2]
        kept.close()
        late = torch.ones(3) * 2
    # On a CPU nothing needs keeping; what counts is what would be.
    assert not any(late is tensor for tensor in kept.made)
    assert any(early is tensor for tensor in kept.made)
    assert not kept.was_changed
    view.add_(1)
    assert kept.was_changed


def test_what_a_fit_holds_is_free_without_a_look_for_cycles(monkeypatch):
    """A GPU's memory would wait for Python's garbage collection."""
    gc.collect()
    gc.disable()
    try:
        of = problem(batch_size=3)
        shared = as_on_gpu(monkeypatch, of, type("Freed", (StandIn,), {}))
        of.evaluate(away(of)).gradient()
        of.evaluate(away(of, 1)).gradient()
        held = [weakref.ref(one) for one in (of.runner, *(trip._replay for trip in of.passes.trips))]
        del shared.is_worth_it  # this test's own
        del of, shared
        assert not any(one() for one in held)
    finally:
        gc.enable()


@pytest.mark.parametrize("batch_size", [None, 2])
def test_by_mirrors_a_step_is_what_it_is_without_and_batches_share_them(batch_size):
    plain, of = problem(batch_size), problem(batch_size)
    for trip in of.passes.trips:
        trip._ferry.by_mirrors = True  # as on a GPU, on this device
    for seed in range(2):
        x = away(of, seed)
        found, expected = of.evaluate(x), plain.evaluate(x)
        assert found.loss == expected.loss
        np.testing.assert_array_equal(found.gradient(), expected.gradient())
    assert len(of.runner.mirrors._made) == 4


def test_a_trip_that_waits_is_not_hurt_by_what_another_sends():
    of = problem(batch_size=3)
    first, second = of.passes.trips
    for trip in (first, second):
        trip._ferry.by_mirrors = True
    slopes = np.ones_like(first.there(away(of), returns=True))
    expected = first.back(slopes)
    first.there(away(of), returns=True)
    second.there(away(of, 1), returns=True)
    np.testing.assert_array_equal(first.back(slopes), expected)
