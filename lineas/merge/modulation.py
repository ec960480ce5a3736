"""Which rows of which linear layer scale and shift a tensor: read off the operations of one forward pass.

No class and no order of chunks is known here. Every number that a linear layer puts out is labelled with its row, and
the labels are followed, through views and copies, to the multiplication and the addition that read them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..network.weights import Weights
from .adaptive import Modulation
from .flow import COPIES, Place, Step
from .layers import CannotFoldError, layer
from .tracing import Trace


class Rows(NamedTuple):
    """What a tensor's numbers are: those of a linear layer's output, plus a constant."""

    path: str  # of the linear layer
    labels: Tensor  # of the tensor's shape: the row of each number
    plus: float


class Found(NamedTuple):
    """A modulation, and the operations that are it."""

    modulation: Modulation
    multiply: Step
    add: Step | None


class Modulators:
    """The linear layers of a model, and what their outputs scale and shift."""

    def __init__(self, trace: Trace, modules: dict[str, nn.Module], weights: Weights):
        self.trace, self.flow, self.modules, self.weights = trace, trace.flow, modules, weights
        self.outputs: dict[str, list[Place]] = {}
        self.made_by: dict[int, tuple[str, Place]] = {}
        for path, calls in trace.outputs.items():
            if isinstance(modules[path], nn.Linear):
                self.outputs[path] = [self.flow.place(value) for _, value in calls if isinstance(value, Tensor)]
                self.made_by.update((place.memory, (path, place)) for place in self.outputs[path])
        self.parameters = {memory: f"{path}.{name}".lstrip(".") for (path, name), memory in trace.parameters.items()}

    def of(
        self, outputs: list[tuple[int, Tensor]], units: int, dim: int, has_shift: bool
    ) -> tuple[tuple[Modulation, ...], bool]:
        """All modulations of a site's tensors, and whether they come before the modulation (n) or after it (z).

        `dim` is the channels', from the last. None where nothing modulates them; CannotFoldError where something does,
        and no rows alone can take the map.
        """
        found: list[Found] = []
        kinds: set[str] = set()
        for time, tensor in outputs:
            place, why = self.flow.place(tensor), None
            try:
                after = self._that_made(place, units, dim, time)
            except CannotFoldError as error:
                after, why = None, error
            before = [] if after else self._that_read(place, units, dim, time, has_shift)
            if why and not before:
                raise why
            kinds.add("after" if after else "before" if before else "none")
            found += [after] if after else before
        if kinds == {"none"} or not kinds:
            return (), False
        if len(kinds) > 1:
            raise CannotFoldError("not every call of it is modulated alike")
        if has_shift and any(one.add is None for one in found):
            raise CannotFoldError(f"{found[0].modulation.linear.path} scales it, but no rows of it alone shift it")
        modulations = tuple(dict.fromkeys(one.modulation for one in found))
        self._require_own_rows(modulations, {step for one in found for step in one[1:] if step})
        return modulations, kinds == {"before"}

    def reader_of(self, path: str, name: str) -> str:
        """Who else reads a module's parameter than that module itself."""
        memory = self.trace.parameters.get((path, name), -1)
        readers = (step for step, _ in self.flow.readers(memory))
        steps = (step for step in readers if step.path != path and not _fills(step, memory))
        return next(map(_named, steps), "")

    # -- the two places of a site --

    def _that_made(self, place: Place, units: int, dim: int, time: int) -> Found | None:
        """z = n * (plus + scale) + shift, or without the shift."""
        last = self.flow.maker(place)
        if last is None:
            return None
        found = None
        if last.operation == "aten.mul" and (scale := self._scaling(last, units, dim)):
            found = self._found(scale, None, last, None)
        for product, shift in _both_orders(last) if last.operation == "aten.add" else ():
            multiply = self.flow.maker(product)
            if multiply is None or multiply.operation != "aten.mul" or multiply.result.shape != last.result.shape:
                continue
            scale, shifting = self._scaling(multiply, units, dim), self._channel_rows(shift, units, dim)
            if scale and shifting and not shifting.plus and scale.path == shifting.path:
                if not self._only_reader(multiply, last):
                    raise CannotFoldError(f"{scale.path} modulates it, but more than that reads the product")
                found = self._found(scale, shifting, multiply, last)
            elif why := self._why(multiply) or (scale and self._why(last)):
                raise CannotFoldError(why)
        if found and not self._is_only_here(place, last, time):
            raise CannotFoldError(f"{found.modulation.linear.path} modulates it, but more than its module reads it")
        return found

    def _that_read(self, place: Place, units: int, dim: int, time: int, has_shift: bool) -> list[Found]:
        """Products n * (plus + scale), each with the sum that follows, where there has to be one."""
        maker, found, others = self.flow.maker(place), [], []
        for step, read in self.flow.readers(place.memory, time):
            scale = self._scaling(step, units, dim, read) if step.operation == "aten.mul" else None
            if scale is None or maker is None or self.flow.maker(read) is not maker:
                others.append(step)
                continue
            step_after, shift = self._sum(step, units, dim, scale.path) if has_shift else (None, None)
            found.append(self._found(scale, shift, step, step_after))
        if found and (others or self._escapes(place)):
            more = _named(others[0]) if others else "the model's output"
            raise CannotFoldError(f"{found[0].modulation.linear.path} modulates it, but it also goes to {more}")
        if why := next(filter(None, (self._why(step) for step in others if step.operation == "aten.mul")), ""):
            raise CannotFoldError(why)
        return found

    def _scaling(self, step: Step, units: int, dim: int, of: Place | None = None) -> Rows | None:
        """The factor of a product that is a linear layer's rows plus a constant, where the other is not."""
        for value, factor in _both_orders(step):
            if value.shape != step.result.shape or (of is not None and value != of):
                continue
            rows = self._channel_rows(factor, units, dim)
            if rows and self.rows(value) is None:
                return rows
        return None

    def _sum(self, multiply: Step, units: int, dim: int, path: str) -> tuple[Step | None, Rows | None]:
        """What adds the same layer's rows to a product, and nothing else reads that."""
        for step, read in self.flow.readers(multiply.result.memory):
            for product, shift in _both_orders(step) if step.operation == "aten.add" else ():
                rows = self._channel_rows(shift, units, dim)
                whole = product == read and self.flow.maker(read) is multiply and step.result.shape == read.shape
                if whole and rows and not rows.plus and rows.path == path and self._only_reader(multiply, step):
                    return step, rows
        return None, None

    def _why(self, step: Step) -> str:
        """Of a product or sum with something broadcast, that a linear layer had a part in: what that is."""
        for value, other in _both_orders(step):
            if value.shape == step.result.shape and other.shape != value.shape:
                text, is_made = self._origin(other)
                if is_made:
                    return f"what modulates it is {text}, not rows of one linear layer"
        return ""

    def _origin(self, place: Place) -> tuple[str, bool]:
        """What a tensor is the sum of, and whether a linear layer made some of it."""
        if place.memory in self.parameters:
            return self.parameters[place.memory], False
        if place.memory in self.made_by:
            return self.made_by[place.memory][0], True
        step = self.flow.made.get(place.memory)
        if step is None:
            return "an input", False
        if passed := _passed_on(step):
            return self._origin(passed[0])
        if step.operation == "aten.add":
            parts = [self._origin(read) for read in step.arguments if isinstance(read, Place)]
            return " + ".join(text for text, _ in parts), any(is_made for _, is_made in parts)
        made = any(isinstance(read, Place) and read.memory in self.made_by for read in step.arguments)
        return _named(step), made

    # -- rows --

    def rows(self, place: Place) -> Rows | None:
        """The rows that a tensor's numbers are, where all of them are."""
        if place.memory in self.flow.written:
            return None
        step = self.flow.made.get(place.memory)
        if place.memory in self.made_by:
            path, whole = self.made_by[place.memory]
            inner = Rows(path, torch.arange(whole.shape[-1], device="cpu").expand(whole.shape), 0.0)
        elif step and (passed := _passed_on(step)) and (found := self.rows(passed[0])):
            inner, whole = found._replace(plus=found.plus + passed[1]), step.result
        else:
            return None
        numbers = torch.full((step.size if step else whole.extent,), -1, device="cpu")
        if max(place.extent, whole.extent) > len(numbers):  # a view as another type
            return None
        whole.of(numbers).copy_(inner.labels)
        labels = place.of(numbers)
        return inner._replace(labels=labels) if labels.numel() and (labels >= 0).all() else None

    def _channel_rows(self, place: Place, units: int, dim: int) -> Rows | None:
        """A row for every channel, whatever the other dimensions; labels (units,)."""
        rows = self.rows(place)
        if rows is None or len(place.shape) < -dim or place.shape[dim] != units:
            return None
        by_channel = rows.labels.movedim(dim, 0).reshape(units, -1)
        if (by_channel != by_channel[:, :1]).any() or len(by_channel[:, 0].unique()) < units:
            return None
        return rows._replace(labels=by_channel[:, 0])

    def _found(self, scale: Rows, shift: Rows | None, multiply: Step, add: Step | None) -> Found:
        try:
            linear = layer(scale.path, self.modules[scale.path], None, self.weights)
        except CannotFoldError as error:
            raise CannotFoldError(f"{scale.path} modulates it: {error}") from None
        rows = tuple(scale.labels.tolist()), tuple(shift.labels.tolist()) if shift else ()
        return Found(Modulation(linear, *rows, scale.plus), multiply, add)

    def _require_own_rows(self, modulations: tuple[Modulation, ...], steps: set[Step]) -> None:
        """Nothing else in the pass reads these rows, and no row has two parts to play."""
        for path in dict.fromkeys(m.linear.path for m in modulations):
            rows = [row for m in modulations if m.linear.path == path for row in m.rows]
            if len(set(rows)) < len(rows):
                raise CannotFoldError(f"it takes the same rows of {path} for more than one thing")
            wanted = torch.tensor(rows, device="cpu")
            for place in self.outputs[path]:
                for step in self._readers_of(place.memory, wanted):
                    if step not in steps:
                        raise CannotFoldError(f"the rows of {path} that modulate it also go to {_named(step)}")
                if self._escapes(place):
                    raise CannotFoldError(f"{path}, which modulates it, makes an output of the model")

    def _readers_of(self, memory: int, wanted: Tensor) -> Iterator[Step]:
        for step in self.flow.read.get(memory, ()):
            for place in step.reads(memory):
                rows = self.rows(place)
                if rows is None or torch.isin(rows.labels, wanted).any():
                    if _passed_on(step) and step.result.memory != memory:
                        yield from self._readers_of(step.result.memory, wanted)
                    else:
                        yield step

    # -- who else reads what --

    def _only_reader(self, multiply: Step, add: Step) -> bool:
        return all(step is add for step, _ in self.flow.readers(multiply.result.memory)) and not self._escapes(
            multiply.result
        )

    def _is_only_here(self, place: Place, made: Step, time: int) -> bool:
        """Whether nobody read what the site returned before it did, nor, later, what it is a copy of."""
        memory = place.memory
        while memory != made.result.memory:
            memory = self.flow.made[memory].arguments[0].memory
            if len(self.flow.read[memory]) > 1:
                return False
        return all(step.time > time for step, _ in self.flow.readers(made.result.memory))

    def _escapes(self, place: Place) -> bool:
        return any(place.memory in self._origins(returned) for returned in self.trace.returned())

    def _origins(self, tensor: Tensor) -> Iterator[int]:
        memory = self.flow.place(tensor).memory
        while memory:
            yield memory
            step = self.flow.made.get(memory)
            memory = step.arguments[0].memory if step and step.operation in COPIES else 0


def _passed_on(step: Step) -> tuple[Place, float] | None:
    """What an operation copies, or adds a constant to, and that constant."""
    first, *rest = step.arguments or (None,)
    if not isinstance(first, Place) or first.shape != step.result.shape:
        return None
    if step.operation in COPIES:
        return first, 0.0
    if step.operation == "aten.add" and len(rest) == 1 and isinstance(rest[0], (int, float)):
        return first, float(rest[0] * step.options.get("alpha", 1))
    return None


def _both_orders(step: Step) -> Iterator[tuple[Place, Place]]:
    """The two operands of a sum or a product of tensors."""
    plain = step.operation in ("aten.add", "aten.mul") and not step.options
    if plain and len(step.arguments) == 2 and all(isinstance(value, Place) for value in step.arguments):
        yield step.arguments
        yield step.arguments[::-1]


def _fills(step: Step, memory: int) -> bool:
    """Whether it only writes there: what gathers a weight that is spread over processes."""
    is_copied = step.operation == "aten.copy_" and getattr(step.arguments[1], "memory", None) != memory
    return is_copied or step.operation.startswith("fsdp.")


def _named(step: Step) -> str:
    return f"{step.operation} in {step.path or 'the model itself'}"
