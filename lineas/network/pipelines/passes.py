"""The passes of a network in a pipeline's call: their steps, and how the rows of the call lie in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...core.text import warn
from .. import tree
from ..batch import Batch, Shared

__all__ = ["Given", "Rows", "Steps", "batch_of", "joined", "part_with_prompt", "rows_of", "timestep_of"]


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

    def leaves(self) -> dict[str, Tensor]:
        """Tensors that have a dimension 0, by where they are."""
        found = tree.leaves((self.args, self.kwargs))
        return {path: leaf for path, leaf in found if isinstance(leaf, Tensor) and leaf.ndim}


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


def timestep_of(names: Sequence[str], args: tuple, kwargs: Mapping[str, Any]) -> float | None:
    """The timestep that a network is given, whose arguments have these names; None where it takes none."""
    value = kwargs.get("timestep")
    if value is None and "timestep" in names and names.index("timestep") < len(args):
        value = args[names.index("timestep")]
    if isinstance(value, Tensor):
        return float(value.reshape(-1)[0])
    return None if value is None else float(value)


def _split(given: Given, count: int, images: int) -> tuple[int, int]:
    """Rows of the pass for each of the call, and in how many parts."""
    first, leaf = next(iter(given.leaves().items()))
    if isinstance(listed := _holder(first, (given.args, given.kwargs)), list) and len(listed) % (count * images) == 0:
        raise TypeError(
            f"expected tensors with a row for each prompt, got a list of {len(listed)} tensors; networks that take "
            "their rows in lists, as Z-Image's does, cannot be fitted yet"
        )
    total = len(leaf)
    if total % count:
        raise ValueError(f"expected a pass with a multiple of {count} rows, got {total}")
    each = total // count
    return each, each // images if each % images == 0 else each


def _holder(path: str, value: Any) -> Any:
    """What holds the leaf."""
    for key in path.split(".")[:-1]:
        value = value[key] if isinstance(value, Mapping) else value[int(key)]
    return value


def part_with_prompt(given: Given, count: int, images: int) -> int | None:
    """Counted from 1, the part of a pass in which the first two rows differ; None where they do in none."""
    each, parts = _split(given, count, images)
    varying, wide = [], each // parts
    for part in range(parts):
        first = part * count * wide
        if any(
            not torch.equal(leaf[first : first + wide], leaf[first + wide : first + 2 * wide])
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
        if path not in more or (not by_row[path] and leaf.shape != more[path].shape):
            raise ValueError(
                f"expected tensors with a row for each prompt, or the same for all, got {path} {tuple(leaf.shape)} of "
                f"2 prompts and {tuple(more[path].shape) if path in more else 'none'} of 3"
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
        if not isinstance(value, Tensor):
            return value
        if not value.ndim or len(value) != parts:
            if not all(torch.equal(value, other) for other in values):
                raise ValueError(f"expected a row in dimension 0, or the same for all prompts, got others in {path}")
            return value
        return torch.stack(values, 1).flatten(0, 1)  # part by part

    args, kwargs = tree.mapped_with_path(join, (passes[0].args, passes[0].kwargs))
    return replace(passes[0], args=args, kwargs=kwargs)
