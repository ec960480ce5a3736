"""The fast recipe, which needs no learning rate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.arrays import Floats, Vector
from ..core.errors import NonFiniteError
from ..penalties import SparseGroupLasso
from .problem import NO_PENALTY, Evaluation, Problem, Recorder
from .quadratic import Box, Quadratic, block_product, dot

RAISED = 1.3  # by how much the model's own curvatures are raised: later sites feel a map too
MEMORY = 14  # past moves that the model remembers
START_DAMPING = 0.6
SUFFICIENT = 1e-3  # the share of its promise that a trial must keep
ROUNDING = 1e-7  # gains below that share of the objective are float32's noise


@dataclass
class State:
    """Where the fast recipe stands between two evaluations: all that it needs to go on."""

    x: Vector
    loss: float
    penalty: float
    gradient: Vector
    curvature: Floats  # (3, N), as in `Evaluation`
    moves: Vector  # (k, 2 N), the last ones, oldest first
    changes: Vector  # (k, 2 N), of the gradient
    damping: float
    start: float  # the first objective
    taken: int  # accepted steps
    loss_sites: int

    @property
    def objective(self) -> float:
        return self.loss + self.penalty


def fast(
    problem: Problem, x: Vector, penalty: SparseGroupLasso | None, record: Recorder, *, steps: int | None = None,
    tolerance: float = 1e-3, save: Callable[[dict[str, Any]], None] | None = None, state: dict[str, Any] | None = None,
) -> tuple[Vector, str]:  # fmt: skip
    """Proximal quasi-Newton: each trial minimises a quadratic model of the loss, plus the penalty itself.

    The model knows each unit's own curvature and learns the rest from how the gradient changed (`quadratic`); a damping
    that rises with every rejected trial keeps its steps short where it is wrong. It stops after `steps` accepted steps,
    or when the model promises less than `tolerance` of all that was gained. Returns the last accepted point, whose
    objective is the least of all, and why it stopped.

    After each evaluation `save` gets the state, a flat dict of arrays and numbers. Given back as `state`, the run
    goes on with the same bits from there, and without x.
    Source: Lee, Sun & Saunders, Proximal Newton-type methods, SIAM J. Optim. 24 (2014), with a damped, bounded model.
    """
    penalty = penalty or NO_PENALTY
    if state is not None:
        here = State(**state)
    else:
        first = problem.evaluate(x)
        held = penalty.proximal_step(x, None, problem.sizes, 0.0).penalty
        if enough := record(first, held, 0.0):
            return x, enough
        none, gradient = np.empty((0, len(x)), np.float32), first.gradient()
        here = State(
            x, first.loss, held, gradient, _curvature(first, gradient, None), none, none, START_DAMPING,
            first.loss + held, 0, len(first.site_loss),
        )  # fmt: skip
        if save:
            save(dict(vars(here)))
    while True:
        if steps is not None and here.taken >= steps:
            return here.x, "all steps done"
        model = _model(here, problem.sizes)
        there = model.minimise(here.x, penalty, problem.sizes, _box(here, problem.sizes))
        holds = penalty.proximal_step(there, None, problem.sizes, 0.0).penalty
        promise = here.penalty - holds - model.value(there.astype(float) - here.x)
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
        here = _learn(here, there, trial, holds, gain / promise, accepted)
        if save:
            save(dict(vars(here)))


def _overflow(loss_sites: int, x: Vector) -> Evaluation:
    return Evaluation(np.inf, np.full(loss_sites, np.inf), lambda: np.empty(0, np.float32), x)


def _learn(here: State, there: Vector, trial: Evaluation, holds: float, ratio: float, accepted: bool) -> State:
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
    move, change = there - here.x, gradient - here.gradient
    if dot(move, change) > 1e-8 * np.sqrt(dot(move, move) * dot(change, change)):
        moves, changes = np.vstack([here.moves, move])[-MEMORY:], np.vstack([here.changes, change])[-MEMORY:]
        here = replace(here, moves=moves, changes=changes)
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
        steep = dot(gradient, gradient) / (2 * at.loss) if at.loss > 0 else 0.0
        middle = float(np.median(rest)) if len(rest) else steep or 1.0
        before = np.broadcast_to(np.array([[middle], [0.0], [middle]]), known.shape)
    return np.where(np.isfinite(known).all(0), known, before)


def _model(here: State, sizes: tuple[int, ...]) -> Quadratic:
    """Each unit's own curvature, scaled by site to what the last moves met; BFGS from there."""
    weight, both, bias = here.curvature
    weight = np.maximum(weight, 1e-3 * weight.mean())  # a unit whose responses are all zero
    blocks = np.stack([RAISED * weight, both, RAISED * bias])
    slope = here.gradient.astype(float)
    if len(here.moves):
        of_site, met, expected = np.repeat(np.arange(len(sizes)), sizes), *np.zeros((2, len(sizes)))
        for move, change in zip(here.moves[-3:].astype(float), here.changes[-3:].astype(float), strict=True):
            own = block_product(here.curvature, move)
            met += np.bincount(of_site, np.add(*np.split(move * change, 2)))
            expected += np.bincount(of_site, np.add(*np.split(move * own, 2)))
        scale = np.divide(met, expected, out=np.ones_like(met), where=expected > 0)
        blocks *= np.clip(scale, 1, 10)[of_site]
    elif here.loss > 0:  # as much as keeps the promise below the whole loss
        gain = -dot(slope, Quadratic(slope, blocks, here.moves, here.changes, here.damping).newton(slope)) / 2
        blocks *= max(1.0, gain / here.loss)
    return Quadratic(slope, blocks, here.moves, here.changes, here.damping)


def _box(here: State, sizes: tuple[int, ...]) -> Box:
    """Weights change by a quarter and keep their sign, or order would turn round; biases by half of a response."""
    weight, bias = np.split(here.x.astype(float), 2)
    down, up = (share * np.maximum(np.abs(weight), 0.1) for share in (1 / 4, 1 / 3))
    reach = np.sqrt(here.curvature[0] / here.curvature[2]) / 2
    return Box(np.concatenate([weight - down, bias - reach]), np.concatenate([weight + up, bias + reach]))
