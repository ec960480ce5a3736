"""One forward pass that watches who uses what a site puts out. Names prove nothing; tensors do."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..network.sharding import is_spread
from .flow import COPIES, SHAPE_ONLY, Flow, address, is_dense


class Use(NamedTuple):
    """An operation that read a tensor."""

    time: int
    operation: str
    path: str  # of the innermost module that was running


class Output(NamedTuple):
    """What a module returned, and when."""

    time: int
    value: Any


class Trace:
    """Every module's outputs and first inputs, and every use of them, in one forward pass.

    Attributes
    ----------
    outputs, inputs : dict of path -> list, an entry a call
    flow : Flow
        Every operation.
    parameters : dict of (path, name) -> int
        The memory of modules' own parameters, also of those that are there only while the module runs.
    dtypes : dict of (path, name) -> torch.dtype
        Of the same, as the module computes with them.
    """

    def __init__(self, model: nn.Module, run: Callable[[], Any]):
        self.outputs: dict[str, list[Output]] = {}
        self.inputs: dict[str, list[Any]] = {}
        self.flow = Flow()
        self.parameters: dict[tuple[str, str], int] = {}
        self.dtypes: dict[tuple[str, str], torch.dtype] = {}
        self._uses: dict[int, list[Use]] = {}
        self._original: dict[int, int] = {}
        self._kept: list[Any] = []  # while a tensor lives, no other takes its storage, nor its address
        self._time, self._running = 0, [""]
        handles = []
        try:
            for path, module in model.named_modules():
                self._note_parameters(path, module)
                handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leaving(path)))
            with _Watch(self):
                run()
        finally:
            for handle in handles:
                handle.remove()

    def uses(self, tensor: Tensor, after: int, before: int | None = None) -> list[Use]:
        """Operations that read the tensor, or a view or a copy of it, at these times."""
        found = self._uses.get(self.storage(tensor), [])
        return [use for use in found if after < use.time and (before is None or use.time < before)]

    def storage(self, tensor: Tensor) -> int:
        key = address(tensor)
        return self._original.get(key, key)

    def escapes(self, tensor: Tensor) -> bool:
        """Whether the model itself returned it, or a view of it."""
        return self.storage(tensor) in map(self.storage, self.returned())

    def is_twice_in(self, output: Any, tensor: Tensor) -> bool:
        """Whether what a module returned holds a tensor, or a part of it, a second time."""
        return [self.storage(item) for item in _tensors(output)].count(self.storage(tensor)) > 1

    def returned(self) -> list[Tensor]:
        """What the model itself returned."""
        return [item for _, value in self.outputs[""] for item in _tensors(value)]

    def returned_by(self, tensor: Tensor, until: int) -> Iterator[tuple[str, int]]:
        """The modules that returned this very tensor, and when, the first one first."""
        found = [
            (time, path)
            for path, calls in self.outputs.items()
            for time, value in calls
            if path and time <= until and any(item is tensor for item in _items(value))
        ]
        for time, path in sorted(found):
            yield path, time

    def _entering(self, path: str) -> Callable:
        def hook(module, args, kwargs):
            self._running.append(path)
            self._note_parameters(path, module)
            first = next((item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)), None)
            self.inputs.setdefault(path, []).append(first)

        return hook

    def _note_parameters(self, path: str, module: nn.Module) -> None:
        for name, value in module._parameters.items():
            if value is not None and value.device.type != "meta" and is_dense(value) and not is_spread(value):
                self.parameters[path, name], self.dtypes[path, name] = self.flow.place(value).memory, value.dtype

    def _leaving(self, path: str) -> Callable:
        def hook(module, args, output):
            self._running.pop()
            self._time += 1
            self.outputs.setdefault(path, []).append(Output(self._time, output))

        return hook

    def saw(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """One operation, right after it ran."""
        self._time += 1
        self.flow.saw(self._time, func, self._running[-1], args, kwargs, result)
        returns, operation = func._schema.returns, str(func.overloadpacket)
        is_view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        arguments = list(_tensors((args, kwargs)))
        if operation in SHAPE_ONLY or is_view:
            return
        if operation in COPIES and isinstance(result, Tensor):
            self._kept.append((result, arguments))
            self._original[address(result)] = self.storage(arguments[0])
            return
        for tensor in arguments:
            self._uses.setdefault(self.storage(tensor), []).append(Use(self._time, operation, self._running[-1]))


class _Watch(TorchDispatchMode):
    def __init__(self, trace: Trace):
        super().__init__()
        self._trace = trace

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._trace.saw(func, args, kwargs or {}, result)
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)
