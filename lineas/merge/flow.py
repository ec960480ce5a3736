"""Of which numbers each operation of a forward pass made which: tensors as places in memory, none of them kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..network.sharding import is_spread

# These read no values, only shapes.
SHAPE_ONLY = {
    "aten.zeros_like", "aten.ones_like", "aten.empty_like", "aten.full_like", "aten.rand_like", "aten.randn_like",
    "aten.new_zeros", "aten.new_ones", "aten.new_empty", "aten.new_full", "aten.new_empty_strided",
}  # fmt: skip
COPIES = {"aten.clone", "aten._to_copy", "aten.contiguous"}  # who uses the copy uses the original


class Place(NamedTuple):
    """Where a tensor's numbers are; views of one tensor have one `memory`."""

    memory: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """How many numbers of its memory it reaches over."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1 if all(self.shape) else 0

    def of(self, numbers: Tensor) -> Tensor:
        """The same view of other numbers, all those of a memory."""
        return numbers.as_strided(self.shape, self.stride, self.offset)


NOWHERE = Place(0, 0, (), ())  # of what is no tensor


@dataclass(frozen=True, eq=False)
class Step:
    """An operation that made new numbers."""

    time: int
    operation: str
    path: str  # of the innermost module that was running
    arguments: tuple[Any, ...]  # as it was called, with places for tensors
    options: Mapping[str, Any]
    result: Place
    size: int  # of the result's memory, in numbers

    def reads(self, memory: int) -> Iterator[Place]:
        """Its arguments that lie in a memory, one by one."""
        yield from (place for place in _places((self.arguments, self.options)) if place.memory == memory)


@dataclass
class Flow:
    """Every step of a pass, by the memory that it made, and by those that it read.

    Attributes
    ----------
    made : dict of memory -> Step
    read : dict of memory -> list of Step
    written : set of memories
        That an operation changed in place: what is in them has no single maker.
    """

    made: dict[int, Step] = field(default_factory=dict)
    read: dict[int, list[Step]] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    _memory: dict[int, int] = field(default_factory=dict)  # by address, which another tensor may have had before
    _count: int = 0

    def place(self, tensor: Tensor) -> Place:
        """Of a tensor that is still there."""
        here = _here(tensor)
        known = self._memory.get(address(here))
        memory = self._new_memory(address(here)) if known is None else known
        return Place(memory, int(here.storage_offset()), tuple(here.shape), here.stride())

    def saw(self, time: int, func: Any, path: str, args: Any, kwargs: Any, result: Any) -> None:
        """One operation, right after it ran."""
        arguments, options = self._placed(args), self._placed(kwargs)
        old = {place.memory for place in _places((arguments, options))}
        results = [item for item in (result if isinstance(result, (tuple, list)) else [result]) if is_dense(item)]
        fresh = [tensor for tensor in results if self._memory.get(address(tensor)) not in old]
        changed = set(_changed(func._schema.arguments, arguments, options))
        if results and not fresh and not changed:  # views
            return
        for tensor in fresh:
            self._new_memory(address(tensor))
        self.written |= changed
        operation = str(func.overloadpacket)
        steps = [
            Step(time, operation, path, arguments, options, self.place(tensor), _size(tensor)) for tensor in results
        ] or [Step(time, operation, path, arguments, options, NOWHERE, 0)]
        self.made.update((step.result.memory, step) for step in steps if step.result.memory not in old)
        for memory in old if operation not in SHAPE_ONLY else ():
            self.read.setdefault(memory, []).append(steps[0])

    def maker(self, place: Place) -> Step | None:
        """The step that made all the numbers of a tensor, and no others, as they are; copies passed over."""
        step = self.made.get(place.memory)
        while step and step.operation in COPIES and step.result == place and place.memory not in self.written:
            place = step.arguments[0]
            step = self.made.get(place.memory)
        return step if step and step.result == place and place.memory not in self.written else None

    def readers(self, memory: int, after: int = -1) -> Iterator[tuple[Step, Place]]:
        """The steps that read a memory, or a copy of what is there, and as which tensor."""
        for step in self.read.get(memory, ()):
            if step.time <= after:
                continue
            if step.operation in COPIES:
                yield from self.readers(step.result.memory)
            else:
                yield from ((step, place) for place in step.reads(memory))

    def _new_memory(self, at: int) -> int:
        self._count += 1
        self._memory[at] = self._count
        return self._count

    def _placed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.place(value) if is_dense(value) else None
        if isinstance(value, dict):
            return {key: self._placed(item) for key, item in value.items()}
        return tuple(map(self._placed, value)) if isinstance(value, (tuple, list)) else value


def _places(value: Any) -> Iterator[Place]:
    if isinstance(value, Place):
        yield value
    elif isinstance(value, dict):
        yield from _places(tuple(value.values()))
    elif isinstance(value, tuple):
        for item in value:
            yield from _places(item)


def _changed(schema: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Iterator[int]:
    """Memories that an operation writes to in place."""
    for k, argument in enumerate(schema):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = arguments[k] if k < len(arguments) else options.get(argument.name)
            yield from (place.memory for place in _places(given))


def is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested


def address(tensor: Tensor) -> int:
    """Of the numbers that it is made of; of a DTensor, those that this process has."""
    return _here(tensor).untyped_storage()._cdata


def _here(tensor: Any) -> Tensor:
    return tensor._local_tensor if is_spread(tensor) else tensor


def _size(tensor: Tensor) -> int:
    return _here(tensor).untyped_storage().nbytes() // tensor.element_size()
