"""The published recipe: a learning rate on a cosine, minibatches in order."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import _core
from ..core.arrays import Vector
from ..core.errors import NonFiniteError
from ..core.threads import thread_count
from ..penalties import Penalty
from .problem import NO_PENALTY, Problem, Recorder, penalty_at


class SGD:
    """Plain gradient descent."""

    learning_rate = 0.1

    def step(self, x: Vector, gradient: Vector, rate: float) -> None:
        _core.sgd(x, None, gradient, rate, 0.0, thread_count(None, x.size))


class Momentum:
    """Heavy-ball descent; its steps add up to ten times the rate, hence a tenth of that of plain descent."""

    learning_rate = 1e-2

    def __init__(self) -> None:
        self.velocity: Vector | None = None

    def step(self, x: Vector, gradient: Vector, rate: float) -> None:
        if self.velocity is None:
            self.velocity = np.zeros_like(x)
        _core.sgd(x, self.velocity, gradient, rate, 0.9, thread_count(None, x.size))


class Adam:
    """Adam with the released implementation's second decay: 0.9, not the usual 0.999."""

    learning_rate, second_decay, decay = 1e-2, 0.9, 0.0

    def __init__(self) -> None:
        self.first: Vector | None = None
        self.second: Vector | None = None
        self.iteration = 0

    def step(self, x: Vector, gradient: Vector, rate: float) -> None:
        if self.first is None or self.second is None:
            self.first, self.second = np.zeros_like(x), np.zeros_like(x)
        self.iteration += 1
        _core.adam(
            x, self.first, self.second, gradient, rate, 0.9, self.second_decay, 1e-8, self.decay, self.iteration,
            thread_count(None, x.size),
        )  # fmt: skip


class AdamW(Adam):
    """Adam with decoupled decay towards the identity map, and torch's defaults for both decays."""

    second_decay, decay = 0.999, 1e-2


OPTIMIZERS: dict[str, type[SGD] | type[Momentum] | type[Adam]] = {
    "sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW,
}  # fmt: skip
PUBLISHED_STEPS = 1000
PUBLISHED_FLOOR = 1e-3  # the cosine's end, relative to its start


def published(
    problem: Problem, x: Vector, penalty: Penalty | None, record: Recorder, *, optimizer: str,
    learning_rate: float | None, steps: int,
    save: Callable[[dict[str, Any]], None] | None = None, state: dict[str, Any] | None = None,
) -> tuple[Vector, str]:  # fmt: skip
    """LinEAS as published: a learning rate on a cosine, minibatches in order, the prox at the current rate.

    The loss is the published one, which sums over samples: n times ours. Returns the last point and why it stopped.
    After each step `save` gets its state, a flat dict with the present point as "x", whose arrays the next step
    overwrites; from `state` it goes on, in its arrays.
    Source: arXiv 2503.10679, sec. 3 and its released implementation (`tests/data`).
    """
    update = OPTIMIZERS[optimizer]()
    start = update.learning_rate if learning_rate is None else learning_rate
    penalty = penalty or NO_PENALTY
    x, held = x.copy(), penalty_at(penalty, x, problem.sizes)
    done = 0
    if state is not None:
        x, held, done = state["x"], state["penalty"], state["done"]
        vars(update).update({key: state[f"update.{key}"] for key in vars(update)})
    for k in range(done, steps):
        batch = problem.minibatch(k)
        try:
            at = batch.evaluate(x, scale=batch.samples)
        except NonFiniteError as error:
            if k == 0:
                raise  # the model itself, not a step that went too far
            raise FloatingPointError(f"diverged at step {k}: learning_rate={start} is too large here") from error
        rate = _core.cosine(start, PUBLISHED_FLOOR * start, k, steps)
        enough = record(at, held, rate)
        update.step(x, at.gradient(), rate)
        after = penalty.proximal_step(x, None, problem.sizes, rate)
        x, held = after.x, after.penalty
        if enough:
            return x, enough
        if save:
            own = {f"update.{key}": value for key, value in vars(update).items()}
            save({"x": x, "penalty": held, "done": k + 1, **own})
    return x, "all steps done"
