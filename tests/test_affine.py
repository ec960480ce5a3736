"""The map of every channel, fused with pooling."""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import normal
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_matches, bounded

from lineas.core import ops, reference
from lineas.network.data import Batch
from lineas.network.sites import Site
from lineas.responses.pooling import Part

SHAPES = [(1, 1, 1), (2, 3, 7), (3, 5, 16), (2, 17, 33), (4, 2, 4097)]  # batch, tokens, dim: 1, odd, exact, one past
MASKS = ("none", "left", "right", "arbitrary")
POOLINGS = ("mean", "last")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALVES = DTYPES[2:]


def pooled(h, dim, mask, pooling, site, scale, shift):
    """The map and the responses of one site, as a fit asks for them."""
    batch = Batch((), {} if mask is None else {"attention_mask": mask}, len(h))
    return Part(batch, pooling).pooled(h, dim, "", site, scale, shift)


def make_mask(kind: str, batch: int, tokens: int) -> torch.Tensor:
    """1 for tokens that count; every sample has at least one."""
    generator = torch.Generator().manual_seed(batch + tokens)
    lengths = torch.randint(1, tokens + 1, (batch, 1), generator=generator)
    at = torch.arange(tokens)
    mask = {
        "none": torch.ones(batch, tokens),
        "left": (at >= tokens - lengths).float(),
        "right": (at < lengths).float(),
        "arbitrary": (torch.rand(batch, tokens, generator=generator) < 0.5).float(),
    }[kind]
    mask[:, tokens // 2] = 1 if kind == "arbitrary" else mask[:, tokens // 2]
    return mask


def make_pool(kind: str, batch: int, tokens: int, pooling: str = "mean") -> torch.Tensor:
    mask = make_mask(kind, batch, tokens)
    if pooling == "mean":
        return mask / mask.sum(1, keepdim=True)
    return torch.nn.functional.one_hot(tokens - 1 - mask.flip(1).argmax(1), tokens).float()


def make_inputs(batch: int, tokens: int, dim: int, first: bool, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch * tokens + dim)
    shape = (batch, dim, tokens) if first else (batch, tokens, dim)
    h, scale, shift = (torch.randn(s, generator=generator) for s in (shape, (dim,), (dim,)))
    return {"h": h.to(dtype), "scale": 1 + scale / 2, "shift": shift}


def mapping(function, pool, first, **options):
    return lambda h, scale, shift: function(h, scale, shift, pool.to(scale.dtype), channels_first=first, **options)


@pytest.fixture
def in_c(monkeypatch):
    """Fails a test that takes the reference path."""

    def refuse(*arguments):
        raise AssertionError("the reference was called")

    monkeypatch.setattr(ops, "device", SimpleNamespace(affine_pool=refuse, affine_sparse=refuse))


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_affine_pool_matches_the_reference_in_value_and_gradient(shape, mask, pooling, first):
    pool = make_pool(mask, *shape[:2], pooling)
    inputs = make_inputs(*shape, first)
    for use in (None, [0], [1]):  # both outputs go on, only the mapped activations do, only the response does
        assert_matches(
            mapping(ops.affine_pool, pool, first, threads=2),
            mapping(reference.affine_pool, pool, first),
            inputs,
            use=use,
        )


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("mask", MASKS)
def test_the_reference_passes_gradcheck_in_float64(mask, first):
    pool = make_pool(mask, 2, 3).double()
    inputs = [x.double().requires_grad_() for x in make_inputs(2, 3, 4, first).values()]
    assert torch.autograd.gradcheck(mapping(reference.affine_pool, pool, first), inputs)


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_affine_pool_by_hand(first):
    h = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]])
    pool = torch.tensor([[0.5, 0.5, 0.0]])
    given = h.transpose(1, 2).contiguous() if first else h
    out, pooled = ops.affine_pool(given, torch.tensor([2.0, 0.1]), torch.tensor([1.0, 0.0]), pool, channels_first=first)
    out = out.transpose(1, 2) if first else out
    assert torch.equal(out, torch.tensor([[[3.0, 1.0], [5.0, 2.0], [9.0, 4.0]]]))
    assert torch.equal(pooled, torch.tensor([[4.0, 1.5]]))


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("mask", ["left", "right", "arbitrary"])
def test_infinity_in_padding_reaches_neither_responses_nor_their_gradients(mask, bad, dtype, first):
    pool = make_pool(mask, 4, 9).to(dtype)
    inputs = [x.to(dtype) for x in make_inputs(4, 9, 17, first).values()]
    padding = (pool == 0).unsqueeze(1 if first else 2).expand_as(inputs[0])
    assert padding.any()
    results = []
    for filler in (0.0, bad):
        filled = torch.where(padding, filler, inputs[0])
        h, scale, shift = (x.clone().requires_grad_() for x in (filled, *inputs[1:]))
        _, pooled = ops.affine_pool(h, scale, shift, pool, channels_first=first)
        (pooled * torch.arange(17)).sum().backward()
        results.append((pooled.detach(), h.grad, scale.grad, shift.grad))
    for clean, dirty in zip(*results, strict=True):
        assert dirty.isfinite().all()
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_infinity_in_padding_reaches_no_gradient_where_later_layers_ignore_it_too(first):
    pool = make_pool("left", 4, 9)
    inputs = make_inputs(4, 9, 17, first)
    padding = (pool == 0).unsqueeze(1 if first else 2).expand_as(inputs["h"])
    inputs["h"][padding] = float("inf")
    given = {name: x.requires_grad_() for name, x in inputs.items()}
    out, pooled = ops.affine_pool(**given, pool=pool, channels_first=first)
    assert torch.equal(out.isinf(), padding)
    (out[~padding].sum() + pooled.sum()).backward()
    for name, x in given.items():
        assert x.grad.isfinite().all(), name


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_gradients_are_zero_where_the_response_does_not_look(first):
    inputs = {name: x.requires_grad_() for name, x in make_inputs(4, 9, 17, first).items()}
    pool = make_pool("right", 4, 9, "last")
    _, pooled = ops.affine_pool(**inputs, pool=pool, channels_first=first)
    pooled.sum().backward()
    grad = inputs["h"].grad if not first else inputs["h"].grad.transpose(1, 2)
    assert ((grad != 0).all(2) == (pool != 0)).all()


# ---- every precision ----


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit, except that a NaN is a NaN, whichever."""
    numbers = ~(a.isnan() & b.isnan())
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind)[numbers], b.view(kind)[numbers])


@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4100, 3)], ids=str)
def test_every_precision_runs_in_c_and_matches_the_reference_in_float64(shape, dtype, first):
    pool = make_pool("left", *shape[:2])
    inputs = make_inputs(*shape, first, dtype)
    precision = torch.promote_types(dtype, torch.float32)
    inputs = {name: x if name == "h" else x.to(precision) for name, x in inputs.items()}
    h, *maps = (x.clone().requires_grad_() for x in inputs.values())
    out, pooled = ops.affine_pool(h, *maps, pool, channels_first=first)
    (out.double() * torch.arange(out.numel()).view(out.shape).cos()).sum().add((pooled**2).sum()).backward()
    exact, *exact_maps = (x.double().requires_grad_() for x in inputs.values())
    right, right_pooled = reference.affine_pool(exact, *exact_maps, pool.double(), first)
    slope = torch.arange(out.numel()).view(out.shape).cos().to(dtype).double()  # as it reaches the map: rounded
    (right * slope).sum().add((right_pooled**2).sum()).backward()
    assert out.dtype == h.grad.dtype == dtype
    assert pooled.dtype == maps[0].grad.dtype == maps[1].grad.dtype == precision
    rounded, sums = torch.finfo(dtype).eps, 40 * torch.finfo(precision).eps
    torch.testing.assert_close(out.double(), right, rtol=rounded, atol=sums)
    torch.testing.assert_close(h.grad.double(), exact.grad, rtol=rounded, atol=max(sums, 1e-7))
    torch.testing.assert_close(pooled.double(), right_pooled, rtol=sums, atol=sums)
    for got, expected in zip(maps, exact_maps, strict=True):
        torch.testing.assert_close(got.grad.double(), expected.grad, rtol=sums, atol=sums * shape[0] * shape[1])


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_have_the_bits_of_the_reference_in_value_and_gradient(dtype, first):
    inputs, pool = make_inputs(3, 5, 70, first, dtype), make_pool("left", 3, 5)
    results = []
    for function in (ops.affine_pool, reference.affine_pool):
        h, scale, shift = (x.clone().requires_grad_() for x in inputs.values())
        out, _ = function(h, scale, shift, pool, channels_first=first)
        slope = torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)
        (grad,) = torch.autograd.grad(out, h, slope)
        results.append((out, grad))
    for ours, right in zip(*results, strict=True):
        assert same_bits(ours, right)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_loaded_and_saved_exactly(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 1, -1)
    out, pooled = ops.affine_pool(every, torch.ones(2**16), torch.full((2**16,), -0.0), torch.ones(1, 1))
    assert same_bits(out, every)
    assert same_bits(pooled.view(1, 1, -1) - 0.0, every.float() + 0.0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_floats_are_rounded_to_halves_as_torch_does(dtype):
    """Every upper half of a float with the lower halves around which the rounding turns: ties, overflow, subnormals."""
    lower = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (torch.arange(-(2**15), 2**15).view(-1, 1) * 2**16 + lower).flatten().int()
    floats = bits.view(torch.float32)
    ones = torch.ones(1, 1, len(floats), dtype=dtype)
    out, _ = ops.affine_pool(ones, floats, torch.full_like(floats, -0.0), torch.ones(1, 1))
    assert same_bits(out.flatten(), floats.to(dtype))


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_are_pooled_before_they_are_rounded(dtype, first):
    h = torch.ones((1, 1, 4) if first else (1, 4, 1), dtype=dtype)
    _, pooled = ops.affine_pool(
        h, torch.tensor([1.0]), torch.tensor([1e-5]), torch.full((1, 4), 0.25), channels_first=first
    )
    torch.testing.assert_close(pooled, torch.tensor([[1.00001]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_in_every_precision_do_not_depend_on_threads(dtype, first):
    inputs, pool = make_inputs(5, 9, 1100, first, dtype), make_pool("arbitrary", 5, 9)
    results = []
    for threads in (1, 2, 3, 8, 16):
        given = [x.clone().requires_grad_() for x in inputs.values()]
        out, pooled = ops.affine_pool(*given, pool, channels_first=first, threads=threads)
        (out.float().square().sum() + pooled.square().sum()).backward()
        results.append([out, pooled, *(x.grad for x in given)])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@bounded
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 40)),
    dtype=st.sampled_from(DTYPES),
    first=st.booleans(),
    filler=st.sampled_from([float("inf"), float("-inf"), float("nan")]),
    seed=st.integers(0, 99),
)
def test_what_padding_holds_changes_nothing(shape, dtype, first, filler, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape[:2], generator=generator) < 0.6
    pool = mask.float() / mask.sum(1, keepdim=True).clamp(min=1)
    h, scale, shift = make_inputs(*shape, first, dtype).values()
    padding = ~mask.unsqueeze(1 if first else 2).expand(h.shape)
    results = []
    for filled in (h, torch.where(padding, filler, h)):
        given = [x.clone().requires_grad_() for x in (filled, scale, shift)]
        out, pooled = ops.affine_pool(*given, pool, channels_first=first)
        (out[~padding].double().sum() + pooled.double().square().sum()).backward()
        results.append([pooled.detach(), *(x.grad for x in given)])
    for clean, dirty in zip(*results, strict=True):
        assert dirty.isfinite().all()
        assert torch.equal(clean, dirty)


# ---- layouts ----


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
    assert same_bits(out, reference.affine(h, scale, shift, dim))
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


# ---- some channels, in place ----


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
        assert same_bits(given, right)
    assert not same_bits(h, right)
    assert same_bits(ops.affine_sparse_(h.clone(), support[:0], scale[:0], shift[:0]), h)


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


# ---- anything else ----


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_what_is_not_contiguous_is_mapped_as_if_it_were(first):
    h, scale, shift = make_inputs(3, 6, 10, first).values()
    pool = make_pool("left", 3, 6)
    right, right_pooled = ops.affine_pool(h, scale, shift, pool, channels_first=first)
    strided = {
        "transposed": (h.transpose(1, 2).contiguous().transpose(1, 2), scale, shift, pool),
        "every second": (h.repeat_interleave(2, dim=2)[:, :, ::2], torch.stack([scale, scale], 1)[:, 0], shift, pool),
        "transposed pool": (h, scale, shift, pool.T.contiguous().T),
    }
    for name, tensors in strided.items():
        assert not all(x.is_contiguous() for x in tensors), name
        leaf = tensors[0].detach().requires_grad_()
        out, pooled = ops.affine_pool(leaf, *tensors[1:], channels_first=first)
        assert torch.equal(out, right), name
        assert torch.equal(pooled, right_pooled), name
        out.transpose(0, 1).square().sum().backward()
        shape = (1, -1, 1) if first else (-1,)
        torch.testing.assert_close(leaf.grad, 2 * out.detach() * scale.view(shape))


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_incoming_gradients_need_not_be_contiguous(first):
    given = {name: x.requires_grad_() for name, x in make_inputs(3, 6, 10, first).items()}
    out, pooled = ops.affine_pool(**given, pool=make_pool("none", 3, 6), channels_first=first)
    (out.sum() + 2 * pooled.sum()).backward()  # the gradients of a sum are one number, expanded
    torch.testing.assert_close(given["shift"].grad, torch.full((10,), 3 * 6 + 2.0 * 3))


def test_the_identity_map_returns_the_activations_bit_by_bit():
    h = make_inputs(3, 6, 10, False)["h"]
    out, _ = ops.affine_pool(h, torch.ones(10), torch.zeros(10), make_pool("none", 3, 6))
    assert torch.equal(out, h)


def test_no_input_changes():
    inputs = {**make_inputs(3, 6, 10, False), "pool": make_pool("left", 3, 6)}
    before = {name: x.clone() for name, x in inputs.items()}
    given = {name: x.requires_grad_(name != "pool") for name, x in inputs.items()}
    sum(x.sum() for x in ops.affine_pool(**given)).backward()
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("wrong", ["h", "scale", "shift", "pool", "transposed pool"])
def test_shapes_that_disagree_are_all_in_the_message(wrong, first, dtype):
    given = {**make_inputs(2, 3, 5, first), "pool": make_pool("none", 2, 3)}
    if wrong == "transposed pool":
        given["pool"] = given["pool"].T
    elif wrong == "h":
        given["h"] = given["h"][0]
    else:
        given[wrong] = torch.cat([given[wrong], given[wrong]])
    given = {name: x.to(dtype) for name, x in given.items()}
    layout = "(batch, dim, tokens)" if first else "(batch, tokens, dim)"
    with pytest.raises(ValueError, match=re.escape(f"expected h {layout}")) as caught:
        ops.affine_pool(**given, channels_first=first)
    for name, x in given.items():
        assert f"{name} {tuple(x.shape)}" in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_an_impossible_number_of_threads_is_refused(threads):
    with pytest.raises(ValueError, match=f"threads: expected 1 to 4096, got {threads}"):
        ops.affine_pool(**make_inputs(2, 3, 5, False), pool=make_pool("none", 2, 3), threads=threads)
