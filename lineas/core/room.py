"""Arrays that a problem keeps from step to step."""

import numpy as np
from numpy.typing import NDArray

from .spill import OnDisk


class Room:
    """Arrays that are made once and used at every step: new ones would be fresh pages each time, which is what makes
    large problems slow. What an array holds lasts until the next `take` of its name.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray] = {}
        self._tables: dict[str, OnDisk] = {}
        self._turn = 0

    def take(self, name: str, shape: int | tuple[int, ...], dtype: type = np.float32) -> NDArray:
        array = self._arrays.get(name)
        if array is None or array.shape != (shape if isinstance(shape, tuple) else (shape,)) or array.dtype != dtype:
            array = self._arrays[name] = np.empty(shape, dtype)
        return array

    def take_like(self, name: str, table: OnDisk) -> OnDisk:
        """The same in a file."""
        known = self._tables.get(name)
        if known is None or known.shape != table.shape:
            known = self._tables[name] = table.like()
        return known

    def begin(self) -> int:
        """A number for what the arrays hold now."""
        self._turn += 1
        return self._turn

    def holds(self, turn: int) -> bool:
        """Whether they still hold it."""
        return turn == self._turn
