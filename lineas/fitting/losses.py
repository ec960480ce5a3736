"""What of the units' distances the loss counts: all, or no more than the samples can vouch for."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch

from ..core import blockwise
from ..core.arrays import Floats
from ..core.spill import Table, by_blocks
from ..ot import PermutationNull
from ..ot.null import Relabellings
from ..responses.layout import Layout

LEVEL = 0.05  # of the test that lets a unit into the "significant" loss
RELABELLINGS, AT_SAMPLES = 1000, 256  # for so many samples, and proportionally fewer for more


@runtime_checkable
class Loss(Protocol):
    """What `lineas.fit` asks of a loss: a function of each unit's distance; any object with these two is one.

    The fit minimises the mean over sites and units of its values. Its `repr` goes into `info`, and into checkpoints as
    what tells two losses apart.

    Attributes
    ----------
    needs_noise : bool
        Whether it looks at what sampling alone does to the distances.
    """

    needs_noise: bool

    def of_distance(self, distance: Floats, noise: PermutationNull | None) -> tuple[Floats, Floats | None]:
        """What each unit's distance counts, and how fast that changes with the distance.

        Parameters
        ----------
        distance : (N,) float64
            W_2^2 between the steered source's responses and the target's.
        noise : PermutationNull
            Of the unsteered source, each (N,); None unless `needs_noise`.

        Returns
        -------
        value, derivative : (N,) float64
            The derivative may be None where it is 1 everywhere.
        """


class Wasserstein:
    """The distance itself."""

    needs_noise = False

    def of_distance(self, distance: Floats, noise: PermutationNull | None) -> tuple[Floats, Floats | None]:
        return distance, None


class Excess:
    """max(0, W_2^2 - mean of the null): a unit pulls until what is left could be chance."""

    needs_noise = True

    def of_distance(self, distance: Floats, noise: PermutationNull | None) -> tuple[Floats, Floats | None]:
        assert noise is not None
        left = distance - noise.mean
        return np.maximum(left, 0.0), (left > 0).astype(np.float64)


class Significant:
    """W_2^2 of the units whose distance few relabellings reach (`LEVEL`) before anything is steered."""

    needs_noise = True

    def of_distance(self, distance: Floats, noise: PermutationNull | None) -> tuple[Floats, Floats | None]:
        assert noise is not None
        counts = noise.p_value < LEVEL
        return np.where(counts, distance, 0.0), counts.astype(np.float64)


LOSSES: dict[str, Loss] = {"wasserstein": Wasserstein(), "excess": Excess(), "significant": Significant()}
AUTO = "excess"
WEIGHTINGS = ("equal", "standardised")


def find(loss: str | Loss) -> Loss:
    """The loss of that name, or a user's own."""
    return LOSSES[loss] if isinstance(loss, str) else loss


def unit_weights(weighting: str, source: Table, target: Table, layout: Layout) -> Floats:
    """What each unit's distance counts, (N,): of a site all alike, or 1 / variance, of mean 1 over the site's units.

    The variance is the mean of those within the source (n, N) and within the target (m, N), both unsteered. One below a
    thousandth of its site's median counts as that: a unit that is nearly constant would be all of the loss.
    """
    coefficient = layout.coefficients()
    if weighting == "equal":
        return coefficient
    variance = by_blocks(lambda _, *both: sum(one.var(0, dtype=np.float64) for one in both) / 2, source, target)
    weights = np.ones_like(coefficient)
    for k in range(len(layout.sites)):
        where = layout.slice(k)
        least = 1e-3 * np.median(variance[where])
        if least > 0:
            inverse = 1 / np.maximum(variance[where], least)
            weights[where] = inverse / inverse.mean()
    return coefficient * weights


def sampling_noise(source: Table, target: Table, device: torch.device | None = None) -> PermutationNull:
    """What each unit's W_2^2 comes to where nothing but chance tells source (n, N) from target (m, N).

    A mean of so many relabellings is as good with more samples; the cost stays O(N) a sample. `device`: the model's,
    whose kernels do it where they can.
    """
    samples = len(source) + len(target)
    count = max(RELABELLINGS * AT_SAMPLES // max(samples, AT_SAMPLES), 99)
    relabelled = Relabellings(len(source), len(target), count)
    return PermutationNull(*by_blocks(lambda _, x, y: relabelled.null(x, y, device=device), source, target))


def share_of_noise(source: Table, target: Table, noise: PermutationNull, coefficient: Floats) -> float:
    """The loss's ratio of sampling noise to signal, for source (n, N), target (m, N) and what a unit counts (N,)."""
    distance = blockwise.distance(source, target, coefficient)
    return noise_to_signal(float(distance.sum()), float((coefficient * noise.mean).sum()))


def noise_to_signal(distance: float, noise: float) -> float:
    """How much of a distance is noise, relative to what is not; at most 1e4, where there is no signal at all.

    A ridge of this strength shrinks what was measured as an estimator of least expected error would. Source: Efron &
    Morris, Stein's Estimation Rule and Its Competitors, JASA 1973.
    """
    return min(noise / max(distance - noise, 1e-300), 1e4)
