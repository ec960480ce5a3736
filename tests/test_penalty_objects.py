"""Penalties as objects: defaults, equality, copies, and what they refuse."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from oracle import assert_same_bits, bounded
from test_penalties import make_maps, seeds, site_sizes, steps, strength

from lineas.penalties import L1, SparseGroupLasso


def test_bias_strengths_are_those_of_weights_unless_given():
    assert SparseGroupLasso(0.1, 0.2) == SparseGroupLasso(0.1, 0.2, 0.1, 0.2)
    assert SparseGroupLasso(0.1, 0.2, 0.0, 0.0) != SparseGroupLasso(0.1, 0.2)  # zero is given
    assert L1(0.1) == L1(0.1, 0.1)
    assert L1(0.1, 0.0).l1_bias == 0


@bounded
@given(strength, strength, site_sizes, seeds, steps)
def test_l1_is_a_sparse_group_lasso_without_groups(l1, l1_bias, sizes, seed, step):
    given = make_maps(sizes, seed)
    same = SparseGroupLasso(l1, 0, l1_bias, 0)
    assert L1(l1, l1_bias).value(*given, sizes) == same.value(*given, sizes)
    assert_same_bits(L1(l1, l1_bias).prox(*given, sizes, step), same.prox(*given, sizes, step))


OBJECTS = [
    SparseGroupLasso(0.1, 0.2), SparseGroupLasso(0.1, 0.2, 0.3, 0.4, 0.5, "unit"),
    SparseGroupLasso(0.1, 0.2, groups=[3, 1, 3]), L1(0.1), L1(0.1, 0.2),
]  # fmt: skip


@pytest.mark.parametrize("penalty", OBJECTS, ids=repr)
def test_penalties_are_values(penalty):
    """Equal to their copies, unlike all others; hashed, replaced and pickled as such."""
    copies = dataclasses.replace(penalty), pickle.loads(pickle.dumps(penalty))
    for copy in copies:
        assert copy == penalty
        assert hash(copy) == hash(penalty)
        assert type(copy) is type(penalty)
        assert repr(copy) == repr(penalty)
    assert [other == penalty for other in OBJECTS].count(True) == 1
    assert dataclasses.replace(penalty, l1=7.0).l1 == 7
    assert dataclasses.replace(penalty, l1=7.0) != penalty
    assert penalty != "penalty"
    assert json.loads(json.dumps(repr(penalty))) == repr(penalty)
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.l1 = 3.0


def test_a_penalty_that_was_used_is_still_the_same_value():
    penalty = SparseGroupLasso(0.1, 0.2, groups=[3, 1, 3])
    penalty.value(*make_maps([3]), [3])
    assert pickle.loads(pickle.dumps(penalty)) == penalty == SparseGroupLasso(0.1, 0.2, groups=[3, 1, 3])
    assert "order" not in repr(penalty)


def test_repr_says_what_was_given_and_stays_short():
    assert repr(L1(0.1)) == "L1(l1=0.1, l1_bias=0.1)"
    assert len(repr(SparseGroupLasso(0.1, 0.2, groups=np.arange(240_000)))) < 200


def test_labels_are_copied():
    labels = np.array([0, 0, 1])
    penalty = SparseGroupLasso(0.1, 0.2, groups=labels)
    labels[:] = 7
    assert penalty == SparseGroupLasso(0.1, 0.2, groups=[0, 0, 1])
    with pytest.raises(ValueError, match="read-only"):
        penalty.groups[0] = 5


@pytest.mark.parametrize("bad", [[0.0, 1.0], [[0, 1]], [True, False], 3, ["a", "b"], []])
def test_groups_of_another_kind_are_refused(bad):
    with pytest.raises(TypeError, match="groups: expected None .by site., 'unit' or an integer label a unit; got "):
        SparseGroupLasso(0.1, 0.2, groups=bad)


def test_a_name_that_is_no_grouping_is_refused():
    with pytest.raises(ValueError, match="groups: expected None .by site., 'unit' or .*; got 'layer'"):
        SparseGroupLasso(0.1, 0.2, groups="layer")


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="groups: expected 3 labels, one for each unit; got 2"):
        SparseGroupLasso(0.1, 0.2, groups=[0, 1]).value([1, 1, 1], [0, 0, 0], [2, 1])


def test_inputs_stay_as_they_are():
    given = make_maps([4, 5])
    before = tuple(v.copy() for v in given)
    SparseGroupLasso(0.5, 0.5).prox(*given, [4, 5], 1.0)
    assert_same_bits(given, before)


@pytest.mark.parametrize("name", ["l1", "group", "l1_bias", "group_bias", "ridge"])
@pytest.mark.parametrize("bad", [-1e-9, -1.0, float("nan"), float("inf"), float("-inf")])
def test_impossible_strengths_are_refused_by_name(name, bad):
    with pytest.raises(ValueError, match=rf"^{name}: expected a penalty strength of at least 0, got {bad}"):
        SparseGroupLasso(**{"l1": 0.1, "group": 0.1, name: bad})
    if name in ("l1", "l1_bias"):
        with pytest.raises(ValueError, match=rf"^{name}: .*got {bad}"):
            L1(**{"l1": 0.1, name: bad})


@pytest.mark.parametrize("step", [-0.1, float("nan"), float("inf")])
def test_an_impossible_step_is_refused(step):
    for sizes in (step, [1.0, step], [1.0, step, 1.0, 1.0]):
        with pytest.raises(ValueError, match=f"step: expected a finite number of at least 0, got {step}"):
            SparseGroupLasso(0.1, 0.1).prox([1.0, 2.0], [0.0, 1.0], [2], sizes)


@pytest.mark.parametrize("step", [[1.0], [1.0] * 3, [[1.0] * 2]])
def test_step_sizes_of_another_shape_are_refused(step):
    with pytest.raises(ValueError, match=r"step: expected a number, \(2,\) or \(4,\) of them; got \("):
        SparseGroupLasso(0.1, 0.1).prox([1.0, 2.0], [0.0, 1.0], [2], step)


@pytest.mark.parametrize(
    ("weight", "bias", "sizes", "says"),
    [
        ([1, 1, 1], [0, 0, 0], [2], r"expected weight and bias \(2,\), the sum of sizes; got \(6,\), weights before"),
        ([1, 1, 1], [0, 0], [3], r"got \(3,\) and \(2,\)"),
        ([[1, 1]], [[0, 0]], [2], r"got \(1, 2\) and \(1, 2\)"),
        ([1, 1], [0, 0], [3, -1], "sizes: expected the number of units of each site; got [3, -1]"),
        ([1, 1], [0, 0], [1.5, 1.5], "sizes: expected the number of units of each site; got [1.5, 1.5]"),
        ([1, 1], [0, 0], 2, "sizes: expected the number of units of each site; got 2"),
        ([], [], [], "sizes: expected the number of units of each site; got []"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_came(weight, bias, sizes, says):
    pattern = says if "\\" in says else re.escape(says)
    for call in (SparseGroupLasso(1, 1).value, lambda *given: SparseGroupLasso(1, 1).prox(*given, 1.0)):
        with pytest.raises(ValueError, match=pattern):
            call(weight, bias, sizes)
