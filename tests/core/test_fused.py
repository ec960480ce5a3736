"""The kernels of a GPU by Triton's interpreter, which needs none: their twins in value and gradient.

Skipped without Triton, which comes with PyTorch for GPUs only; `project/test_gpu` runs them where they belong.
"""

import textwrap
from importlib.util import find_spec

import pytest
from oracle import run_python

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton here")

POOLED = """
    import itertools, torch
    from lineas.core import fused, reference

    torch.manual_seed(0)
    sizes = (3, 5, 7), (2, 33, 130), (4, 1, 16), (1, 300, 8)
    for dtype, first, (n, tokens, units) in itertools.product((torch.float32, torch.bfloat16), (0, 1), sizes):
        h = torch.randn((n, units, tokens) if first else (n, tokens, units)).to(dtype)
        w, b, pool = torch.randn(units), torch.randn(units), torch.rand(n, tokens)
        pool[0, 0] = 0
        leaves = [x.double().requires_grad_() for x in (h, w, b)]
        out, pooled = reference.affine_pool(*leaves, pool.double(), first)
        slopes = torch.randn_like(out).to(dtype), torch.randn_like(pooled).float()
        for some in (slopes, (None, slopes[1])):
            given = [(x, s.double()) for x, s in zip((out, pooled), some) if s is not None]
            outputs, steep = zip(*given)
            expected = torch.autograd.grad(outputs, leaves, steep, retain_graph=True)
            ours = [*fused.affine_pool(h, w, b, pool, first), *fused.affine_pool_grad(*some, h, w, pool, first, True)]
            for x, y in zip(ours, (out, pooled, *expected)):
                assert (x.double() - y).norm() <= 4 * torch.finfo(dtype).eps * y.norm()
            assert fused.affine_pool_grad(*some, h, w, pool, first, False)[0] is None
"""
MAPPED = """
    import torch
    from lineas.core import fused

    torch.manual_seed(0)
    for rows in (1, 3):
        w, b = torch.randn(rows, 7), torch.randn(rows, 7)
        maps = (w[0], b[0]) if rows == 1 else (w, b)
        for layout in (torch.contiguous_format, torch.channels_last):
            h = torch.randn(3, 7, 4, 5).contiguous(memory_format=layout)
            found = fused.affine(h, *maps, 1)
            torch.testing.assert_close(found, h * w[:, :, None, None] + b[:, :, None, None])
            assert found.stride() == h.stride()
        h = torch.randn(3, 5, 7).bfloat16()
        torch.testing.assert_close(fused.affine(h, *maps, 2), (h * w[:, None] + b[:, None]).bfloat16())
"""
RELABELLED = """
    import numpy as np
    from lineas.core import device, fused
    from lineas.ot import null

    for n, m, units in ((4, 4, 5), (5, 3, 130), (32, 32, 9), (1, 7, 3)):
        x, y = (np.random.default_rng(k).normal(size=(size, units)).astype("f4") for k, size in enumerate((n, m)))
        y[:, 0] = x[0, 0]
        labels, pooled = null._relabellings(n, m, 20, 0), np.concatenate([x, y])
        found = device.permutation_null(fused, pooled, labels, n, 21, "cpu")
        for ours, theirs in zip(found, null.permutation_null(x, y, n_permutations=20)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        device.COSTS = 50  # a few units at a time
        again, device.COSTS = device.permutation_null(fused, pooled, labels, n, 21, "cpu"), 1 << 26
        np.testing.assert_allclose(again, found, rtol=1e-12)
"""


@pytest.mark.parametrize("script", [POOLED, MAPPED, RELABELLED], ids=["affine_pool", "affine", "null"])
def test_kernels_are_their_twins(script):
    run_python(textwrap.dedent(script), TRITON_INTERPRET="1")
