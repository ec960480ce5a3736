"""Columns sorted with their stable permutation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import assert_same_bits, bounded

from lineas.core import _core, ops, reference

SIZES = (1, 2, 3, 5, 16, 17, 33, 64, 255, 1000)
COLUMNS = (1, 15, 16, 17, 100)
REALS = (np.float32, np.float64)
KINDS = ("random", "ties", "constant", "ascending", "descending", "zeros of both signs", "extremes")


def make_columns(kind: str, n: int, columns: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(n * 1000 + columns)
    x = {
        "random": lambda: rng.normal(size=(n, columns)),
        "ties": lambda: rng.integers(0, max(2, n // 4), size=(n, columns)),
        "constant": lambda: np.full((n, columns), -3.5),
        "ascending": lambda: np.sort(rng.normal(size=(n, columns)), axis=0),
        "descending": lambda: -np.sort(rng.normal(size=(n, columns)), axis=0),
        "zeros of both signs": lambda: rng.choice([-0.0, 0.0, 1.0], size=(n, columns)),
        "extremes": lambda: rng.choice(
            [np.finfo(dtype).max, np.finfo(dtype).min, np.finfo(dtype).smallest_subnormal, 0], size=(n, columns)
        ),
    }[kind]()
    return np.ascontiguousarray(x, dtype)


def assert_sorted_as_numpy_does(x: np.ndarray) -> None:
    values, index = _core.sort_columns(x, 2)
    expected = np.argsort(x, axis=0, kind="stable")
    assert_same_bits(index, expected.astype(np.int32))
    assert_same_bits(values, np.take_along_axis(x, expected, axis=0))  # bits: -0 stays -0, where it stood


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("n", SIZES)
def test_sort_columns_is_the_stable_sort_of_numpy(n, columns, dtype):
    for kind in KINDS:
        assert_sorted_as_numpy_does(make_columns(kind, n, columns, dtype))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("kind", KINDS)
def test_sort_columns_matches_the_reference_in_values_and_permutation(kind, dtype):
    x = make_columns(kind, 33, 17, dtype)
    values, index = _core.sort_columns(x, 1)
    expected, permutation = reference.sort_columns(torch.from_numpy(x))
    assert_same_bits(values, expected.numpy())
    np.testing.assert_array_equal(index, permutation.numpy())


def test_equal_keys_keep_their_order_even_when_they_are_zeros_of_either_sign():
    x = np.array([[0.0], [-0.0], [0.0], [-1.0], [-0.0]], np.float32)
    values, index = _core.sort_columns(x, 1)
    assert index.ravel().tolist() == [3, 0, 1, 2, 4]
    assert np.signbit(values.ravel()).tolist() == [True, False, True, False, True]


@bounded
@given(
    hnp.arrays(
        st.sampled_from(REALS),
        st.tuples(st.integers(1, 40), st.integers(1, 20)),
        elements=st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6, width=32), st.just(-0.0)),
    )
)
def test_sorting_any_finite_columns_is_a_stable_ascending_permutation(x):
    assert_sorted_as_numpy_does(x)
    values, index = _core.sort_columns(x, 3)
    assert (np.diff(values, axis=0) >= 0).all()
    assert (np.sort(index, axis=0) == np.arange(len(x))[:, None]).all()


@bounded
@given(hnp.arrays(np.float32, (9, 5), elements=st.floats(-10, 10, width=32)), st.randoms(use_true_random=False))
def test_sorted_values_do_not_depend_on_the_order_of_the_rows(x, random):
    order = list(range(len(x)))
    random.shuffle(order)
    np.testing.assert_array_equal(_core.sort_columns(x, 1)[0], _core.sort_columns(np.ascontiguousarray(x[order]), 1)[0])


def test_sort_columns_leaves_its_input_alone():
    x = make_columns("random", 20, 20, np.float32)
    before = x.copy()
    _core.sort_columns(x, 2)
    assert_same_bits(x, before)


def test_prepare_target_takes_what_is_not_contiguous():
    x = make_columns("random", 7, 40, np.float32)[:, ::2]
    target = ops.prepare_target(x)
    np.testing.assert_array_equal(target.values, np.sort(x, axis=0))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("n", [8, 31, 32, 48, 63, 100, 128, 129, 257, 511, 2048, 5000, 8192])
def test_long_columns_and_those_around_powers_of_two_are_sorted_too(n, dtype):
    for kind in ("random", "ties", "descending"):
        assert_sorted_as_numpy_does(make_columns(kind, n, 3, dtype))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("n", SIZES)
def test_sort_values_are_those_of_sort_columns(n, dtype):
    for kind in KINDS:
        x = make_columns(kind, n, 70, dtype)
        values = _core.sort_values(x, 2)
        np.testing.assert_array_equal(values, _core.sort_columns(x, 1)[0])
        assert not np.signbit(values[values == 0]).any()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (3, 16), (4, 17)])
def test_nan_and_infinity_are_refused_with_their_position(bad, at, dtype):
    x = make_columns("random", 5, 18, dtype)
    x[at] = bad
    with pytest.raises(ValueError, match=rf"x: expected finite values.*flat position {at[0] * 18 + at[1]}$"):
        _core.sort_columns(x, 1)


@pytest.mark.parametrize("dtype", REALS)
def test_first_nonfinite_finds_the_first_of_many_wherever_it_is(dtype):
    x = np.full(10000, np.finfo(dtype).max, dtype)  # large, but finite, and so would be missed by a sum
    assert _core.first_nonfinite(x) == -1
    for at in (9999, 8192, 8191, 4097, 4096, 4095, 1, 0):  # around its blocks; each before those already there
        x[at] = (np.nan, np.inf, -np.inf)[at % 3]
        assert _core.first_nonfinite(x) == at
        assert _core.first_nonfinite(x.reshape(4, 2500)) == at
