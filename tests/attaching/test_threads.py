"""One steered model and several threads: each gets what it would get alone."""

import random
import sys
import threading

import pytest
import torch
from conftest import IDS, random_maps, tiny

from lineas import Steering

POSITIONS = ["all", "last", "prompt", "generated", lambda numbers: numbers % 2 == 1]
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "output_logits": True}
OPTIONS["return_dict_in_generate"] = True


def texts(count, seed=0):
    """Batches of different shapes, with a mask: their rows end with padding."""
    draw = random.Random(seed)
    batches = []
    for _ in range(count):
        rows, width = draw.randint(1, 4), draw.randint(2, 9)
        lengths = torch.tensor([draw.randint(1, width) for _ in range(rows)])
        batches.append((torch.randint(1, 60, (rows, width)), (torch.arange(width) < lengths[:, None]).long()))
    return batches


def in_thread(function, *args):
    """What a function gives in a thread of its own."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join()
    return results[0]


def pass_of(model, ids, mask):
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits


def generation_of(model, ids, mask):
    return torch.stack(model.generate(ids, attention_mask=mask, **OPTIONS).logits)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("inner", [pass_of, generation_of])
@pytest.mark.parametrize("outer", [pass_of, generation_of])
def test_a_pass_in_the_middle_of_another_threads_pass(outer, inner, position):
    model = tiny("llama")
    (first, second), results = texts(2), []
    with random_maps(model, size=0.5).apply(model, position=position):
        alone = outer(model, *first), inner(model, *second)

        def meddle(*_):
            if threading.current_thread() is threading.main_thread():
                results.append(in_thread(inner, model, *second))

        model.model.layers[1].register_forward_hook(meddle)
        torch.testing.assert_close(outer(model, *first), alone[0], atol=0, rtol=0)
    assert len(results) in (1, 4)
    for result in results:
        torch.testing.assert_close(result, alone[1], atol=0, rtol=0)


@pytest.mark.parametrize("position", ["all", "generated"])
def test_strengths_by_row_while_another_thread_generates(position):
    """Beams of three rows here, a plain pass there, which may have no multiple of its rows."""
    model = tiny("llama")
    ids, mask = IDS, torch.ones_like(IDS)
    errors = []
    with random_maps(model, size=0.5).apply(model, strength=[0.0, 1.0, 2.0], position=position):

        def wrong():
            with pytest.raises(ValueError, match="strength: expected one for each of 9 rows, got 3"):
                model(ids.repeat(3, 1))
            return torch.equal(pass_of(model, ids, mask), alone)

        alone = pass_of(model, ids, mask)

        def meddle(*_):
            if threading.current_thread() is threading.main_thread():
                errors.append(in_thread(wrong))

        hook = model.model.layers[1].register_forward_hook(meddle)
        model.generate(ids, attention_mask=mask, num_beams=3, **OPTIONS)
        hook.remove()
    assert errors
    assert all(errors)


@pytest.fixture
def restless():
    """Threads that take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("position", POSITIONS)
def test_eight_threads(position, restless):
    model = tiny("llama")
    batches = texts(8 * 5)
    with random_maps(model, size=0.5).apply(model, position=position, count=True) as handle:
        expected = [pass_of(model, *batch) for batch in batches]
        alone, wrong, start = handle.coverage(), [], threading.Barrier(8)

        def work(k):
            start.wait()
            for i in range(k, len(batches), 8):
                try:
                    result = pass_of(model, *batches[i])
                except Exception as error:
                    wrong.append(repr(error))
                else:
                    wrong.extend([i] * (not torch.equal(result, expected[i])))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert handle.coverage() == {name: (2 * seen, 2 * steered) for name, (seen, steered) in alone.items()}


def test_prompt_lengths_are_of_the_thread_that_says_them():
    model = tiny("llama")
    ids, mask = IDS, torch.ones_like(IDS)
    with random_maps(model, size=0.5).apply(model, position="generated") as handle:
        alone = pass_of(model, ids, mask)
        with handle.prompt([1, 2, 3]):
            here = pass_of(model, ids, mask)
            assert torch.equal(in_thread(pass_of, model, ids, mask), alone)
            assert not torch.equal(here, alone)
            assert torch.equal(pass_of(model, ids, mask), here)


def test_replicas_run_in_threads_that_know_no_prompt_lengths():
    """`DataParallel` makes them for each pass: no length may be forgotten silently."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    h = torch.randn(2, 5, 4)

    def replicated():
        replica = model._replicate_for_data_parallel()
        replica._modules["0"] = model[0]._replicate_for_data_parallel()
        for name, weight in model[0].named_parameters():
            setattr(replica[0], name, weight.detach())
        return replica(h)

    steering = Steering({"0": ([2.0] * 4, [1.0] * 4)})
    with steering.apply(model, position="generated") as handle:
        assert torch.equal(in_thread(replicated), model(h))
        with (
            handle.prompt(2),
            pytest.raises(RuntimeError, match="prompt: expected a pass in the thread that gave the lengths, got a rep"),
        ):
            replicated()


def test_a_strength_is_set_as_a_whole(monkeypatch):
    """A pass while another strength is being set gets the old one or the new one, nothing between."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False))
    steering, seen = Steering({"0": ([2.0] * 3, [1.0] * 3)}), []
    h, at_strength = torch.ones(2, 2), Steering.at_strength

    def slowly(self, *args):
        seen.extend(in_thread(net, h.view(*shape)) for shape in ((2, 2), (2, 1, 2), (2, 1, 1, 2)))
        return at_strength(self, *args)

    def between(first, second):
        return base + torch.tensor([[first], [second]]) * (base + 1)

    with torch.no_grad():
        base = net(h)
    with steering.apply(net, strength=[3.0, -1.0]) as handle, torch.no_grad():
        monkeypatch.setattr(Steering, "at_strength", slowly)
        handle.set_strength([-1.0, -1.0])
        monkeypatch.undo()
        assert len(seen) == 3
        for got in seen:
            torch.testing.assert_close(got.view(2, 3), between(3.0, -1.0))
        torch.testing.assert_close(net(h), between(-1.0, -1.0))
