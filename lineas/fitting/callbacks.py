"""What callbacks of `lineas.fit` hear, and ready-made ones."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.arrays import Vector
from ..steering import Steering

__all__ = ["EarlyStopping", "Entry", "on_step"]


class Entry(dict):
    """What is known of one evaluation: a dict with the keys of `history`, and the maps that were evaluated.

    Attributes
    ----------
    steps : int
        Steps accepted so far; 0 at the start.
    evaluations : int
        Evaluations so far, this one included.
    """

    def __init__(
        self, values: Mapping[str, Any], steps: int, evaluations: int, sizes: Mapping[str, int], x: Vector
    ):  # fmt: skip
        super().__init__(values)
        self.steps, self.evaluations = steps, evaluations
        self._sizes = sizes
        self._x: Vector | None = x

    def steering(self) -> Steering:
        """The maps of this evaluation, as a copy to apply or to keep. To be asked for while the callback runs."""
        if self._x is None:
            raise RuntimeError("steering(): expected a call inside the callback; afterwards the maps have moved on")
        return Steering.from_flat(self._sizes, self._sizes.values(), self._x.copy())

    def close(self) -> None:
        """The callbacks are done: kept entries keep no maps alive."""
        self._x = None


def on_step(function: Callable[[Entry], Any]) -> Callable[[Entry], Any]:
    """A callback that calls the function after accepted steps only: not at the start, not for rejected trials.

    Examples
    --------
    >>> import lineas
    >>> @lineas.callbacks.on_step
    ... def show(entry):
    ...     print(entry.steps, entry["objective"])
    """

    def callback(entry: Entry) -> Any:
        return entry["accepted"] and entry.steps > 0 and function(entry)

    return callback


class EarlyStopping:
    """A callback that ends a fit whose accepted steps no longer improve.

    Parameters
    ----------
    patience : int
        End after so many accepted steps in a row without a new best value.
    min_delta : float
        A new best is lower than the old one by more than this.
    monitor : str or function
        What to watch: a key of `history` that holds numbers, or a function of the `Entry`, such as a distance on
        held-out inputs. Lower is better.

    Notes
    -----
    The fit ends on its last accepted maps, not on the best ones. `best` and `waited` go into checkpoints, by the
    methods `state_dict` and `load_state_dict`; any callback that has both is kept so.
    """

    def __init__(
        self, patience: int = 3, min_delta: float = 0.0, monitor: str | Callable[[Entry], float] = "objective"
    ):
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience: expected a whole number of at least 1, got {patience!r}")
        if not 0 <= min_delta < float("inf"):
            raise ValueError(f"min_delta: expected a finite number of at least 0, got {min_delta!r}")
        self.patience, self.min_delta, self.monitor = patience, min_delta, monitor
        self.best, self.waited = float("inf"), 0

    def __call__(self, entry: Entry) -> bool:
        if not entry["accepted"]:
            return False
        if entry.evaluations == 1:  # another fit with the same object
            self.best, self.waited = float("inf"), 0
        value = self._value(entry)
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def _value(self, entry: Entry) -> float:
        if callable(self.monitor):
            return float(self.monitor(entry))
        if not isinstance(entry.get(self.monitor), (int, float)):
            numbers = [key for key, value in entry.items() if isinstance(value, (int, float))]
            raise ValueError(f"monitor: expected a function or one of {numbers}, got {self.monitor!r}")
        return float(entry[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


def listened(callbacks: Iterable[Callable[[Entry], Any]]) -> tuple[Callable[[Entry], Any], ...]:
    """Callbacks that can be called, or a TypeError."""
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: expected a list of functions, got {callbacks!r:.60}")
    listed = tuple(callbacks)
    for k, callback in enumerate(listed):
        if isinstance(callback, type):
            raise TypeError(f"callbacks: expected functions, got the class {callback.__name__} at position {k}")
        if not callable(callback):
            raise TypeError(f"callbacks: expected functions, got {callback!r:.60} at position {k}")
    return listed


def states(callbacks: Iterable[Any]) -> dict[str, Any]:
    """What callbacks with a `state_dict` want to be kept, by their place and class; a copy."""
    kept = {}
    for k, callback in enumerate(callbacks):
        if hasattr(callback, "state_dict"):
            name = type(callback).__name__
            try:
                kept[f"{k} {name}"] = json.loads(json.dumps(callback.state_dict()))
            except TypeError as error:
                raise TypeError(f"{name}.state_dict(): expected what JSON can hold; {error}") from error
    return kept


def restore(callbacks: Iterable[Any], kept: Mapping[str, Any]) -> None:
    """Hand back what `states` returned; a callback that was not there begins anew."""
    for k, callback in enumerate(callbacks):
        state = kept.get(f"{k} {type(callback).__name__}")
        if state is not None and hasattr(callback, "load_state_dict"):
            callback.load_state_dict(state)
