"""The permutation null: every unit's cost under random relabellings, against oracle, loops and enumerations."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import THREADS, assert_same_bits, bounded
from scipy.stats import kstest, permutation_test

from lineas.core import _core, reference
from lineas.ot import null as relabelling
from lineas.ot import permutation_null, wasserstein_1d

# Both sides of a word of 64 samples, equal and unequal, with and without a common divisor; one sample against several.
COUNTS = [(1, 2), (2, 1), (2, 2), (5, 4), (1, 9), (12, 8), (32, 32), (33, 33), (32, 33), (20, 70)]
POWERS = (1, 1.5, 2, 3)


def make_samples(n: int, m: int, columns: int, *, seed: int = 0, dtype=np.float64, shift: float = 0.3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, columns)).astype(dtype), (rng.normal(size=(m, columns)) + shift).astype(dtype)


def unpack(labels: np.ndarray, relabellings: int) -> np.ndarray:
    """(blocks, n + m, 4) words of labels -> one row of booleans a relabelling."""
    bits = labels[..., None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)  # blocks, samples, words, bits
    return bits.transpose(0, 2, 3, 1).reshape(-1, labels.shape[1])[:relabellings].astype(bool)


def pack(rows: np.ndarray) -> np.ndarray:
    """The way back; the last row fills the last block."""
    padded = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % 256, axis=0)])
    blocks = padded.reshape(-1, 4, 64, rows.shape[1]).transpose(0, 3, 1, 2).astype(np.uint64)
    return np.ascontiguousarray(np.bitwise_or.reduce(blocks << np.arange(64, dtype=np.uint64), axis=3))


def costs(x: np.ndarray, y: np.ndarray, rows: np.ndarray, p: float) -> np.ndarray:
    """By `wasserstein_1d`, one relabelling after the other."""
    pooled = np.concatenate([x, y])
    return np.stack([wasserstein_1d(pooled[row], pooled[~row], p) for row in rows])


# ---- oracles ----


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_null_matches_the_reference(n, m, p):
    for columns, count, dtype in ((1, 1, np.float32), (5, 70, np.float64), (65, 20, np.float32), (2, 257, np.float32)):
        x, y = make_samples(n, m, columns, dtype=dtype)
        rows = unpack(relabelling._relabellings(n, m, count, 0), 1 + count)
        pooled = torch.from_numpy(np.concatenate([x, y]).astype(np.float64))
        mean, std, p_value = (a.numpy() for a in reference.permutation_null(pooled, torch.from_numpy(rows), p))
        null = permutation_null(x, y, p, n_permutations=count)
        assert [a.dtype for a in null] == [np.float64] * 3
        np.testing.assert_allclose(null.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(null.std, std, rtol=1e-9, atol=1e-14)
        if min(n, m) > 3:  # else equal labellings abound, whose costs the reference rounds differently
            np.testing.assert_allclose(null.p_value, p_value, rtol=1e-12)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), [(9, 9), (7, 10), (40, 40), (40, 60)])
def test_null_is_that_of_a_loop_over_wasserstein_1d(n, m, p):
    x, y = make_samples(n, m, 20, seed=1)
    all_costs = costs(x, y, unpack(relabelling._relabellings(n, m, 100, 5), 101), p)
    null = permutation_null(x, y, p, n_permutations=100, seed=5)
    np.testing.assert_allclose(null.mean, all_costs[1:].mean(0), rtol=1e-12)
    np.testing.assert_allclose(null.std, all_costs[1:].std(0), rtol=1e-9)
    np.testing.assert_allclose(null.p_value, (1 + (all_costs[1:] >= all_costs[0] * (1 - 1e-12)).sum(0)) / 101)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (2, 4)])
def test_all_labellings_give_the_exact_null_of_scipy(n, m):
    """Enumerated, not drawn: (n + m choose n) labellings, the observed one among them."""
    chosen = list(combinations(range(n + m), n))
    rows = np.zeros((len(chosen), n + m), bool)
    for row, sources in zip(rows, chosen, strict=True):
        row[list(sources)] = True
    assert rows[0].tolist() == [True] * n + [False] * m
    x, y = make_samples(n, m, 4, shift=1)
    exact = permutation_test((x, y), lambda a, b, axis: _each_cost(a, b), n_resamples=np.inf, alternative="greater")
    assert exact.null_distribution.shape[0] == len(chosen)
    labels = pack(np.concatenate([rows[:1], rows]))  # the observed one, then all
    mean, std, p_value = _core.permutation_null(np.concatenate([x, y]), labels, n, 1 + len(rows), 2.0, 1)
    np.testing.assert_allclose(mean, exact.null_distribution.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, exact.null_distribution.std(0), rtol=1e-12)
    np.testing.assert_allclose(p_value * (1 + len(rows)) - 1, exact.pvalue * len(rows), rtol=1e-12)
    if n == m:  # the observed labelling, and its mirror image, to the last bit
        assert (p_value * (1 + len(rows)) >= 3 - 1e-12).all()


def _each_cost(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The statistic as scipy calls it: samples last, any number of leading dimensions."""
    flat = [np.moveaxis(v, -1, 0).reshape(v.shape[-1], -1) for v in (a, b)]
    return wasserstein_1d(*flat).reshape(a.shape[:-1])


@bounded
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.sampled_from(POWERS), st.booleans())
def test_null_agrees_with_the_loop_on_any_counts_and_ties(n, m, seed, p, tied):
    if n + m < 3:
        return
    x, y = make_samples(n, m, 3, seed=seed)
    if tied:
        x, y = np.round(x), np.round(y)
    null = permutation_null(x, y, p, n_permutations=40, seed=seed)
    all_costs = costs(x, y, unpack(relabelling._relabellings(n, m, 40, seed), 41), p)
    np.testing.assert_allclose(null.mean, all_costs[1:].mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(null.std, all_costs[1:].std(0), rtol=1e-6, atol=1e-12)
    least, most = ((1 + (all_costs[1:] >= all_costs[0] + e).sum(0)) / 41 for e in (1e-9, -1e-9))
    assert (null.p_value >= least - 1e-12).all()
    assert (null.p_value <= most + 1e-12).all()


# ---- statistics ----


def test_p_values_of_samples_from_one_distribution_are_uniform():
    x, y = make_samples(16, 24, 2000, shift=0)
    null = permutation_null(x, y, n_permutations=499)
    assert kstest(null.p_value, "uniform").pvalue > 0.01
    assert (null.p_value >= 1 / 500).all()
    assert (null.p_value <= 1).all()


def test_the_null_is_what_sampling_alone_produces():
    """Averaged over units from one distribution, the null's mean and variance are those of the observed costs."""
    x, y = make_samples(32, 32, 4000, shift=0)
    observed, null = wasserstein_1d(x, y), permutation_null(x, y, n_permutations=200)
    assert null.mean.mean() == pytest.approx(observed.mean(), rel=0.03)
    assert np.sqrt((null.std**2).mean()) == pytest.approx(observed.std(), rel=0.1)


def test_p_values_of_shifted_samples_are_as_small_as_they_can_be():
    x, y = make_samples(32, 32, 50, shift=4)
    null = permutation_null(x, y, n_permutations=999)
    assert (null.p_value == 1 / 1000).all()
    assert (wasserstein_1d(x, y) > null.mean + 10 * null.std).all()


def test_relabellings_are_shared_by_all_units():
    """So that what units have in common is kept: twins have the same null, and each the one that it has alone."""
    x, y = make_samples(20, 30, 90, dtype=np.float32)
    x[:, 77], y[:, 77] = x[:, 3], y[:, 3]
    null = permutation_null(x, y, n_permutations=70)
    for mine, alone in zip(null, permutation_null(x[:, 77:78], y[:, 77:78], n_permutations=70), strict=True):
        assert_same_bits(mine[[77]], mine[[3]])
        assert_same_bits(mine[[77]], alone)


# ---- the labels ----


@pytest.mark.parametrize(("n", "m", "count"), [(1, 2, 1), (3, 5, 254), (3, 5, 255), (3, 5, 256), (40, 30, 1000)])
def test_relabellings_are_random_keep_the_counts_and_start_with_the_observed_one(n, m, count):
    labels = relabelling._relabellings(n, m, count, 0)
    assert labels.dtype == np.uint64
    assert labels.shape == ((1 + count + 255) // 256, n + m, 4)
    rows = unpack(labels, 256 * len(labels))
    assert (rows.sum(1) == n).all()
    assert rows[0].tolist() == [True] * n + [False] * m
    if count == 1000:
        assert len(np.unique(rows, axis=0)) == len(rows)
        deviation = np.sqrt(n * m / (n + m) ** 2 / len(rows))
        assert np.abs(rows[1:].mean(0) - n / (n + m)).max() < 5 * deviation
        pairs = np.cov(rows[1:].T)[~np.eye(n + m, dtype=bool)]
        assert pairs.mean() == pytest.approx(-n * m / (n + m) ** 2 / (n + m - 1), rel=0.01)
        assert np.abs(pairs).max() < 6 * 0.25 / np.sqrt(len(rows))


def test_labels_drawn_in_small_portions_are_the_same(monkeypatch):
    expected = relabelling._relabellings(7, 9, 1000, 3)
    for portion in (1, 256 * 16, 256 * 16 * 3, 256 * 16 * 4):
        monkeypatch.setattr(relabelling, "_DRAWN_AT_ONCE", portion)
        assert_same_bits(relabelling._relabellings(7, 9, 1000, 3), expected)
    assert_same_bits(relabelling._relabellings(7, 9, 300, 3), expected[:2])  # and fewer are the first of many


def test_the_seed_decides_and_no_global_state_is_touched():
    x, y = make_samples(8, 9, 10)
    states = lambda: (np.random.get_state()[1], torch.get_rng_state())  # noqa: E731, NPY002
    before = states()
    first = permutation_null(x, y, seed=1)
    assert_same_bits(states(), before)
    assert_same_bits(tuple(permutation_null(x, y, seed=1)), tuple(first))
    assert not np.array_equal(permutation_null(x, y, seed=2).mean, first.mean)
    assert_same_bits(tuple(permutation_null(x, y)), tuple(permutation_null(x, y, seed=0)))


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 3), (40, 40), (40, 41)])
def test_a_relabelling_equal_to_the_observed_labelling_reaches_it_to_the_last_bit(n, m, p):
    x, y = make_samples(n, m, 200, dtype=np.float32)
    rows = np.tile(np.arange(n + m) < n, (100, 1))
    mean, std, p_value = _core.permutation_null(np.concatenate([x, y]), pack(rows), n, 100, float(p), 1)
    np.testing.assert_allclose(mean, wasserstein_1d(x, y, p), rtol=1e-12)
    assert (std == 0).all()
    assert (p_value == 1).all()


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), [(16, 16), (16, 11), (70, 70)])
def test_bits_do_not_depend_on_threads_nor_on_torchs_number_of_them(n, m, p):
    x, y = make_samples(n, m, 300, dtype=np.float32)
    labels, pooled = relabelling._relabellings(n, m, 99, 0), np.concatenate([x, y])
    expected = _core.permutation_null(pooled, labels, n, 100, float(p), 1)
    for threads in THREADS:
        assert_same_bits(_core.permutation_null(pooled, labels, n, 100, float(p), threads), expected)
    assert_same_bits(tuple(permutation_null(x, y, p, n_permutations=99)), expected)


# ---- what comes in ----


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4), (50, 50)])
def test_constant_units_cost_nothing_and_never_stand_out(n, m, p):
    x, y = make_samples(n, m, 4, dtype=np.float32)
    x[:, 1] = y[:, 1] = 0.1
    x[:, 2] = y[:, 2] = 0
    null = permutation_null(x, y, p, n_permutations=100)
    for column in (1, 2):
        assert [a[column] for a in null] == [0, 0, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_deviation_survives_a_large_offset(dtype):
    """p = 2 costs of about 2**40 that differ by about 2**20: a sum of squares would have lost the difference."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-1, 2, size=(6, 5)).astype(dtype) for _ in range(2))
    x[0], y[0] = 2**20, -(2**20)
    null = permutation_null(x, y, n_permutations=300)
    all_costs = costs(x, y, unpack(relabelling._relabellings(6, 6, 300, 0), 301), 2)[1:]
    np.testing.assert_allclose(null.std, np.std([[float(v) for v in row] for row in all_costs], axis=0), rtol=1e-9)
    shifted = permutation_null(x + dtype(2**10), y + dtype(2**10), n_permutations=300)
    np.testing.assert_allclose(shifted.std, null.std, rtol=1e-6)


def test_scaling_and_moving_both_sides_scales_the_null():
    x, y = make_samples(9, 12, 20)
    null, moved = permutation_null(x, y, 3), permutation_null(4 * x + 8, 4 * y + 8, 3)
    np.testing.assert_allclose(moved.mean, 64 * null.mean, rtol=1e-9)
    np.testing.assert_allclose(moved.std, 64 * null.std, rtol=1e-9)
    np.testing.assert_allclose(moved.p_value, null.p_value)


def test_any_real_array_is_taken_and_left_as_it_was():
    lists = [[0.0, 2], [1, 5], [4, 4]], [[3, 1.0], [2, 4]]
    expected = permutation_null(*(np.array(x) for x in lists), n_permutations=10)
    x, y = (np.asfortranarray(np.array(x, np.float32)) for x in lists)
    before = x.copy(), y.copy()
    for source, target in (lists, (x, y), (x.astype(">f8"), y), (x.astype(int), y), (torch.tensor(lists[0]), y)):
        assert_same_bits(tuple(permutation_null(source, target, n_permutations=np.int64(10))), tuple(expected))
    assert_same_bits((x, y), before)


GOOD = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        (([1.0, 2.0], GOOD), {}, ValueError, r"source \(n, d\).*got \(2,\) and \(2, 3\)"),
        ((GOOD, np.zeros((2, 4))), {}, ValueError, r"target \(m, d\).*got \(2, 3\) and \(2, 4\)"),
        ((np.zeros((0, 3)), GOOD), {}, ValueError, r"none empty; got \(0, 3\)"),
        ((GOOD[:1], GOOD[:1]), {}, ValueError, "at least 3 samples in source and target together"),
        (([["a"]], [[1.0]]), {}, TypeError, "source: expected real numbers, got dtype <U1"),
        (([[1, 2, np.nan]], GOOD), {}, ValueError, r"source: expected finite values, got nan at \[0, 2\]"),
        ((GOOD, [[1, 2, 3], [0, -np.inf, 0]]), {}, ValueError, r"target: expected finite.*got -inf at \[1, 1\]"),
        ((GOOD, GOOD, 0.5), {}, ValueError, "p: expected.*at least 1, got 0.5"),
        ((GOOD, GOOD, float("inf")), {}, ValueError, "p: expected a finite number.*got inf"),
        ((GOOD, GOOD, "2"), {}, TypeError, "p: expected a number, got str"),
        ((GOOD, GOOD), {"n_permutations": 0}, ValueError, "n_permutations: expected at least 1, got 0"),
        ((GOOD, GOOD), {"n_permutations": 10.0}, TypeError, "n_permutations: expected an integer, got float"),
        ((GOOD, GOOD), {"n_permutations": None}, TypeError, "n_permutations: expected an integer, got NoneType"),
        ((GOOD, GOOD), {"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ((GOOD, GOOD), {"seed": None}, TypeError, "seed: expected an integer, got NoneType"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, options, error, says):
    with pytest.raises(error, match=says):
        permutation_null(*arguments, **options)
