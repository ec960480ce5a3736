"""The log of a fit: its history, its bar, its callbacks, its checkpoints."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .. import optim
from ..core.arrays import Vector
from ..maps.units import is_moved
from . import callbacks as calls
from .checkpoint import Checkpoint, Keeper
from .distributed import Alone

COLUMNS = ("loss", "ridge", "penalty", "objective", "step_size", "accepted", "site_loss")
ASKED, USED_UP = "a callback asked", "max_evaluations used up"  # why a fit ended that did not by itself


def bar_of(total: int | None, done: int, shown: bool) -> tqdm:
    """A bar of evaluations, of which there are `total` at most and some are done; it says that the fit prepares."""
    return tqdm(
        total=total, initial=done, desc="lineas.fit: preparing", unit=" evaluations", disable=not shown
    )  # fmt: skip


def reading_bar(shown: bool) -> tqdm:
    """A bar of the samples that streams have given, below that of the fit."""
    return tqdm(desc="lineas.fit: reading", unit=" samples", leave=False, disable=not shown)


def note_read(bar: tqdm, name: str, count: int) -> None:
    """So many more samples of this set."""
    bar.set_description_str(f"lineas.fit: reading {name}", refresh=False)
    bar.update(count)


class Log:
    """Takes note of evaluations, shows them, asks the callbacks, says when enough is enough, keeps checkpoints.

    Parameters
    ----------
    past : Checkpoint
        What to go on from; with no history, at the start.
    sizes : dict of site name -> units
        Of the mapped sites.
    limit : int or None
        Evaluations until the fit must end.
    bar : tqdm
        What is shown; see `bar_of`.
    started : float
        When this part of the fit began, by `time.perf_counter`.
    keeper : Keeper or None
        Where checkpoints go; one in each process, or in none.
    world : Alone
        The processes that fit together: where a callback of one asks for the end, it comes for all.
    """

    def __init__(
        self, past: Checkpoint, sizes: Mapping[str, int], *, limit: int | None, bar: tqdm,
        started: float, callbacks: Iterable[Callable[[calls.Entry], Any]] = (),
        keeper: Keeper | None = None, world: Alone | None = None,
    ):  # fmt: skip
        self.past, self.sizes, self.limit, self.keeper = past, sizes, limit, keeper
        self.started, self.callbacks, self.enough, self.world = started, tuple(callbacks), "", world or Alone()
        self.history: dict[str, list] = {key: list(past.history.get(key, ())) for key in COLUMNS}
        self.bar = bar

    @property
    def evaluations(self) -> int:
        return len(self.history["loss"])

    def __enter__(self) -> "Log":
        kept = self.past.callbacks
        calls.restore(self.callbacks, kept.get(_process(self.world.rank), {}) if self.world.rank else kept)
        if self.keeper:
            self.keeper.begin(replace(self.past, callbacks=self._states()))
        return self

    def __exit__(self, *exception) -> None:
        if self.keeper and exception[0] is not None:
            with suppress(Warning):  # where warnings are errors, this one must not hide what ended the fit
                self.keeper.flush()

    def begins(self) -> None:
        """All is prepared; how long that took says nothing of how long evaluations take."""
        self.bar.set_description_str("lineas.fit: ", refresh=False)
        self.bar.unpause()

    def is_over(self) -> None:
        """There is nothing more to come: a bar that is full says so."""
        self.bar.set_description_str("lineas.fit: ", refresh=False)
        self.bar.total = self.bar.n
        self.bar.refresh()

    def __call__(self, at: optim.Evaluation, penalty: float, step_size: float, accepted: bool = True) -> str:
        entry = {
            "loss": at.loss - at.ridge, "ridge": at.ridge, "penalty": penalty, "objective": at.loss + penalty,
            "step_size": step_size, "accepted": accepted, "site_loss": at.site_loss.tolist(),
        }  # fmt: skip
        for key, value in entry.items():
            self.history[key].append(value)
        if accepted and not self.bar.disable:
            self.bar.set_postfix_str(f"objective {entry['objective']:.4g}, {_support(at.x)}", refresh=False)
        self.bar.update()
        used_up = self.limit is not None and self.evaluations >= self.limit
        self.enough = ASKED if self._asked(entry, at.x) else USED_UP * used_up
        return self.enough

    def _asked(self, entry: Mapping[str, Any], x: Vector) -> bool:
        steps, answers = sum(self.history["accepted"]) - 1, []
        for callback in self.callbacks:  # every one hears of it, whatever the others say
            heard = calls.Entry(entry, steps, self.evaluations, self.sizes, x)
            try:
                answers.append(callback(heard))
            finally:
                heard.close()
        return any(self.world.share(any(isinstance(answer, (bool, np.bool_)) and answer for answer in answers)))

    def save(self, state: dict[str, Any]) -> None:
        """Keep what the fit needs to go on from here; the optimiser may overwrite its arrays afterwards."""
        if self.keeper is None or self.enough:  # no going on: only the result will be kept
            return
        copied = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in state.items()}
        self.keeper.offer(self._checkpoint(copied["x"], copied, ""))

    def ended(self, x: Vector, why: str, ridge: float | None, predicted_kl: float | None) -> Checkpoint:
        """The result at one end of the fit, of which a path has several."""
        return replace(self._checkpoint(x, None, why), ridge=ridge, predicted_kl=predicted_kl)

    def finish(
        self, x: Vector, why: str, ridge: float | None = None, predicted_kl: float | None = None
    ) -> Checkpoint:  # fmt: skip
        """The result, which is kept as well."""
        end = self.ended(x, why, ridge, predicted_kl)
        self.is_over()
        if self.keeper:
            self.keeper.offer(end, now=True)
        return end

    def _checkpoint(self, x: Vector, state: dict[str, Any] | None, stopped: str) -> Checkpoint:
        history = {key: column[:] for key, column in self.history.items()}
        seconds = self.past.seconds + time.perf_counter() - self.started
        return Checkpoint(self.past.problem, x, history, state, self._states(), stopped, seconds)

    def _states(self) -> dict[str, Any]:
        """Of the callbacks of all processes."""
        first, *others = self.world.share(calls.states(self.callbacks))
        return first | {_process(rank): states for rank, states in enumerate(others, 1) if states}


def _process(rank: int) -> str:
    return f"process {rank}"


def _support(x: Vector) -> str:
    moved = is_moved(*np.split(x, 2))
    return f"support {moved.sum()} ({moved.mean():.0%})"
