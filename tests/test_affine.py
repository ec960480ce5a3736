"""The map of every channel, fused with pooling."""

import re

import pytest
import torch
from oracle import assert_matches

from lineas import _reference, ops

SHAPES = [(1, 1, 1), (2, 3, 7), (3, 5, 16), (2, 17, 33), (4, 2, 1025)]  # batch, tokens, dim: 1, odd, exact, one past
MASKS = ("none", "left", "right", "arbitrary")
POOLINGS = ("mean", "last")


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
def without_c(monkeypatch):
    """Fails a test that calls the C kernel."""

    def refuse(*arguments):
        raise AssertionError("the C kernel was called")

    monkeypatch.setattr(ops._core, "affine_pool", refuse)


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
            mapping(_reference.affine_pool, pool, first),
            inputs,
            use=use,
        )


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_contiguous_float32_runs_in_c(first, monkeypatch):
    monkeypatch.setattr(ops._reference, "affine_pool", None)
    out, pooled = ops.affine_pool(**make_inputs(2, 3, 4, first), pool=make_pool("none", 2, 3), channels_first=first)
    assert out.shape == ((2, 4, 3) if first else (2, 3, 4))
    assert pooled.shape == (2, 4)


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("mask", MASKS)
def test_the_reference_passes_gradcheck_in_float64(mask, first):
    pool = make_pool(mask, 2, 3).double()
    inputs = [x.double().requires_grad_() for x in make_inputs(2, 3, 4, first).values()]
    assert torch.autograd.gradcheck(mapping(_reference.affine_pool, pool, first), inputs)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["c", "reference"])
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


@pytest.mark.usefixtures("without_c")
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_float64_takes_the_reference_path_and_agrees(first):
    pool = make_pool("left", 3, 5).double()
    inputs = {name: x.double() for name, x in make_inputs(3, 5, 17, first).items()}
    out, pooled = ops.affine_pool(**inputs, pool=pool, channels_first=first)
    assert out.dtype == pooled.dtype == torch.float64
    assert_matches(
        mapping(ops.affine_pool, pool, first),
        mapping(_reference.affine_pool, pool, first),
        inputs,
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.usefixtures("without_c")
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_the_reference_path_and_pools_in_float32(dtype, first):
    pool = make_pool("left", 3, 5)
    inputs = make_inputs(3, 5, 17, first, dtype)
    out, pooled = ops.affine_pool(**inputs, pool=pool, channels_first=first)
    assert out.dtype == dtype
    assert pooled.dtype == torch.float32
    tolerance = torch.finfo(dtype).eps
    assert_matches(
        mapping(ops.affine_pool, pool, first), mapping(_reference.affine_pool, pool, first), inputs,
        rtol=4 * tolerance, atol=4 * tolerance,
    )  # fmt: skip


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["c", "reference"])
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
