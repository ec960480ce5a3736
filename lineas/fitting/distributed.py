"""Several processes that fit the same maps: each with a share of the samples, or of the weights, or of both."""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from ..core.errors import NonFiniteError
from ..core.spill import OnDisk
from ..network.sharding import Owed, group_of, holders, teammates
from ..responses.runner import Finished

DISAGREE = "processes disagree: expected the same model, sites and options everywhere, got"
Item = TypeVar("Item")
Found = TypeVar("Found")
AT_ONCE = 1 << 22  # numbers of a file that go from process to process together


class Alone:
    """One process that has all samples."""

    rank, size = 0, 1

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def share(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their ranks."""
        return [value]

    def of_parts(self, value: Any) -> list[Any]:
        """The values of the processes whose samples count, in order: of those that compute a pass together the first's.

        ValueError where these have others.
        """
        return self.share(value)

    def of_first(self, find: Callable[[], Found]) -> Found:
        """What `find` finds in the first process, which alone looks; its error is one everywhere."""
        return find()

    def earlier(self, count: int) -> int:
        """Of such counts in all processes, the sum over those before this one."""
        return 0

    def most(self, count: int) -> int:
        """This count, or the largest one where all processes must do as much."""
        return count

    def agree(self, holds: bool) -> bool:
        """Whether it holds here; everywhere, where all processes must go the same way."""
        return holds

    def way_back(self) -> AbstractContextManager[None]:
        """While open, a backward pass; it begins when all are ready for it, where all must run it."""
        return nullcontext()

    def passes(self, model: nn.Module) -> AbstractContextManager[None]:
        """While open, no forward pass of the model begins before all are ready for it, where all must run it."""
        return nullcontext()

    def each(self, run: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """What `run`, a pass through the model, makes of each item."""
        return map(run, items)

    def gather(self, collect: Callable[[], Any], maps: NDArray | None = None) -> tuple[Any, slice]:
        """The rows that `collect` makes in every process, one after another, and which of them are this process's.
        They are an array, or a table in a file, as what was made is.

        NonFiniteError everywhere where it is raised anywhere; RuntimeError where processes are at different maps.
        """
        rows = collect()
        return rows, slice(0, len(rows))

    def total(self, gradient: NDArray) -> NDArray:
        """The sum over processes, added up in the order of their ranks: the same bits everywhere."""
        return gradient


class Together(Alone):
    """A process of a group. While open, whoever fails tells the others, so that nobody waits for it.

    Attributes
    ----------
    counted : list of int
        The processes whose samples count; of those that compute their passes together, which have the same, the first.
    place : int
        Where in `counted` this process's samples are.
    stays_away : bool
        Whether others wait where a word of this one would not be heard; they notice when it ends.
    """

    stays_away = False

    def __init__(self, group: "dist.ProcessGroup"):
        self.group, self.open = group, False
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.counted, self.place = [*range(self.size)], self.rank

    def __enter__(self) -> "Together":
        self.open = True
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self._meet("done")
        elif self.open and not self.stays_away:
            with suppress(RuntimeError):
                self._meet("failed", f"{kind.__name__}: {error}")

    def share(self, value: Any) -> list[Any]:
        return self._meet("sharing", value)

    def of_first(self, find: Callable[[], Found]) -> Found:
        found: list[Any] = [None]
        error: Exception | None = None
        if self.rank == 0:
            try:
                found = [find()]
            except Exception as raised:
                error = raised
        if trouble := self._meet("what the first one finds", error)[0]:
            raise trouble
        self._call(dist.broadcast_object_list, found, dist.get_global_rank(self.group, 0))
        return found[0]

    def earlier(self, count: int) -> int:
        counts = self.share(count)
        return sum(counts[rank] for rank in self.counted[: self.place])

    def gather(self, collect: Callable[[], Any], maps: NDArray | None = None) -> tuple[Any, slice]:
        rows: Any = np.empty((0, 0), np.float32)
        trouble = ""
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
        if isinstance(rows, OnDisk):
            return self._joined_on_disk(rows, shapes)
        return self._joined(self._exchange(rows, shapes))

    def _joined_on_disk(self, mine: OnDisk, shapes) -> tuple[OnDisk, slice]:
        """As `_joined`: some rows at a time, into a file of this process."""
        sizes = [shapes[rank][0] for rank in self.counted]
        ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
        everyone, step = mine.like(ends[-1]), max(1, AT_ONCE // mine.shape[1])
        for rank, size, end in zip(self.counted, sizes, ends, strict=True):
            for start in range(0, size, step):
                rows = slice(start, min(start + step, size))
                shape = rows.stop - start, mine.shape[1]
                some = mine[rows] if rank == self.rank else np.empty(shape, mine.dtype)
                self._call(dist.broadcast, torch.from_numpy(some), dist.get_global_rank(self.group, rank))
                everyone[end - size + start : end - size + rows.stop] = some
        return everyone, slice(ends[self.place] - sizes[self.place], ends[self.place])

    def _joined(self, parts: list[NDArray]) -> tuple[NDArray, slice]:
        """All that count together, and which of them are this process's."""
        start = sum(map(len, parts[: self.place]))
        return np.concatenate(parts), slice(start, start + len(parts[self.place]))

    def total(self, gradient: NDArray) -> NDArray:
        shapes = tuple(self._meet("gradient", gradient.shape))
        if len(set(shapes)) > 1:
            raise RuntimeError(f"{DISAGREE} gradients of shapes {shapes}")
        return np.sum(self._exchange(gradient, shapes), axis=0, dtype=gradient.dtype)

    def _exchange(self, mine: NDArray, shapes) -> list[NDArray]:
        """The arrays of all processes that count, which need not have as many rows as each other."""
        arrays = [mine if rank == self.rank else np.empty(shapes[rank], mine.dtype) for rank in self.counted]
        for rank, array in zip(self.counted, arrays, strict=True):
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


class InStep(Together):
    """Processes that share the weights as well: what one gathers for a pass, all must bring. So all run as many passes,
    in the same order, whatever their samples are, and none begins one that another will not come to.

    Parameters
    ----------
    team : of int
        Those, by their ranks among all, that compute this one's passes together with it: all of them have the same
        samples, which count once. Itself, if it computes its own.
    """

    in_pass = False

    def __init__(self, group: "dist.ProcessGroup", team: Iterable[int]):
        super().__init__(group)
        self.team = sorted(dist.get_group_rank(group, rank) for rank in team)

    def __enter__(self) -> "InStep":
        super().__enter__()
        self.firsts = [team[0] for team in self._meet("beginning", self.team)]
        self.counted = sorted({*self.firsts})
        self.place = self.counted.index(self.firsts[self.rank])
        return self

    def of_parts(self, value: Any) -> list[Any]:
        values = self.share(value)
        if any(values[first] != other for first, other in zip(self.firsts, values, strict=True)):
            raise ValueError(
                "src, tgt: expected the same samples in every process that shares the model's weights where "
                "distributed=False, and in all that tensor parallelism makes compute a pass together; got others"
            )
        return [values[rank] for rank in self.counted]

    def most(self, count: int) -> int:
        return max(self.share(count))

    def agree(self, holds: bool) -> bool:
        return all(self.share(holds))

    @contextmanager
    def way_back(self) -> Iterator[None]:
        self._meet("a backward pass")
        self.stays_away = True
        yield
        self.stays_away = False

    @contextmanager
    def passes(self, model: nn.Module) -> Iterator[None]:
        owed = Owed(model)

        def begin(*_: Any) -> None:
            self._meet("a forward pass")
            self.in_pass = True
            owed.begin()

        def end(module: nn.Module, args: Any, output: Any) -> None:  # also where the pass raises; then there is none
            if output is not None:
                owed.end()
            elif not isinstance(sys.exc_info()[1], Finished):  # which all come to at the same place
                if self.in_pass:
                    owed.pay()  # or the others would wait in the middle of theirs
                self.stays_away = not self.in_pass
            self.in_pass = False

        handles = (
            model.register_forward_pre_hook(begin, prepend=True),
            model.register_forward_hook(end, always_call=True),
        )
        try:
            yield
        finally:
            for handle in (*handles, owed):
                handle.remove()

    def _meet(self, task: str, note: Any = None) -> list[Any]:
        self.in_pass = False  # whoever meets the others within a pass cannot tell what else they wait for
        return super()._meet(task, note)

    def each(self, run: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """Processes with fewer items run their last one again, for nothing, until all have done theirs.

        NonFiniteError comes when all have run all of theirs.
        """
        own = iter(items)
        last: Any = None
        trouble: NonFiniteError | None = None
        while any(self._meet("whether passes are left", (item := next(own, None)) is not None)):
            last = last if item is None else item
            try:
                found = run(last)
            except NonFiniteError as error:
                trouble = trouble or error
                continue
            if item is not None and trouble is None:
                yield found
        if trouble is not None:
            raise trouble


def processes(distributed: Any, model: nn.Module) -> Alone:
    """What `distributed=` of `lineas.fit` asks for: False, True (the default group), or a group.

    Where the model's weights are spread over processes, these go in step. ValueError where some are not in the group.
    """
    sharing = holders(model)
    if distributed is False and not sharing:
        return Alone()
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("distributed: expected an initialised process group (torchrun, init_process_group), got none")
    group = group_of(model) if distributed is False else dist.group.WORLD if distributed is True else distributed
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"distributed: expected True, False or a process group, got {type(distributed).__name__}")
    if "cpu:" not in (backends := dist.get_backend_config(group)):
        raise ValueError(
            f"distributed: expected a group that exchanges tensors on the CPU, got {backends}; pass "
            'torch.distributed.new_group(backend="gloo")'
            + ', or begin with init_process_group("cpu:gloo,cuda:nccl")'
            * (distributed is False)
        )
    if missing := {*sharing} - {*dist.get_process_group_ranks(group)}:
        raise ValueError(
            f"distributed: expected all processes that have parts of the weights, {sharing}; the group lacks "
            f"{sorted(missing)}"
        )
    if not sharing:
        return Together(group)
    everyone = dist.get_process_group_ranks(group)
    return InStep(group, everyone if distributed is False else teammates(model) or [dist.get_rank()])
