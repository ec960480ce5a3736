"""A problem whose maps may not go against the contrasts of other concepts."""

from collections.abc import Sequence

import numpy as np

from ..core.arrays import Floats, Vector
from ..optim.problem import Evaluation
from .model_loss import ModelLoss

STIFF = 100.0  # a wall lets through one part in 1 + this of what would have gone through it


class Walled:
    """A loss plus, for every contrast g, STIFF / 2 * min(0, g . m)^2 / (g . H^-1 g) (see `optim.Problem`).

    m = (weight - 1, bias) are the moves, and H is the diagonal of each unit's own curvature at the identity: what the
    units together would pay for g, were the problem theirs alone. So STIFF has no unit.

    Parameters
    ----------
    problem : ModelLoss
        Without contrasts, this is it.
    contrasts : list of (2 N,)
        Gradients at the identity of what the maps may not lessen, for all weights and then all biases.
    """

    def __init__(self, problem: ModelLoss, contrasts: Sequence[Floats]):
        self.problem, self.sizes, self.samples = problem, problem.sizes, problem.samples
        self.mobility = _mobility(problem) if contrasts else np.empty(0)
        lengths = [self.length(g) for g in contrasts]
        self.walls = [g / length for g, length in zip(contrasts, lengths, strict=True) if length > 0]

    def length(self, contrast: Floats) -> float:
        """sqrt(g . H^-1 g), over the units that may move."""
        return float(np.sqrt(np.einsum("i,i,i", contrast, contrast, self.mobility)))

    def minibatch(self, k: int) -> ModelLoss:
        raise NotImplementedError("expected the fast recipe, which takes all samples at once")

    def evaluate(self, x: Vector, scale: float = 1.0) -> Evaluation:
        at = self.problem.evaluate(x, scale)
        weight, bias = np.split(x.astype(np.float64), 2)
        moves = np.concatenate([weight - 1, bias])
        through = [(g, float(np.einsum("i,i", g, moves))) for g in self.walls]  # no BLAS, whose bits go by its threads
        hit = [(g, depth) for g, depth in through if depth < 0]
        if not hit:
            return at
        held = scale * STIFF / 2 * sum(depth**2 for _, depth in hit)
        pull = scale * STIFF * np.sum([depth * g for g, depth in hit], 0) * (self.mobility > 0)

        def gradient() -> Vector:
            return at.gradient() + pull.astype(np.float32)

        return at._replace(loss=at.loss + held, ridge=at.ridge + held, gradient=gradient)


def _mobility(problem: ModelLoss) -> Floats:
    """(2 N,): by how much each weight and bias would go for a unit of force; 0 for those that may not."""
    curvature = problem.evaluate(problem.identity()).curvature
    known = np.full((3, sum(problem.sizes)), np.nan) if curvature is None else curvature()
    flat = np.concatenate([known[0], known[2]])
    usual = flat[np.isfinite(flat) & (flat > 0)]
    middle = float(np.median(usual)) if len(usual) else 1.0
    flat = np.where(
        np.isfinite(flat), np.maximum(flat, 1e-6 * middle), middle
    )  # a unit that is constantly 0 bends none
    return 1 / flat if problem.free is None else np.tile(problem.free, 2) / flat
