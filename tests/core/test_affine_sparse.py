"""The map of some channels, in place."""

import re

import pytest
import torch
from conftest import normal
from oracle import DTYPES, same_tensor

from lineas.core import ops, reference


@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("dim", [-1, 1, 0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sparse_map_changes_its_channels_in_place_and_no_other_bit(dtype, dim):
    h = normal(9, 9, 9).to(dtype)
    support = torch.tensor([0, 3, 4, 8])
    scale, shift = normal(4, seed=1), normal(4, seed=2)
    right = reference.affine_sparse(h, support, scale, shift, dim)
    for threads in (1, 2, 3, 16):
        given = h.clone()
        assert ops.affine_sparse_(given, support, scale, shift, channel_dim=dim, threads=threads) is given
        assert same_tensor(given, right)
    assert not same_tensor(h, right)
    assert same_tensor(ops.affine_sparse_(h.clone(), support[:0], scale[:0], shift[:0]), h)


def test_the_sparse_map_is_the_dense_one_where_the_rest_is_the_identity():
    h, scale, shift = normal(4, 6, 50), torch.ones(50), torch.zeros(50)
    support = torch.tensor([2, 30, 49])
    scale[support], shift[support] = normal(3, seed=1), normal(3, seed=2)
    dense = reference.affine(h, scale, shift)
    assert torch.equal(ops.affine_sparse_(h.clone(), support, scale[support], shift[support]), dense)


ONE = (torch.tensor([1]), torch.tensor([2.0]), torch.tensor([0.5]))


def test_the_sparse_map_refuses_what_autograd_may_hold():
    leaf = normal(2, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="h: expected a tensor without gradient"):
        ops.affine_sparse_(leaf, *ONE)
    with pytest.raises(RuntimeError, match="h: expected a tensor without gradient"):
        ops.affine_sparse_(leaf * 2, *ONE)
    with torch.no_grad(), pytest.raises(RuntimeError, match="h: expected a tensor without gradient"):
        ops.affine_sparse_(leaf, *ONE)
    saved = normal(2, 3)
    product = (leaf * saved).sum()
    ops.affine_sparse_(saved, *ONE)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        assert ops.affine_sparse_(torch.ones(1, 3), *ONE).tolist() == [[1, 2.5, 1]]


@pytest.mark.parametrize(
    ("h", "arguments", "says"),
    [
        (torch.ones(1, 3).expand(2, 3), ONE, "h: expected a C-contiguous tensor, got shape (2, 3) with strides (0, 1)"),
        (torch.ones(3, 2).T, ONE, "with strides (1, 2)"),
        (torch.ones(2, 3).int(), ONE, "expected real tensors on the CPU, got torch.int32"),
        (
            torch.ones(2, 3),
            (ONE[0], ONE[1], torch.ones(2)),
            "expected support, scale, shift (k,); got (1,), (1,), (2,)",
        ),
        (torch.ones(2, 3), (torch.tensor([3]), *ONE[1:]), "support: expected an ascent from 0 to at most 2"),
        (torch.ones(2, 3), (torch.tensor([-1]), *ONE[1:]), "support: expected an ascent from 0 to at most 2"),
    ],
)
def test_the_sparse_map_refuses_shared_strided_and_wrong_input(h, arguments, says):
    before = h.clone()
    with pytest.raises(ValueError, match=re.escape(says)):
        ops.affine_sparse_(h, *arguments)
    assert torch.equal(h, before)
