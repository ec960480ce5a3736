"""path(): fits from the strongest penalty down, each from where the one before ended."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import optim
from ..core.arrays import Vector
from ..core.checks import number, whole
from ..core.text import nearest
from ..maps.units import is_moved
from ..network.batch import Batch
from ..optim.problem import penalty_at
from ..penalties import L1, Penalty
from ..responses.runner import Runner, blame
from ..steering import Steering
from .checkpoint import Checkpoint
from .distributed import Alone
from .fit import fitted
from .log import Log
from .model_loss import ModelLoss
from .option_table import BY_NAME, DEFAULT
from .options import Options
from .problem import predicted_kl, problem_of, ridge_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Path", "path"]

OURS = ("penalty", "recipe", "method", "optimizer", "learning_rate", "schedule", "within_range", "budget",
        "checkpoint_dir", "resume_from", "distributed", "max_evaluations", "steps")  # fmt: skip
TRIALS = 20  # evaluations that a strength may take, rejected ones included: only callbacks end a path early
STEPS = 3  # at most, after the first, at each strength: the next one begins where they lead
FIRST = 0.8  # of the strength that just leaves nothing: where the path begins
PROBE = 1e-3  # a proximal step of this size tells whether a penalty leaves anything


@dataclass(frozen=True)
class Path:
    """Steerings from the sparsest to the one with the most units, by `lineas.path`; print it, or ask it.

    Attributes
    ----------
    strengths : tuple of float
        Of the penalty, descending.
    steerings : tuple of Steering
        One for each of them.
    """

    strengths: tuple[float, ...]
    steerings: tuple[Steering, ...]

    @property
    def shares(self) -> list[float]:
        """Which part of the units each steering moves."""
        return [sum(map(len, one.support().values())) / len(one.weights) for one in self.steerings]

    @property
    def by_share(self) -> dict[str, Steering]:
        """Those that move something, named by their share of the units, as `lineas.evaluate` takes them."""
        return {f"{share:.2%}": one for share, one in zip(self.shares, self.steerings, strict=True) if share}

    def at(self, support: str | float) -> Steering:
        """The steering with the most units among those that move no more than a share, such as "1%" or 0.01.

        LookupError where all move more, or none of them moves anything.
        """
        share = share_of(support)
        within = [k for k, moved in enumerate(self.shares) if 0 < moved <= share]
        if not within:
            known = ", ".join(f"{moved:.2%}" for moved in self.shares)
            raise LookupError(f"support: expected a share that some steering has at most, of {known}; got {support!r}")
        return self.steerings[max(within, key=lambda k: self.shares[k])]

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each: "strength", "units", "share", "loss" by that of no steering, "predicted_kl" or None."""
        first = self.steerings[0].history["loss"][0]
        return [
            {
                "strength": strength, "units": sum(map(len, one.support().values())), "share": share,
                "loss": _last_loss(one) / first, "predicted_kl": one.info.get("predicted_kl"),
                "evaluations": one.info["evaluations"],
            }
            for strength, one, share in zip(self.strengths, self.steerings, self.shares, strict=True)
        ]  # fmt: skip

    def __str__(self) -> str:
        lines = ["penalty      units    share     loss  predicted nats  evaluations"]
        for row in self.rows():
            nats = "" if row["predicted_kl"] is None else f"{row['predicted_kl']:.4f}"
            lines.append(
                f"{row['strength']:<9.3g} {row['units']:>8} {row['share']:>8.2%} {row['loss']:>8.3f} {nats:>15} "
                f"{row['evaluations']:>12}"
            )
        return "\n".join(lines)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """What is left of the loss by the share of units that move, a point for each steering."""
        from ..plot import new_axes

        ax = new_axes(ax)
        rows = [row for row in self.rows() if row["units"]]
        ax.plot([row["share"] for row in rows], [row["loss"] for row in rows], "o-", color="black", markersize=4)
        ax.set(xlabel="share of the units that move", ylabel="loss, of that without", xscale="log", title="Path")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        return ax


def path(
    model: Any, src: Any, tgt: Any, *, penalty: Callable[[float], Penalty] = L1, count: int = 10, least: float = 0.01,
    until: str | float | None = None, **options: Any,
) -> Path:  # fmt: skip
    """Fit with penalties from one that leaves next to nothing down, each from where the one before ended.

    Parameters
    ----------
    model, src, tgt : as in `lineas.fit`
    penalty : function of a strength, optional
        The penalty of that strength; `lineas.penalties.L1`, which chooses units, if not given. Sites are chosen by
        `lambda s: lineas.penalties.SparseGroupLasso(0.0, s)`.
    count : int
        How many strengths, evenly spaced in their logarithms.
    least : float, between 0 and 1
        The last strength by the first.
    until : str or float, optional
        A share of the units, such as "5%": the path ends with the first steering that moves more.
    **options
        Those of `lineas.fit` that say what is fitted: tokenizer, sites, loss_sites, units, loss, ridge, batch_size,
        max_length, compute_dtype, pooling, component, call, at, memory, seed, progress, callbacks.

    Returns
    -------
    Path
        `path.at("1%")` is the steering that moves at most 1% of the units.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `lineas.fit`; an option that does not go with a path; a penalty that leaves the identity at any strength.

    Notes
    -----
    One problem for all: targets, noise and ridge are measured once, and a strength begins with all that was learned at
    the one before, without an evaluation of its own. At most four steps a strength, usually one or two.
    Source: Friedman, Hastie & Tibshirani, Regularization Paths, J. Stat. Softw. 33 (2010), for the warm starts.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> source, target = torch.randn(32, 4), torch.randn(40, 4) + 1
    >>> found = lineas.path(net, source, target, sites="0", count=5, progress=False)
    >>> assert found.shares == sorted(found.shares)
    """
    if taken := [name for name in options if name in OURS]:
        raise TypeError(f"{', '.join(taken)}: not for a path, whose fits are of the fast recipe")
    if unknown := [name for name in options if name not in BY_NAME]:
        raise TypeError(f"expected options of fit, got {', '.join(unknown)}; {nearest(unknown[0], BY_NAME)}")
    if not callable(penalty):
        raise TypeError(f"penalty: expected a function of a strength, such as L1, got {type(penalty).__name__}")
    if not 0 < number(least, "least") < 1:
        raise ValueError(f"least: expected a number between 0 and 1, got {least!r}")
    share = None if until is None else share_of(until, "until")
    strengths: list[float] = []
    walk = partial(_walk, penalty, whole(count, "count"), least, share, strengths)
    asked = {**vars(DEFAULT), **options, "model": model, "src": src, "tgt": tgt, "penalty": penalty(0.0)}
    asked["max_evaluations"] = 1 + TRIALS * count
    steerings = fitted(asked, walk)
    for strength, one in zip(strengths, steerings, strict=True):
        one.info["penalty"] = repr(penalty(strength))
    return Path(tuple(strengths), tuple(steerings))


def _walk(
    penalty: Callable[[float], Penalty], count: int, least: float, share: float | None, strengths: list[float],
    runner: Runner, sources: list[Batch], targets: list[Batch], free: NDArray[np.bool_] | None, options: Options,
    log: Log, world: Alone,
) -> list[Checkpoint]:  # fmt: skip
    """The ends of all fits; their strengths go into `strengths`."""
    ends: list[Checkpoint] = []
    with log:
        problem = problem_of(runner, sources, targets, free, options, world)
        log.begins()
        with blame("src"):
            state: dict[str, Any] = {}
            x = log.past.maps
            optim.fast(problem, x, penalty(0.0), log, steps=0, save=state.update)  # where all of them begin
            strongest = FIRST * _strongest(penalty, problem, x, state["gradient"])
            for strength in strongest * least ** (np.arange(count) / max(count - 1, 1)):
                held = penalty(float(strength))
                for steps, tolerance in ((1, 0.0), (STEPS, options.tolerance)):  # at least one, however little it gains
                    paid = penalty_at(held, state["x"], problem.sizes)
                    x, why = optim.fast(
                        problem, x, held, log, steps=steps, tolerance=tolerance, save=state.update,
                        state={**state, "penalty": paid, "taken": 0},
                    )  # fmt: skip
                    if log.enough:
                        break
                strengths.append(float(strength))
                ends.append(log.ended(x.copy(), why, ridge_of(problem, options), predicted_kl(problem, x)))
                if log.enough or (share is not None and is_moved(*np.split(x, 2)).mean() > share):
                    break
        log.is_over()
    return ends


def _strongest(penalty: Callable[[float], Penalty], problem: ModelLoss, x: Vector, gradient: Vector) -> float:
    """The least strength that leaves nothing of a gradient step, to a hundredth."""

    def leaves(strength: float) -> bool:
        there = penalty(strength).proximal_step(x, gradient, problem.sizes, PROBE).x
        return bool((there != x).any())

    high = float(np.abs(gradient).max())
    if not high > 0:
        raise ValueError("src, tgt: expected sets that differ by more than chance explains; nothing pulls at the maps")
    if leaves(1e6 * high):
        raise ValueError("penalty: expected a function whose penalties leave nothing when they are strong enough")
    while leaves(high):
        high *= 2
    low = high
    while not leaves(low) and low > 1e-12 * high:
        low /= 2
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if leaves(middle) else (low, middle)
    return low


def share_of(given: str | float, name: str = "support") -> float:
    """From "1%" or 0.01."""
    text = re.fullmatch(r"\s*([0-9.]+)\s*%\s*", given) if isinstance(given, str) else None
    if isinstance(given, str) and text is None:
        raise ValueError(f"{name}: expected a share such as '1%' or 0.01, got {given!r:.60}")
    value = float(text[1]) / 100 if text else number(given, name)
    if not 0 < value <= 1:
        raise ValueError(f"{name}: expected a share above 0 and at most 1, got {given!r:.60}")
    return value


def _last_loss(steering: Steering) -> float:
    columns = zip(steering.history["loss"], steering.history["accepted"], strict=True)
    return [loss for loss, accepted in columns if accepted][-1]
