"""The loss as a function of the maps, evaluated through a model: what the optimisers minimise."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .. import optim
from ..core import _core, blockwise
from ..core.arrays import Floats, Vector
from ..core.errors import NonFiniteError
from ..core.spill import Table
from ..ot import PermutationNull
from ..responses.runner import Runner
from .losses import LOSSES, Loss
from .ridge import Ridge
from .source_passes import SourcePasses


class ModelLoss:
    """The loss of maps over all mapped sites (see `optim.Problem`).

    Parameters
    ----------
    passes : SourcePasses
    targets : list of (m, N) arrays
        Responses of the unsteered network, a batch each: what minibatches are made of.
    loss : Loss
    noise : PermutationNull, optional
        What sampling alone does to the units' distances, where the loss needs it.
    ridge : Ridge, optional
    strength : float
        Of the ridge, in mean coefficients of a unit: one of average sensitivity goes about 1 / (1 + strength) of its
        way.
    coefficient : (N,), optional
        What each compared unit's distance counts; of a site all alike if not given.
    everyone : (m, N), optional
        The targets of all processes in one, where they are known; gathered if not given.
    free : (N,) bool, optional
        Which mapped units may move. The gradient is zero for the others, and so they stay where they are.
    """

    def __init__(
        self, passes: SourcePasses, targets: Sequence[Vector] = (), loss: Loss = LOSSES["wasserstein"], *,
        noise: PermutationNull | None = None, ridge: Ridge | None = None, strength: float = 0.0,
        free: NDArray[np.bool_] | None = None, coefficient: Floats | None = None, everyone: Table | None = None,
    ):  # fmt: skip
        self.passes, self.runner, self.targets, self.loss, self.noise = passes, passes.runner, targets, loss, noise
        self.ridge, self.strength, self.free = ridge, strength, free
        self.sizes, self.samples = self.runner.mapped.sizes, passes.samples
        if everyone is None:
            everyone, _ = passes.world.gather(lambda: np.concatenate(targets))
        self.target = blockwise.prepare_target(everyone, self.samples)
        self.coefficient = self.runner.compared.coefficients() if coefficient is None else coefficient
        self._places, self._scaled = _places(self.runner), (1.0, self.coefficient)
        self._minibatches: dict[tuple[int, int], ModelLoss] = {}

    def identity(self) -> Vector:
        return self.runner.mapped.identity()

    def minibatch(self, k: int) -> "ModelLoss":
        sources, targets = len(self.passes.batches), len(self.targets)
        if sources == targets == 1:
            return self
        pair = k % sources, k % targets
        if pair not in self._minibatches:
            part = self.passes.minibatch(pair[0]), [self.targets[pair[1]]]
            self._minibatches[pair] = ModelLoss(*part, free=self.free, coefficient=self.coefficient)
        return self._minibatches[pair]

    def evaluate(self, x: Vector, scale: float = 1.0) -> optim.Evaluation:
        at, room = self.passes.at(x), self.passes.room
        if self._scaled[0] != scale:
            self._scaled = scale, self.coefficient * scale
        coefficient = self._scaled[1]
        unit_loss, slopes = blockwise.loss(at.responses, self.target, coefficient, room)
        value, derivative = self.loss.of_distance(unit_loss / coefficient, self.noise)
        if derivative is not None:
            unit_loss = coefficient * value
            blockwise.scale_columns(slopes, derivative)
        held, pull = 0.0, None
        if self.ridge:
            held, pull = self.ridge.value_and_gradient(
                x, scale * self._ridge_strength(), room.take("pull of the ridge", len(x))
            )
        compared = self.runner.compared
        site_loss = np.add.reduceat(unit_loss, compared.offsets[:-1]) * len(compared.sites)
        unit = _power_of_two(blockwise.largest(slopes))
        turn = room.begin()

        def gradient() -> Vector:
            if not room.holds(turn):  # a later evaluation has written over the slopes
                return self.evaluate(x, scale).gradient()
            total = self.passes.world.total(at.pull_back(slopes, unit))
            total = total if pull is None else total + pull
            total = total if self.free is None else np.where(np.tile(self.free, 2), total, np.float32(0))
            _check_gradient(total, self.runner)
            return total

        return optim.Evaluation(
            float(unit_loss.sum()) + held, site_loss, gradient, x, lambda: self._curvature(x, at.responses, scale), held
        )

    def _curvature(self, x: Vector, responses: Table, scale: float) -> Floats:
        """Of each mapped unit's own share of the loss, 2 * coefficient * mean of [z z, z; z, 1], z before its map: the
        sum over its poolings."""
        moments = blockwise.moments(responses)
        share = np.sum([self._curvature_of(place, x, moments, scale) for place in self._places], 0)
        return share + scale * self._ridge_strength() * self.ridge.curvature() if self.ridge else share

    def _curvature_of(self, place: NDArray[np.int64], x: Vector, moments: Floats, scale: float) -> Floats:
        weight, bias = np.split(x.astype(float), 2)
        known = np.abs(weight) > 0.1  # else the map has all but wiped out z
        known &= place >= 0
        mean, square = moments[:, place]
        weight[~known] = np.nan
        second = (square - 2 * bias * mean + bias**2) / weight**2, (mean - bias) / weight, np.ones_like(bias)
        return np.where(known, 2 * scale * self.coefficient[place] * np.stack(second), np.nan)

    def _ridge_strength(self) -> float:
        return self.strength * float(self.coefficient.mean()) * len(self.runner.poolings)


def _places(runner: Runner) -> NDArray[np.int64]:
    """(poolings, N): at which place among the compared responses each mapped unit is, or -1."""
    starts, ways = dict(zip(runner.compared.sites, runner.compared.offsets[:-1], strict=True)), len(runner.poolings)
    return np.concatenate([
        np.arange(ways * size).reshape(ways, size) + starts[site] if site in starts else np.full((ways, size), -1)
        for site, size in zip(runner.mapped.sites, runner.mapped.sizes, strict=True)
    ], 1)  # fmt: skip


def _check_gradient(gradient: Vector, runner: Runner) -> None:
    """NonFiniteError names the site; no step could be taken, and the fit would end where it is."""
    bad = _core.first_nonfinite(gradient)
    if bad >= 0:
        site, side = runner.mapped.site_of(bad % runner.mapped.units), "weight" if bad < runner.mapped.units else "bias"
        raise NonFiniteError(
            f"site {site.name!r}: expected a finite gradient of the loss for its {side}s, got {gradient[bad]} from the "
            "model's backward pass"
        )


def _power_of_two(size: np.float32) -> np.float32:
    """At most `size`, and more than half of it; dividing by it changes no bit of a float32. 1 for 0."""
    return np.float32(np.exp2(np.floor(np.log2(size)))) if size > 0 else np.float32(1)
