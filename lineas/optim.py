"""The optimisers: the published recipe, and the fast one that needs no learning rate."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _core
from .ops import NonFiniteError, thread_count
from .penalties import SparseGroupLasso

Vector = NDArray[np.float32]


class Evaluation(NamedTuple):
    """The loss at one point, and its gradient for whoever asks: a rejected trial never pays for it."""

    loss: float
    site_loss: NDArray[np.float64]
    gradient: Callable[[], Vector]
    x: Vector  # the point, shared


class Problem(Protocol):
    """What an optimiser sees: a loss over the flat vector x = [weights, biases], (2 N,) float32."""

    sizes: tuple[int, ...]  # units of each mapped site
    samples: int  # of the source

    def evaluate(self, x: Vector, scale: float = 1.0) -> Evaluation:
        """Loss and gradient at x, times scale; NonFiniteError where the model overflows."""

    def minibatch(self, k: int) -> "Problem":
        """The k-th batch of source and target, in order and round again."""


class Record(Protocol):
    """Takes note of one evaluation; says why it must be the last, or nothing."""

    def __call__(self, at: Evaluation, penalty: float, step_size: float, accepted: bool = True) -> str: ...


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

# The published schedule's step sizes add up to this, which is how far along the gradient flow it goes. The fast recipe
# goes as far, in a few long steps: where descent stops is what keeps it from fitting the samples' noise.
HORIZON = PUBLISHED_STEPS * SGD.learning_rate * (1 + PUBLISHED_FLOOR) / 2

NO_PENALTY = SparseGroupLasso(0.0, 0.0)


def published(
    problem: Problem, x: Vector, penalty: SparseGroupLasso | None, record: Record, *, optimizer: str,
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
    x, held, *_ = penalty.proximal_step(x, None, problem.sizes, 0.0)  # a copy, and its penalty
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
        x, held, *_ = penalty.proximal_step(x, None, problem.sizes, rate)
        if enough:
            return x, enough
        if save:
            own = {f"update.{key}": value for key, value in vars(update).items()}
            save({"x": x, "penalty": held, "done": k + 1, **own})
    return x, "all steps done"


def fast(
    problem: Problem, x: Vector, penalty: SparseGroupLasso | None, record: Record, *, steps: int | None,
    tolerance: float = 5e-4, save: Callable[[dict[str, Any]], None] | None = None, state: dict[str, Any] | None = None,
) -> tuple[Vector, str]:  # fmt: skip
    """Proximal gradient descent whose steps grow while they succeed and shrink where they do not.

    The first trial is Polyak's step; a trial is accepted when it lowers the objective by a tenth of what a quadratic
    bound would promise. It stops after `steps` accepted steps, at `HORIZON`, or when a step gains
    less than `tolerance` of all that was gained. Returns the last accepted point and why it stopped.
    After each accepted step `save` gets a state; from `state` it goes on.
    Source: SpaRSA, Wright, Nowak & Figueiredo, IEEE Trans. Signal Process. 57 (2009), eq. 22, in its monotone form.
    """
    grow, sufficient = 1.5, 0.1
    horizon = HORIZON * problem.samples  # our loss is the published one divided by the samples
    penalty = penalty or NO_PENALTY
    if state is None:
        here = problem.evaluate(x)
        held = penalty.proximal_step(x, None, problem.sizes, 0.0).penalty
        start = here.loss + held
        if enough := record(here, held, 0.0):
            return x, enough
        gradient = here.gradient()
        if not gradient.any():
            return x, "the gradient is zero"
        step = here.loss / float(np.dot(gradient.astype(np.float64), gradient))
        travelled, taken = 0.0, 0
    else:
        x, gradient, site_loss = state["x"], state["gradient"], state["site_loss"]
        here = Evaluation(state["loss"], site_loss, lambda: state["gradient"], x)
        held, start, step, travelled, taken = (state[k] for k in ("penalty", "start", "step", "travelled", "taken"))
    accepted = True
    while True:
        if accepted and save:
            save({
                "x": x, "gradient": gradient, "loss": here.loss, "site_loss": here.site_loss, "penalty": held,
                "start": start, "step": step, "travelled": travelled, "taken": taken,
            })  # fmt: skip
        step = min(step, horizon - travelled)
        there, holds, slope, square = penalty.proximal_step(x, gradient, problem.sizes, step)
        if square == 0:
            return x, "nothing left to gain"
        try:
            trial = problem.evaluate(there)
        except NonFiniteError:  # it went so far that the model overflowed
            trial = here._replace(loss=np.inf, site_loss=np.full_like(here.site_loss, np.inf), x=there)
        gain = here.loss + held - trial.loss - holds
        accepted = gain >= sufficient * square / (2 * step)
        enough = record(trial, holds, step, accepted)
        if accepted:
            x, here, held = there, trial, holds
            travelled, taken = travelled + step, taken + 1
            step *= grow
            for met, why in (
                (travelled >= horizon * (1 - 1e-9), "as far as the published recipe goes"),
                (gain <= tolerance * (start - here.loss - held), "no longer improving"),
                (taken == steps, "all steps done"),
            ):
                if met:
                    return x, why
        if enough:
            return x, enough
        if accepted:
            gradient = here.gradient()
        else:
            curvature = 2 * (trial.loss - here.loss - slope) / square  # infinite after an overflow
            step *= min(max(1 / (max(curvature, 1 / step) * step), 0.1), 0.5)
