"""`wasserstein_1d` against POT and SciPy over a wide search: sizes, magnitudes, ties, precisions, powers, weights.

Hypothesis draws a seed and the sizes, which it shrinks, and NumPy the numbers.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import bounded, import_pot
from scipy.stats import wasserstein_distance

from lineas.ot import wasserstein_1d, wasserstein_1d_grad

wide = settings(bounded, max_examples=150)


def spread(rng, shape):
    """Magnitudes from 1e-6 to 1e6, both signs, in one column."""
    return rng.choice([-1, 1], shape) * 10 ** rng.uniform(-6, 6, shape)


def scaled(rng, shape):
    """Each column of one magnitude."""
    return rng.normal(rng.normal(), 1, shape) * 10 ** rng.uniform(-6, 6, shape[1])


def tied(rng, shape):
    return rng.integers(-2, 3, shape) * 1e3


def constant(rng, shape):
    return np.broadcast_to(spread(rng, (1, shape[1])), shape)


KINDS = (spread, scaled, tied, constant)


@st.composite
def problems(draw):
    """Samples (n, columns) and (m, columns), and the weights of both sides or of one, zeros among them."""
    n, m, columns = draw(st.integers(1, 300)), draw(st.integers(1, 300)), draw(st.integers(1, 4))
    m = draw(st.sampled_from([m, n]))
    first, second = draw(st.sampled_from(KINDS)), draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    x, y = first(rng, (n, columns)).astype(dtype), second(rng, (m, columns)).astype(dtype)
    sides = draw(st.sampled_from([(), ("source",), ("target",), ("source", "target")]))
    weights = {}
    for side in sides:
        w = rng.uniform(0.01, 1, len(x if side == "source" else y))
        w[1:][rng.uniform(size=len(w) - 1) < draw(st.sampled_from([0, 0.3, 0.9]))] = 0
        weights[f"{side}_weights"] = w
    return x, y, weights


def rounding(x, y, p):
    """What an oracle's own sums of weights, good to 1e-13, may be off by."""
    return 1e-13 * np.maximum(np.abs(x).max(0), np.abs(y).max(0)).astype(np.float64) ** p


@wide
@given(problems(), st.one_of(st.sampled_from([1, 2, 3, 4]), st.floats(1, 4)))
def test_any_samples_agree_with_pot(problem, p):
    pot = import_pot()
    x, y, weights = problem
    a, b = (None if w is None else w / w.sum() for w in map(weights.get, ("source_weights", "target_weights")))
    expected = pot.wasserstein_1d(x.astype(np.float64), y.astype(np.float64), a, b, p=p)
    cost = wasserstein_1d(x, y, p, **weights)
    assert (np.abs(cost - expected) <= 1e-6 * expected + rounding(x, y, p)).all()
    np.testing.assert_allclose(wasserstein_1d_grad(x, y, p, **weights)[0], cost, rtol=1e-12)


@wide
@given(problems())
def test_any_samples_agree_with_scipy_at_power_one(problem):
    x, y, weights = problem
    expected = np.array([
        wasserstein_distance(
            x[:, c].astype(np.float64), y[:, c].astype(np.float64),
            weights.get("source_weights"), weights.get("target_weights"),
        )
        for c in range(x.shape[1])
    ])  # fmt: skip
    cost = wasserstein_1d(x, y, 1, **weights)
    assert (np.abs(cost - expected) <= 1e-6 * expected + rounding(x, y, 1)).all()


def test_the_search_meets_what_it_should():
    """Else the tests above could pass by drawing little."""
    seen = set()

    @wide
    @given(problems())
    def look(problem):
        x, y, weights = problem
        seen.update({f"weights {sorted(weights)}", f"{x.dtype}", "equal" if len(x) == len(y) else "unequal"})
        seen.add("zero weights" if any((w == 0).any() for w in weights.values()) else "no zero")
        seen.add("tied" if len(x) > len(np.unique(x[:, 0])) > 1 else "else")
        seen.add("constant" if len(x) > 1 and len(np.unique(x[:, 0])) == 1 else "else")
        seen.add("long" if len(x) > 200 else "short")
        seen.add("wide" if np.abs(x).max() > 1e5 and np.abs(x).min() < 1e-5 else "narrow")

    look()
    assert len({name for name in seen if name.startswith("weights")}) == 4
    assert seen >= {"float32", "float64", "equal", "unequal", "zero weights", "tied", "constant", "long", "wide"}
