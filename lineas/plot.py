"""Pictures of a steering, with matplotlib (`pip install lineas[plot]`). Each draws on `ax` or new axes and returns it.

Markers, hatches and grey levels tell things apart, so that a printed page does too.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .maps.algebra import move
from .maps.dial import COSTS, Dial, Price, said
from .maps.maps import Maps
from .ot import wasserstein_1d

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["plot_dial", "plot_history", "plot_sites", "plot_strength", "plot_support", "plot_units"]

POINTS = 200  # samples beyond this are not drawn one by one


def plot_history(steering: Maps, ax: "Axes | None" = None) -> "Axes":
    """The objective at every evaluation; rejected trials of the line search are crosses off the path.

    Trials that overflowed have no height: they are triangles at the upper edge.
    """
    if not steering.history.get("objective"):
        raise ValueError("expected a steering that was fitted, got one without a history")
    ax = new_axes(ax)
    objective, accepted = (np.array(steering.history[key]) for key in ("objective", "accepted"))
    number, finite = np.arange(1, len(objective) + 1), np.isfinite(objective)
    ax.plot(number[accepted], objective[accepted], "o-", color="black", markersize=4, label="accepted")
    rejected, overflowed = ~accepted & finite, ~accepted & ~finite
    if rejected.any():
        ax.plot(number[rejected], objective[rejected], "x", color="black", label="rejected trial")
    if overflowed.any():
        edge = ax.get_xaxis_transform()  # heights from 0, the lower edge, to 1, the upper
        top = np.full(overflowed.sum(), 0.98)
        ax.plot(number[overflowed], top, "^", color="black", markerfacecolor="white", transform=edge, label="overflow")
    if not accepted.all():
        ax.legend(frameon=False)
    scale = "log" if (objective[finite] > 0).all() else "linear"
    ax.set(xlabel="evaluations of the model", ylabel="objective", yscale=scale, title="Fit")
    whole_numbers(ax.xaxis)
    return ax


def plot_support(steering: Maps, ax: "Axes | None" = None, *, units: bool = False) -> "Axes":
    """Which part of each site the maps change, in the order of the forward pass.

    Parameters
    ----------
    steering : Steering
    ax : matplotlib axes, optional
    units : bool
        False: a bar a site, the number of its units in the support. True: a row a site and a column a unit, the darker
        the further it is moved, as `Steering.restricted` measures it; black from the 99th percentile on, white outside
        the support, hatched where a site has no such unit.
    """
    ax = new_axes(ax)
    support = steering.support()
    counts = [len(found) for found in support.values()]
    total = sum(len(steering.weight(name)) for name in steering.sites)
    if units:
        _draw_units_of_sites(steering, support, ax)
    else:
        ax.bar(np.arange(1, len(counts) + 1), counts, color="0.25")
        ax.set(xlabel="site, from the input to the output", ylabel="units that the maps change")
        whole_numbers(ax.xaxis, ax.yaxis)
    ax.set_title(f"Support by {'unit' if units else 'layer'}: {sum(counts)} of {total} units")
    return ax


def _draw_units_of_sites(steering: Maps, support: Mapping[str, NDArray], ax: "Axes") -> None:
    sizes = [len(steering.weight(name)) for name in steering.sites]
    shades = np.full((len(sizes), max(sizes)), np.nan)
    for row, (name, found) in enumerate(support.items()):
        shades[row, : sizes[row]] = 0
        shades[row, found] = move(steering.weight(name), steering.bias(name))[found]
    moved = shades[shades > 0]
    darkest = np.percentile(moved, 99) if len(moved) else 1.0
    shades = np.where(shades > 0, 0.25 + 0.75 * np.clip(shades / darkest, 0, 1), shades)  # the least is still seen
    ax.patch.set(hatch="////", edgecolor="0.7", facecolor="white")
    extent = (-0.5, max(sizes) - 0.5, len(sizes) + 0.5, 0.5)
    ax.imshow(shades, cmap="gray_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
    ax.set(xlabel="unit", ylabel="site, from the input to the output")
    whole_numbers(ax.xaxis, ax.yaxis)


def plot_units(
    source: ArrayLike, steered: ArrayLike, target: ArrayLike, units: Sequence[int] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":  # fmt: skip
    """What some units of one site do: on the source, on the source when steered, and on the target.

    Parameters
    ----------
    source, steered, target : (n, d), (n, d) and (m, d) arrays
        Responses at the site (`lineas.evaluation.responses`): of the source without and with the steering on the model,
        and of the target without.
    units : list of int, optional
        Those to draw; if not given, the five between whose source and target responses the distance is largest.
    ax : matplotlib axes, optional

    Returns
    -------
    The axes, with three boxes a unit (quartiles, median, whiskers from the 5th to the 95th percentile) and the samples
    as points. Heights are in deviations of the target from its mean, so that units can be compared.

    Raises
    ------
    ValueError
        Arrays of other shapes, or that are not finite.
    LookupError
        No such unit.
    """
    groups = {"source": source, "steered": steered, "target": target}
    values = {name: np.asarray(array, np.float64) for name, array in groups.items()}
    wide = {array.shape[1:] for array in values.values()}
    if len(wide) > 1 or any(a.ndim != 2 or not a.size or not np.isfinite(a).all() for a in values.values()):
        shapes = [array.shape for array in values.values()]
        raise ValueError(f"expected finite responses (samples, d) of one site, three times; got {shapes}")
    chosen = _units(values, units)
    goal = values["target"][:, chosen]
    spread = np.where(goal.std(axis=0) > 0, goal.std(axis=0), 1.0)
    ax = new_axes(ax)
    for k, (name, array) in enumerate(values.items()):
        _draw_boxes(ax, (array[:, chosen] - goal.mean(axis=0)) / spread, k - 1, name)
    ax.axhline(0, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    ax.set_xticks(range(len(chosen)), [str(unit) for unit in chosen])
    ax.set(xlabel="unit", ylabel="response, in deviations of the target", title="Responses of units")
    ax.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    return ax


def _units(values: Mapping[str, NDArray], units: Sequence[int] | None) -> list[int]:
    count = values["source"].shape[1]
    if units is None:
        spread = values["target"].std(axis=0)
        distance = wasserstein_1d(values["source"], values["target"]) / np.where(spread > 0, spread, 1.0) ** 2
        return np.argsort(-distance, kind="stable")[:5].tolist()
    chosen = [int(unit) for unit in units]
    if not chosen or not all(0 <= unit < count for unit in chosen):
        raise LookupError(f"units: expected some of 0 to {count - 1}, got {chosen}")
    return chosen


STYLES = (("white", "", "o"), ("white", "////", "^"), ("0.75", "", "s"))  # of source, steered, target


def _draw_boxes(ax: "Axes", heights: NDArray, side: int, label: str) -> None:
    """One box a unit, beside those of the other two, with the samples as points a little apart."""
    face, hatch, marker = STYLES[side + 1]
    places = np.arange(heights.shape[1]) + 0.28 * side
    boxes = ax.boxplot(
        heights, positions=places, widths=0.22, whis=(5, 95), showfliers=False, patch_artist=True, manage_ticks=False,
        medianprops={"color": "black", "linewidth": 2},
    )["boxes"]  # fmt: skip
    for box in boxes:
        box.set(facecolor=face, hatch=hatch, edgecolor="black")
    boxes[0].set_label(label)
    if len(heights) <= POINTS:
        across = places + np.linspace(-0.07, 0.07, len(heights))[:, None]
        ax.plot(across.ravel(), heights.ravel(), marker, color="0.3", markersize=2, zorder=3)


def plot_strength(
    rows: Sequence[Mapping[str, Any]], ax: "Axes | None" = None, *, effect: str = "effect", error: str | None = None,
    label: str = "steered", marker: str = "o", cost: str = "perplexity",
) -> "Axes":  # fmt: skip
    """What a steering achieves against what it costs, a point for each strength.

    Parameters
    ----------
    rows : list of dict
        One for each strength, in any order, with "strength", and what `effect` and `cost` name.
    ax : matplotlib axes, optional
    effect : str
        Key of the effect, and its label.
    error : str, optional
        Key of the effect's standard error, drawn as a bar to either side.
    label, marker : str
        Of the points; others on the same axes tell another steering apart.
    cost : str
        Key of the cost, and its label.

    Returns
    -------
    The axes, the cost to the right and the effect upwards; points are joined in the order of their strengths, which
    stand beside them. The base model, strength 0, is a hollow square with lines through it.

    Raises
    ------
    LookupError
        A row lacks a key.
    ValueError
        There are no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one, got none")
    needed = ["strength", cost, effect, *([error] if error else [])]
    for row in rows:
        if missing := [key for key in needed if key not in row]:
            raise LookupError(f"rows: expected the keys {needed} in each, one lacks {missing} and has {list(row)}")
    ax = new_axes(ax)
    ordered = sorted(rows, key=lambda row: row["strength"])
    right, up = ([row[key] for row in ordered] for key in (cost, effect))
    drawn = ax.get_legend_handles_labels()[1]  # by an earlier call, of another steering

    def once(text: str) -> str:
        return f"_{text}" if text in drawn else text  # matplotlib leaves out of a legend what begins so

    ax.plot(right, up, marker=marker, linestyle="-", color="black", markersize=5, label=label)
    if error:
        bars = [row[error] for row in ordered]
        ax.errorbar(right, up, yerr=bars, fmt="none", ecolor="0.5", capsize=3, label=once("standard error"))
    for row, x, y in zip(ordered, right, up, strict=True):
        if row["strength"] == 0:
            ax.plot(x, y, "s", color="black", markerfacecolor="white", markersize=8, label=once("base model"))
            ax.axhline(y, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
            ax.axvline(x, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
        ax.annotate(f"{row['strength']:g}", (x, y), xytext=(7, -11), textcoords="offset points")
    ax.set(xlabel=cost, ylabel=effect, title="Effect and cost by strength")
    ax.margins(0.1)
    ax.legend(frameon=False)
    return ax


def plot_dial(dial: Dial, ax: "Axes | None" = None, *, budget: "str | float | Price | None" = None) -> "Axes":
    """What strengths cost: the figures that were measured, their intervals as a band, and the curve through them.

    Parameters
    ----------
    dial : Dial
        Of `lineas.calibrate`.
    ax : matplotlib axes, optional
    budget : str or float, optional
        A price, for which the strength is marked.

    Raises
    ------
    ValueError, LookupError
        A price beyond what was measured, or in what was not.
    """
    ax = new_axes(ax)
    name = dial.price if budget is None else dial.measure_of(Price.of(budget))
    s = np.linspace(0, dial.strengths[-1], POINTS)
    curve, low, high = np.array([dial.cost(float(x), name) for x in s]).T
    ax.plot(s, curve, color="black", label=f"{name}, between what was measured")
    if np.isfinite(low).all():
        ax.fill_between(s, low, high, color="0.85", label="interval")
    ax.plot(dial.strengths, [cost.value for cost in dial.costs[name]], "o", color="black", label="measured")
    if budget is not None:
        wanted, at = Price.of(budget).value, dial.strength_for(budget)
        ax.plot([0, at, at], [wanted, wanted, 0], color="0.3", linestyle="--", linewidth=1.2)
        ax.annotate(f"{said(name, wanted)}: strength {at:.2g}", (0, wanted), (4, 4), textcoords="offset points")
    if "%" in COSTS[name]:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
    ax.set(xlabel="strength", ylabel=name, title="What strengths cost")
    ax.legend(frameon=False)
    return ax


KINDS = {"norm": "o", "attention": "^", "mlp": "s", "block": "D", "layer": "v", "output": "*"}  # of sites, as drawn


def plot_sites(rows: Sequence[Mapping[str, Any]], ax: "Axes | None" = None) -> "Axes":
    """What sites give along the forward pass, a marker a site, and above it how far apart two sets are there.

    Parameters
    ----------
    rows : list of dict
        As `lineas.Suggestion.rows` has them: "kind", "apart", "gives" and "chosen", in the order of the forward pass.
    ax : matplotlib axes, optional

    Returns
    -------
    The axes, with markers at "gives", those of chosen sites filled, and lines up to "apart".

    Raises
    ------
    ValueError
        There are no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one, got none")
    ax = new_axes(ax)
    places, (gives, apart) = np.arange(1, len(rows) + 1), np.array([(row["gives"], row["apart"]) for row in rows]).T
    ax.vlines(places, gives, apart, color="0.7", linewidth=1, label="up to: apart")
    for kind, marker in KINDS.items():
        for chosen, face in ((False, "white"), (True, "black")):
            here = np.array([row["kind"] == kind and bool(row["chosen"]) == chosen for row in rows])
            if here.any():
                label, size = f"{kind}, chosen" if chosen else kind, 9 if kind == "output" else 5
                drawn = ax.plot(places[here], gives[here], marker, color="black", markersize=size, label=label)
                drawn[0].set_markerfacecolor(face)
    ax.set(xlabel="site, from the input to the output", ylabel="apart x reach", title="Where two sets part")
    ax.set_ylim(bottom=0)
    whole_numbers(ax.xaxis)
    ax.legend(frameon=False)
    return ax


def new_axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib, which lineas does not bring: pip install 'lineas[plot]'") from error
    return pyplot.subplots(figsize=(6, 4), layout="constrained")[1]


def whole_numbers(*axes: "Axis") -> None:
    """Sites, units and evaluations come in whole numbers, also where there are few."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True))
