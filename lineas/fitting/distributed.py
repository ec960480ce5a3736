"""Several processes, each with a share of the samples, that fit the same maps."""

import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ..core.errors import NonFiniteError

DISAGREE = "processes disagree: expected the same model, sites and options everywhere, got"


class Alone:
    """One process that has all samples."""

    rank = 0

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def share(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their ranks."""
        return [value]

    def gather(self, collect: Callable[[], NDArray], maps: NDArray | None = None) -> tuple[NDArray, slice]:
        """The rows that `collect` makes in every process, one after another, and which of them are this process's.

        NonFiniteError everywhere where it is raised anywhere; RuntimeError where processes are at different maps.
        """
        rows = collect()
        return rows, slice(0, len(rows))

    def total(self, gradient: NDArray) -> NDArray:
        """The sum over processes, added up in the order of their ranks: the same bits everywhere."""
        return gradient


class Together(Alone):
    """A process of a group. While open, whoever fails tells the others, so that nobody waits for it."""

    def __init__(self, group: "dist.ProcessGroup"):
        self.group, self.open = group, False
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def __enter__(self) -> "Together":
        self.open = True
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self._meet("done")
        elif self.open:
            with suppress(RuntimeError):
                self._meet("failed", f"{kind.__name__}: {error}")

    def share(self, value: Any) -> list[Any]:
        return self._meet("sharing", value)

    def gather(self, collect: Callable[[], NDArray], maps: NDArray | None = None) -> tuple[NDArray, slice]:
        rows, trouble = np.empty((0, 0), np.float32), ""
        try:
            rows = collect()
        except NonFiniteError as error:
            trouble = f"process {self.rank}: {error}"
        place = 0 if maps is None else zlib.crc32(maps.tobytes())
        troubles, shapes, places = zip(*self._meet("responses", (trouble, rows.shape, place)), strict=True)
        if any(troubles):
            raise NonFiniteError(next(filter(None, troubles)))
        if len(set(places)) > 1:
            raise RuntimeError(f"{DISAGREE} maps that differ")
        if len({shape[1] for shape in shapes}) > 1:
            raise RuntimeError(f"{DISAGREE} responses of shapes {shapes}")
        start = sum(shape[0] for shape in shapes[: self.rank])
        return np.concatenate(self._exchange(rows, shapes)), slice(start, start + len(rows))

    def total(self, gradient: NDArray) -> NDArray:
        shapes = tuple(self._meet("gradient", gradient.shape))
        if len(set(shapes)) > 1:
            raise RuntimeError(f"{DISAGREE} gradients of shapes {shapes}")
        parts = self._exchange(gradient, shapes)
        return np.sum(parts, axis=0, dtype=gradient.dtype)

    def _exchange(self, mine: NDArray, shapes) -> list[NDArray]:
        """Every process's array, which need not have as many rows as the others'."""
        arrays = [mine if rank == self.rank else np.empty(shape, mine.dtype) for rank, shape in enumerate(shapes)]
        for rank, array in enumerate(arrays):
            self._call(dist.broadcast, torch.from_numpy(array), dist.get_global_rank(self.group, rank))
        return arrays

    def _meet(self, task: str, note: Any = None) -> list[Any]:
        """Every process's note, once all have come to the same task."""
        entries: list[Any] = [None] * self.size
        self._call(dist.all_gather_object, entries, (task, note))
        others = {rank: entry for rank, entry in enumerate(entries) if entry[0] != task}
        if others:
            self.open = False
            reasons = "; ".join(f"process {k} {at}{f': {why}' * (at == 'failed')}" for k, (at, why) in others.items())
            raise RuntimeError(f"process {self.rank} ({task}) expected the others at the same point; {reasons:.500}")
        return [note for _, note in entries]

    def _call(self, collective: Callable, *args) -> None:
        try:
            collective(*args, group=self.group)
        except RuntimeError as error:
            self.open = False
            raise RuntimeError(f"process {self.rank} lost another one, or waited longer than the group does") from error


def processes(distributed: Any) -> Alone:
    """What `distributed=` of `lineas.fit` asks for: False, True (the default group), or a group."""
    if distributed is False:
        return Alone()
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("distributed: expected an initialised process group (torchrun, init_process_group), got none")
    group = dist.group.WORLD if distributed is True else distributed
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"distributed: expected True, False or a process group, got {type(distributed).__name__}")
    if "cpu:" not in (backends := dist.get_backend_config(group)):
        raise ValueError(
            f"distributed: expected a group that exchanges tensors on the CPU, got {backends}; pass "
            'torch.distributed.new_group(backend="gloo")'
        )
    return Together(group)
