"""The loss near a point, as the fast recipe sees it: a quadratic that costs no evaluation to minimise."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Floats
from ..penalties import SparseGroupLasso


class Box(NamedTuple):
    """How far the next point may be from this one, entry by entry."""

    low: Floats
    high: Floats

    def holds(self, point: Floats) -> bool:
        return bool(((point >= self.low) & (point <= self.high)).all())


class Quadratic:
    """slope . move + move . B move / 2, where B knows each unit's own curvature and what past moves have shown.

    B = (1 + damping) A + sum of b b' - a a': A holds a symmetric 2 x 2 block for each unit's (weight, bias), the rest
    is BFGS's correction of A, unrolled. Nothing here runs a model, and no sum is left to BLAS, whose bits may depend on
    threads.

    Parameters
    ----------
    slope : (2 N,) float64
        The gradient of the loss.
    blocks : (3, N) float64
        (weight, weight), (weight, bias) and (bias, bias) of every block, each positive definite.
    moves, changes : (k, 2 N)
        Past moves and how the gradient changed over each, oldest first, with moves . changes > 0.
    damping : float

    Notes
    -----
    O(k^2 N) to make, O(k N) for a product. Source: Nocedal & Wright, Numerical Optimization, 2006, sec. 7.2.
    """

    def __init__(self, slope: Floats, blocks: Floats, moves: NDArray, changes: NDArray, damping: float):
        self.slope, self.blocks, self.damping = slope, blocks, damping
        self.vectors, self.signs = np.empty((2 * len(moves), len(slope))), np.tile([1.0, -1.0], len(moves))
        for k, (move, change) in enumerate(zip(moves.astype(float), changes.astype(float), strict=True)):
            bent = block_product(blocks, move) + self._correction(move, 2 * k)
            self.vectors[2 * k] = change / np.sqrt(dot(move, change))
            self.vectors[2 * k + 1] = bent / np.sqrt(dot(move, bent))

    def _correction(self, p: Floats, rank: int | None = None) -> Floats:
        vectors = self.vectors[:rank]
        return np.einsum("kj,k->j", vectors, self.signs[:rank] * np.einsum("kj,j->k", vectors, p))

    def product(self, p: Floats) -> Floats:
        return (1 + self.damping) * block_product(self.blocks, p) + self._correction(p)

    def value(self, move: Floats) -> float:
        return dot(self.slope, move) + dot(move, self.product(move)) / 2

    def newton(self, slope: Floats, ridge: float = 0.0) -> Floats:
        """The move that minimises slope . move + move . (B + 2 ridge) move / 2, by conjugate gradients.

        With A as the preconditioner they end, but for rounding, after as many products as B has vectors, and one.
        """
        inverse = _block_inverse((1 + self.damping) * self.blocks + 2 * ridge * np.array([[1.0], [0.0], [1.0]]))
        move, left = np.zeros_like(slope), -slope
        along = ready = block_product(inverse, left)
        size = start = dot(left, ready)
        for _ in range(len(self.vectors) + 1):
            if size <= 1e-8 * start or size == 0:
                break
            bent = self.product(along) + 2 * ridge * along
            step = size / dot(along, bent)
            move, left = move + step * along, left - step * bent
            ready = block_product(inverse, left)
            before, size = size, dot(left, ready)
            along = ready + size / before * along
        return move

    def minimise(self, x: NDArray, penalty: SparseGroupLasso, sizes: tuple[int, ...], box: Box) -> NDArray[np.float32]:
        """The point in the box at which this quadratic plus the penalty is least, nearly.

        Closed form where the penalty is at most a ridge and the box does not matter; else by accelerated proximal
        steps that restart. Source: O'Donoghue & Candes, Found. Comput. Math. 15 (2015), sec. 3.2.
        """
        here = x.astype(float)
        if not any((penalty.l1, penalty.group, penalty.l1_bias, penalty.group_bias)):
            pull = 2 * penalty.ridge * (here - np.repeat([1.0, 0.0], len(x) // 2))
            there = here + self.newton(self.slope + pull, penalty.ridge)
            if box.holds(there):
                return there.astype(np.float32)
        steps = self._step_sizes()
        low, high = (side.astype(np.float32) for side in box)
        point, ahead, speed = x, here, 1.0
        for _ in range(INNER_STEPS):
            slope = self.slope + self.product(ahead - here)
            new = penalty.proximal_step(ahead.astype(np.float32), slope.astype(np.float32), sizes, steps).x
            np.clip(new, low, high, out=new)
            change = new.astype(float) - point
            if dot((ahead - new) / steps, change) > 0:
                speed = 1.0
            faster = (1 + np.sqrt(1 + 4 * speed**2)) / 2
            ahead, point, speed = new + (speed - 1) / faster * change, new, faster
            if dot(change / steps, change) <= INNER_TOLERANCE**2 * dot((new - here) / steps, new - here):
                break
        return point

    def _step_sizes(self) -> Floats:
        """One over the diagonal of A, times what keeps proximal steps from overshooting: by power iteration."""
        diagonal = (1 + self.damping) * self.blocks[[0, 2]].ravel()
        root, largest = np.sqrt(diagonal), 1.0
        v = np.cos(np.arange(len(root)))  # in no direction in particular
        for _ in range(10):
            v = self.product(v / (largest * root)) / root
            largest = np.sqrt(dot(v, v))
        return 1 / (1.1 * largest * diagonal)


INNER_STEPS = 100
INNER_TOLERANCE = 3e-4


def dot(a: NDArray, b: NDArray) -> float:
    return float(np.einsum("j,j", a, b))


def block_product(blocks: Floats, p: Floats) -> Floats:
    weight, bias = np.split(p, 2)
    return np.concatenate([blocks[0] * weight + blocks[1] * bias, blocks[1] * weight + blocks[2] * bias])


def _block_inverse(blocks: Floats) -> Floats:
    weight, both, bias = blocks
    return np.stack([bias, -both, weight]) / (weight * bias - both**2)
