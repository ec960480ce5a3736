"""The source set through the steered model: responses under maps, and the way back to the maps' gradient."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.arrays import Vector
from ..core.errors import NonFiniteError
from ..core.room import Room
from ..network.batch import Batch
from ..responses.runner import Runner
from .distributed import Alone


class SourcePasses:
    """Runs the source set, one batch or several; what was run last at the same maps is not run again.

    One batch: a single pass serves responses and gradient. Several: one pass for the responses and, since the loss
    couples all samples, a second one for the gradient, a batch at a time, so that memory does not grow with them.

    Parameters
    ----------
    world : Alone
        The processes whose samples count together.
    room : Room
        Where slopes and the like lie from one evaluation to the next: that of a whole problem and of its minibatches.
    """

    def __init__(
        self, runner: Runner, batches: Sequence[Batch], world: Alone | None = None, room: Room | None = None
    ):  # fmt: skip
        self.runner, self.batches, self.world, self.room = runner, list(batches), world or Alone(), room or Room()
        self.samples = sum(self.world.share(sum(batch.size for batch in batches)))
        weights = (weight.dtype for weight in runner.model.parameters())
        self.may_overflow = torch.float16 in (runner.compute_dtype, *weights)
        self._last: SourcePass | None = None

    def minibatch(self, k: int) -> "SourcePasses":
        return SourcePasses(self.runner, [self.batches[k]], self.world, self.room)

    def at(self, x: Vector) -> "SourcePass":
        """All sources under the maps x. NonFiniteError where the model overflows."""
        if self._last is not None:
            if self._last.is_fresh(x):
                return self._last
            self._last.graph.clear()  # of a trial that was rejected: never two at once
        self._last = None
        self._last = SourcePass(self, x)
        return self._last


class SourcePass:
    """The sources' responses under maps.

    Attributes
    ----------
    responses : (n, N) float32
        Of all processes' sources.
    own : slice
        Which of them are this process's.
    """

    def __init__(self, passes: SourcePasses, x: Vector):
        self.passes, self.leaf, self._at = passes, torch.from_numpy(x).requires_grad_(), x.copy()
        self.graph: list[torch.Tensor] = []
        self.responses, self.own = passes.world.gather(self._collect, x)

    def _collect(self) -> Vector:
        passes = self.passes
        if len(passes.batches) > 1:
            return passes.runner.collect(passes.batches, self.leaf)
        self.graph.append(passes.runner.run(passes.batches[0], self.leaf))
        return passes.runner.gather(self.graph[0])

    def is_fresh(self, x: Vector) -> bool:
        """Whether it was run at x, and nothing has been taken back through it yet."""
        return bool(self.graph or len(self.passes.batches) > 1) and np.array_equal(self._at, x)

    def pull_back(self, slopes: NDArray[np.float32], unit: np.float32) -> Vector:
        """This process's part of the gradient for the maps (2 N,), from the loss's slope for each response (n, N).

        `unit` is about the size of the slopes: those of 1e-7 would be lost in half precision.
        """
        total, start, own = np.zeros(self.leaf.shape, np.float32), 0, slopes[self.own]
        for batch in self.passes.batches:
            responses = self.graph.pop() if self.graph else self.passes.runner.run(batch, self.leaf)
            total += self._of_batch(responses, own[start : start + batch.size], unit)
            start += batch.size
        return total

    def _of_batch(self, responses: torch.Tensor, slopes: NDArray[np.float32], unit: np.float32) -> Vector:
        """By torch's backward. float16, which would lose slopes that are not scaled, may overflow where they are: there
        it takes a larger unit."""
        may_overflow = self.passes.may_overflow
        for power in (0, 8, 16, 24) if may_overflow else (0,):
            step = np.ldexp(unit, power)
            scaled = np.divide(slopes, step, out=self.passes.room.take("slopes in units", slopes.shape))
            part = torch.from_numpy(scaled).to(responses.device, responses.dtype)
            total = torch.autograd.grad(responses, self.leaf, part, retain_graph=may_overflow)[0].numpy() * step
            if not may_overflow or np.isfinite(total).all():
                return total
        raise NonFiniteError("expected a finite gradient, got an overflow of float16; take bfloat16")
