"""The optimisers: the published recipe, and the fast one that needs no learning rate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _core
from .ops import NonFiniteError, thread_count
from .penalties import SparseGroupLasso
from .quadratic import MEMORY, Quadratic

Vector = NDArray[np.float32]


class Evaluation(NamedTuple):
    """The loss at one point; what costs more, only for whoever asks.

    `curvature` is each mapped unit's share of the loss as a function of its own map: (3, N), the second derivatives
    for (weight, weight), (weight, bias) and (bias, bias), NaN where they are not known. It speeds up the fast recipe.
    """

    loss: float  # the ridge included
    site_loss: NDArray[np.float64]
    gradient: Callable[[], Vector]
    x: Vector  # the point, shared
    curvature: Callable[[], NDArray[np.float64]] | None = None
    ridge: float = 0.0


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

START_DAMPING = 0.6
SUFFICIENT = 1e-3  # the share of its promise that a trial must keep
ROUNDING = 1e-7  # gains below that share of the objective are float32's noise

NO_PENALTY = SparseGroupLasso(0.0, 0.0)


def published(
    problem: Problem, x: Vector, penalty: Any, record: Record, *, optimizer: str,
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
    x, held = x.copy(), _held(penalty, x, problem.sizes)
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


@dataclass
class State:
    """Where the fast recipe stands between two evaluations: all that it needs to go on."""

    x: Vector
    loss: float
    penalty: float
    gradient: Vector
    curvature: NDArray[np.float64]  # (3, N), as in `Evaluation`
    moves: Vector  # (k, 2 N), the last ones
    changes: Vector  # (k, 2 N), of the gradient
    damping: float
    start: float  # the first objective
    taken: int  # accepted steps
    loss_sites: int
    oldest: int = 0  # the row with which moves and changes begin: they are a ring once they are full

    @property
    def objective(self) -> float:
        return self.loss + self.penalty


def fast(
    problem: Problem, x: Vector, penalty: Any, record: Record, *, steps: int | None = None,
    tolerance: float = 1e-3, save: Callable[[dict[str, Any]], None] | None = None, state: dict[str, Any] | None = None,
) -> tuple[Vector, str]:  # fmt: skip
    """Proximal quasi-Newton: each trial minimises a quadratic model of the loss, plus the penalty itself.

    The model knows each unit's own curvature and learns the rest from how the gradient changed (`quadratic`); a damping
    that rises with every rejected trial keeps its steps short where it is wrong. It stops after `steps` accepted steps,
    or when the model promises less than `tolerance` of all that was gained. Returns the last accepted point, whose
    objective is the least of all, and why it stopped.

    The penalty may be anybody's: `value(weight, bias, sizes)`, and `proximal_step(x, gradient, sizes, step)`, whose
    result has the new point as `x` and, for the published recipe, its penalty as `penalty`; see `SparseGroupLasso`.

    After each evaluation `save` gets the state, a flat dict of arrays and numbers. Given back as `state`, the run
    goes on with the same bits from there, and without x.
    Source: Lee, Sun & Saunders, Proximal Newton-type methods, SIAM J. Optim. 24 (2014), with a damped, bounded model.
    """
    penalty, model = penalty or NO_PENALTY, Quadratic(problem.sizes)
    if state is not None:
        here = _remembered(State(**state), model)
    else:
        first = problem.evaluate(x)
        held = _held(penalty, x, problem.sizes)
        if enough := record(first, held, 0.0):
            return x, enough
        gradient = first.gradient()
        here = State(
            x, first.loss, held, gradient, _curvature(first, gradient, None), model.moves[:0], model.changes[:0],
            START_DAMPING, first.loss + held, 0, len(first.site_loss),
        )  # fmt: skip
        if save:
            save(dict(vars(here)))
    while True:
        if steps is not None and here.taken >= steps:
            return here.x, "all steps done"
        model.make(here.x, here.loss, here.gradient, here.curvature, len(here.moves), here.oldest, here.damping)
        there, value = model.minimise(penalty)
        holds = _held(penalty, there, problem.sizes)
        promise = here.penalty - holds - value
        if promise <= max(tolerance * (here.start - here.objective), ROUNDING * here.objective):
            return here.x, "no longer improving"
        try:
            trial = problem.evaluate(there)
        except NonFiniteError:  # it went so far that the model overflowed
            trial = _overflow(here.loss_sites, there)
        gain = here.objective - trial.loss - holds
        accepted = gain > SUFFICIENT * promise
        if enough := record(trial, holds, 1 / (1 + here.damping), accepted):
            return (there if accepted else here.x), enough
        here = _learn(here, there, trial, holds, gain / promise, accepted, model)
        if save:
            save(dict(vars(here)))


def _held(penalty: Any, x: Vector, sizes: tuple[int, ...]) -> float:
    return float(penalty.value(*np.split(x, 2), sizes))


def _remembered(saved: State, model: Quadratic) -> State:
    """The saved state with its memory where the model looks for it, and arrays that C takes."""
    rows = len(saved.moves)
    model.moves[:rows], model.changes[:rows] = saved.moves, saved.changes
    own = {key: value.copy() for key, value in vars(saved).items() if isinstance(value, np.ndarray)}
    return replace(saved, **{**own, "moves": model.moves[:rows], "changes": model.changes[:rows]})


def _overflow(loss_sites: int, x: Vector) -> Evaluation:
    return Evaluation(np.inf, np.full(loss_sites, np.inf), lambda: np.empty(0, np.float32), x)


def _learn(
    here: State, there: Vector, trial: Evaluation, holds: float, ratio: float, accepted: bool, model: Quadratic
) -> State:
    """The state after a trial. A rejected one teaches too, by its gradient, unless it overflowed."""
    damping = here.damping
    if not accepted:
        damping = max(4 * damping, 0.3) if np.isfinite(trial.loss) else max(30 * damping, 10.0)
    elif ratio > 0.6:
        damping /= 3
    here = replace(here, damping=damping)
    if not np.isfinite(trial.loss):
        return here
    gradient = trial.gradient()
    moved, along, changed = _core.move_sums(there, here.x, gradient, here.gradient, thread_count(None, there.size))
    if along > 1e-8 * np.sqrt(moved * changed):
        rows, full = len(here.moves), len(here.moves) == MEMORY
        row = here.oldest if full else rows
        np.subtract(there, here.x, out=model.moves[row])
        np.subtract(gradient, here.gradient, out=model.changes[row])
        rows, oldest = (rows, (row + 1) % MEMORY) if full else (rows + 1, 0)
        here = replace(here, moves=model.moves[:rows], changes=model.changes[:rows], oldest=oldest)
    if not accepted:
        return here
    return replace(
        here, x=there, loss=trial.loss, penalty=holds, gradient=gradient, taken=here.taken + 1,
        curvature=_curvature(trial, gradient, here.curvature),
    )  # fmt: skip


def _curvature(at: Evaluation, gradient: Vector, before: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Units that nothing is known about keep what was known before, or get the middle of the others; where nothing is
    known of any, the curvature with which a gradient step would promise the whole loss.
    """
    known = np.full((3, len(gradient) // 2), np.nan) if at.curvature is None else at.curvature()
    if before is None:
        rest = known[2][np.isfinite(known[2])]
        steep = float(np.einsum("j,j", gradient, gradient)) / (2 * at.loss) if at.loss > 0 else 0.0
        middle = float(np.median(rest)) if len(rest) else steep or 1.0
        before = np.broadcast_to(np.array([[middle], [0.0], [middle]]), known.shape)
    return np.where(np.isfinite(known).all(0), known, before)
