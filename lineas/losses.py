"""What of the units' distances the loss counts: all, or no more than the samples can vouch for."""

import numpy as np
from numpy.typing import NDArray

from . import _core
from .ops import thread_count
from .ot import PermutationNull, permutation_null

LOSSES = ("wasserstein", "excess", "significant")
AUTO = "excess"
LEVEL = 0.05  # of the test that lets a unit into the "significant" loss
RELABELLINGS, AT_SAMPLES = 1000, 256  # for so many samples, and proportionally fewer for more


def sampling_noise(source: NDArray[np.float32], target: NDArray[np.float32]) -> PermutationNull:
    """What each unit's W_2^2 comes to where nothing but chance tells source (n, N) from target (m, N).

    A mean of so many relabellings is as good with more samples; the cost stays O(N) a sample.
    """
    samples = len(source) + len(target)
    return permutation_null(
        source, target, n_permutations=max(RELABELLINGS * AT_SAMPLES // max(samples, AT_SAMPLES), 99)
    )


def discount(
    loss: str, unit_loss: NDArray[np.float64], slopes: NDArray[np.float32], noise: PermutationNull,
    coefficient: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:  # fmt: skip
    """The units' loss, coefficient * W_2^2, and its slopes (n, N), less what `loss` leaves out: in place.

    "excess" counts max(0, W_2^2 - mean of the null): a unit pulls until what is left could be chance. "significant"
    counts W_2^2 of the units whose distance few relabellings reach (`LEVEL`) before anything is steered.
    """
    counts = noise.p_value < LEVEL
    mean = noise.mean if loss == "excess" else None  # then it says itself which count
    _core.discount(unit_loss, slopes, counts, coefficient, mean, thread_count(None, slopes.size))
    return unit_loss, slopes


def noise_to_signal(distance: float, noise: float) -> float:
    """How much of a distance is noise, relative to what is not; at most 1e4, where there is no signal at all.

    A ridge of this strength shrinks what was measured as an estimator of least expected error would. Source: Efron &
    Morris, Stein's Estimation Rule and Its Competitors, JASA 1973.
    """
    return min(noise / max(distance - noise, 1e-300), 1e4)
