"""What is not finite in padding stays as it is, and only that is left out of gradients."""

import math

import pytest
import torch
from conftest import normal

from lineas.network.batch import Batch
from lineas.network.sites import Site
from lineas.responses.pooling import Part

SITE = Site("site", 4, "Identity")
MASK = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]])


def pooled(h, scale, shift, pooling="mean"):
    part = Part(Batch((), {"attention_mask": MASK}, 2), pooling)
    return part.pooled(h, -1, "", SITE, scale, shift)


@pytest.mark.parametrize("in_memory", [(0, 1, 2), (0, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_only_what_is_not_finite_is_left_out(dtype, in_memory):
    h = normal(2, 5, 4).to(dtype)
    h[0, 2, 1], h[0, 3, 2], h[1, 0, 0] = math.nan, math.inf, -math.inf
    h = h.permute(in_memory).contiguous().permute(in_memory)
    slope = normal(2, 5, 4, seed=1).to(dtype)
    slope[0, 2, 0], slope[1, 2, 3] = math.nan, math.inf
    scale, shift = normal(4, seed=2).requires_grad_(), normal(4, seed=3).requires_grad_()
    h.requires_grad_()
    out, responses = pooled(h, scale, shift)
    assert torch.equal(out.isfinite(), h.isfinite())
    assert responses.isfinite().all()

    counts = h.isfinite() & slope.isfinite()
    out.backward(slope)
    seen, slope = (torch.where(counts, x, 0).float() for x in (h.detach(), slope))
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(scale.grad, (seen * slope).sum((0, 1)), **close)
    torch.testing.assert_close(shift.grad, slope.sum((0, 1)), **close)
    torch.testing.assert_close(h.grad.float(), scale.detach() * slope, **close)


def test_where_tokens_count_nothing_is_left_out():
    h = normal(2, 5, 4)
    h[0, 1, 1] = math.inf
    scale, shift = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    out, responses = pooled(h, scale, shift)
    assert responses[0, 1] == math.inf
    slope = torch.ones_like(out)
    slope[1, 3, 2] = math.nan
    out.backward(slope)
    assert scale.grad[1] == math.inf
    assert shift.grad[2].isnan()
