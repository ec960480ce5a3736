"""The loss near a point, as the fast recipe sees it: a quadratic that costs no evaluation to minimise."""

from typing import Any, TypeGuard

import numpy as np

from ..core import _core
from ..core.arrays import Floats, Vector
from ..core.threads import thread_count
from ..penalties import Penalty, SparseGroupLasso
from .problem import penalty_at

MEMORY = 14  # past moves that the model remembers
SHORTER = 6  # times that inner steps are shortened, to a thousandth at last


def bytes_of(units: int) -> int:
    """Of the arrays that a `Quadratic` of so many units keeps."""
    return 4 * 2 * units * (2 * MEMORY + 5 + 3) + 8 * (3 * units + 2 * 2 * units)


class Quadratic:
    """slope . move + move . B move / 2, where B knows each unit's own curvature and what past moves have shown.

    B = damping A + the BFGS update of A: A holds a symmetric 2 x 2 block for each unit's (weight, bias), scaled by site
    to what the last moves met. Nothing here runs a model. All arithmetic is in C, on arrays that are made once for a
    problem, with the same bits for any number of threads; `reference.Quadratic` writes it out.

    Parameters
    ----------
    sizes : tuple of int
        Units of each mapped site.

    Notes
    -----
    O(k^2 N) to make from k moves of N units, O(k N) for a product.
    """

    def __init__(self, sizes: tuple[int, ...]):
        units = sum(sizes)
        self.sizes, self.offsets = sizes, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.moves, self.changes = np.empty((2, MEMORY, 2 * units), np.float32)
        self.blocks = np.empty((3, units))
        self.low, self.high, self.steps, self.ahead, self.slope = np.empty((5, 2 * units), np.float32)
        self.points = np.empty((3, 2 * units), np.float32)
        self.direction, self.scratch = np.cos(np.arange(2.0 * units)), np.empty(2 * units)
        self._model: tuple[Any, ...] = ()

    def make(
        self, x: Vector, loss: float, gradient: Vector, curvature: Floats, rows: int, oldest: int,
        damping: float,
    ) -> None:  # fmt: skip
        """The model at x, from the first rows of moves and changes, a ring that begins with the oldest, and the box."""
        memory = (self.moves[:rows], self.changes[:rows]) if rows else (None, None)
        correction = np.empty((2 * rows, 2 * rows)) if rows else None
        threads = thread_count(None, (1 + rows) * x.size)
        self.x, self.rows = x, rows
        self._model = (x, gradient, self.blocks, correction, *memory, self.offsets, damping, threads)
        _core.quadratic_make(self.low, self.high, np.ascontiguousarray(curvature), oldest, loss, *self._model)
        if not np.isfinite(self.blocks).all():
            raise FloatingPointError(
                "expected finite curvatures of the loss, got others: responses too large for float64?"
            )

    def value(self, point: Vector) -> float:
        return _core.quadratic_value(point, None, *self._model)

    def newton(self, ridge: float = 0.0) -> Vector:
        """Where this plus ridge |maps - identity|^2 is least, nearly: by conjugate gradients."""
        there = np.empty_like(self.x)
        _core.quadratic_newton(there, ridge, *self._model)
        return there

    def minimise(self, penalty: Penalty) -> tuple[Vector, float]:
        """The point in the box at which this plus the penalty is least, nearly, and this at that point.

        Closed form where the penalty is at most a ridge and the box does not matter; else a semismooth Newton method
        for penalties of ours whose groups are units or sites. Any other, and the rare case in which Newton's method
        does not settle, is left to accelerated proximal steps that restart, in C for penalties of ours. Never a point
        that is worse than to stay: where the steps were too long and led away, they are taken again, shorter.
        """
        held = penalty_at(penalty, self.x, self.sizes)
        if _runs_in_c(penalty) and penalty.is_ridge:
            there = self.newton(penalty.ridge)
            value = self.value(there)
            if ((there >= self.low) & (there <= self.high)).all() and self._is_no_worse(there, value, penalty, held):
                return there, value
        if _runs_in_c(penalty) and (found := self._solve(penalty, held)):
            return found
        return self.minimise_by_steps(penalty)

    def minimise_by_steps(self, penalty: Penalty) -> tuple[Vector, float]:
        """The same by proximal steps alone: for any penalty, and slower."""
        held = penalty_at(penalty, self.x, self.sizes)
        _core.quadratic_steps(self.steps, self.scratch, self.direction, *self._model)
        for _ in range(SHORTER):
            pace = np.zeros(2 + 4 * self.rows)
            pace[0] = 1.0  # speed
            run = self._all_in_c(penalty, pace) if _runs_in_c(penalty) else self._one_by_one(penalty, pace)
            value = _core.quadratic_value(run, pace, *self._model)
            if self._is_no_worse(run, value, penalty, held):
                return run, value
            self.steps *= 0.25
        return self.x.copy(), 0.0

    def _is_no_worse(self, there: Vector, value: float, penalty: Penalty, held: float) -> bool:
        """Than x, where this is 0 and the penalty is `held`, up to the rounding of the penalty's sum."""
        return value + penalty_at(penalty, there, self.sizes) <= held + 1e-9 * abs(held)

    def _solve(self, penalty: SparseGroupLasso, held: float) -> tuple[Vector, float] | None:
        there, pace = np.empty_like(self.x), np.zeros(2 + 4 * self.rows)
        by = penalty.in_c(self.x, self.sizes)
        if not _core.quadratic_solve(there, pace, self.scratch, self.low, self.high, *by, *self._model):
            return None
        value = _core.quadratic_value(there, pace, *self._model)
        return (there, value) if self._is_no_worse(there, value, penalty, held) else None

    def _all_in_c(self, penalty: SparseGroupLasso, pace: Floats) -> Vector:
        last = _core.quadratic_minimise(
            self.points, self.ahead, self.slope, pace, self.low, self.high, self.steps,
            *penalty.in_c(self.x, self.sizes), *self._model,
        )  # fmt: skip
        return self.points[last].copy()

    def _one_by_one(self, penalty: Penalty, pace: Floats) -> Vector:
        point = before = self.x
        for k in range(_core.INNER_STEPS):
            _core.quadratic_ahead(self.ahead, self.slope, point, before, pace, *self._model)
            fresh = self.points[k % 3]
            fresh[:] = penalty.proximal_step(self.ahead, self.slope, self.sizes, self.steps).x
            done = _core.quadratic_settle(fresh, pace, point, before, self.low, self.high, self.steps, *self._model)
            point, before = fresh, point
            if done:
                break
        return point.copy()


def _runs_in_c(penalty: Penalty) -> TypeGuard[SparseGroupLasso]:
    """Whether it is ours, and nobody's subclass with a proximal step of its own."""
    return isinstance(penalty, SparseGroupLasso) and type(penalty).proximal_step is SparseGroupLasso.proximal_step
