"""The passes of a network in a pipeline's call: their steps, and how the rows of the call lie in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...core.text import warn
from .. import tree
from ..batch import Batch, Listed, Shared

__all__ = [
    "Given", "Rows", "Steps", "alike", "batch_of", "joined", "leaves_of", "part_with_prompt", "rows_of", "timestep_in",
    "timestep_of", "with_lists",
]  # fmt: skip

TIMESTEPS = "timestep", "t"


@dataclass(frozen=True)
class Given:
    """What one pass of the network was given.

    Attributes
    ----------
    step : int
        Of the pipeline, from 0: passes at the same timestep are of one step.
    turn : int
        Which of the step's passes: under guidance some pipelines make two, the first of which has the prompt.
    """

    step: int
    turn: int
    args: tuple
    kwargs: dict[str, Any]

    def leaves(self) -> dict[str, Any]:
        """Tensors that have a dimension 0, and lists of them by row, by where they are."""
        return dict(leaves_of(self.args, self.kwargs))


@dataclass(frozen=True)
class Rows:
    """How the rows of a call lie in a pass.

    Attributes
    ----------
    each : int
        Rows of the pass for each row of the call: parts times images.
    parts : int
        The pass has all rows so many times, part behind part: twice under guidance, without the prompt and with it.
    part : int
        The one with the prompt.
    turn : int
        The pass of a step that has it.
    by_row : dict of str -> bool
        Of each tensor, whether it has samples in dimension 0; else all samples share it.
    """

    each: int
    parts: int
    part: int
    turn: int
    by_row: Mapping[str, bool]


def leaves_of(args: tuple, kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What has rows, or may have: tensors with a dimension 0 and `Listed`, by where they are."""
    for path, leaf in tree.leaves((args, kwargs)):
        if isinstance(leaf, Listed) or (isinstance(leaf, Tensor) and leaf.ndim):
            yield path, leaf


def with_lists(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The same with lists that have a tensor for each row as `Listed`, where the first input is such a list."""
    first: Any = next(iter(args), None) if args else next(iter(kwargs.values()), None)
    if not _is_of_tensors(first):
        return args, kwargs
    rows = len(first)

    def listed(value: Any) -> Any:
        return Listed(tuple(value)) if _is_of_tensors(value) and len(value) == rows else value

    return tuple(map(listed, args)), {key: listed(value) for key, value in kwargs.items()}


def _is_of_tensors(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Tensor) for item in value)


def alike(a: Any, b: Any) -> bool:
    """Whether two parts of a tensor, or of a list by row, are the same."""
    return a.is_like(b) if isinstance(a, Listed) else torch.equal(a, b)


def _shape(leaf: Any) -> tuple[int, ...]:
    return (len(leaf),) if isinstance(leaf, Listed) else tuple(leaf.shape)


class Steps:
    """Counts a pipeline's steps by the timesteps that its network is given."""

    def __init__(self) -> None:
        self.step, self.turn = -1, 0
        self.timestep: float | None = None

    def next(self, timestep: float | None) -> tuple[int, int]:
        """The step of a pass, and which of the step's passes it is."""
        same = timestep is not None and timestep == self.timestep
        self.step, self.turn = (self.step, self.turn + 1) if same else (self.step + 1, 0)
        self.timestep = timestep
        return self.step, self.turn


def timestep_in(names: Sequence[str]) -> str | None:
    """What a network, whose arguments have these names, calls its timestep."""
    return next((name for name in TIMESTEPS if name in names), None)


def timestep_of(names: Sequence[str], args: tuple, kwargs: Mapping[str, Any]) -> float | None:
    """The timestep that a network is given, whose arguments have these names; None where it takes none."""
    name = timestep_in(names)
    value = None if name is None else kwargs.get(name)
    if value is None and name is not None and names.index(name) < len(args):
        value = args[names.index(name)]
    if isinstance(value, Tensor):
        return float(value.reshape(-1)[0])
    return None if value is None else float(value)


def _split(given: Given, count: int, images: int) -> tuple[int, int]:
    """Rows of the pass for each of the call, and in how many parts."""
    total = len(next(iter(given.leaves().values())))
    if total % count:
        raise ValueError(f"expected a pass with a multiple of {count} rows, got {total}")
    each = total // count
    return each, each // images if each % images == 0 else each


def part_with_prompt(given: Given, count: int, images: int) -> int | None:
    """Counted from 1, the part of a pass in which the first two rows differ; None where they do in none."""
    each, parts = _split(given, count, images)
    varying, wide = [], each // parts
    for part in range(parts):
        first = part * count * wide
        if any(
            not alike(leaf[first : first + wide], leaf[first + wide : first + 2 * wide])
            for leaf in given.leaves().values()
            if len(leaf) == each * count
        ):
            varying.append(part)
    if len(varying) > 1:
        raise ValueError(
            f"expected guidance with one part that has the prompt, got a pass of {parts} parts, {len(varying)} of them "
            "with it; turn additional guidance off in call=, or give rows whose prompts differ"
        )
    return varying[0] + 1 if varying else None


def rows_of(two: list[Given], three: list[Given], images: int, what: str) -> Rows:
    """From the passes of calls with two rows and with three."""
    found = ((k, part) for k, one in enumerate(two) if (part := part_with_prompt(one, 2, images)))
    k, part = next(found, (0, 0))
    if not part:
        warn(
            f"two rows that differ give the same inputs to {what}: expected prompts that make a difference, in their "
            "first tokens, or rows that differ in more than noise"
        )
    each, parts = _split(two[k], 2, images)
    fewer, more = two[k].leaves(), three[k].leaves()
    by_row = {path: len(leaf) == 2 * each and len(more.get(path, ())) == 3 * each for path, leaf in fewer.items()}
    for path, leaf in fewer.items():
        if path not in more or (not by_row[path] and _shape(leaf) != _shape(more[path])):
            raise ValueError(
                f"expected tensors with a row for each prompt, or the same for all, got {path} {_shape(leaf)} of "
                f"2 prompts and {_shape(more[path]) if path in more else 'none'} of 3"
            )
    return Rows(each, parts, (part or parts) - 1, two[k].turn, by_row)


def batch_of(given: Given, count: int, rows: Rows) -> Batch:
    """The rows with the prompt."""
    each, parts = rows.each, rows.parts
    now = next((len(leaf) for path, leaf in given.leaves().items() if rows.by_row.get(path)), 0)
    if parts > 1 and now * parts == each * count:  # guidance that has ended
        each, parts = each // parts, 1
    if now != each * count:
        raise ValueError(f"expected {each * count} rows at step {given.step}, got {now}")
    size = now // parts
    first = min(rows.part, parts - 1) * size

    def cut(path: str, value: Any) -> Any:
        if isinstance(value, Listed):
            return value[first : first + size]
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        by_row = rows.by_row.get(path, len(value) == now)  # a mask may be there for prompts of other lengths only
        return value[first : first + size] if by_row else Shared(value)

    args, kwargs = tree.mapped_with_path(cut, (given.args, given.kwargs))
    return Batch(args, kwargs, size)


def joined(calls: list[list[Given]]) -> list[Given]:
    """Passes of calls with one row each, as those of one call with all rows."""
    if len({tuple((one.step, one.turn) for one in passes) for passes in calls}) > 1:
        raise ValueError("expected the same steps for all prompts, got others")
    return [_side_by_side(passes) for passes in zip(*calls, strict=True)]


def _side_by_side(passes: Sequence[Given]) -> Given:
    trees = [dict(tree.leaves((one.args, one.kwargs))) for one in passes]
    if any(leaves.keys() != trees[0].keys() for leaves in trees):
        raise ValueError(f"expected the same inputs for all prompts, got others at step {passes[0].step}")
    parts = len(next(iter(passes[0].leaves().values())))

    def join(path: str, value: Any) -> Any:
        values = [leaves[path] for leaves in trees]
        if isinstance(value, Listed):
            return Listed(tuple(one.items[part] for part in range(parts) for one in values))
        if not isinstance(value, Tensor):
            return value
        if not value.ndim or len(value) != parts:
            if not all(torch.equal(value, other) for other in values):
                raise ValueError(f"expected a row in dimension 0, or the same for all prompts, got others in {path}")
            return value
        return torch.stack(values, 1).flatten(0, 1)  # part by part

    args, kwargs = tree.mapped_with_path(join, (passes[0].args, passes[0].kwargs))
    return replace(passes[0], args=args, kwargs=kwargs)
