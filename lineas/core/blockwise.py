"""The loss over arrays that may lie in files: `ops`, a block of columns at a time, to the same bits."""

from typing import NamedTuple

import numpy as np

from . import _core, ops
from .arrays import Floats
from .room import Room
from .spill import OnDisk, Table, by_blocks
from .threads import thread_count


class Target(NamedTuple):
    """As `ops.Target`, wherever the values lie."""

    values: Table
    spread: Floats | None = None


def prepare_target(y: Table, n: int | None = None) -> Target:
    """As `ops.prepare_target`; the values lie where y does."""
    if not isinstance(y, OnDisk):
        return Target(*ops.prepare_target(y, n))
    values = y.like(n)
    spread: Floats | None = None
    for block in y.blocks:
        part = ops.prepare_target(y.columns(block), n)
        values.put(block, part.values)
        if part.spread is not None:
            spread = np.empty(y.shape[1]) if spread is None else spread
            spread[block] = part.spread
    return Target(values, spread)


def loss(responses: Table, target: Target, coefficient: Floats, room: Room) -> tuple[Floats, Table]:
    """As `ops.loss`; the slopes lie where the responses do."""
    if not isinstance(responses, OnDisk) or not isinstance(target.values, OnDisk):
        assert not isinstance(responses, OnDisk)
        assert not isinstance(target.values, OnDisk)
        return ops.loss(responses, ops.Target(target.values, target.spread), coefficient, room=room)
    unit_loss, slopes = np.empty(responses.shape[1]), room.take_like("slopes", responses)
    for block in responses.blocks:
        spread = None if target.spread is None else target.spread[block]
        part = ops.Target(target.values.columns(block), spread)
        unit_loss[block], found = ops.loss(responses.columns(block), part, coefficient[block], room=room)
        slopes.put(block, found)
    return unit_loss, slopes


def distance(source: Table, target: Table, coefficient: Floats) -> Floats:
    """(N,): coefficient * W_2^2; nothing is kept."""

    def of_block(block: slice, x: np.ndarray, y: np.ndarray) -> Floats:
        return ops.loss(x, ops.prepare_target(y, len(x)), coefficient[block])[0]

    return by_blocks(of_block, source, target)


def scale_columns(slopes: Table, factor: Floats) -> None:
    """Each column times its factor, in place."""
    if not isinstance(slopes, OnDisk):
        _core.scale_columns(slopes, factor, thread_count(None, slopes.size))
        return
    for block in slopes.blocks:
        some = slopes.columns(block)
        _core.scale_columns(some, factor[block], thread_count(None, some.size))
        slopes.put(block, some)


def largest(slopes: Table) -> np.float32:
    """The largest size of any."""
    found = by_blocks(lambda _, some: [_core.largest(some, thread_count(None, some.size))], slopes)
    return np.float32(found.max())


def moments(responses: Table) -> Floats:
    """(2, N): the mean and the mean square of each column."""

    def of_block(_: slice, some: np.ndarray) -> Floats:
        mean = np.add.reduce(some, 0, np.float64) / len(some)
        return np.stack([mean, np.einsum("ij,ij->j", some, some, dtype=float) / len(some)])

    return by_blocks(of_block, responses)
