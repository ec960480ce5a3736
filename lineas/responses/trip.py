"""A batch through the model under maps, and the slopes of its responses back to the maps' gradient."""

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import Vector
from ..core.mirror import Mirror, memory_used, wait
from ..network.batch import Batch
from ..network.sharding import gather
from .graphs import Replay
from .runner import Runner


class Trip:
    """There with `there`, which a single `back` may follow. On a GPU, by graphs once they have proved themselves."""

    def __init__(self, runner: Runner, batch: Batch):
        self.runner, self.batch, self.graphs = runner, batch, runner.graphs
        self._maps: tuple[Tensor, Tensor] | None = None  # the leaf, and the responses that autograd knows it by
        self._replay: Replay | None = None
        self._is_new, self._ferry = runner.graphs.wanted, _Ferry(runner, batch)

    def there(self, x: Vector, returns: bool) -> NDArray[np.float32]:
        """Responses (n, N) on the host under maps x; `returns`, where `back` is to follow. NonFiniteError where one is
        not finite."""
        self.forget()
        if self._replay:
            self.graphs.runs(self._replay)
            return self.runner.checked(self._replay.there(x))
        leaf, started, used = self._ferry.leaf(x), time.perf_counter(), memory_used(self.runner.device)
        with torch.set_grad_enabled(returns):
            responses = self.runner.run(self.batch, leaf)
        launched, kept = time.perf_counter(), memory_used(self.runner.device) - used
        found = self._ferry.fetched("responses", responses)
        if returns:
            self._maps = leaf, responses
            if self._is_new:
                self._is_new = self.graphs.is_worth_it(launched - started, time.perf_counter() - launched, kept)
        return self.runner.checked(found)

    @property
    def can_return(self) -> bool:
        if self._replay is None:
            return self._maps is not None
        return self._replay.is_fresh and self.graphs.ran_last(self._replay)

    def back(self, slopes: NDArray[np.float32], keeps: bool = False) -> Vector:
        """The gradient (2 N,) from the slopes (n, N) of the last responses; `keeps`, if one more `back` may follow."""
        if self._replay:
            return self._replay.back(slopes)
        assert self._maps is not None
        leaf, responses = self._maps
        gather(self.runner.model)
        there = self._ferry.slopes(slopes, responses)
        (gradient,) = torch.autograd.grad(responses, leaf, there, retain_graph=keeps)
        found = self._ferry.fetched("gradient", gradient)
        if not keeps:
            self._maps = None
        return found

    def forget(self) -> None:
        """What `back` would have needed: never two at once."""
        self._maps = None
        if self._replay:
            self._replay.is_fresh = False

    def prove(
        self, x: Vector, responses: Vector, slopes: NDArray[np.float32], gradient: Vector, keeps: bool
    ) -> None:  # fmt: skip
        """Capture what has just been done the ordinary way, if it has not been tried, and see whether it does it."""
        if self._is_new:
            self._is_new = False
            self._replay = self.graphs.proved(self.runner, self.batch, x, responses, slopes, gradient, keeps)


class _Ferry:
    """How maps, responses, slopes and gradient cross between host and device: by mirrors on a GPU."""

    def __init__(self, runner: Runner, batch: Batch):
        self.device, self.by_mirrors = runner.device, runner.device.type == "cuda"
        maps, responses = (2 * runner.mapped.units,), (batch.size, runner.compared.units)
        self._mirrors = runner.mirrors
        self._shapes = {"maps": maps, "gradient": maps, "slopes": responses, "responses": responses}

    def leaf(self, x: Vector) -> Tensor:
        if not self.by_mirrors:
            return torch.from_numpy(x).requires_grad_()
        return self._sent("maps", x).clone().requires_grad_()  # for the mirror is other batches', too

    def slopes(self, slopes: NDArray[np.float32], responses: Tensor) -> Tensor:
        there = self._sent("slopes", slopes) if self.by_mirrors else torch.from_numpy(slopes)
        return there.to(responses.device, responses.dtype)

    def fetched(self, name: str, values: Tensor) -> NDArray[np.float32]:
        if not self.by_mirrors:
            return np.ascontiguousarray(values.detach().to("cpu", torch.float32).numpy())
        mirror = self._of(name)
        mirror.fetch(values.detach())
        wait(self.device)
        return mirror.host.numpy().copy()

    def _sent(self, name: str, values: NDArray[np.float32]) -> Tensor:
        mirror = self._of(name)
        mirror.write(values)
        return mirror.upload().detach()

    def _of(self, name: str) -> Mirror:
        return self._mirrors.of(name, self._shapes[name])
