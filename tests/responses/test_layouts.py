"""Responses of modules whose outputs lie in memory in any way: nothing is copied, and the map keeps the layout."""

import pytest
import torch
from conftest import normal
from oracle import DTYPES, make_mask, same_tensor

from lineas.core import ops, reference
from lineas.network.batch import Batch
from lineas.network.sites import Site
from lineas.responses.pooling import Part


def pooled(h, dim, mask, pooling, site, scale, shift):
    """The map and the responses of one site, as a fit asks for them."""
    batch = Batch((), {} if mask is None else {"attention_mask": mask}, len(h))
    return Part(batch, pooling).pooled(h, dim, "", site, scale, shift)


@pytest.fixture
def copies(monkeypatch):
    """The shapes of what the map copied because it was not contiguous."""
    seen, contiguous = [], torch.Tensor.contiguous

    def spy(x, *arguments, **options):
        result = contiguous(x, *arguments, **options)
        if result.data_ptr() != x.data_ptr():
            seen.append(tuple(x.shape))
        return result

    monkeypatch.setattr(torch.Tensor, "contiguous", spy)
    return seen


LAYOUTS = {  # what a module returns, and the dimension of its channels
    "one token": (lambda: normal(3, 7), -1),
    "tokens": (lambda: normal(3, 5, 7), -1),
    "tokens, channels first": (lambda: normal(3, 7, 5), 1),
    "tokens, transposed": (lambda: normal(3, 7, 5).transpose(1, 2), -1),
    "image": (lambda: normal(3, 7, 2, 4), 1),
    "image in channels_last": (lambda: normal(3, 7, 2, 4).to(memory_format=torch.channels_last), 1),
    "image of a layer norm": (lambda: normal(3, 2, 4, 7), -1),
    "volume": (lambda: normal(3, 7, 2, 2, 2), 1),
}


@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_is_copied_and_the_map_lies_in_memory_as_its_input(layout, dtype, copies, monkeypatch):
    make, dim = LAYOUTS[layout]
    h = make().to(dtype)
    seen, kernel = [], ops._core.affine_pool
    monkeypatch.setattr(ops._core, "affine_pool", lambda h, *rest: [seen.append(h.ctypes.data), kernel(h, *rest)][1])
    scale, shift = (1 + normal(7, seed=1)).requires_grad_(), normal(7, seed=2).requires_grad_()
    leaf = h.detach().requires_grad_()
    out, responses = pooled(leaf, dim, None, "mean", Site("x", None, "Any"), scale, shift)
    assert seen == [h.data_ptr()]
    assert out.shape == h.shape
    assert out.stride() == h.stride()
    assert same_tensor(out, reference.affine(h, scale, shift, dim))
    units = h.movedim(dim, -1).reshape(3, -1, 7).double()
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(responses.double(), (units * scale + shift).mean(1), **tolerance)
    slope = torch.empty_like(h).copy_(normal(*h.shape, seed=3))
    grads = torch.autograd.grad((out, responses), (leaf, scale, shift), (slope, torch.ones_like(responses)))
    assert not copies or max(map(len, copies)) < 3, f"copied: {copies}"
    g = slope.double() + units.shape[1] ** -1
    by_unit = g.movedim(dim, -1).reshape(units.shape)
    eps = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(grads[0].double(), (g.movedim(dim, -1) * scale).movedim(-1, dim), rtol=eps, atol=1e-6)
    torch.testing.assert_close(grads[1].double(), (by_unit * units).sum((0, 1)), **tolerance)
    torch.testing.assert_close(grads[2].double(), by_unit.sum((0, 1)), **tolerance)


def test_a_mask_counts_tokens_of_a_transposed_sequence_and_no_pixels():
    h, mask = normal(3, 7, 5).transpose(1, 2), make_mask("left", 3, 5)
    ones, zeros, site = torch.ones(7), torch.zeros(7), Site("x", None, "Any")
    _, responses = pooled(h, -1, mask, "mean", site, ones, zeros)
    torch.testing.assert_close(responses, (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    _, responses = pooled(normal(3, 7, 2, 4), 1, mask, "mean", site, ones, zeros)
    torch.testing.assert_close(responses, normal(3, 7, 2, 4).mean((2, 3)))
