"""The loss as a function of the maps, evaluated through a model: what the optimisers minimise."""

import numpy as np
import torch
from numpy.typing import NDArray

from . import ops, optim
from .data import Batch
from .distributed import Alone
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
    world : Alone
        The processes whose samples, sources and targets, count together.
    """

    def __init__(
        self, runner: Runner, sources: list[Batch], targets: list[NDArray[np.float32]], world: Alone | None = None
    ):
        self.runner, self.sources, self.targets, self.world = runner, sources, targets, world or Alone()
        self.sizes = runner.mapped.sizes
        sizes = sum(batch.size for batch in sources), sum(map(len, targets))
        self.samples, self.target_samples = (sum(parts) for parts in zip(*self.world.share(sizes), strict=True))
        self.target = ops.prepare_target(self.world.gather(lambda: np.concatenate(targets))[0], self.samples)
        compared = runner.compared.sizes
        self.coefficient = np.repeat(1.0 / (len(compared) * np.array(compared)), compared)
        self._minibatches: dict[tuple[int, int], ModelLoss] = {}

    def identity(self) -> optim.Vector:
        return np.repeat(np.array([1, 0], np.float32), self.runner.mapped.units)

    def minibatch(self, k: int) -> "ModelLoss":
        if len(self.sources) == len(self.targets) == 1:
            return self
        pair = k % len(self.sources), k % len(self.targets)
        if pair not in self._minibatches:
            part = [self.sources[pair[0]]], [self.targets[pair[1]]]
            self._minibatches[pair] = ModelLoss(self.runner, *part, self.world)
        return self._minibatches[pair]

    def evaluate(self, x: optim.Vector, scale: float = 1.0) -> optim.Evaluation:
        runner, leaves = self.runner, self._leaves(x)
        maps = list(zip(leaves[: len(self.sizes)], leaves[len(self.sizes) :], strict=True))
        graph = runner.run(self.sources[0], maps) if len(self.sources) == 1 else None
        responses, own = self.world.gather(
            lambda: runner.collect(self.sources, maps) if graph is None else runner.gather(graph), x
        )
        unit_loss, slopes = ops.loss(responses, self.target, self.coefficient * scale)
        slopes = slopes[own]
        site_loss = np.add.reduceat(unit_loss, runner.compared.offsets[:-1]) * len(runner.compared.sites)

        def gradient() -> optim.Vector:
            if graph is not None:
                return self.world.total(self._pull_back(graph, leaves, slopes))
            total, start = np.zeros_like(x), 0
            for batch in self.sources:
                part = slopes[start : start + batch.size]
                total += self._pull_back(runner.run(batch, maps), leaves, part)
                start += batch.size
            return self.world.total(total)

        return optim.Evaluation(float(unit_loss.sum()), site_loss, gradient)

    def _leaves(self, x: optim.Vector) -> list[torch.Tensor]:
        """Every site's weight, then every site's bias: tensors over the memory of x."""
        cuts = np.cumsum([*self.sizes, *self.sizes])[:-1]
        return [torch.from_numpy(part).requires_grad_() for part in np.split(x, cuts)]

    def _pull_back(
        self, responses: list[torch.Tensor], leaves: list[torch.Tensor], slopes: NDArray[np.float32]
    ) -> optim.Vector:
        """From the loss's slope for every response to its gradient for the flat vector, by torch's backward.

        float16 would lose the slopes, which are tiny, on the way: there they are scaled by a power of two, and by less
        where that is too much.
        """
        if not any(parameter.dtype == torch.float16 for parameter in self.runner.model.parameters()):
            return self._backward(responses, leaves, slopes)
        exponent = -int(np.frexp(np.abs(slopes).max())[1])
        for shift in (exponent, exponent - 8, exponent - 16, exponent - 24):
            flat = self._backward(responses, leaves, np.ldexp(slopes, shift), retain_graph=True)
            if np.isfinite(flat).all():
                return np.ldexp(flat, -shift)
        raise ops.NonFiniteError("expected a finite gradient, got an overflow of float16; take bfloat16 weights")

    def _backward(
        self, responses: list[torch.Tensor], leaves: list[torch.Tensor], slopes: NDArray[np.float32], **options: bool
    ) -> optim.Vector:
        columns = torch.from_numpy(slopes)
        parts = [columns[:, self.runner.compared.slice(k)].to(r.device, r.dtype) for k, r in enumerate(responses)]
        gradients = torch.autograd.grad(responses, leaves, parts, materialize_grads=True, allow_unused=True, **options)
        return np.concatenate([gradient.numpy() for gradient in gradients])
