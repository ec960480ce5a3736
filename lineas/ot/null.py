"""What sampling alone does to a unit's distance."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..core import _core, checks
from ..core import device as on_device
from ..core.threads import thread_count


class PermutationNull(NamedTuple):
    """What W_p^p of every unit comes to where source and target are drawn from the same samples; each (d,) float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    p_value: NDArray[np.float64]


_BLOCK = 256  # relabellings whose labels the core takes together, four integers a sample
_DRAWN_AT_ONCE = 1 << 24  # labels, a byte each before they are packed


def _relabellings(n: int, m: int, count: int, seed: int) -> NDArray[np.uint64]:
    """The observed labelling and `count` random ones, and as many more as fill whole blocks: (blocks, n + m, 4), where
    bit r of [b, s, w] says whether sample s is a source in labelling 256 b + 64 w + r."""
    generator = np.random.default_rng(seed)
    observed = np.arange(n + m) < n
    blocks = 1 + count // _BLOCK
    step = max(1, _DRAWN_AT_ONCE // (_BLOCK * (n + m)))
    labels = []
    for start in range(0, blocks, step):
        drawn = min(step, blocks - start)
        rows = np.tile(observed, (_BLOCK * drawn, 1))
        rows[not start :] = generator.permuted(rows[not start :], axis=1)  # all but the very first
        by_sample = np.ascontiguousarray(rows.reshape(drawn, _BLOCK, n + m).swapaxes(1, 2))
        labels.append(np.packbits(by_sample, axis=2, bitorder="little").view("<u8"))
    return np.concatenate(labels).astype(np.uint64, copy=False)


class Relabellings:
    """The observed labelling of n sources and m targets and `count` drawn ones, for any of their columns: as
    `permutation_null` has them, whose parameters these are."""

    def __init__(self, n: int, m: int, count: int, seed: int = 0):
        self.n, self.count, self.labels = n, count, _relabellings(n, m, count, seed)

    def null(self, x: NDArray, y: NDArray, p: float = 2, device: torch.device | str | None = None) -> PermutationNull:
        """Of samples (n, d) and (m, d), finite and of one precision."""
        pooled, all_of_them = np.concatenate([x, y]), 1 + self.count
        on_gpu = p == 2 and pooled.dtype == np.float32 and on_device.kernels_of(device)
        if device is not None and on_gpu:
            return PermutationNull(
                *on_device.permutation_null(on_gpu, pooled, self.labels, self.n, all_of_them, device)
            )
        threads = thread_count(work=pooled.size * all_of_them)
        return PermutationNull(*_core.permutation_null(pooled, self.labels, self.n, all_of_them, float(p), threads))


def permutation_null(
    source: ArrayLike, target: ArrayLike, p: float = 2, *, n_permutations: int = 1000, seed: int = 0,
    device: torch.device | str | None = None,
) -> PermutationNull:  # fmt: skip
    """What sampling alone does to every unit's W_p^p: its distribution when the samples are relabelled at random.

    A relabelling calls n of the n + m pooled samples source and the others target, the same ones for all units, and so
    keeps what units have in common.

    Parameters
    ----------
    source : array (n, d), and target : array (m, d)
        Samples in rows, units in columns; not both a single row. float32 stays float32, all else becomes float64; sums
        are float64.
    p : float
        Exponent, at least 1.
    n_permutations : int
        How many relabellings are drawn, at least 1.
    seed : int
        Of the relabellings; the same seed gives the same bits. No global random state is touched.
    device : torch.device or str, optional
        A GPU, whose kernels then do it where they can: of float32 samples and p = 2, with sums in float32. Else, and
        everywhere else, the CPU's cores do.

    Returns
    -------
    mean, std : array (d,) float64
        Of the costs of the relabellings, in units of the data to the power p; the deviation is that of the relabellings
        drawn, divided by their number.
    p_value : array (d,) float64
        (1 + how many of them cost at least what the observed labelling does) / (1 + n_permutations).

    Raises
    ------
    TypeError
        On anything but real numbers, and whole ones for n_permutations and seed.
    ValueError
        On shapes that do not fit, an empty set, a single sample on both sides, NaN or infinity, p < 1,
        n_permutations < 1, a negative seed.

    Notes
    -----
    O(d (n + m) (log^2(n + m) + n_permutations)): one sort a unit, none a relabelling. The labels take a bit each.
    Written out in `reference.permutation_null`.
    Source: Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39, eq. 2 (the p-value of drawn permutations).

    Examples
    --------
    >>> import lineas
    >>> apart = [[0.0, 5.0], [1.0, 4.0], [2.0, 3.0]], [[9.0, 5.0], [8.0, 4.0], [7.0, 3.0]]
    >>> null = lineas.ot.permutation_null(*apart, n_permutations=999)
    >>> null.p_value.round(2)  # 2 of 20 relabellings separate the first unit; the second costs nothing as it is
    array([0.1, 1. ])
    """
    x, y = checks.samples(source, target)
    checks.power(p)
    if len(x) + len(y) < 3:
        raise ValueError("expected at least 3 samples in source and target together, so that labels can be exchanged")
    for name, given, least in (("n_permutations", n_permutations, 1), ("seed", seed, 0)):
        if not isinstance(given, (int, np.integer)):
            raise TypeError(f"{name}: expected an integer, got {type(given).__name__}")
        if given < least:
            raise ValueError(f"{name}: expected at least {least}, got {given}")
    return Relabellings(len(x), len(y), int(n_permutations), int(seed)).null(x, y, p, device)
