"""The loss as a function of the maps, evaluated through a model: what the optimisers minimise."""

import numpy as np
import torch
from numpy.typing import NDArray

from . import _core, losses, ops, optim
from .data import Batch
from .distributed import Alone
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
    world : Alone
        The processes whose samples, sources and targets, count together.
    free : (N,) bool, optional
        Which mapped units may move. The gradient is zero for the others, and so they stay where they are.
    room : ops.Room, optional
        Where slopes and the like lie from one evaluation to the next: that of a whole problem and of its minibatches.
    """

    def __init__(
        self, runner: Runner, sources: list[Batch], targets: list[NDArray[np.float32]], loss: str = "wasserstein",
        ridge: Ridge | None = None, strength: float | None = None, world: Alone | None = None,
        free: NDArray[np.bool_] | None = None, room: ops.Room | None = None,
    ):  # fmt: skip
        self.runner, self.sources, self.targets, self.loss = runner, sources, targets, loss
        self.ridge, self.strength, self.world = ridge, strength, world or Alone()
        self.sizes, self.free, self.room = runner.mapped.sizes, free, room or ops.Room()
        self.samples = sum(self.world.share(sum(batch.size for batch in sources)))
        all_targets, _ = self.world.gather(lambda: np.concatenate(targets))
        self.target = ops.prepare_target(all_targets, self.samples)
        needs_noise = loss != "wasserstein" or (ridge is not None and strength is None)
        self._unlooked = all_targets if needs_noise else None
        self._noise: PermutationNull | None = None
        compared = runner.compared.sizes
        self.coefficient = np.repeat(1.0 / (len(compared) * np.array(compared)), compared)
        self._own = _places(runner)
        weights = (weight.dtype for weight in runner.model.parameters())
        self._may_overflow = torch.float16 in (runner.compute_dtype, *weights)
        self._minibatches: dict[tuple[int, int], ModelLoss] = {}
        self._graph: list[torch.Tensor] = []
        self._scaled = 1.0, self.coefficient

    def identity(self) -> optim.Vector:
        return self.runner.mapped.identity()

    def minibatch(self, k: int) -> "ModelLoss":
        if len(self.sources) == len(self.targets) == 1:
            return self
        pair = k % len(self.sources), k % len(self.targets)
        if pair not in self._minibatches:
            part = [self.sources[pair[0]]], [self.targets[pair[1]]]
            self._minibatches[pair] = ModelLoss(self.runner, *part, world=self.world, free=self.free, room=self.room)
        return self._minibatches[pair]

    def evaluate(self, x: optim.Vector, scale: float = 1.0) -> optim.Evaluation:
        self._graph.clear()  # of a trial that was rejected: never two at once
        graph = self._graph = []
        leaf = torch.from_numpy(x).requires_grad_()

        def collect() -> NDArray[np.float32]:
            if len(self.sources) > 1:
                return self.runner.collect(self.sources, leaf)
            graph.append(self.runner.run(self.sources[0], leaf))
            return self.runner.gather(graph[0])

        responses, own = self.world.gather(collect, x)
        if self._scaled[0] != scale:
            self._scaled = scale, self.coefficient * scale
        coefficient = self._scaled[1]
        unit_loss, slopes = ops.loss(responses, self.target, coefficient, room=self.room)
        if self._unlooked is not None:
            self._look_at_noise(responses, x, self._unlooked)
            self._unlooked = None
        if self._noise is not None and self.loss != "wasserstein":
            unit_loss, slopes = losses.discount(self.loss, unit_loss, slopes, self._noise, coefficient)
        held, pull = 0.0, None
        if self.ridge:
            pull = self.room.take("pull", len(x))
            held, pull = self.ridge.value_and_gradient(x, scale * self._ridge_strength(), pull)
        site_loss = np.add.reduceat(unit_loss, self.runner.compared.offsets[:-1]) * len(self.runner.compared.sites)
        largest = _core.largest(slopes, ops.thread_count(None, slopes.size))
        unit = _power_of_two(np.float32(largest))  # slopes of 1e-7 would be lost in half precision
        slopes, turn = slopes[own], self.room.begin()

        def gradient() -> optim.Vector:
            if not self.room.holds(turn):  # a later evaluation has written over the slopes
                return self.evaluate(x, scale).gradient()
            total, start = np.zeros_like(x), 0
            for batch in self.sources:
                responses = graph.pop() if graph else self.runner.run(batch, leaf)
                total += self._pull_back(responses, leaf, slopes[start : start + batch.size], unit)
                start += batch.size
            total = self.world.total(total)
            if pull is not None:
                total = total + pull
            return total if self.free is None else np.where(np.tile(self.free, 2), total, np.float32(0))

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

    def _look_at_noise(
        self, responses: NDArray[np.float32], x: optim.Vector, targets: NDArray[np.float32]
    ) -> None:  # fmt: skip
        """Of the unsteered sources, whose responses are those at the identity, where a fit usually starts."""
        if not np.array_equal(x, self.identity()):
            start = torch.from_numpy(self.identity())
            responses, _ = self.world.gather(lambda: self.runner.collect(self.sources, start))
        self._noise = losses.sampling_noise(responses, targets)
        if self.strength is None:
            distance = float(ops.loss(responses, self.target, self.coefficient)[0].sum())
            threads = ops.thread_count(None, len(self.coefficient))
            self.strength = losses.noise_to_signal(distance, _core.dot(self.coefficient, self._noise.mean, threads))

    def _ridge_strength(self) -> float:
        return (self.strength or 0.0) * float(self.coefficient.mean())

    def _pull_back(
        self, responses: torch.Tensor, leaf: torch.Tensor, slopes: NDArray[np.float32], unit: np.float32
    ) -> optim.Vector:
        """From the loss's slope for every response to its gradient for the maps, by torch's backward.

        float16, which would lose slopes that are not scaled, may overflow where they are: there it takes a larger unit.
        """
        for power in (0, 8, 16, 24) if self._may_overflow else (0,):
            step = np.ldexp(unit, power)
            part = np.divide(slopes, step, out=self.room.take("units of slopes", slopes.shape))
            part = torch.from_numpy(part).to(responses.device, responses.dtype)
            total = torch.autograd.grad(responses, leaf, part, retain_graph=self._may_overflow)[0].numpy() * step
            if not self._may_overflow or np.isfinite(total).all():
                return total
        raise ops.NonFiniteError("expected a finite gradient, got an overflow of float16; take bfloat16")


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
