"""What gates have summed over the tokens so far lives with the cache of keys and values, and moves as that does.

A running mean needs the tokens that a cached pass no longer shows. Its sums are kept on the cache itself, one for each
column, so that whoever reorders, repeats, selects, cuts, empties or copies a cache does the same to them.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

__all__ = ["Reading", "Sums", "columns_in"]

KEPT = "_lineas_gates"  # attribute of a cache: gate -> Sums
MOVES = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave", "crop", "reset")
READ_ALL = "a gate's running mean is over all tokens so far"


class Sums(NamedTuple):
    """Of a gate's scores up to each column, padding aside, and of how many tokens; both (rows, columns)."""

    totals: Tensor
    counts: Tensor

    def each(self, change: Any) -> "Sums":
        return Sums(change(self.totals), change(self.counts))


class Reading:
    """What gates read in one forward pass.

    Attributes
    ----------
    past : int or tensor
        Columns that the cache holds before the pass.
    openness : dict of gate key -> tensor (rows,) or (rows, tokens)
        How far each gate is open, 0 to 1, as soon as it has read.
    before, sums : dict of gate key -> Sums
        Of gates with a running mean: of the columns in the cache, and of those of the pass as well.
    """

    def __init__(self, cache: Any, running: Iterable[str] = (), rows: int = 0):
        self.cache, self.past = cache, columns_in(cache)
        self.openness: dict[str, Tensor] = {}
        self.sums: dict[str, Sums] = {}
        self.before = {key: kept for key in running if (kept := self._kept(key, rows)) is not None}

    def _kept(self, key: str, rows: int) -> Sums | None:
        """The sums of the columns in the cache; None where there are none.

        ValueError where the gate has not seen all of these columns.
        """
        if isinstance(self.past, Tensor):
            raise ValueError(
                f'past_key_values: expected a dynamic cache, got a static one; {READ_ALL}. A gate with pooling="token" '
                "needs none"
            )
        if not self.past:
            return None
        kept: Sums | None = getattr(self.cache, KEPT, {}).get(key)
        seen = (0, 0) if kept is None else tuple(kept.totals.shape)
        if kept is None or seen[1] < self.past or seen[0] != rows:
            raise ValueError(
                f"past_key_values: expected a cache that was filled while this steering was on, {READ_ALL}; of its "
                f"{rows} x {self.past} (rows x columns) the gate has read {seen[0]} x {seen[1]}"
            )
        past = self.past
        return kept.each(lambda part: part[:, :past])

    def end(self, output: Any) -> None:
        """The pass is over: its sums go to the cache that it used, or made, and nothing is kept here but openness."""
        cache = self.cache if self.cache is not None or output is None else _cache_of(output)
        if self.sums and output is not None and hasattr(cache, "get_seq_length"):
            vars(cache).setdefault(KEPT, {}).update(self.sums)
            for name in MOVES:
                if hasattr(cache, name) and not isinstance(vars(cache).get(name), Followed):
                    setattr(cache, name, Followed(cache, name))
        self.cache, self.sums, self.before = None, {}, {}


class Followed:
    """Stands in for a method of a cache, and does to the sums of gates what that does to keys and values."""

    def __init__(self, cache: Any, name: str):
        self._cache, self.name = ref(cache), name  # no cycle: keys and values shall go as soon as nobody has them

    def __reduce__(self) -> Any:  # of a copy, or a file, it is that one's
        return Followed, (self._cache(), self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = self._cache()
        result = getattr(type(cache), self.name)(cache, *args, **kwargs)
        kept: dict[str, Sums] = getattr(cache, KEPT)
        given = next(iter((*args, *kwargs.values())), None)
        for key, sums in kept.items():
            kept[key] = sums.each(lambda part: self._moved(part, given))
        return result

    def _moved(self, part: Tensor, given: Any) -> Tensor:
        if self.name in ("reorder_cache", "batch_select_indices"):
            return part[given.to(part.device) if isinstance(given, Tensor) else given]
        if self.name == "batch_repeat_interleave":
            return part.repeat_interleave(given, 0)
        left = columns_in(self._cache())  # what `crop` is given, and counts from, changed between versions
        return part[:, :left] if isinstance(left, int) else part[:, :0]


def columns_in(cache: Any) -> int | Tensor:
    """How many columns a cache of keys and values holds; a tensor where it is a static one, so that nothing waits."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return cache.get_seq_length()
    if isinstance(cache, (tuple, list)) and cache and isinstance(cache[0], (tuple, list)):
        return cache[0][0].shape[-2] if cache[0] else 0
    raise TypeError(f"past_key_values: expected a cache that tells its length, got {type(cache).__name__}")


def _cache_of(output: Any) -> Any:
    """The cache that a pass has made, if it returns one."""
    found = getattr(output, "past_key_values", None)
    items: Iterable[Any] = output if isinstance(output, (tuple, list)) else ()
    return found if found is not None else next((x for x in items if hasattr(x, "get_seq_length")), None)


def joined(before: Sums | None, scores: Tensor, real: Tensor | None) -> Sums:
    """The sums of a pass's tokens (rows, tokens) behind those of the columns before it, all columns of both."""
    precise = torch.float32 if scores.device.type == "mps" else torch.float64
    counted = torch.ones_like(scores, dtype=torch.int64) if real is None else real.to(scores.device, torch.int64)
    now = Sums((scores.to(precise) * counted).cumsum(1), counted.cumsum(1))
    if before is None:
        return now
    return Sums(*(torch.cat([old, old[:, -1:] + new], 1) for old, new in zip(before, now, strict=True)))
