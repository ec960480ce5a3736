"""Pictures of sets of units, with matplotlib (`pip install lineas[plot]`). Each draws on `ax`, or new axes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..plot import new_axes, whole_numbers
from .concepts import Similarity
from .sets import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_layers", "plot_similarity"]

MARKERS = ("o-", "s--", "^:", "D-.", "x-", "v--")


def plot_similarity(similarity: Similarity, ax: "Axes | None" = None) -> "Axes":
    """The matrix of concepts: the darker, the more units in common; numbers are Jaccard indices in hundredths.

    The darkest grey is the largest value off the diagonal, which is left white.
    """
    ax = new_axes(ax)
    count = len(similarity.names)
    shades = np.where(np.eye(count, dtype=bool), np.nan, similarity.jaccard)
    known = shades[np.isfinite(shades)]
    darkest = known.max() if len(known) and known.max() > 0 else 1.0
    ax.imshow(shades, cmap="gray_r", vmin=0, vmax=1.25 * darkest, interpolation="nearest")
    for i, k in zip(*np.nonzero(np.isfinite(shades)), strict=True):
        light = shades[i, k] > 0.6 * darkest
        ax.text(
            k, i, f"{100 * shades[i, k]:.0f}", ha="center", va="center", color="white" if light else "black", size=8
        )
    ax.set_xticks(range(count), similarity.names, rotation=90)
    ax.set_yticks(range(count), similarity.names)
    ax.set(title="Units in common, of 100 in either", xlabel="concept", ylabel="concept")
    return ax


def plot_layers(
    sets: Mapping[str, Mapping[str, ArrayLike]], sizes: Mapping[str, int], ax: "Axes | None" = None
) -> "Axes":
    """What share of each site's units is in one or several sets, from the input to the output.

    Parameters
    ----------
    sets : dict of label -> units
        Each a set of units by site, as `Ranking.top`, `Significance.units` or `Steering.support` return them.
    sizes : dict of str -> int
        Units of each site, in the order of the forward pass.
    ax : matplotlib axes, optional

    Raises
    ------
    LookupError, TypeError, ValueError
        As in `lineas.experts.overlap`; more sets than there are markers, or none.
    """
    if not 1 <= len(sets) <= len(MARKERS):
        raise ValueError(f"sets: expected 1 to {len(MARKERS)}, got {len(sets)}")
    ax = new_axes(ax)
    places = np.arange(1, len(sizes) + 1)
    for k, (label, given) in enumerate(sets.items()):
        units = numbers(given, sizes)
        shares = [100 * len(units.get(name, ())) / size for name, size in sizes.items()]
        ax.plot(places, shares, MARKERS[k], color=f"{0.15 * k:.2f}", markersize=4, label=label)
    ax.set(xlabel="site, from the input to the output", ylabel="share of the site's units, %", title="Units by site")
    ax.set_ylim(bottom=0)
    whole_numbers(ax.xaxis)
    ax.legend(frameon=False)
    return ax
