"""A trip as two CUDA graphs: there, from the first map on, and back. Replaying them costs the host next to nothing.

Most of a step's time on a GPU is the host's, which starts a thousand small kernels. A graph starts them all at once. It
holds what a pass did, not why; so it is compared with the ordinary way before it is used, and whatever cannot be
captured goes on in the ordinary way.
"""

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.arrays import Vector
from ..core.mirror import Mirrors, memory_free, wait
from ..network.batch import Batch
from ..network.sharding import is_sharded, is_split
from ..network.state import dtype_of, is_compiled, moves_tensors
from .layout import Layout

SPARE = 3  # times what a pass keeps for the way back: graphs have memory of their own
MOST = 64  # pairs of graphs in a fit; batches beyond that pass in the ordinary way


class Runs(Protocol):
    """What is asked of a runner."""

    model: nn.Module
    device: torch.device
    seed: int
    mapped: Layout
    compared: Layout
    checkpointing: list[nn.Module]
    mirrors: Mirrors

    def run(self, batch: Batch, x: Tensor | None, before_maps: Callable[[], None] | None) -> Tensor: ...


class Graphs:
    """Whether a fit's trips are replayed, and what they share.

    Attributes
    ----------
    wanted : bool
        Whether trips may still try.
    why_not : str
        Why at least one batch goes the ordinary way; empty where none does, or none has tried.
    """

    def __init__(self, runner: Runs, wanted: bool = True):
        self.why_not, self.captured = "", 0
        self._latest: ref[Replay] | None = None  # no cycle: a GPU's memory shall be free when a fit ends
        self._pool: Any = None
        self.device, self.on_gpu = runner.device, runner.device.type == "cuda"
        self.wanted = wanted and self.on_gpu and not self._refuse(_unfit(runner))

    def facts(self) -> dict[str, Any]:
        """For a fit's `info`: nothing on a CPU."""
        return {"graphs": self.why_not or bool(self.captured)} if self.on_gpu else {}

    def is_worth_it(self, launching: float, waiting: float, kept: int) -> bool:
        """Whether the host works for longer than it waits for the GPU, and there is memory for another pass."""
        if memory_free(self.device) < SPARE * kept:
            return not self._refuse("there is no memory for what a graph keeps")
        return waiting <= launching or not self._refuse("it is the GPU that a step waits for, not the host")

    def proved(
        self, runner: Runs, batch: Batch, x: Vector, responses: Vector, slopes: Vector, gradient: Vector,
        keeps: bool,
    ) -> "Replay | None":  # fmt: skip
        """The captured trip, if it does what was done the ordinary way; `keeps`, if it may go back more than once."""
        if not self.wanted:
            return None
        try:
            replay = Replay(runner, batch, self._pool, keeps)
            self.runs(replay)
            found = replay.there(x), replay.back(slopes)
        except Exception as error:  # whatever a model does that a graph cannot hold
            self._refuse(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return None
        tolerance = torch.finfo(dtype_of(runner.model)).eps ** (2 / 3)
        for name, once, again in zip(("responses", "gradient"), (responses, gradient), found, strict=True):
            if not np.linalg.norm(again - once) <= tolerance * np.linalg.norm(once):
                self._refuse(f"a replay gives other {name}")
                return None
        self._pool, self.captured = replay.pool, self.captured + 1
        if self.captured == MOST:
            self._refuse(f"only {MOST} batches have graphs")
        return replay

    def runs(self, replay: "Replay") -> None:
        """All write into the same memory: from now on, only this one can go back."""
        self._latest = ref(replay)

    def ran_last(self, replay: "Replay") -> bool:
        return self._latest is not None and self._latest() is replay

    def _refuse(self, why: str) -> bool:
        if why:
            self.wanted, self.why_not = False, why
        return bool(why)


def _unfit(runner: Runs) -> str:
    """Why no pass of this model can be captured, as far as that can be known beforehand."""
    modules = list(runner.model.modules())
    if len({weight.device for weight in runner.model.parameters()}) > 1:
        return "the weights are not all on one GPU"
    if any(map(moves_tensors, modules)):
        return "accelerate moves weights or inputs about"
    if any(map(is_sharded, modules)) or is_split(runner.model):
        return "the weights are spread over processes"
    if runner.checkpointing:
        return "blocks are checkpointed"
    return "the model is compiled" if any(map(is_compiled, modules)) else ""


class Replay:
    """The trip of one batch. What runs before the first map does not depend on maps: it runs once, and is kept."""

    def __init__(self, runner: Runs, batch: Batch, pool: Any, keeps: bool):
        self.runner, self.batch, self.keeps, self.is_fresh = runner, batch, keeps, False
        units, device = runner.mapped.units, runner.device
        responses = batch.size, runner.compared.units
        self.x, self.gradient = (runner.mirrors.of(name, (2 * units,)) for name in ("maps", "gradient"))
        self.responses, self.slopes = (runner.mirrors.of(name, responses) for name in ("responses", "slopes"))
        self._forward, self._backward, self._kept = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph(), _Kept()
        self.pool = torch.cuda.graph_pool_handle() if pool is None else pool
        side = _side(device)
        side.wait_stream(torch.cuda.current_stream(device))
        on_side = torch.cuda.device(device), torch.cuda.stream(side), _own_generator(device), _without_collection()
        with on_side[0], on_side[1], on_side[2] as self._generator, on_side[3]:
            self._capture()
        torch.cuda.current_stream(device).wait_stream(side)

    def _capture(self) -> None:
        leaf = self.x.there.detach().requires_grad_()
        self.slopes.upload()  # so that it is there, and not in the graphs' memory
        with _capturing(self._forward, self.pool) as begin, self._kept.open():

            def first_map() -> None:
                self._kept.close()
                begin()
                self.x.upload()

            responses = self.runner.run(self.batch, leaf, before_maps=first_map)
            self.responses.fetch(responses)
        if self._kept.was_changed:
            raise RuntimeError("the model writes into what it made before the first map")
        with _capturing(self._backward, self.pool) as begin:
            begin()
            slopes = self.slopes.upload().to(responses.dtype)
            (gradient,) = torch.autograd.grad(responses, leaf, slopes, retain_graph=self.keeps)
            self.gradient.fetch(gradient)

    def there(self, x: Vector) -> NDArray[np.float32]:
        self.x.write(x)
        self._generator.manual_seed(self.runner.seed + self.batch.number)
        self._forward.replay()
        wait(self.runner.device)
        self.is_fresh = True
        return self.responses.host.numpy().copy()

    def back(self, slopes: NDArray[np.float32]) -> Vector:
        """Unless it keeps what it needs for another, the way back writes over what the way there left."""
        self.slopes.write(slopes)
        self._backward.replay()
        wait(self.runner.device)
        self.is_fresh = self.keeps
        return self.gradient.host.numpy().copy()


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """Always the same: each stream on which matrices are multiplied keeps memory for it."""
    return torch.cuda.Stream(device)


@contextmanager
def _capturing(graph: Any, pool: Any) -> Iterator[Any]:
    """Into the graph, from when what this yields is called. Other threads may use the GPU meanwhile."""
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        graph.capture_begin(pool, capture_error_mode="thread_local")
        has_begun = True

    try:
        yield begin
    except BaseException:
        if has_begun:
            with suppress(Exception):  # it says again that the capture failed, and leaves the pool open
                graph.capture_end()
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise
    graph.capture_end()


@contextmanager
def _without_collection() -> Iterator[None]:
    """While open, Python collects no garbage: older graphs among it would be freed, which ends a capture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _own_generator(device: torch.device) -> Iterator[torch.Generator]:
    """While open, the device's generator draws from a state of its own, which is the graph's: a capture that failed
    would leave that of everybody else unusable."""
    generator = torch.cuda.default_generators[torch.cuda._utils._get_device_index(device, optional=True)]
    before = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield generator.graphsafe_get_state()
    finally:
        generator.graphsafe_set_state(before)


class _Kept(TorchDispatchMode):
    """Holds on to every tensor that is made while this is open: a graph reads them where they lie."""

    def __init__(self) -> None:
        super().__init__()
        self._is_open = False
        self.made: list[Tensor] = []
        self._versions: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        many = output if isinstance(output, (tuple, list)) else (output,)
        self.made += [tensor for tensor in many if isinstance(tensor, Tensor)]
        return output

    @contextmanager
    def open(self) -> Iterator[None]:
        """Until `close`, or the end."""
        self.__enter__()
        self._is_open = True
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self.__exit__(None, None, None)
        self._versions = [0 if t.is_inference() else t._version for t in self.made]

    @property
    def was_changed(self) -> bool:
        """Whether anything was written into them since they were closed: a second replay would find it changed."""
        known = zip(self.made, self._versions, strict=True)
        return any(t._version != version for t, version in known if not t.is_inference())
