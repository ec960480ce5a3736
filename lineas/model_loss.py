"""The loss as a function of the maps, evaluated through a model: what the optimisers minimise."""

import numpy as np
import torch
from numpy.typing import NDArray

from . import ops, optim
from .data import Batch
from .responses import Runner


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
    """

    def __init__(self, runner: Runner, sources: list[Batch], targets: list[NDArray[np.float32]]):
        self.runner, self.sources, self.targets = runner, sources, targets
        self.sizes = runner.mapped.sizes
        self.samples = sum(batch.size for batch in sources)
        self.target = ops.prepare_target(np.concatenate(targets), self.samples)
        compared = runner.compared.sizes
        self.coefficient = np.repeat(1.0 / (len(compared) * np.array(compared)), compared)
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
        site_loss = np.add.reduceat(unit_loss, self.runner.compared.offsets[:-1]) * len(self.runner.compared.sites)

        def gradient() -> optim.Vector:
            total, start = np.zeros_like(x), 0
            unit = _power_of_two(np.abs(slopes).max())  # slopes of 1e-7 would be lost in half precision
            for batch in self.sources:
                responses = graph.pop() if graph else self.runner.run(batch, leaf)
                part = torch.from_numpy(slopes[start : start + batch.size] / unit)
                part = part.to(responses.device, responses.dtype)
                total += torch.autograd.grad(responses, leaf, part)[0].numpy() * unit
                start += batch.size
            return total

        return optim.Evaluation(float(unit_loss.sum()), site_loss, gradient)


def _power_of_two(size: np.float32) -> np.float32:
    """At most `size`, and more than half of it; dividing by it changes no bit of a float32. 1 for 0."""
    return np.float32(np.exp2(np.floor(np.log2(size)))) if size > 0 else np.float32(1)
