"""What one forward pass of a network takes, and parts of it: some of its samples, or fewer columns of padding."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import tree

__all__ = ["Batch", "Listed", "Shared"]

# What has a column for each token of attention_mask, so that it can be cut where the mask is zero.
TOKENWISE = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
PASS = {"cpu": 32}  # tokens that cost as much as one more pass through the model, by kind of device


@dataclass(frozen=True, eq=False)
class Shared:
    """A tensor that all samples share, such as the positions of pixels, whatever its dimension 0 has."""

    value: Tensor


@dataclass(frozen=True, eq=False)
class Listed:
    """A list with a tensor for each sample, such as features of prompts that differ in length."""

    items: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: "slice | Tensor") -> "Listed":
        if isinstance(rows, slice):
            return Listed(self.items[rows])
        return Listed(tuple(self.items[row] for row in rows.tolist()))

    def is_like(self, other: "Listed") -> bool:
        pairs = zip(self.items, other.items, strict=True)
        return len(self) == len(other) and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass takes: model(*args, **kwargs), with dicts, lists and tuples in them.

    Every tensor has the samples in dimension 0, but for those of no dimension, and what is `Shared` or `Listed`.
    """

    args: tuple
    kwargs: dict[str, Any]
    size: int
    number: int = 0  # of its set's batches; seeds whatever the model draws

    @property
    def has_lists(self) -> bool:
        """Whether samples come in lists, each with a number of tokens of its own."""
        return any(isinstance(value, Listed) for _, value in tree.leaves((self.args, self.kwargs)))

    @property
    def mask(self) -> Tensor | None:
        """(batch, tokens), not zero where a token counts."""
        return self.kwargs.get("attention_mask")

    def mask_of(self, side: str) -> Tensor | None:
        """The mask of the tokens of a decoder ("decoder_"), or of an encoder or a model that is no such pair ("")."""
        return self.kwargs.get(f"{side}attention_mask")

    def apart(self) -> "tuple[Batch, int | None]":
        """The batch with another number of tokens for its decoder than anything else has, and that number if any.

        For looking only: the shape of an output then tells whose tokens it has, whatever its module is called.
        """
        shapes = {key: value.shape for key, value in self.kwargs.items() if isinstance(value, Tensor)}
        tokens = {shape[1] for key, shape in shapes.items() if key.startswith("decoder_") and len(shape) > 1}
        if len(tokens) != 1:
            return self, None
        others = {shape[1] for key, shape in shapes.items() if not key.startswith("decoder_") and len(shape) > 1}
        (given,) = tokens
        count = next(n for n in (*range(given, 0, -1), *range(given + 1, given + 2 + len(others))) if n not in others)
        keep = torch.arange(count, device="cpu").clamp(max=given - 1)
        kwargs = {
            key: value[:, keep.to(value.device)] if key.startswith("decoder_") and key in shapes else value
            for key, value in self.kwargs.items()
        }
        return replace(self, kwargs=kwargs), count

    def to(self, device: torch.device) -> "Batch":
        def move(value):
            if isinstance(value, Shared):
                return Shared(value.value.detach().to(device))
            return value.detach().to(device) if isinstance(value, Tensor) else value

        return self.changed(move)

    def cast(self, precision: torch.dtype | None) -> "Batch":
        """With floats of double precision, which NumPy makes unasked, in the precision given if any."""

        def change(value):
            double = isinstance(value, Tensor) and value.dtype == torch.float64
            return value.to(precision) if double and precision is not None else value

        return self.changed(change)

    def changed(self, change: Callable[[Any], Any]) -> "Batch":
        """With every tensor, `Shared` one or other leaf passed through a function; of what is `Listed`, each item."""

        def each(value):
            return Listed(tuple(map(change, value.items))) if isinstance(value, Listed) else change(value)

        args, kwargs = tree.mapped(each, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def plain(self) -> tuple[tuple, dict[str, Any]]:
        """The arguments as the model takes them."""

        def bare(value):
            return (
                value.value if isinstance(value, Shared) else list(value.items) if isinstance(value, Listed) else value
            )

        return tree.mapped(bare, (self.args, self.kwargs))

    def tensors(self) -> Iterator[Tensor]:
        for _, value in tree.leaves(self.plain()):
            if isinstance(value, Tensor):
                yield value

    def rows(self, start: int, stop: int) -> "Batch":
        return self._cut(slice(start, stop), min(stop, self.size) - start)

    def take(self, rows: list[int]) -> "Batch":
        return self._cut(torch.tensor(rows, device="cpu"), len(rows))

    def _cut(self, rows: Any, size: int) -> "Batch":
        def cut(value):
            if isinstance(value, Listed):
                return value[rows]
            if not isinstance(value, Tensor) or not value.ndim:
                return value
            return value[rows if isinstance(rows, slice) else rows.to(value.device)]

        args, kwargs = tree.mapped(cut, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs, size=size)

    def groups(self) -> list[list[int]]:
        """Rows of similar length, so that with each group's padding cut off the least is left to compute.

        Empty where there is no padding to cut off, or it is not known which tensors have it.
        """
        spans = self._spans()
        if spans is None or (spans[:, 1] - spans[:, 0]).min() == spans[0, 2]:
            return []
        return _groups(spans[:, 1] - spans[:, 0], PASS.get(self.kwargs["attention_mask"].device.type, 1024))

    def trimmed(self) -> "Batch":
        """Without the columns that are padding in every row."""
        spans = self._spans()
        if spans is None:
            return self
        columns = slice(spans[:, 0].min(), spans[:, 1].max())
        kwargs = {k: v[:, columns] if k in TOKENWISE and v is not None else v for k, v in self.kwargs.items()}
        return replace(self, kwargs=kwargs)

    def _spans(self) -> NDArray[np.int64] | None:
        """Each row's first token, its end, and all columns; None where columns cannot be cut.

        Padding on the left stays unless positions are given: a model may count them from the first column.
        """
        mask = self.mask
        if mask is None or self.args:
            return None
        columns = mask.shape[1]
        for key, value in self.kwargs.items():
            has_columns = isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == columns
            if isinstance(value, Tensor) and has_columns != (key in TOKENWISE):
                return None
        counts = (mask != 0).cpu().numpy()
        starts = counts.argmax(1) if "position_ids" in self.kwargs else np.zeros(self.size, np.int64)
        return np.stack([starts, columns - counts[:, ::-1].argmax(1), np.full(self.size, columns)], 1)


def _groups(lengths: NDArray, a_pass: int) -> list[list[int]]:
    """Rows in order of length, cut where samples * longest + a_pass, summed over the groups, is least."""
    order = np.argsort(lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    cost, cut = np.zeros(len(ends)), np.zeros(len(ends), int)
    for k in range(1, len(ends)):  # the best groups of all samples up to the k-th length
        each = cost[:k] + (ends[k] - ends[:k]) * values[k - 1] + a_pass
        cut[k] = each.argmin()
        cost[k] = each[cut[k]]
    groups, k = [], len(ends) - 1
    while k:
        groups.append(order[ends[cut[k]] : ends[k]].tolist())
        k = cut[k]
    return groups[::-1]
