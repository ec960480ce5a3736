"""Pictures of a steering; needs matplotlib (`pip install lineas[plot]`). Each returns its axes."""

from typing import TYPE_CHECKING

import numpy as np

from .steering import Steering

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_history", "plot_support"]


def plot_history(steering: Steering, ax: "Axes | None" = None) -> "Axes":
    """The objective at every evaluation; rejected trials of the line search are crosses off the path."""
    if not steering.history.get("objective"):
        raise ValueError("expected a steering that was fitted, got one without a history")
    ax = ax or _new_axes()
    objective, accepted = (np.array(steering.history[key]) for key in ("objective", "accepted"))
    number = np.arange(1, len(objective) + 1)
    ax.plot(number[accepted], objective[accepted], "o-", color="black", markersize=4, label="accepted")
    if not accepted.all():
        ax.plot(number[~accepted], objective[~accepted], "x", color="black", label="rejected trial")
        ax.legend(frameon=False)
    ax.set(xlabel="evaluations of the model", ylabel="objective", yscale="log", title="Fit")
    return ax


def plot_support(steering: Steering, ax: "Axes | None" = None) -> "Axes":
    """How many units the maps change at each site, in the order of the forward pass."""
    ax = ax or _new_axes()
    counts = [len(units) for units in steering.support().values()]
    ax.bar(np.arange(1, len(counts) + 1), counts, color="0.25")
    total = sum(len(steering.weight(name)) for name in steering.sites)
    ax.set(xlabel="site, from the input to the output", ylabel="units that the maps change")
    ax.set_title(f"Support by layer: {sum(counts)} of {total} units")
    return ax


def _new_axes() -> "Axes":
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6, 4), layout="constrained")[1]
