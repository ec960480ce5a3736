"""The source set through the steered model: responses under maps, and the way back to the maps' gradient."""

from collections.abc import Sequence
from typing import Any
from weakref import proxy

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.arrays import Vector
from ..core.errors import NonFiniteError
from ..core.room import Room
from ..core.spill import Table
from ..network.batch import Batch
from ..network.kept import sizes_of, stays
from ..responses.runner import Runner
from ..responses.trip import Trip
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
        self.runner, self.batches, self.world, self.room = runner, batches, world or Alone(), room or Room()
        self.sizes = sizes_of(batches)
        self.samples = sum(self.world.of_parts(sum(self.sizes)))
        self.has_several = self.world.most(len(batches)) > 1
        weights = (weight.dtype for weight in runner.model.parameters())
        self.may_overflow = torch.float16 in (runner.compute_dtype, *weights)
        self.trips = _Trips(runner, batches)
        self._last: SourcePass | None = None

    def minibatch(self, k: int) -> "SourcePasses":
        return SourcePasses(self.runner, [self.batches[k]], self.world, self.room)

    def at(self, x: Vector) -> "SourcePass":
        """All sources under the maps x. NonFiniteError where the model overflows."""
        if self._last is not None and self._last.is_fresh(x):
            return self._last
        self._last = None
        self._last = SourcePass(self, x)
        return self._last


class _Trips(Sequence[Trip]):
    """One for each batch: made once, unless the batch is read anew whenever it is asked for."""

    def __init__(self, runner: Runner, batches: Sequence[Batch]):
        self.runner, self.batches = runner, batches
        lasting = [k for k in range(len(batches)) if len(batches) == 1 or stays(batches, k)]
        self.made = {k: Trip(runner, batches[k]) for k in lasting}

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: Any) -> Any:
        return self.made[k] if k in self.made else Trip(self.runner, self.batches[k])


class SourcePass:
    """The sources' responses under maps.

    Attributes
    ----------
    responses : (n, N) float32
        Of all processes' sources; perhaps in a file.
    own : slice
        Which of them are this process's.
    """

    def __init__(self, passes: SourcePasses, x: Vector):
        self.passes, self._at = proxy(passes), x.copy()  # no cycle: a GPU's memory shall be free when a fit ends
        self.responses, self.own = passes.world.gather(self._collect, x)

    def _collect(self) -> Table:
        trips = self.passes.trips
        if not self.passes.has_several:
            found = trips[0].there(self._at, returns=True)
            return self.passes.runner.stacked(self.passes.batches, [found]) if self.passes.runner.spill else found
        found = self.passes.world.each(lambda trip: trip.there(self._at, returns=False), trips)
        return self.passes.runner.stacked(self.passes.batches, found)

    def is_fresh(self, x: Vector) -> bool:
        """Whether it was run at x, and nothing has been taken back through it yet."""
        return (self.passes.has_several or self.passes.trips[0].can_return) and np.array_equal(self._at, x)

    def pull_back(self, slopes: Table, unit: np.float32) -> Vector:
        """This process's part of the gradient for the maps (2 N,), from the loss's slope for each response (n, N).

        `unit` is about the size of the slopes: those of 1e-7 would be lost in half precision.
        """
        total, sizes = np.zeros(len(self._at), np.float32), self.passes.sizes
        ends = self.own.start + np.cumsum(sizes)

        def of_trip(trip: Trip, end: int) -> Vector:
            rows = slice(end - trip.batch.size, end)
            if self.passes.has_several or not trip.can_return:
                trip.there(self._at, returns=True)
            return self._of_batch(trip, slopes[rows], unit, self.responses[rows])

        each = zip(self.passes.trips, ends, strict=True)
        for gradient in self.passes.world.each(lambda one: of_trip(*one), each):
            total += gradient
        return total

    def _of_batch(self, trip: Trip, slopes: NDArray[np.float32], unit: np.float32, responses: Vector) -> Vector:
        """By torch's backward. float16, which would lose slopes that are not scaled, may overflow where they are: there
        it takes a larger unit."""
        may_overflow = self.passes.may_overflow
        for power in (0, 8, 16, 24) if may_overflow else (0,):
            step = np.ldexp(unit, power)
            scaled = np.divide(slopes, step, out=self.passes.room.take("slopes in units", slopes.shape))
            with self.passes.world.way_back():
                gradient = trip.back(scaled, keeps=may_overflow)
            if not may_overflow or self.passes.world.agree(bool(np.isfinite(gradient).all())):
                trip.forget()
                trip.prove(self._at, responses, scaled, gradient, may_overflow)
                return gradient * step
        raise NonFiniteError("expected a finite gradient, got an overflow of float16; take bfloat16")
