"""The fast recipe, which needs no learning rate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core import _core
from ..core.arrays import Floats, Vector
from ..core.errors import NonFiniteError
from ..core.threads import thread_count
from ..penalties import Penalty
from .problem import NO_PENALTY, Evaluation, Problem, Recorder, penalty_at
from .quadratic import MEMORY, Quadratic

START_DAMPING = 0.6
SUFFICIENT = 1e-3  # the share of its promise that a trial must keep
FLAT = 1e-12  # of a bias's curvature: the least that a weight's may be
ROUNDING = 1e-7  # gains below that share of the objective are float32's noise


@dataclass
class State:
    """Where the fast recipe stands between two evaluations: all that it needs to go on."""

    x: Vector
    loss: float
    penalty: float
    gradient: Vector
    curvature: Floats  # (3, N), as in `Evaluation`
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
    problem: Problem, x: Vector, penalty: Penalty | None, record: Recorder, *, steps: int | None = None,
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
        held = penalty_at(penalty, x, problem.sizes)
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
        holds = penalty_at(penalty, there, problem.sizes)
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
    try:
        gradient = trial.gradient()
    except NonFiniteError:
        if accepted:
            raise
        return here
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


def _curvature(at: Evaluation, gradient: Vector, before: Floats | None) -> Floats:
    """Units that nothing is known about keep what was known before, or get the middle of the others; where nothing is
    known of any, the curvature with which a gradient step would promise the whole loss.
    """
    known = np.full((3, len(gradient) // 2), np.nan) if at.curvature is None else at.curvature()
    if before is None:
        rest = known[2][np.isfinite(known[2])]
        steep = float(np.einsum("j,j", gradient, gradient)) / (2 * at.loss) if at.loss > 0 else 0.0
        middle = float(np.median(rest)) if len(rest) else steep or 1.0
        before = np.broadcast_to(np.array([[middle], [0.0], [middle]]), known.shape)
    found = np.where(np.isfinite(known).all(0), known, before)
    found[0] = np.maximum(found[0], FLAT * found[2])  # where all responses are zero, a weight does nothing
    return found
