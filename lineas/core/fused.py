"""Kernels in Triton, which comes with PyTorch for GPUs: each tensor is read once and written once.

Only `device` imports this, and only where there is such a GPU. Maps are float32, as is all arithmetic; what is written
in half precision is rounded once. Sums run in one order whatever the GPU: no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROOM = 1 << 24  # numbers that all programs may keep at a time
UNITS_AT_ONCE = 128  # of a relabelling, in a program
TILE = 2048  # numbers of a tile; a program walks over the tiles of some channels of one sample


@triton.jit
def _affine(h, out, scale, shift, count, inner, units, per_row, BY_ROW: tl.constexpr, BLOCK: tl.constexpr):
    # h as it lies in memory: a channel's numbers come `inner` at a time, a row's `per_row`.
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    unit = (i // inner) % units
    if BY_ROW:
        unit += i // per_row * units
    z = tl.load(h + i, mask=inside).to(tl.float32)
    mapped = z * tl.load(scale + unit, mask=inside) + tl.load(shift + unit, mask=inside)
    tl.store(out + i, mapped.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _affine_pool(
    h, out, scale, shift, pool, pooled, tokens, units,
    h_row, h_token, h_unit, out_row, out_token, out_unit, TOKENS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    known = c < units
    w, b = tl.load(scale + c, mask=known, other=0.0), tl.load(shift + c, mask=known, other=0.0)
    total, counted = tl.zeros((TOKENS, UNITS), tl.float32), 0.0  # reduced once, behind the loop
    for start in range(0, tokens, TOKENS):
        t = start + tl.arange(0, TOKENS)
        inside = (t < tokens)[:, None] & known[None, :]
        at = h + row * h_row + t[:, None] * h_token + c[None, :] * h_unit
        z = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        p = tl.load(pool + row * tokens + t, mask=t < tokens, other=0.0)
        to = out + row * out_row + t[:, None] * out_token + c[None, :] * out_unit
        tl.store(to, (z * w[None, :] + b[None, :]).to(out.dtype.element_ty), mask=inside)
        total += tl.where(p[:, None] != 0, z, 0.0) * p[:, None]
        counted += tl.sum(p, 0)
    tl.store(pooled + row * units + c, w * tl.sum(total, 0) + b * counted, mask=known)


@triton.jit(do_not_specialize=["rows"])
def _affine_pool_grad(
    grad_out, grad_pooled, h, scale, pool, grad_h, sums, rows, tokens, units,
    g_row, g_token, g_unit, h_row, h_token, h_unit, to_row, to_token, to_unit,
    HAS_OUT: tl.constexpr, WANTS_H: tl.constexpr, TOKENS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    known = c < units
    w = tl.load(scale + c, mask=known, other=0.0)
    of_pooled = tl.load(grad_pooled + row * units + c, mask=known, other=0.0)
    of_scale, of_shift = tl.zeros((TOKENS, UNITS), tl.float32), tl.zeros((TOKENS, UNITS), tl.float32)
    for start in range(0, tokens, TOKENS):
        t = start + tl.arange(0, TOKENS)
        inside = (t < tokens)[:, None] & known[None, :]
        at = h + row * h_row + t[:, None] * h_token + c[None, :] * h_unit
        z = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        p = tl.load(pool + row * tokens + t, mask=t < tokens, other=0.0)
        slope = p[:, None] * of_pooled[None, :]
        of_scale += tl.where(p[:, None] != 0, z, 0.0) * slope
        if HAS_OUT:
            come = grad_out + row * g_row + t[:, None] * g_token + c[None, :] * g_unit
            g = tl.load(come, mask=inside, other=0.0).to(tl.float32)
            of_scale += g * z
            slope += g
        of_shift += slope
        if WANTS_H:
            to = grad_h + row * to_row + t[:, None] * to_token + c[None, :] * to_unit
            tl.store(to, (w[None, :] * slope).to(grad_h.dtype.element_ty), mask=inside)
    tl.store(sums + row * units + c, tl.sum(of_scale, 0), mask=known)
    tl.store(sums + (rows + row) * units + c, tl.sum(of_shift, 0), mask=known)


@triton.jit(do_not_specialize=["samples", "sources", "parts", "relabellings", "units"])
def _relabelled(
    values, order, labels, of_source, of_target, mass, room, costs, samples, sources, parts, relabellings, units,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # A program deals the sorted samples of some units into its own room, sources first, and then walks over the parts.
    lane, blocks = tl.arange(0, BLOCK), tl.cdiv(units, BLOCK)
    own = room + tl.program_id(0).to(tl.int64) * samples * BLOCK + lane
    for item in range(tl.program_id(0), relabellings * blocks, tl.num_programs(0)):
        r, c = item // blocks, item % blocks * BLOCK + lane
        known = c < units
        seen = tl.zeros((BLOCK,), tl.int32)
        for j in range(0, samples):
            sample = tl.load(order + j * units + c, mask=known, other=0)
            is_source = tl.load(labels + r * samples + sample, mask=known, other=0).to(tl.int32)
            place = tl.where(is_source != 0, seen, sources + j - seen)
            tl.store(own + place * BLOCK, tl.load(values + j * units + c, mask=known, other=0.0), mask=known)
            seen += is_source
        tl.debug_barrier()
        cost = tl.zeros((BLOCK,), tl.float32)
        for k in range(0, parts):
            x = tl.load(own + tl.load(of_source + k) * BLOCK, mask=known, other=0.0)
            y = tl.load(own + (sources + tl.load(of_target + k)) * BLOCK, mask=known, other=0.0)
            cost += tl.load(mass + k) * (x - y) * (x - y)
        tl.store(costs + r.to(tl.int64) * units + c, cost, mask=known)
        tl.debug_barrier()


def affine(h: Tensor, scale: Tensor, shift: Tensor, dim: int) -> Tensor:
    """h, dense in memory with channels in `dim`, mapped by scale and shift (units,), or (rows, units) by row."""
    out, block = torch.empty_like(h), TILE
    by_row = scale.ndim == 2
    with torch.cuda.device_of(h):
        _affine[(triton.cdiv(h.numel(), block),)](
            h, out, scale, shift, h.numel(), h.stride(dim), h.shape[dim], h.stride(0), BY_ROW=by_row, BLOCK=block,
            num_warps=8,
        )  # fmt: skip
    return out


def affine_pool(h: Tensor, scale: Tensor, shift: Tensor, pool: Tensor, channels_first: bool) -> tuple[Tensor, Tensor]:
    """As `ops.affine_pool`; h in any layout."""
    rows, tokens, units = _sizes(h, channels_first)
    out, pooled = torch.empty_like(h), torch.empty(rows, units, dtype=torch.float32, device=h.device)
    tile, grid = _tiling(h, channels_first)
    with torch.cuda.device_of(h):
        _affine_pool[grid](
            h, out, scale, shift, pool, pooled, tokens, units,
            *_strides(h, channels_first), *_strides(out, channels_first), **tile,
        )  # fmt: skip
    return out, pooled


def affine_pool_grad(
    grad_out: Tensor | None, grad_pooled: Tensor, h: Tensor, scale: Tensor, pool: Tensor, channels_first: bool,
    wants_h: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """The gradients for h, if it wants one, scale and shift."""
    rows, tokens, units = _sizes(h, channels_first)
    grad_h = torch.empty_like(h) if wants_h else h
    sums = torch.empty(2, rows, units, dtype=torch.float32, device=h.device)
    come = h if grad_out is None else grad_out
    tile, grid = _tiling(h, channels_first)
    with torch.cuda.device_of(h):
        _affine_pool_grad[grid](
            come, grad_pooled, h, scale, pool, grad_h, sums, rows, tokens, units,
            *_strides(come, channels_first), *_strides(h, channels_first), *_strides(grad_h, channels_first),
            HAS_OUT=grad_out is not None, WANTS_H=wants_h, **tile,
        )  # fmt: skip
    of_scale, of_shift = sums.sum(1)
    return grad_h if wants_h else None, of_scale, of_shift


def relabelled_costs(
    pooled: Tensor, labels: Tensor, sources: int, parts: tuple[Tensor, Tensor, Tensor]
) -> Tensor:  # fmt: skip
    """W_2^2 of every unit where the samples pooled (n + m, d) are sources as each row of labels (k, n + m) uint8 says
    -> (k, d). `parts`: (i, j, mass), of which sorted source meets which sorted target, int32, int32 and float32."""
    values, order = pooled.sort(dim=0)
    samples, units = pooled.shape
    processors = torch.cuda.get_device_properties(pooled.device).multi_processor_count if pooled.is_cuda else 1
    programs = max(1, min(8 * processors, ROOM // (samples * UNITS_AT_ONCE)))
    room = torch.empty(programs * samples * UNITS_AT_ONCE, dtype=torch.float32, device=pooled.device)
    costs = torch.empty(len(labels), units, dtype=torch.float32, device=pooled.device)
    with torch.cuda.device_of(pooled):
        _relabelled[(programs,)](
            values, order.int(), labels, *parts, room, costs, samples, sources, len(parts[0]), len(labels), units,
            BLOCK=UNITS_AT_ONCE,
        )  # fmt: skip
    return costs


def _sizes(h: Tensor, channels_first: bool) -> tuple[int, int, int]:
    """Rows, tokens and units."""
    rows, *others = h.shape
    return rows, *(reversed(others) if channels_first else others)


def _strides(h: Tensor, channels_first: bool) -> tuple[int, int, int]:
    """From row to row, token to token and unit to unit."""
    row, *others = h.stride()
    return row, *(reversed(others) if channels_first else others)


def _tiling(h: Tensor, channels_first: bool) -> tuple[dict[str, int], tuple[int, int]]:
    """Tiles that are long where memory runs, and a program for each sample and so many channels."""
    rows, tokens, units = _sizes(h, channels_first)
    _, token, unit = _strides(h, channels_first)
    long, short = (units, tokens) if unit <= token else (tokens, units)
    width = min(triton.next_power_of_2(long), 128)
    height = min(triton.next_power_of_2(short), TILE // width)
    in_units, in_tokens = (width, height) if unit <= token else (height, width)
    return {"UNITS": in_units, "TOKENS": in_tokens}, (rows, triton.cdiv(units, in_units))
