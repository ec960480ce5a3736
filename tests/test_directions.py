"""Directions: what they are, on samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from lineas import directions

ALL = (directions.caa, directions.actadd, directions.iti_c, directions.repe)


def samples(n=20, m=31, d=7, seed=0, shift=0.5):
    draw = np.random.default_rng(seed)
    scales = np.exp(draw.normal(size=d))
    return scales * draw.normal(size=(n, d)), scales * (draw.normal(size=(m, d)) + shift * draw.normal(size=d))


def test_caa_adds_the_difference_of_means_and_actadd_that_of_the_first_pair():
    source, target = samples()
    for found, expected in (
        (directions.caa(source, target), target.mean(0) - source.mean(0)),
        (directions.actadd(source, target), target[0] - source[0]),
    ):
        np.testing.assert_allclose(found[1], expected, rtol=1e-12)
        assert (found[0] == 1).all()


@pytest.mark.parametrize(("n", "m", "d"), [(20, 31, 7), (32, 32, 576), (2, 3, 1), (1, 1, 4), (64, 8, 33)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_iti_c_is_a_deviation_along_the_normal_of_a_logistic_regression(n, m, d, scale):
    source, target = (scale * side for side in samples(n, m, d))
    pooled, labels = np.concatenate([source, target]), np.repeat([0, 1], [n, m])
    probe = LogisticRegression(C=1.0, tol=1e-10, max_iter=20000).fit(pooled, labels)
    theta = probe.coef_[0] / np.linalg.norm(probe.coef_[0])
    weight, bias = directions.iti_c(source, target)
    expected = (pooled @ theta).std() * theta
    np.testing.assert_allclose(bias, expected, atol=2e-4 * np.abs(expected).max())
    assert (weight == 1).all()


def test_repe_moves_along_the_first_principal_component_of_the_differences_as_far_as_they_go_on_average():
    source, target = samples(20, 31, 7, shift=3.0)
    pairs = [target[k] - source[k % 20] for k in range(31)]
    values, vectors = np.linalg.eigh(sum(np.outer(pair, pair) for pair in pairs))
    theta = vectors[:, values.argmax()]
    expected = (np.mean(pairs, 0) @ theta) * theta
    np.testing.assert_allclose(directions.repe(source, target)[1], expected, atol=1e-9)


@given(seed=st.integers(0, 1000), n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_iti_c_points_back_where_the_sets_change_places(seed, n, m, d):
    source, target = samples(n, m, d, seed)
    there, back = directions.iti_c(source, target)[1], directions.iti_c(target, source)[1]
    np.testing.assert_allclose(there, -back, atol=1e-6 * max(1.0, np.abs(there).max()))


def test_sets_that_are_alike_have_no_direction():
    source, _ = samples()
    for function in ALL:
        assert np.abs(function(source, source)[1]).max() < 1e-6, function.__name__


@pytest.mark.parametrize("function", ALL)
def test_maps_are_float64_and_what_cannot_be_is_refused(function):
    source, target = samples()
    weight, bias = function(source.astype(np.float32), target.astype(np.float32))
    assert weight.dtype == bias.dtype == np.float64
    np.testing.assert_allclose(bias, function(source, target)[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected source \(n, d\) and target \(m, d\)"):
        function(source, target[:, :3])
    with pytest.raises(ValueError, match="source: expected finite values"):
        function(np.where(source > 1, np.nan, source), target)
    with pytest.raises(TypeError, match="target: expected real numbers"):
        function(source, target.astype(complex))
