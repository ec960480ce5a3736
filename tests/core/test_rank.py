"""Area under the ROC curve and average precision of every unit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import GOLDEN, assert_same_bits, bounded
from scipy.stats import mannwhitneyu

from lineas.core import reference
from lineas.experts import auroc, average_precision

COUNTS = [(1, 1), (1, 5), (5, 1), (2, 2), (4, 6), (7, 7), (8, 8), (16, 17), (32, 32), (33, 20), (100, 64)]
COLUMNS = (1, 31, 32, 33, 63, 64, 65, 130)  # a block, a tile, and one more
KINDS = ("continuous", "tied", "binary", "constant")


def make_samples(n, m, columns, kind="continuous", *, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.5, 1, size=(n, columns)), rng.normal(size=(m, columns))
    if kind == "tied":
        x, y = np.round(x), np.round(y)  # zeros of both signs among them
    elif kind == "binary":
        x, y = (x > 0) * 1.0, (y > 0) * 1.0
    elif kind == "constant":
        x, y = np.full_like(x, 3), np.full_like(y, 3)
    return x.astype(dtype), y.astype(dtype)


# ---- oracles ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), COUNTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_scores_match_the_reference(n, m, kind, dtype):
    for columns in COLUMNS:
        x, y = make_samples(n, m, columns, kind, dtype=dtype)
        for function in (auroc, average_precision):
            got = function(x, y)
            assert got.dtype == np.float64
            assert got.shape == (columns,)
            right = getattr(reference, function.__name__)(torch.from_numpy(x), torch.from_numpy(y))
            np.testing.assert_allclose(got, right, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_both_scores_are_those_of_scikit_learn(n, m, kind):
    metrics = pytest.importorskip("sklearn.metrics")
    x, y = make_samples(n, m, 9, kind, seed=1)
    labels, scores = np.repeat([1, 0], [n, m]), np.concatenate([x, y])
    for function, right in ((auroc, metrics.roc_auc_score), (average_precision, metrics.average_precision_score)):
        np.testing.assert_allclose(function(x, y), [right(labels, column) for column in scores.T], rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_auroc_is_the_statistic_of_mann_and_whitney(kind):
    x, y = make_samples(19, 30, 40, kind)
    np.testing.assert_allclose(auroc(x, y), mannwhitneyu(x, y).statistic / (19 * 30), rtol=1e-12)


def test_auroc_is_that_of_the_released_implementation():
    with np.load(GOLDEN / "closed_form.npz") as right:
        np.testing.assert_allclose(auroc(right["source"], right["target"]), right["aura_auroc"], atol=1e-6)


# ---- properties ----

# Few values, so that ties are common; a map of them to others that keeps their order.
entry = st.integers(-6, 6)
sample = st.lists(entry, min_size=1, max_size=20).map(lambda v: np.array(v, np.float64)[:, None])
ascents = st.lists(st.floats(-1e6, 1e6, width=32), min_size=13, max_size=13, unique=True).map(sorted)


@bounded
@given(sample, sample, ascents)
def test_only_the_order_counts_whatever_the_values(x, y, ascent):
    moved = [np.array(ascent)[(v + 6).astype(int)] for v in (x, y)]
    for function in (auroc, average_precision):
        expected = function(x, y)
        for a, b in ((x * 3 + 1, y * 3 + 1), (np.exp(x), np.exp(y)), moved):
            assert_same_bits(function(a, b), expected)
        assert_same_bits(function(*(v.astype(np.float32) for v in moved)), expected)


@bounded
@given(sample, sample)
def test_auroc_the_other_way_round_is_what_is_missing_to_one(x, y):
    np.testing.assert_allclose(auroc(x, y) + auroc(y, x), 1, rtol=1e-15)
    np.testing.assert_allclose(auroc(x, y) + auroc(-x, -y), 1, rtol=1e-15)


@bounded
@given(sample, sample, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_count(x, y, random):
    for function in (auroc, average_precision):
        expected = function(x, y)
        first, second = (np.array(random.sample(v.tolist(), len(v))) for v in (x, y))
        assert_same_bits(function(first, second), expected)


@bounded
@given(sample, sample)
def test_scores_stay_between_their_bounds(x, y):
    n, m = len(x), len(y)
    assert 0 <= auroc(x, y) <= 1
    worst = np.mean([k / (m + k) for k in range(1, n + 1)])  # all positives last, one by one
    assert worst - 1e-12 <= average_precision(x, y) <= 1


@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_perfect_and_useless_units_have_exact_scores(n, m):
    x, y = make_samples(n, m, 5)
    above = x + (y.max() - x.min() + 1)
    assert (auroc(above, y) == 1).all()
    assert (average_precision(above, y) == 1).all()
    assert (auroc(-above, -y) == 0).all()
    same = np.ones((n, 2)), np.ones((m, 2))
    assert (auroc(*same) == 0.5).all()
    np.testing.assert_allclose(average_precision(*same), n / (n + m), rtol=1e-15)


def test_zeros_of_both_signs_are_one_value():
    assert auroc([[0.0]], [[-0.0]]) == auroc([[-0.0]], [[0.0]]) == 0.5
    assert average_precision([[0.0]], [[-0.0]]) == average_precision([[-0.0]], [[0.0]]) == 0.5


@pytest.mark.parametrize("function", [auroc, average_precision])
def test_values_that_float32_cannot_tell_apart_are_told_apart_in_float64(function):
    x, y = np.array([[1 + 2e-12]]), np.array([[1 + 1e-12]])
    assert function(x, y) == 1
    assert function(x.astype(np.float32), y.astype(np.float32)) == 0.5
    assert function(x.astype(np.float32), y) < 1  # mixed precisions are compared in float64: 1 is below 1 + 1e-12


# ---- what is refused ----


@pytest.mark.parametrize("function", [auroc, average_precision])
def test_wrong_samples_are_refused_by_name(function):
    x, y = make_samples(3, 4, 5)
    bad = y.copy()
    bad[2, 1] = np.nan
    for positive, negative, error, says in (
        (
            x,
            y[:, :4],
            ValueError,
            r"^expected positive \(n, d\) and negative \(m, d\), none empty; got \(3",
        ),
        (x, y[0], ValueError, r"none empty; got \(3, 5\) and \(5,\)$"),
        (x[:0], y, ValueError, r"none empty; got \(0, 5\) and \(4, 5\)$"),
        (x, bad, ValueError, r"^negative: expected finite values, got nan at \[2, 1\]$"),
        (x + 1j, y, TypeError, "^positive: expected real numbers, got dtype complex128"),
    ):
        with pytest.raises(error, match=says):
            function(positive, negative)
