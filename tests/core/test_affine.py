"""The map of every channel, fused with pooling."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import DTYPES, assert_matches, bounded, make_mask, same_tensor

from lineas.core import device, ops, reference

SHAPES = [(1, 1, 1), (2, 3, 7), (3, 5, 16), (2, 17, 33), (4, 2, 4097)]  # batch, tokens, dim: 1, odd, exact, one past
MASKS = ("none", "left", "right", "arbitrary")
POOLINGS = ("mean", "last")
HALVES = DTYPES[2:]


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
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_other_devices_run_matches_the_reference_in_value_and_gradient(shape, mask, first, monkeypatch):
    monkeypatch.setattr(ops, "runs_in_c", lambda *tensors: False)
    pool, inputs = make_pool(mask, *shape[:2]), make_inputs(*shape, first)
    for use in (None, [0], [1]):
        assert_matches(
            mapping(ops.affine_pool, pool, first), mapping(reference.affine_pool, pool, first), inputs, use=use
        )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_other_devices_run_computes_halves_in_float32_and_rounds_once(dtype):
    pool, inputs = make_pool("right", 3, 5), make_inputs(3, 5, 16, False, dtype)
    got, expected = (run.affine_pool(**inputs, pool=pool) for run in (device, reference))
    assert [x.dtype for x in got] == [dtype, torch.float32]
    assert same_tensor(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])


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
        assert same_tensor(ours, right)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_loaded_and_saved_exactly(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 1, -1)
    out, pooled = ops.affine_pool(every, torch.ones(2**16), torch.full((2**16,), -0.0), torch.ones(1, 1))
    assert same_tensor(out, every)
    assert same_tensor(pooled.view(1, 1, -1) - 0.0, every.float() + 0.0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_floats_are_rounded_to_halves_as_torch_does(dtype):
    """Every upper half of a float with the lower halves around which the rounding turns: ties, overflow, subnormals."""
    lower = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (torch.arange(-(2**15), 2**15).view(-1, 1) * 2**16 + lower).flatten().int()
    floats = bits.view(torch.float32)
    ones = torch.ones(1, 1, len(floats), dtype=dtype)
    out, _ = ops.affine_pool(ones, floats, torch.full_like(floats, -0.0), torch.ones(1, 1))
    assert same_tensor(out.flatten(), floats.to(dtype))


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
        assert all(same_tensor(a.detach(), b.detach()) for a, b in zip(result, results[0], strict=True))


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
