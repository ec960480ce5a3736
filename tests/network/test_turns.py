"""Several threads that run one model through lineas: each leaves it, and the random numbers, as it found them."""

import os
import threading
import time

import pytest
import torch
from conftest import normal
from torch import nn

import lineas
from lineas.network.state import frozen

SRC, TGT = normal(6, 4), normal(6, 4, seed=1) + 1
WAIT = 0.5  # seconds for the other thread to begin, where it may


class Meeting(nn.Module):
    """Its first pass lets another thread begin; that thread's first pass waits for the first thread to be done."""

    def __init__(self):
        super().__init__()
        self.site, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        self.inside, self.done = threading.Event(), threading.Event()
        self.other = None

    def forward(self, x):
        h = self.drop(self.site(x))
        if self.other is None:
            return h
        if threading.current_thread() is not self.other:
            if not self.other.is_alive() and not self.done.is_set():
                self.other.start()
                self.inside.wait(WAIT)
        elif not self.inside.is_set():
            self.inside.set()
            self.done.wait(5)
        return h


def responses(model, inputs):
    return lineas.evaluation.responses(model, inputs, "drop", batch_size=3)["drop"]


def fitted(model, inputs):
    return lineas.fit(model, inputs, TGT, sites=["site"], batch_size=3, progress=False, max_evaluations=4).weights


@pytest.mark.parametrize("run", [responses, fitted])
def test_two_threads_get_what_they_would_get_alone(run):
    model, results = Meeting().train(), []
    alone = run(model, SRC), run(model, TGT[:5])
    random = torch.get_rng_state()
    model.other = threading.Thread(target=lambda: results.append(run(model, TGT[:5])))
    results.append(run(model, SRC))
    model.done.set()
    model.other.join()
    assert len(results) == 2
    assert (results[0] == alone[0]).all()
    assert (results[1] == alone[1]).all()
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_is_forked_while_another_thread_has_the_turn_gets_one():
    held, over = threading.Event(), threading.Event()

    def hold():
        with frozen(nn.Linear(1, 1)):
            held.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        with frozen(nn.Linear(1, 1)):
            os._exit(0)
    ended = (0, 0)
    for _ in range(200):
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    over.set()
    thread.join()
    assert ended == (child, 0)
