"""The loss as a function of the maps, evaluated through a model: what the optimisers minimise."""

import numpy as np
import torch
from numpy.typing import NDArray

from . import losses, ops, optim
from .data import Batch
from .ot import PermutationNull
from .responses import Runner
from .ridge import Ridge


class ModelLoss:
    """The loss of maps over all mapped sites (see `optim.Problem`).

    Parameters
    ----------
    runner : Runner
    sources : list of Batch
        One: a single pass serves loss and gradient. Several: one pass for the loss and, since it couples all samples,
        a second one for the gradient, a batch at a time, so that memory does not grow with the samples.
    targets : list of (m, N) arrays
        Responses of the unsteered network, a batch each.
    loss : one of `losses.LOSSES`
    ridge : Ridge, optional
    strength : float, optional
        Of the ridge, in mean coefficients of a unit: one of average sensitivity goes about 1 / (1 + strength) of its
        way. If not given, it is the loss's ratio of sampling noise to signal before anything is steered.
    """

    def __init__(
        self, runner: Runner, sources: list[Batch], targets: list[NDArray[np.float32]], loss: str = "wasserstein",
        ridge: Ridge | None = None, strength: float | None = None,
    ):  # fmt: skip
        self.runner, self.sources, self.targets, self.loss = runner, sources, targets, loss
        self.ridge, self.strength = ridge, strength
        self._noise: PermutationNull | None = None
        self.sizes = runner.mapped.sizes
        self.samples = sum(batch.size for batch in sources)
        self.target = ops.prepare_target(np.concatenate(targets), self.samples)
        compared = runner.compared.sizes
        self.coefficient = np.repeat(1.0 / (len(compared) * np.array(compared)), compared)
        self._own = _places(runner)
        self._minibatches: dict[tuple[int, int], ModelLoss] = {}
        self._graph: list[torch.Tensor] = []

    def identity(self) -> optim.Vector:
        return np.repeat(np.array([1, 0], np.float32), self.runner.mapped.units)

    def minibatch(self, k: int) -> "ModelLoss":
        if len(self.sources) == len(self.targets) == 1:
            return self
        pair = k % len(self.sources), k % len(self.targets)
        if pair not in self._minibatches:
            self._minibatches[pair] = ModelLoss(self.runner, [self.sources[pair[0]]], [self.targets[pair[1]]])
        return self._minibatches[pair]

    def evaluate(self, x: optim.Vector, scale: float = 1.0) -> optim.Evaluation:
        self._graph.clear()  # of a trial that was rejected: never two at once
        graph = self._graph = []
        leaf = torch.from_numpy(x).requires_grad_()
        if len(self.sources) == 1:
            graph.append(self.runner.run(self.sources[0], leaf))
            responses = self.runner.gather(graph[0])
        else:
            responses = self.runner.collect(self.sources, leaf)
        unit_loss, slopes = ops.loss(responses, self.target, self.coefficient * scale)
        held, pull = 0.0, np.zeros_like(x)
        if self.loss != "wasserstein" or self.ridge:
            noise = self._look_at_noise(responses, x)
            if self.loss != "wasserstein":
                unit_loss, slopes = losses.discount(self.loss, unit_loss, slopes, noise, self.coefficient * scale)
            if self.ridge:
                held, pull = self.ridge.value_and_gradient(x, scale * self._ridge_strength())
        site_loss = np.add.reduceat(unit_loss, self.runner.compared.offsets[:-1]) * len(self.runner.compared.sites)

        def gradient() -> optim.Vector:
            total, start = pull.copy(), 0
            unit = _power_of_two(np.abs(slopes).max())  # slopes of 1e-7 would be lost in half precision
            for batch in self.sources:
                responses = graph.pop() if graph else self.runner.run(batch, leaf)
                part = torch.from_numpy(slopes[start : start + batch.size] / unit)
                part = part.to(responses.device, responses.dtype)
                total += torch.autograd.grad(responses, leaf, part)[0].numpy() * unit
                start += batch.size
            return total

        return optim.Evaluation(
            float(unit_loss.sum()) + held, site_loss, gradient, x, lambda: self._curvature(x, responses, scale), held
        )

    def _curvature(self, x: optim.Vector, responses: NDArray[np.float32], scale: float) -> NDArray[np.float64]:
        """Of each mapped unit's own share of the loss, 2 * coefficient * mean of [z z, z; z, 1], z before its map."""
        weight, bias = np.split(x.astype(float), 2)
        here, known = self._own, np.abs(weight) > 0.1  # else the map has all but wiped out z
        known &= here >= 0
        mean = np.add.reduce(responses, 0, np.float64)[here] / len(responses)
        square = np.einsum("ij,ij->j", responses, responses, dtype=float)[here] / len(responses)
        weight[~known] = np.nan
        moments = (square - 2 * bias * mean + bias**2) / weight**2, (mean - bias) / weight, np.ones_like(bias)
        own = np.where(known, 2 * scale * self.coefficient[here] * np.stack(moments), np.nan)
        return own + scale * self._ridge_strength() * self.ridge.curvature() if self.ridge else own

    def _look_at_noise(self, responses: NDArray[np.float32], x: optim.Vector) -> PermutationNull:
        """Of the unsteered sources, whose responses are those at the identity, where a fit usually starts."""
        if self._noise is None:
            if not np.array_equal(x, self.identity()):
                responses = self.runner.collect(self.sources, torch.from_numpy(self.identity()))
            self._noise = losses.sampling_noise(responses, np.concatenate(self.targets))
            if self.strength is None:
                distance = float(ops.loss(responses, self.target, self.coefficient)[0].sum())
                self.strength = losses.noise_to_signal(distance, float(self.coefficient @ self._noise.mean))
        return self._noise

    def _ridge_strength(self) -> float:
        return (self.strength or 0.0) * float(self.coefficient.mean())


def _places(runner: Runner) -> NDArray[np.int64]:
    """(N,): at which place among the compared units each mapped unit is, or -1."""
    starts = dict(zip(runner.compared.sites, runner.compared.offsets[:-1], strict=True))
    return np.concatenate([
        np.arange(size) + starts[site] if site in starts else np.full(size, -1)
        for site, size in zip(runner.mapped.sites, runner.mapped.sizes, strict=True)
    ])  # fmt: skip


def _power_of_two(size: np.float32) -> np.float32:
    """At most `size`, and more than half of it; dividing by it changes no bit of a float32. 1 for 0."""
    return np.float32(np.exp2(np.floor(np.log2(size)))) if size > 0 else np.float32(1)
