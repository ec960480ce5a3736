"""What an optimiser sees of a problem, and what it tells of every evaluation."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from ..core.arrays import Floats, Vector
from ..penalties import Penalty, SparseGroupLasso

NO_PENALTY = SparseGroupLasso(0.0, 0.0)


class Evaluation(NamedTuple):
    """The loss at one point; what costs more, only for whoever asks.

    `curvature` is each mapped unit's share of the loss as a function of its own map: (3, N), the second derivatives
    for (weight, weight), (weight, bias) and (bias, bias), NaN where they are not known. It speeds up the fast recipe.
    """

    loss: float  # the ridge included
    site_loss: Floats
    gradient: Callable[[], Vector]
    x: Vector  # the point, shared
    curvature: Callable[[], Floats] | None = None
    ridge: float = 0.0


class Problem(Protocol):
    """What an optimiser sees: a loss over the flat vector x = [weights, biases], (2 N,) float32."""

    sizes: tuple[int, ...]  # units of each mapped site
    samples: int  # of the source

    def evaluate(self, x: Vector, scale: float = 1.0) -> Evaluation:
        """Loss and gradient at x, times scale; NonFiniteError where the model overflows."""

    def minibatch(self, k: int) -> "Problem":
        """The k-th batch of source and target, in order and round again."""


class Recorder(Protocol):
    """Takes note of one evaluation; says why it must be the last, or nothing."""

    def __call__(self, at: Evaluation, penalty: float, step_size: float, accepted: bool = True) -> str: ...


def penalty_at(penalty: Penalty, x: Vector, sizes: tuple[int, ...]) -> float:
    weight, bias = np.split(x, 2)
    return float(penalty.value(weight, bias, sizes))
